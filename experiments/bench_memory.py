"""Peak memory of an outer step beside that of plain training, from XLA's memory analysis.

    python -m experiments.bench_memory                          # ResNet-50 at 224, batch 32
    python -m experiments.bench_memory --size 96 --batch 8 --width 16   # a quick look
    python -m experiments.bench_memory --run                    # and as an accelerator measured it

Each program is compiled for the default backend and XLA says what its buffers take,
``temp + argument + output - alias`` (an output in the place of a donated argument counts once).
With ``--run`` it also takes a step, in a process of its own, and the device's allocator says the
most that was held at once; a CPU's says nothing.
Plain training is the loop of ``fairbilevel``'s own weight steps without masks' scores, constraints
or a second level. Outer steps take a whole batch on either level, as with ``split_batch=False``: by
default they take less. Writes ``results/bench_memory.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import re
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import fairbilevel as fb
from experiments import _write
from fairbilevel import fairness, hypergrad, masks
from fairbilevel.masks import Budget
from fairbilevel.problem import FairPruningProblem
from fairbilevel.run import machine
from fairbilevel.solver import OuterStep, outer_stretch
from fairbilevel.solver._step import own_numbers
from fairbilevel.train import (
    SCORE_RULES,
    Rules,
    RunState,
    WeightState,
    stretch,
    weight_stretch,
)

MOST = {"bilinear": 1.5, "cg": 2.5}
"""How much of plain training's memory an outer step may take."""
GROUPS = 4


@dataclass(frozen=True)
class Case:
    """A program to compile: a method (``plain`` is none) and how its passes are computed."""

    method: str
    precision: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    accumulate: int = 1

    @property
    def key(self) -> tuple[str, ...]:
        """As it stands in the table."""
        return tuple(map(str, dataclasses.astuple(self)))


CASES = (
    Case("plain"),
    Case("bilinear"),
    Case("cg"),
    Case("cg:keep=products"),
    Case("cg:keep=all"),
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
    return jax.eval_shape(lambda tree: tree, tree)


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
        leaf(f, len(problem.data.classes)),
        leaf(f),
    )


def lower(case: Case, problem: FairPruningProblem, rows: int) -> tuple[Any, tuple[Any, ...]]:
    """One step of the loop that a run compiles, its state donated, and the shapes that it takes."""
    rules, key = Rules(problem.constraints), jax.random.key(0)
    steps, params, state = rules.steps(problem), problem.shapes.params, problem.shapes.state

    def begin(params: Any, state: Any) -> WeightState:
        duals = steps.duals(rules.duals, rules.buffer_size)
        return WeightState(params, state, rules.optimizer.init(params), duals, key, jnp.int32(0))

    weights = jax.eval_shape(begin, params, state)
    numbers = shapes(problem.numbers())
    run = shapes(stretch(np.ones(1), np.ones(1, bool), 1, 1.0))
    one = batches(problem, 1, rows)
    if case.method == "plain":
        factors = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), leaf.dtype), params)
        given = (weights, factors, numbers, run, one, one)
        return weight_stretch.lower(steps, *given), given
    method = hypergrad.by_name({"unrolled": "unrolled:steps=2"}.get(case.method, case.method))
    fit = one
    if isinstance(method, hypergrad.Unrolled):
        method = dataclasses.replace(method, optimizer=rules.optimizer, args_per_step=True)
        fit = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((1, method.steps, *leaf.shape[1:]), leaf.dtype), one
        )
    budget = Budget.of(problem.layers, "weight", "global")
    outer = OuterStep(
        steps,
        method,
        SCORE_RULES["adam"],
        masks.RELAXATIONS["top-k"],
        budget,
        "weight",
        rows,
        "magnitude",
    )
    keep = masks.as_counts(budget.keep(0.9))

    def start(params: Any) -> Any:
        scores = masks.start_scores("magnitude", params, problem.layers, "weight", key)
        return outer.init(scores, params, keep)

    scores, beside = jax.eval_shape(start, params)
    whole = RunState(weights, scores, scores, beside)
    own = shapes(own_numbers(np.ones(1), np.zeros(1), np.ones(1, bool), keep, 1))
    taken = (whole, numbers, run, own, fit, one, one)
    return outer_stretch.lower(outer, *taken), taken


def filled(shape: Any) -> Any:
    """An array of a shape."""
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.zeros(shape.shape, shape.dtype)


def measured(compiled: Any, given: tuple[Any, ...]) -> float | str:
    """MiB that the device held at most while the program took a step; empty where it is not told.
    To be asked once a process: the most of a process never falls."""
    device = jax.devices()[0]
    if not device.memory_stats():
        return ""
    jax.block_until_ready(compiled(*jax.tree.map(filled, given)))
    return round(device.memory_stats()["peak_bytes_in_use"] / 2**20, 1)


