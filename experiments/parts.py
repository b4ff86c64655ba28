"""What each part of the solver is worth, and what it is worth inside its rivals.

    python -m experiments.parts --data path/to/folder
    python -m experiments.parts --data path/to/folder --only bias-300

UTKFace, gender by race and gender, 95 % of the weights removed, two rounds of five folds. Each
table changes one thing at a time: the solver's parts, output biases in gradual magnitude pruning,
distillation in HYDRA, shrunken violations and row-weight steps in CEAG. Writes ``results/parts/``;
goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping

from experiments._comparison import Summary, run_presets
from experiments._write import gain, points, table
from fairbilevel._numbers import decimal


def reading(summaries: Mapping[str, Summary]) -> list[str]:
    """A line for each change, computed from the tables."""
    rows = []
    for name, summary in summaries.items():
        lines = summary["lines"][1:]  # the dense model's is first
        first = next(line for line in lines if line["method"] == summary["reference"])
        for line in lines:
            row = {"table": name, "changed to": line["method"], "churn": points(line["churn"])}
            for title, key, value in (
                ("accuracy", "accuracy", "test_accuracy"),
                ("certified", "certified_tolerance", "certified_tolerance"),
            ):
                less = "" if line is first else f" ({gain(line[value] - first[value])})"
                row[f"{title} (points)"] = points(line[value]) + less
                row[f"{title}: p"] = decimal(line.get(f"{key}_difference_p_adjusted"))
            rows.append({**row, "spread (points²)": f"{1e4 * line['spread_test']:.2f}"})
    told = (
        "Of all rows together; in brackets: less the first line of its table. p is of the folds' "
        "own differences, after Holm within the table."
    )
    return [table(rows), "", told]


if __name__ == "__main__":
    run_presets("parts", __doc__, reading)
