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

from experiments._presets import Setting, Summary, points, run_presets
from experiments.claim import BUDGETS, SOLVER, data_of

_TABLES: dict[str, tuple[str, ...]] = {
    "solver": (
        SOLVER,
        f"{SOLVER}:distill=0",
        f"{SOLVER}:match_dense=false",
        f"{SOLVER}:score_step=0",
        f"{SOLVER}:score_step=0.1",
        f"{SOLVER}:weights_on=fit",
        f"{SOLVER}:fine_tune_on=fit+select",
        f"{SOLVER}:split_batch=false",
        f"{SOLVER}:plain_steps=3",
        f"{SOLVER}:bilevel_share=0.5",
        f"{SOLVER}:constrain_masks=false",
        f"{SOLVER}:constrain_masks=false,constrain_weights=false",
        f"{SOLVER}:buffer_size=512,shrink_violations=true",
        f"{SOLVER}:buffer_size=512,shrink_violations=true,dual_unit=row-weight,dual_step=0.1",
        f"{SOLVER}:learning_rate=0.1",
    ),
    "shrinkage": (
        "ceag",
        "ceag:shrink_violations=true",
        "ceag:buffer_size=512",
        "ceag:buffer_size=512,shrink_violations=true",
        "ceag:dual_unit=row-weight,dual_step=0.1",
    ),
    "bias": ("gradual-magnitude", "gradual-magnitude:match_dense=true"),
    "distillation": (
        "hydra",
        "hydra:distill=0.5,distill_temperature=1",
        "hydra:distill=0.5,distill_temperature=4",
    ),
}


def _setting(methods: tuple[str, ...], steps: int) -> Setting:
    source, sparsity, options = data_of("gender")
    own = {**options, "steps": steps}
    return Setting(source, methods, (sparsity,), own, reference=methods[0], rounds=2)


PRESETS = {
    "small": {
        f"{name}-{steps}": _setting(methods, steps)
        for name, methods in _TABLES.items()
        for steps in BUDGETS
    }
}


def reading(summaries: Mapping[str, Summary]) -> list[str]:
    """A line for each change, computed from the tables."""
    out = [
        "| table | changed to | accuracy (points) | p | churn | certified (points) | p | spread "
        "(points²) |",
        "|---" * 8 + "|",
    ]
    for name, summary in summaries.items():
        for line in summary["lines"][1:]:
            cells = []
            for key in ("accuracy", "certified_tolerance"):
                found = {k: line.get(f"{key}_difference_{k}") for k in ("mean", "p_adjusted")}
                value = line[f"test_{key}" if key == "accuracy" else key]
                more = (
                    f" ({points(found['mean'], signed=True)})" if found["mean"] is not None else ""
                )
                p = found["p_adjusted"]
                cells += [f"{points(value)}{more}", "-" if p is None else f"{p:.3f}"]
            cells.insert(2, points(line["churn"]))
            out.append(
                f"| {name} | {line['method']} | {' | '.join(cells)} | "
                f"{1e4 * line['spread_test']:.2f} |"
            )
    return [*out, "", "In brackets: less the first line of its table; p after Holm within it."]


if __name__ == "__main__":
    run_presets(
        "parts",
        "What is each part of the solver worth?",
        PRESETS,
        reading,
        {"test_accuracy": "accuracy on test (%)", "certified_tolerance": "certified (points)"},
    )
