"""Runs the solver and a pruner on some devices and writes what came out: for ``test_devices``.

    python tests/run_on_devices.py OUT PLACEMENT [PLACEMENT ...]

A placement is a number of devices, with ``s`` behind it where parameters are sharded. Where
``PROCESSES``, ``INDEX`` and ``COORDINATOR`` are set, this is one of several processes. For each
placement the first process writes ``OUT-PLACEMENT.npz``, and what an outer step sent into
``OUT-PLACEMENT.json``. Parameters are of JAX's default
float type, so ``JAX_ENABLE_X64=1`` makes everything float64.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import fairbilevel as fb
from fairbilevel.devices import Placement, Processes, collectives, is_first

if "PROCESSES" in os.environ:
    count, index = int(os.environ["PROCESSES"]), int(os.environ["INDEX"])
    Processes(os.environ["COORDINATOR"], count, index, timeout=60).start()

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from fairbilevel._trees import flatten_named
from fairbilevel.models._plain import MLP
from fairbilevel.models._residual import ResNet
from fairbilevel.solver import outer_stretch

STEPS = 20


def simply(model: fb.models.Model) -> fb.models.Model:
    """The model with kernels drawn by NumPy (nothing to compile), of JAX's default float type."""

    def init(key: Any) -> Any:
        rng = np.random.default_rng(0)

        def draw(path: Any, leaf: Any) -> Any:
            fan_in = max(int(np.prod(leaf.shape[:-1])), 1)
            ones = any(str(getattr(p, "key", "")) in ("scale", "var") for p in path)
            values = rng.normal(0, fan_in**-0.5, leaf.shape) if leaf.ndim > 1 else ones
            return jnp.asarray(np.broadcast_to(values, leaf.shape), jnp.zeros(()).dtype)

        return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, key))

    return dataclasses.replace(model, init=init)


def problem_of(kind: str, placement: Placement) -> fb.FairPruningProblem:
    """A residual network with batch normalization, or an MLP, on the digits."""
    digits = load_digits()
    x, y = digits.images[..., None].astype("float32"), digits.target
    makers = {
        "resnet": lambda rngs: ResNet((1,), 1, 10, width=4, rngs=rngs),
        "mlp": lambda rngs: MLP(64, 10, (16,), rngs=rngs),
    }
    gap = fb.fairness.ExcessAccuracyGap(0.02)
    model = simply(fb.models.from_nnx(makers[kind], name=kind))
    return fb.FairPruningProblem(model, x, y, y % 3, constraints=[gap], placement=placement)


def numbers(solution: fb.Solution) -> dict[str, np.ndarray]:
    """Masks, weights, and every number of the log that is no time."""
    out = {f"mask/{n}": np.asarray(m) for n, m in solution.masks.items()}
    weights = flatten_named(solution.network.params)
    out |= {f"weight/{n}": np.asarray(w) for n, w in weights.items()}
    for i, record in enumerate(solution.history):
        for name in ("loss", "accuracy"):
            out[f"metric/{i}/{name}"] = np.asarray(record[name])
        for name in ("accuracy", "loss", "largest_violation"):
            out[f"metric/{i}/tune/{name}"] = np.asarray(record["tune"].get(name) or 0.0)
        for name in ("violations", "multipliers"):
            values = [v for part in record.get(name, {}).values() for v in part.values()]
            out[f"metric/{i}/{name}"] = np.asarray(values)
    gap = solution.evaluate("test").gaps.excess_accuracy
    out["metric/test"] = np.asarray(gap.largest)
    return out


def run(placement: Placement) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The solver on the residual network, a pruner with constraints on the MLP."""
    results = {}
    problem = problem_of("resnet", placement)
    dense = problem.refer(problem.initial_network(0))
    solver = fb.BilevelSolver(
        sparsity=0.5,
        steps=47,
        learning_rate=0.05,
        bilevel_share=0.72,
        batch_size=64,
        buffer_size=8,
        dual_step=1.0,
        violation_every=1,
        fine_tune_on="fit",
    )
    solver_run = solver.start(problem, dense)
    assert [p.steps for p in solver_run.plan.phases] == [STEPS, 8]
    state = solver_run.init()
    while solver_run.done < solver_run.stages:
        state = solver_run.step(state)
    record = sent(problem, state, solver)
    solved = solver_run.finish(state)
    results |= {f"solver/{n}": v for n, v in numbers(solved).items()}
    problem = problem_of("mlp", placement)
    dense = problem.refer(problem.initial_network(0))
    pruner = fb.methods.by_name("ceag", sparsity=0.7, steps=2 * STEPS, batch_size=64, seed=1)
    pruned = pruner.run(problem, dense)
    results |= {f"pruner/{n}": v for n, v in numbers(pruned).items()}
    kind = jnp.zeros(()).dtype
    assert all(w.dtype == kind for n, w in results.items() if "weight/" in n)
    return results, record


def sent(problem: fb.FairPruningProblem, state: Any, solver: fb.BilevelSolver) -> dict[str, Any]:
    """Bytes that an outer step sent, by what they are, from the program that ran."""
    from experiments.bench_devices import carries, weight_shapes

    weights = weight_shapes(problem)
    found = collectives(outer_stretch.newest().as_text())
    each = [(c, carries(c, weights, solver.batch_size)) for c in found]
    steps = [(c, e) for c, e in each if c.looped]
    params = jax.tree.leaves(state.weights.params)
    return {
        "bytes": {
            what: sum(e.get(what, 0) for _, e in steps) for what in {w for _, e in steps for w in e}
        },
        "kinds": [[c.kind, sorted(e)] for c, e in steps],
        "once": sorted({what for c, e in each if not c.looped for what in e}),
        "weights": sum(p.nbytes for p in params if p.ndim > 1),
        "vectors": sum(p.nbytes for p in params if p.ndim == 1),
        "held": sum(p.addressable_shards[0].data.nbytes for p in params if p.ndim > 1),
    }


def main() -> None:
    out, *placements = sys.argv[1:]
    for name in placements:
        devices = int(name.removesuffix("s"))
        placement = Placement.over(devices, shard_params=name.endswith("s"))
        results, record = run(placement)
        if is_first():
            np.savez(f"{out}-{name}.npz", **results)
            Path(f"{out}-{name}.json").write_text(json.dumps(record))


main()
