"""The main job: a residual network with 98 % of its weights removed, at a budget that heals it.

    python -m experiments.main_job --data path/to/folder

UTKFace, gender by race and gender, 3,000 gradient evaluations, two rounds of five folds. Gradual
magnitude pruning stands as published and with the parts of the solver that are training rather
than mask search. Writes ``results/main_job/``; goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments._comparison import Summary, dense_of, line_of, run_presets
from experiments._presets import MAIN_RIVALS, MAIN_SPARSITY, SOLVER
from experiments._write import interval
from fairbilevel import comparison


def reading(summaries: Mapping[str, Summary]) -> list[str]:
    """The solver beside the dense model and both rivals, computed from the tables."""
    out = []
    for name, summary in summaries.items():
        rows, own = summary["roles"], line_of(summary, SOLVER, MAIN_SPARSITY)
        rivals = (line_of(summary, method, MAIN_SPARSITY) for method in MAIN_RIVALS)
        # What failed has no line.
        for other in (dense_of(summary), *filter(None, rivals)) if own else ():
            each = np.subtract(own["test_accuracy_each"], other["test_accuracy_each"])
            found = comparison.corrected_t(each, rows["test"], rows["fit"] + rows["select"])
            out.append(
                f"- {name}, {summary['repetitions']} repetitions: the solver less "
                f"{other['method']} on test, in points, with an unadjusted 95 % interval: "
                f"{interval(found)}."
            )
    return out


if __name__ == "__main__":
    run_presets("main_job", __doc__, reading)
