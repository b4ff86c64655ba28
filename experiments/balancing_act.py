"""Balancing Act (Hashemizadeh et al. 2024): excess accuracy gaps on train and on test.

    python -m experiments.balancing_act --data path/to/folder
    python -m experiments.balancing_act --preset paper --data path/to/folder --only utkface-race

Naive fine-tuning, equalized loss with and without buffers, CEAG, FairGRAPE and the bilevel solver
along the paper's sparsities; CEAG once more with other tolerances' and buffers' worth. Every method
stops early on tune, so naive fine-tuning is the paper's NFT+ES. Writes ``results/balancing_act/``.

The paper's networks in miniature, to see that they run (``cifar100`` downloads its data the first
time where it does not):

    python -m experiments.balancing_act --preset paper --smoke --only utkface-race
"""

from __future__ import annotations

from collections.abc import Mapping

from experiments._comparison import Summary, count_of, line_of, pairs_of, run_presets, sparsities_of
from experiments._write import gain, points
from fairbilevel import _numbers


def reading(summaries: Mapping[str, Summary]) -> list[str]:
    """Each claim of the paper, and what these numbers say to it."""
    out = []
    for name, summary in summaries.items():
        out += [f"## {name} ({summary['repetitions']} repetitions)", ""]
        for method in ("equalized-loss-after", "ceag", "bilevel"):
            lines = [x for s in sparsities_of(summary) if (x := line_of(summary, method, s))]
            if not lines:
                continue
            gaps = [(x["fit_max_excess_gap"], x["test_max_excess_gap"]) for x in lines]
            told = ", ".join(
                f"{points(fit)} / {points(test)} at {_numbers.share(x['sparsity'])}"
                for x, (fit, test) in zip(lines, gaps, strict=True)
            )
            out.append(
                f"- *Constraints are met on train and missed on test.* {method}: mean largest "
                f"excess gap on fit / test {told}; within 2 points on fit at "
                f"{count_of([fit <= 0.02 for fit, _ in gaps])} sparsities, on test at "
                f"{count_of([test <= 0.02 for _, test in gaps])}, wider on test at "
                f"{count_of([test > fit for fit, test in gaps])}."
            )
        for ceag, naive in pairs_of(summary, "ceag", "gradual-magnitude"):
            less = ceag["certified_tolerance_difference_mean"]
            word = "lowers" if less < 0 else "does not lower"
            p = ceag["certified_tolerance_difference_p_adjusted"]
            out.append(
                "- *CEAG lowers disparity without losing accuracy.* At "
                f"{_numbers.share(ceag['sparsity'])} it {word} the tolerance that test rows "
                f"certify ({gain(less)} points, p {p:.2f} after Holm) at "
                f"{gain(ceag['accuracy_difference_mean'])} points of accuracy; naive pruning's gap "
                f"is {points(naive['pooled_max_excess_gap'])} points where chance alone gives "
                f"{points(naive['floor_95'])}."
            )
        out.append("")
    return out


if __name__ == "__main__":
    run_presets(
        "balancing_act",
        __doc__,
        reading,
        fit_max_excess_gap="largest excess gap on fit",
        test_max_excess_gap="largest excess gap on test",
    )