def measure(
    case: Case, model: str, size: int, batch: int, width: int | None, run: bool
) -> dict[str, Any]:
    """What one program takes, in MiB."""
    problem = make_problem(case, model, size, batch, width)
    begin = time.perf_counter()
    lowered, given = lower(case, problem, batch)
    # Where nothing runs the code need not be fast, only its buffers count.
    compiled = lowered.compile(None if run else {"xla_backend_optimization_level": 0})
    seconds = time.perf_counter() - begin
    m = compiled.memory_analysis()
    kinds = ("temp", "argument", "output", "alias")
    sizes = {name: getattr(m, f"{name}_size_in_bytes") for name in kinds}
    peak = sizes["temp"] + sizes["argument"] + sizes["output"] - sizes["alias"]
    row = {
        **dataclasses.asdict(case),
        "peak_mib": round(peak / 2**20, 1),
        "measured_mib": measured(compiled, given) if run else "",
        **{f"{name}_mib": round(value / 2**20, 1) for name, value in sizes.items()},
        "compile_seconds": round(seconds, 1),
        "fairbilevel": fb.__version__,
    }
    print(row, flush=True)
    return row


COLUMNS = (
    "method", "precision", "remat", "accumulate", "peak_mib", "times_plain", "at_most", "met",
    "measured_mib", "temp_mib", "argument_mib", "output_mib", "alias_mib", "compile_seconds",
    "fairbilevel",
)  # fmt: skip


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Beside plain training in float32 without anything that saves memory. What another version was
    compiled of keeps what was found beside that version's."""
    plain = next((r for r in rows if tuple(str(r[n]) for n in COLUMNS[:4]) == CASES[0].key), None)
    for row in rows:
        if plain is not None and row.get("fairbilevel") != plain.get("fairbilevel"):
            continue
        most = MOST.get(str(row["method"]).split(":")[0])
        row |= {"times_plain": "", "at_most": "" if most is None else most, "met": ""}
        if plain is not None:
            times = float(row["peak_mib"]) / float(plain["peak_mib"])
            row["times_plain"] = round(times, 2)
            row["met"] = "" if most is None else "yes" if times <= most else "no"
    return rows


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    given: dict[str, Any] = {"model": "resnet50", "size": 224, "batch": 32, "width": int}
    made = _write.parser(__doc__, **given)
    made.add_argument("--cases", default="", help="numbers of the cases, all by default")
    made.add_argument("--run", action="store_true", help="take a step of each as well")
    made.add_argument("--again", action="store_true", help="forget the cases in the table")
    return made


def main() -> None:
    """Compile every case; the tables grow case by case, and former cases are not measured again."""
    options = parser().parse_args()
    chosen = [CASES[int(i)] for i in options.cases.split(",")] if options.cases else CASES
    stem = options.out / "bench_memory"
    known = [] if options.again else _write.read_csv(stem.with_suffix(".csv"))
    done: dict[Any, dict[str, Any]] = {tuple(row[n] for n in COLUMNS[:4]): row for row in known}
    width = "" if options.width is None else f", width {options.width}"
    # Every case has the memory to itself, and takes no more of it than it needs.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    for case in chosen:
        if case.key not in done:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                asked = (options.model, options.size, options.batch, options.width, options.run)
                done[case.key] = alone.submit(measure, case, *asked).result()
        rows = judged([done[c.key] for c in CASES if c.key in done])
        told = [name for name in COLUMNS if any(row.get(name, "") != "" for row in rows)]
        rows = [{name: row.get(name, "") for name in told} for row in rows]
        name = "{} {}, remat {}, accumulate {}".format
        names = (name(*c.key) for c in CASES if c.key not in done)
        lacking = "; ".join(names)
        _write.publish(
            stem,
            rows,
            f"# Peak memory of one step of {options.model}{width} at {options.size} pixels, batch "
            f"{options.batch}",
            "XLA's memory analysis (`temp + argument + output - alias`, MiB) of the loop that a "
            f"run compiles, for {machine()['device']}. An outer step takes a batch of fit, one of "
            "select and one for the multipliers, and holds scores and their optimizer's moments "
            "beside the weights. Times: of plain training in float32 without rematerialization. "
            "The last column is the version that a case was compiled of, and compared with plain "
            "training of.",
            _write.table(rows),
            f"Not compiled yet: {lacking}." if lacking else "",
            typed=re.sub(r" --cases[ =]\S+", "", _write.command()),
        )


if __name__ == "__main__":
    main()
