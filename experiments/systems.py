"""All methods by name under one protocol: the main table.

    python -m experiments.systems --data path/to/folder
    python -m experiments.systems --data path/to/folder --only digits

Every method of ``fb.methods`` on digits, UTKFace (gender by race x gender) and CelebA (blond hair
by gender), single weights and whole filters: five folds of digits, three of faces, small networks
and short budgets, so that two cores do it. Writes ``results/systems/``; goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping

from experiments._comparison import Summary, dense_of, run_presets
from experiments._write import points
from fairbilevel import _numbers
from fairbilevel.methods import NAMES


def main_table(summaries: Mapping[str, Summary]) -> list[str]:
    """A row a method: accuracy on test and spread of excess gaps, by setting."""
    ends = (f"{n}, {_numbers.share(s['lines'][-1]['sparsity'])}" for n, s in summaries.items())
    out = [
        "| method |" + "".join(f" {end}: accuracy | spread |" for end in ends),
        "|---|" + "---|---|" * len(summaries),
    ]
    for method in ("dense", *NAMES):
        cells = []
        for summary in summaries.values():
            line = next((x for x in summary["lines"] if x["method"] == method), None)
            if line is None:
                cells += ["", ""]
                continue
            mark = " ✗" if line["failed"] else " ∎" if line.get("constant") else ""
            spread = line.get("spread_test")
            cells.append(_numbers.points(line["test_accuracy"]) + mark)
            cells.append("" if spread is None else f"{1e4 * spread:.1f}")
        if any(cells):
            out.append(f"| {method} | {' | '.join(cells)} |")
    counts = ", ".join(f"{name} {s['repetitions']}" for name, s in summaries.items())
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
    out = []
    for title, filters in (("Single weights", False), ("Whole filters", True)):
        if some := {n: s for n, s in summaries.items() if n.endswith("-filters") == filters}:
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
        told, worst = (
            ", ".join(f"{x['method']} {points(x['test_accuracy'])}" for x in some)
            for some in (by_accuracy[:3], by_accuracy[-3:])
        )
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
    run_presets("systems", __doc__, reading, test_max_excess_gap="largest excess gap (points)")
