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

from experiments._comparison import run_presets
from experiments._presets import PRESETS
from experiments._summaries import Summary
from experiments._write import gain, points
from fairbilevel._numbers import decimal


def reading(summaries: Mapping[str, Summary]) -> list[str]:
    """A line for each change, computed from the tables."""
    out = [
        "| table | changed to | accuracy (points) | p | churn | certified (points) | p | spread "
        "(points²) |",
        "|---" * 8 + "|",
    ]
    for name, summary in summaries.items():
        for line in summary["lines"][1:]:
            cells = [name, line["method"]]
            for key, value in (("accuracy", "test_accuracy"), ("certified_tolerance",) * 2):
                mean, p = (line.get(f"{key}_difference_{k}") for k in ("mean", "p_adjusted"))
                cells.append(points(line[value]) + ("" if mean is None else f" ({gain(mean)})"))
                cells.append(decimal(p))
            cells.insert(4, points(line["churn"]))
            cells.append(f"{1e4 * line['spread_test']:.2f}")
            out.append(f"| {' | '.join(cells)} |")
    return [*out, "", "In brackets: less the first line of its table; p after Holm within it."]


if __name__ == "__main__":
    run_presets(
        "parts",
        __doc__,
        PRESETS["parts"],
        reading,
        {"test_accuracy": "accuracy on test (%)", "certified_tolerance": "certified (points)"},
    )
