"""All methods by name under one protocol: the main table.

    python -m experiments.systems --data path/to/folder
    python -m experiments.systems --data path/to/folder --only digits

Every method of ``fb.methods`` on digits, UTKFace (gender by race x gender) and CelebA (blond hair
by gender), single weights and whole filters: five folds of digits, three of faces, small networks
and short budgets, so that two cores do it. Writes ``results/systems/``; goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments._presets import Setting, points, run_presets
from fairbilevel.methods import METHODS, NAMES

DIGITS = {"dense_steps": 300, "steps": 300, "min_group_rows": 50, "batch_size": 64}
FACES = {
    "image_size": 24,
    "model": "cnn",
    "width": 8,
    "dense_steps": 300,
    "steps": 200,
    "max_rows": 8000,
}
DATA: dict[str, tuple[str, dict[str, Any], float, float]] = {
    "digits": ("digits", DIGITS, 0.9, 0.5),
    "utkface": (
        "utkface48.zip",
        {**FACES, "target": "gender", "group": ("race", "gender")},
        0.95,
        0.5,
    ),
    "celeba": ("celeba48.zip", {**FACES, "target": "Blond_Hair", "group": ("Male",)}, 0.95, 0.5),
}


def methods(granularity: str) -> tuple[str, ...]:
    """Every method that can remove weights, or filters."""
    return tuple(m.name for m in METHODS.values() if granularity in m.granularities)


def _settings() -> dict[str, Setting]:
    found = {}
    for granularity in ("weight", "filter"):
        for name, (source, options, weights, filters) in DATA.items():
            found[name if granularity == "weight" else f"{name}-filters"] = Setting(
                source,
                methods(granularity),
                (weights if granularity == "weight" else filters,),
                {**options, "granularity": granularity},
                folds=5 if source == "digits" else 3,
                bundled=source == "digits",
            )
    return found


PRESETS = {"small": _settings()}


def main_table(summaries: Mapping[str, dict[str, Any]]) -> list[str]:
    """A row a method: accuracy on test and spread of excess gaps, by setting."""
    settings = list(summaries)
    head = ["| method |", "|---|"]
    for name in settings:
        lines = summaries[name]["lines"]
        head[0] += f" {name}, {100 * lines[-1]['sparsity']:g} %: accuracy | spread |"
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
                f"{100 * found[0]['test_accuracy']:.1f}"
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


def reading(summaries: Mapping[str, dict[str, Any]]) -> list[str]:
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


def _ends(summaries: Mapping[str, dict[str, Any]]) -> list[str]:
    out = []
    for name, summary in summaries.items():
        lines = [x for x in summary["lines"] if x["method"] != "dense"]
        dense = next(x for x in summary["lines"] if x["method"] == "dense")
        by_accuracy = sorted(lines, key=lambda x: -x["test_accuracy"])
        by_spread = sorted(lines, key=lambda x: x["spread_test"])
        beyond = [x["method"] for x in lines if x["floor_p"] < 0.05]
        told = ", ".join(f"{x['method']} {points(x['test_accuracy'])}" for x in by_accuracy[:3])
        worst = ", ".join(f"{x['method']} {points(x['test_accuracy'])}" for x in by_accuracy[-3:])
        fair = ", ".join(f"{x['method']} {1e4 * x['spread_test']:.2f}" for x in by_spread[:3])
        out.append(
            f"- {name}, {100 * lines[0]['sparsity']:g} % removed, {summary['repetitions']} folds, "
            f"dense {points(dense['test_accuracy'])} %. Most accurate on test: {told}; least: "
            f"{worst}. Least spread of excess gaps (points²): {fair}. Damage to groups beyond "
            f"permuted labels (5 %, unadjusted): {', '.join(beyond) or 'none'}."
        )
    return out


if __name__ == "__main__":
    run_presets(
        "systems",
        "All methods by name under one protocol",
        PRESETS,
        reading,
        {
            "test_accuracy": "accuracy on test (%)",
            "test_max_excess_gap": "largest excess gap (points)",
        },
    )
