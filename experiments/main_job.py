"""The main job: a residual network with 98 % of its weights removed, at a budget that heals it.

    python -m experiments.main_job --data path/to/folder

UTKFace, gender by race and gender, 3,000 gradient evaluations, two rounds of five folds. Gradual
magnitude pruning stands as published and with the parts of the solver that are training rather
than mask search. Writes ``results/main_job/``; goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments._presets import Setting, Summary, line_of, points, run_presets
from experiments.claim import SOLVER
from fairbilevel import BilevelSolver, comparison

RIVAL = "gradual-magnitude"
SPARSITY, STEPS = 0.98, 3000
STRONG = f"{RIVAL}:distill={BilevelSolver(steps=STEPS).distilled:.2g},match_dense=true"

PRESETS = {
    "small": {
        "resnet10": Setting(
            "utkface48.zip",
            (RIVAL, STRONG, SOLVER),
            (SPARSITY,),
            {
                "target": "gender",
                "group": ("race", "gender"),
                "image_size": 32,
                "model": "resnet10",
                "width": 8,
                "dense_steps": 400,
                "steps": STEPS,
                "seed": 10,
            },
            rounds=2,
        )
    }
}


def reading(summaries: Mapping[str, Summary]) -> list[str]:
    """The solver beside the dense model and both rivals, computed from the tables."""
    out = []
    for name, summary in summaries.items():
        rows = summary["roles"]
        own = line_of(summary, SOLVER, SPARSITY)
        dense = next(x for x in summary["lines"] if x["method"] == "dense")
        if not own:  # a trial without the solver
            continue
        rivals = [line_of(summary, m, SPARSITY) for m in (RIVAL, STRONG)]
        for other in (dense, *(line for line in rivals if line)):
            each = np.subtract(own["test_accuracy_each"], other["test_accuracy_each"])
            found = comparison.corrected_t(each, rows["test"], rows["fit"] + rows["select"])
            told = f"{points(found['mean'], signed=True)} points"
            if found["low"] is not None:
                told += (
                    f" ({points(found['low'], signed=True)} to "
                    f"{points(found['high'], signed=True)}, unadjusted 95 % interval)"
                )
            out.append(
                f"- {name}, {summary['repetitions']} repetitions: the solver less "
                f"{other['method']} on test: {told}."
            )
    return out


if __name__ == "__main__":
    run_presets(
        "main_job",
        "A residual network at 98 % of its weights removed",
        PRESETS,
        reading,
        {"test_accuracy": "accuracy on test (%)", "certified_tolerance": "certified (points)"},
    )
