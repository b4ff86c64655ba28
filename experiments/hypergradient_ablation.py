"""Does the hypergradient's implicit term pay?

    python -m experiments.hypergradient_ablation --data path/to/folder
    python -m experiments.hypergradient_ablation --data path/to/folder --only adult

The same scheduled solver (top-k masks, cubic budget, same number of gradient evaluations) with no
implicit term, the closed form, conjugate gradients, the single loop, unrolling and the fully
first-order method; gradual magnitude pruning beside them. A method that costs more a step takes
fewer steps. Tables have 20 repetitions, faces 5. Writes
``results/hypergradient_ablation/``; goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments._presets import Setting, points, run_presets

REFERENCE = "bilevel:hypergradient=none"
KINDS = {
    "bilinear": "closed form",
    "cg": "conjugate gradients",
    "single-loop": "single loop",
    "unrolled": "unrolled",
    "first-order": "first-order",
}
METHODS = (
    REFERENCE,
    *(f"bilevel:hypergradient={name}" for name in KINDS),
    "gradual-magnitude",
)
TABLE = {"model": "mlp", "width": 64, "group": ("race", "sex"), "steps": 800}
FACES = {"image_size": 24, "model": "cnn", "width": 8, "dense_steps": 400, "steps": 600}

PRESETS = {
    "small": {
        "adult": Setting(
            "adult.csv",
            METHODS,
            (0.98,),
            {
                **TABLE,
                "target": "income",
                "positive": ">50K",
                "dense_steps": 600,
                "max_rows": 12_000,
            },
            REFERENCE,
            rounds=4,
        ),
        "compas": Setting(
            "compas.csv",
            METHODS,
            (0.98,),
            {**TABLE, "target": "two_year_recid", "dense_steps": 400},
            REFERENCE,
            rounds=4,
        ),
        "utkface": Setting(
            "utkface48.zip",
            METHODS,
            (0.95,),
            {**FACES, "target": "gender", "group": ("race", "gender")},
            REFERENCE,
        ),
    }
}


def reading(summaries: Mapping[str, dict[str, Any]]) -> list[str]:
    """What the numbers say of every method, in sentences computed from them."""
    out = []
    for name, summary in summaries.items():
        for line in summary["lines"]:
            if line.get("accuracy_difference_low") is None:
                continue
            kind = KINDS.get(line["method"].rsplit("=", 1)[-1], line["method"])
            mean, low, high = (line[f"accuracy_difference_{k}"] for k in ("mean", "low", "high"))
            word = "more accurate" if low > 0 else "less accurate" if high < 0 else "no different"
            p = line["certified_tolerance_difference_p_adjusted"]
            tighter = line["certified_tolerance_difference_mean"]
            fair = "no different in what its rows certify"
            if p < 0.05 and summary["claims"]:
                fair = "certified tighter" if tighter < 0 else "certified wider"
            out.append(
                f"- {name}, {100 * line['sparsity']:g} % removed, {summary['repetitions']} "
                f"repetitions: {kind} is {word} than no implicit term "
                f"({points(mean, signed=True)} points, {points(low, signed=True)} to "
                f"{points(high, signed=True)}, unadjusted) and {fair} "
                f"({points(tighter, signed=True)} points, p {p:.2f})."
            )
    return out


if __name__ == "__main__":
    run_presets(
        "hypergradient_ablation",
        "Does the hypergradient's implicit term pay?",
        PRESETS,
        reading,
        {"test_accuracy": "accuracy on test (%)", "spread_test": "spread (1e-2)"},
    )
