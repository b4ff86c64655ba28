"""Peak memory of an outer step beside that of plain training, from XLA's memory analysis.

    python -m experiments.bench_memory                          # ResNet-50 at 224, batch 32
    python -m experiments.bench_memory --size 96 --batch 8 --width 16   # a quick look

Nothing runs: each program is compiled for the default backend and XLA says what its buffers take,
``temp + argument + output - alias`` (an output in the place of a donated argument counts once).
Plain training is the loop of ``fairbilevel``'s own weight steps without masks' scores, constraints
or a second level. Writes ``results/bench_memory.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fairbilevel as fb
from fairbilevel import fairness, hypergrad, masks
from fairbilevel.masks import Budget
from fairbilevel.problem import FairPruningProblem
from fairbilevel.solver import OuterStep
from fairbilevel.solver._step import inner_steps
from fairbilevel.train import Costs, Steps, WeightLoop, score_descent, sgd

RESULTS = Path(__file__).parent / "results"
MOST = {"bilinear": 1.5, "cg": 2.5}
"""How much of plain training's memory an outer step may take."""
GROUPS = 4


@dataclass(frozen=True)
class Case:
    """A program to compile: a method (``plain`` is none) and how its passes are computed."""

    method: str
    precision: str = "float32"
    remat: bool = False
    accumulate: int = 1


CASES = (
    Case("plain"),
    Case("bilinear"),
    Case("cg"),
    Case("unrolled"),
    Case("plain", remat=True),
    Case("bilinear", remat=True),
    Case("cg", remat=True),
    Case("plain", accumulate=4),
    Case("bilinear", accumulate=4),
    Case("cg", accumulate=4),
    Case("plain", "bfloat16"),
    Case("bilinear", "bfloat16"),
    Case("cg", "bfloat16"),
    Case("bilinear", "bfloat16", True, 4),
)


def make_problem(case: Case, model: str, size: int, batch: int, width: int | None) -> Any:
    """Random images: only their shapes count."""
    rng = np.random.default_rng(0)
    rows = max(100 * GROUPS, batch)
    x = rng.integers(0, 256, (rows, size, size, 3), np.uint8)
    y, group = np.arange(rows) % 2, np.arange(rows) // 2 % GROUPS
    constraints = () if case.method == "plain" else [fairness.ExcessAccuracyGap(0.02)]
    return FairPruningProblem(
        model,
        x,
        y,
        group,
        constraints=constraints,
        width=width,
        precision=case.precision,
        accumulate=case.accumulate,
        remat=case.remat,
    )


def shapes(tree: Any) -> Any:
    """Shapes instead of arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def batches(problem: FairPruningProblem, steps: int, rows: int) -> fb.train.Batch:
    """Shapes of stacked batches."""

    def leaf(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((steps, rows, *shape), dtype)

    i, f = jnp.int32, jnp.float32
    return fb.train.Batch(
        leaf(problem.inputs.dtype, *problem.inputs.shape[1:]),
        leaf(i),
        leaf(i),
        leaf(f),
        leaf(f),
        leaf(f),
    )


def lower(case: Case, problem: FairPruningProblem, rows: int) -> Any:
    """One step of the loop that a run compiles, its state donated."""
    share = jnp.asarray(problem.share["fit"])
    steps = Steps(
        problem, sgd(0.05, 100, decay_to_zero=True),
        fairness.multiplier_rule("gradient-ascent", 0.01),
        problem.constraints, 32, share,
    )  # fmt: skip
    params, state = jax.eval_shape(problem.model.init, jax.random.key(0))
    weights = jax.eval_shape(steps.init, params, state, jax.random.key(0))
    if case.method == "plain":
        many = WeightLoop(steps, Costs()).many
        factors = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), leaf.dtype), params)
        return jax.jit(many, donate_argnums=0).lower(
            weights, factors, batches(problem, 1, rows), None
        )
    method = hypergrad.by_name({"unrolled": "unrolled:steps=2"}.get(case.method, case.method))
    budget = Budget.of(problem.layers, "weight", "global")
    outer_step = OuterStep(
        steps, method, score_descent("adam", 0.1, 1.0, 100, 0.8), masks.RELAXATIONS["top-k"],
        budget, "weight", 1, 1.0,
    )  # fmt: skip
    scores = jax.eval_shape(
        lambda p: masks.start_scores("magnitude", p, problem.layers, "weight", jax.random.key(0)),
        params,
    )
    start = jax.eval_shape(outer_step.init, weights, scores)
    keep = shapes(masks.as_counts(budget.keep(0.9)))
    progress = jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.jit(outer_step.many, donate_argnums=0).lower(
        start, batches(problem, inner_steps(method), rows), batches(problem, 1, rows),
        batches(problem, 1, rows), keep, progress,
    )  # fmt: skip


def measure(case: Case, model: str, size: int, batch: int, width: int | None) -> dict[str, Any]:
    """What one program takes, in MiB."""
    problem = make_problem(case, model, size, batch, width)
    begin = time.perf_counter()
    # Nothing runs: the code need not be fast, only its buffers count.
    compiled = lower(case, problem, batch).compile({"xla_backend_optimization_level": 0})
    seconds = time.perf_counter() - begin
    m = compiled.memory_analysis()
    sizes = {
        "temp": m.temp_size_in_bytes,
        "argument": m.argument_size_in_bytes,
        "output": m.output_size_in_bytes,
        "alias": m.alias_size_in_bytes,
    }
    peak = sizes["temp"] + sizes["argument"] + sizes["output"] - sizes["alias"]
    row = {
        "method": case.method,
        "precision": case.precision,
        "remat": case.remat,
        "accumulate": case.accumulate,
        "peak_mib": round(peak / 2**20, 1),
        **{f"{name}_mib": round(value / 2**20, 1) for name, value in sizes.items()},
        "compile_seconds": round(seconds, 1),
    }
    print(row, flush=True)
    return row


def main() -> None:
    """Compile every case and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int)
    parser.add_argument("--cases", default="", help="numbers of the cases, all by default")
    parser.add_argument("--out", default="bench_memory")
    options = parser.parse_args()
    chosen = [CASES[int(i)] for i in options.cases.split(",")] if options.cases else CASES
    rows = [
        measure(case, options.model, options.size, options.batch, options.width) for case in chosen
    ]
    assert rows


if __name__ == "__main__":
    main()
