"""Does the hypergradient's implicit term pay?

    python -m experiments.hypergradient_ablation --data path/to/folder
    python -m experiments.hypergradient_ablation --data path/to/folder --only adult

The same solver with no implicit term, the closed form, conjugate gradients, the single loop,
unrolling and the fully first-order method; gradual magnitude pruning beside them. Each kind runs
at the same number of gradient evaluations as they are booked, where one that costs more a step
takes fewer, and, where its evaluations take less time than plain ones, once more with as many more
as fit the same time. Tables have 20 repetitions, faces 5. Writes
``results/hypergradient_ablation/``; goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping

from experiments._comparison import Summary, run_presets
from experiments._presets import KINDS
from experiments._write import gain
from fairbilevel._numbers import share


def _kind(method: str) -> str:
    """``bilevel:hypergradient=cg,steps=1053`` in words."""
    options = dict(part.split("=") for part in method.partition(":")[2].split(",") if part)
    kind = KINDS.get(options.get("hypergradient", ""), method)
    return f"{kind} with {options['steps']} evaluations" if "steps" in options else kind


def reading(summaries: Mapping[str, Summary]) -> list[str]:
    """What the numbers say of every method, in sentences computed from them."""
    out = []
    for name, summary in summaries.items():
        for line in summary["lines"]:
            if line.get("accuracy_difference_low") is None:
                continue
            kind = _kind(line["method"])
            mean, low, high = (line[f"accuracy_difference_{k}"] for k in ("mean", "low", "high"))
            word = "less" if high < 0 else "more" if low > 0 else ""
            word = f"{word} accurate" if word else "no different"
            p = line["certified_tolerance_difference_p_adjusted"]
            tighter = line["certified_tolerance_difference_mean"]
            fair = "no different in what its rows certify"
            if p < 0.05 and summary["claims"]:
                fair = f"certified {'tighter' if tighter < 0 else 'wider'}"
            out.append(
                f"- {name}, {share(line['sparsity'])} removed, {summary['repetitions']} "
                f"repetitions: {kind} is {word} than no implicit term "
                f"({gain(mean)} points, {gain(low)} to {gain(high)}, unadjusted) and {fair} "
                f"({gain(tighter)} points, p {p:.2f})."
            )
    return out


if __name__ == "__main__":
    run_presets("hypergradient_ablation", __doc__, reading, spread_test="spread (1e-2)")
