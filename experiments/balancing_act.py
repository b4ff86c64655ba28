"""Balancing Act (Hashemizadeh et al. 2024): excess accuracy gaps on train and on test.

    python -m experiments.balancing_act --data path/to/folder
    python -m experiments.balancing_act --preset paper --data path/to/folder --only utkface-race

Naive fine-tuning, equalized loss with and without buffers, CEAG, FairGRAPE and the bilevel solver
along the paper's sparsities; CEAG once more with other tolerances' and buffers' worth. Every method
stops early on tune, so naive fine-tuning is the paper's NFT+ES. Writes ``results/balancing_act/``.

The paper's networks in a few steps, to see that they run (some minutes on two cores; ``cifar100``
downloads its data the first time):

    python -m experiments.balancing_act --preset paper --data path/to/folder --only utkface-race \\
        --steps 4 --folds 2 --max-rows 1200 --image-size 66 --sparsities 0.9 \\
        --methods gradual-magnitude,ceag --out trial
"""

from __future__ import annotations

from collections.abc import Mapping

from experiments._comparison import run_presets
from experiments._presets import PRESETS
from experiments._summaries import Summary, count_of, line_of, sparsities_of
from experiments._write import gain, points
from fairbilevel import _numbers


def reading(summaries: Mapping[str, Summary]) -> list[str]:
    """Each claim of the paper, and what these numbers say to it."""
    out = []
    for name, summary in summaries.items():
        out += [f"## {name} ({summary['repetitions']} repetitions)", ""]
        tolerance = 0.02
        for method in ("equalized-loss-after", "ceag", "bilevel"):
            lines = [line_of(summary, method, s) for s in sparsities_of(summary)]
            lines = [x for x in lines if x]
            if not lines:
                continue
            fit = [x["fit_max_excess_gap"] <= tolerance for x in lines]
            test = [x["test_max_excess_gap"] <= tolerance for x in lines]
            wider = [x["test_max_excess_gap"] > x["fit_max_excess_gap"] for x in lines]
            gaps = ", ".join(
                f"{points(x['fit_max_excess_gap'])} / {points(x['test_max_excess_gap'])} at "
                f"{_numbers.share(x['sparsity'])}"
                for x in lines
            )
            out.append(
                f"- *Constraints are met on train and missed on test.* {method}: mean largest "
                f"excess gap on fit / test {gaps}; within {_numbers.exact_points(tolerance)} "
                f"points on fit at {count_of(fit)} sparsities, on test at {count_of(test)}, wider "
                f"on test at {count_of(wider)}."
            )
        for s in sparsities_of(summary):
            ceag, naive = line_of(summary, "ceag", s), line_of(summary, "gradual-magnitude", s)
            if ceag and naive:
                less = ceag["certified_tolerance_difference_mean"]
                word = "lowers" if less < 0 else "does not lower"
                out.append(
                    f"- *CEAG lowers disparity without losing accuracy.* At {_numbers.share(s)} it "
                    f"{word} the tolerance that test rows certify ({gain(less)} "
                    f"points, p {ceag['certified_tolerance_difference_p_adjusted']:.2f} after "
                    "Holm) at "
                    f"{gain(ceag['accuracy_difference_mean'])} points of accuracy; "
                    f"naive pruning's gap is {points(naive['pooled_max_excess_gap'])} points where "
                    f"chance alone gives {points(naive['floor_95'])}."
                )
        out.append("")
    return out


if __name__ == "__main__":
    run_presets(
        "balancing_act",
        __doc__,
        PRESETS["balancing_act"],
        reading,
        {
            "test_accuracy": "accuracy on test (%)",
            "fit_max_excess_gap": "largest excess gap on fit",
            "test_max_excess_gap": "largest excess gap on test",
        },
    )
