"""All methods by name under one protocol: the main table.

    python -m experiments.systems --data path/to/folder
    python -m experiments.systems --data path/to/folder --only digits

Every method of ``fb.methods`` on digits, UTKFace (gender by race x gender) and CelebA (blond hair
by gender), single weights and whole filters: five folds of digits, three of faces, small networks
and short budgets, so that two cores do it. Writes ``results/systems/``; goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping

from experiments._comparison import run_presets
from experiments._presets import PRESETS
from experiments._summaries import Summary, dense_of
from experiments._write import points
from fairbilevel import _numbers
from fairbilevel.methods import NAMES


def main_table(summaries: Mapping[str, Summary]) -> list[str]:
    """A row a method: accuracy on test and spread of excess gaps, by setting."""
    settings = list(summaries)
    head = ["| method |", "|---|"]
    for name in settings:
        lines = summaries[name]["lines"]
        head[0] += f" {name}, {_numbers.share(lines[-1]['sparsity'])}: accuracy | spread |"
        head[1] += "---|---|"
    out = list(head)
    for method in ("dense", *NAMES):
        cells = []
        for name in settings:
            found = [x for x in summaries[name]["lines"] if x["method"] == method]
            if not found:
                cells += ["", ""]
                continue
            spread = found[0].get("spread_test")
            cells += [
                _numbers.points(found[0]["test_accuracy"])
                + (" ✗" if found[0]["failed"] else " ∎" if found[0].get("constant") else ""),
                "" if spread is None else f"{1e4 * spread:.1f}",
            ]
        if any(cells):
            out.append(f"| {method} | {' | '.join(cells)} |")
    counts = ", ".join(f"{name} {summaries[name]['repetitions']}" for name in settings)
    return [
        *out,
        "",
        "Accuracy on test in per cent; spread: noise-free spread of excess gaps in points squared, "
        f"0 where groups lose alike, below it by noise. Folds: {counts}: this describes and claims "
        "nothing. ✗: runs that diverged or cut the network, ∎: networks that give every "
        "row the same answer; both counted in.",
    ]


def reading(summaries: Mapping[str, Summary]) -> list[str]:
    """A main table of single weights and one of filters, each with the ends of its columns in
    sentences computed from it."""
    by_unit = {
        "Single weights": {n: s for n, s in summaries.items() if not n.endswith("-filters")},
        "Whole filters": {n: s for n, s in summaries.items() if n.endswith("-filters")},
    }
    out = []
    for title, some in by_unit.items():
        if some:
            out += [f"## {title}", "", *main_table(some), "", *_ends(some), ""]
    return out[:-1]


def _ends(summaries: Mapping[str, Summary]) -> list[str]:
    out = []
    for name, summary in summaries.items():
        lines = [x for x in summary["lines"] if x["method"] != "dense"]
        dense = dense_of(summary)
        by_accuracy = sorted(lines, key=lambda x: -x["test_accuracy"])
        by_spread = sorted(lines, key=lambda x: x["spread_test"])
        beyond = [x["method"] for x in lines if x["floor_p"] < 0.05]
        told = ", ".join(f"{x['method']} {points(x['test_accuracy'])}" for x in by_accuracy[:3])
        worst = ", ".join(f"{x['method']} {points(x['test_accuracy'])}" for x in by_accuracy[-3:])
        fair = ", ".join(f"{x['method']} {1e4 * x['spread_test']:.2f}" for x in by_spread[:3])
        out.append(
            f"- {name}, {_numbers.share(lines[0]['sparsity'])} removed, "
            f"{summary['repetitions']} folds, dense {points(dense['test_accuracy'])} %. "
            f"Most accurate on test: {told}; least: {worst}. Least spread of excess gaps "
            f"(points²): {fair}. Damage to groups beyond permuted labels "
            f"(5 %, unadjusted): {', '.join(beyond) or 'none'}."
        )
    return out


if __name__ == "__main__":
    run_presets(
        "systems",
        __doc__,
        PRESETS["systems"],
        reading,
        {
            "test_accuracy": "accuracy on test (%)",
            "test_max_excess_gap": "largest excess gap (points)",
        },
    )
