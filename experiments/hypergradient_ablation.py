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
from typing import Any

from experiments._presets import Setting, line_of, points, run_presets

REFERENCE = "bilevel:hypergradient=none"
KINDS = {
    "bilinear": "closed form",
    "cg": "conjugate gradients",
    "single-loop": "single loop",
    "unrolled": "unrolled",
    "first-order": "first-order",
}
# Seconds an evaluation beside those without an implicit term: runs of this module's settings by
# turns on one core, medians of three. The reading tells what the published runs took.
_TIMES = {
    "adult": {"cg": 0.76, "single-loop": 0.83, "unrolled": 0.85, "first-order": 0.82},
    "compas": {"unrolled": 0.85},
}


def _methods(name: str, steps: int) -> tuple[str, ...]:
    longer = (
        f"bilevel:hypergradient={kind},steps={round(steps / share)}"
        for kind, share in _TIMES.get(name, {}).items()
    )
    booked = (f"bilevel:hypergradient={kind}" for kind in KINDS)
    return (REFERENCE, *booked, *longer, "gradual-magnitude")


TABLE = {"model": "mlp", "width": 64, "group": ("race", "sex"), "steps": 800}
FACES = {"image_size": 24, "model": "cnn", "width": 8, "dense_steps": 400, "steps": 600}

PRESETS = {
    "small": {
        "adult": Setting(
            "adult.csv",
            _methods("adult", 800),
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
            _methods("compas", 800),
            (0.98,),
            {**TABLE, "target": "two_year_recid", "dense_steps": 400},
            REFERENCE,
            rounds=4,
        ),
        "utkface": Setting(
            "utkface48.zip",
            _methods("utkface", 600),
            (0.95,),
            {**FACES, "target": "gender", "group": ("race", "gender")},
            REFERENCE,
        ),
    }
}


def _kind(method: str) -> str:
    """``bilevel:hypergradient=cg,steps=1053`` in words."""
    options = dict(part.split("=") for part in method.partition(":")[2].split(",") if part)
    kind = KINDS.get(options.get("hypergradient", ""), method)
    return f"{kind} with {options['steps']} evaluations" if "steps" in options else kind


def reading(summaries: Mapping[str, dict[str, Any]]) -> list[str]:
    """What the numbers say of every method, in sentences computed from them."""
    out = []
    for name, summary in summaries.items():
        for line in summary["lines"]:
            if line.get("accuracy_difference_low") is None:
                continue
            kind = _kind(line["method"])
            time = line["seconds"] / line_of(summary, REFERENCE, line["sparsity"])["seconds"]
            mean, low, high = (line[f"accuracy_difference_{k}"] for k in ("mean", "low", "high"))
            word = "more accurate" if low > 0 else "less accurate" if high < 0 else "no different"
            p = line["certified_tolerance_difference_p_adjusted"]
            tighter = line["certified_tolerance_difference_mean"]
            fair = "no different in what its rows certify"
            if p < 0.05 and summary["claims"]:
                fair = "certified tighter" if tighter < 0 else "certified wider"
            out.append(
                f"- {name}, {100 * line['sparsity']:g} % removed, {summary['repetitions']} "
                f"repetitions: {kind}, in {time:.2f} of its time, is {word} than no implicit term "
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
