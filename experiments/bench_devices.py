"""What one outer step sends between devices, and steps per second on virtual devices of a CPU.

    python -m experiments.bench_devices
    python -m experiments.bench_devices --model mlp --width 64

Counts every collective in the compiled program of the bilevel phase (bilinear hypergradient, one
constraint, dual step), data parallel and with split parameters, and says what it carries in a step.
The bytes are those of the results on one device. Rows are random images: what is sent does not
depend on them. Writes ``results/bench_devices.csv`` and ``.md``.

Virtual devices share the machine's cores, so that steps per second on two and four of them say
whether communication and splitting cost anything, never how fast real devices are.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from typing import Any

import jax
import numpy as np

import fairbilevel as fb
from experiments import _write
from fairbilevel.devices import Collective, bytes_of, collectives, timed
from fairbilevel.run import machine
from fairbilevel.solver import BilevelRun, outer_stretch
from fairbilevel.train import RunState

DEVICES = 4
GRADIENTS = "gradients of weights"
PARAMETERS = "parameters, gathered"
CHANNELS = "sums by channel (normalization, biases)"
OUTCOMES = "outcomes of a batch (buffers, violations)"
SCALARS = "scalars (losses, norms)"
COUNTS = "threshold counts and flags"
OTHER = "other"


def begun(problem: fb.FairPruningProblem, batch: int, steps: int) -> tuple[BilevelRun, RunState]:
    """A run whose first compiled call can take so many outer steps, and its first state."""
    dense = problem.refer(problem.initial_network(0))
    solver = fb.BilevelSolver(sparsity=0.5, steps=10 * steps, batch_size=batch, buffer_size=8)
    run = solver.start(problem, dense)
    if steps > min(run.length, run.phase.steps):
        raise ValueError(f"one compiled call takes at most {run.length} steps, got {steps}")
    return run, run.init()


def carries(found: Collective, weights: set[tuple[int, ...]], batch: int) -> dict[str, int]:
    """Bytes of a collective by what they are, told by types and shapes: ``weights`` are the sorted
    shapes of parameters of two axes and more (the layout of convolutions permutes axes)."""
    out: Counter[str] = Counter()
    for kind, shape in found.arrays:
        size = found.times * bytes_of(kind, shape)
        if len(shape) > 1 and tuple(sorted(shape)) in weights:
            out[PARAMETERS if found.kind == "all-gather" else GRADIENTS] += size
        elif found.kind == "all-gather" and np.prod(shape) == batch:
            out[OUTCOMES] += size
        elif not shape:
            out[SCALARS if kind.startswith(("f", "bf")) else COUNTS] += size
        elif len(shape) == 1 and found.kind == "all-reduce":
            out[CHANNELS] += size
        else:
            out[OTHER] += size
    return dict(out)


def weight_shapes(problem: fb.FairPruningProblem) -> set[tuple[int, ...]]:
    """For ``carries``."""
    shapes, _ = jax.eval_shape(problem.model.init, jax.random.key(0))
    return {tuple(sorted(s.shape)) for s in jax.tree.leaves(shapes) if len(s.shape) > 1}


def images(model: str, width: int, placement: fb.Placement, rows: int) -> fb.FairPruningProblem:
    """Random images of 32 pixels in two classes and two groups."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
    y, group = np.arange(rows) % 2, np.arange(rows) // 2 % 2
    gap = fb.fairness.ExcessAccuracyGap(0.02)
    return fb.FairPruningProblem(
        model, x, y, group, constraints=[gap], width=width, placement=placement
    )


def rates(runs: list[tuple[BilevelRun, RunState]], steps: int, repetitions: int) -> list[float]:
    """Steps per second of each run."""
    states = [state for _, state in runs]

    def call(i: int) -> None:
        states[i], _, log = runs[i][0].stretch(states[i], slice(0, steps), None)
        jax.block_until_ready(log.finite)

    times = timed({i: partial(call, i) for i in range(len(runs))}, rounds=repetitions)
    return [1e3 * steps / times[i].median for i in range(len(runs))]


def sent(problem: fb.FairPruningProblem, batch: int) -> Counter[tuple[str, str, float]]:
    """Bytes of an outer step of the newest program: by what they are and how they are sent, with
    the times of it."""
    weights = weight_shapes(problem)
    total: Counter[tuple[str, str]] = Counter()
    times: Counter[tuple[str, str]] = Counter()
    for found in collectives(outer_stretch.newest().as_text()):
        for what, count in carries(found, weights, batch).items() if found.looped else ():
            total[what, found.kind] += count
            times[what, found.kind] += found.times
    return Counter({(*key, times[key]): count for key, count in total.items()})


def main() -> None:
    given: dict[str, Any] = {
        "model": "resnet10",
        "width": 16,
        "batch": 64,
        "steps": 4,
        "repetitions": 5,
    }
    options = _write.parser(__doc__, **given).parse_args()
    # Read when the first array is made.
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    )
    listed, speeds, runs = [], [], []
    for devices, sharded in ((1, False), (2, False), (DEVICES, False), (DEVICES, True)):
        placement = fb.Placement.over(devices, shard_params=sharded)
        problem = images(options.model, options.width, placement, 20 * options.batch)
        run, state = begun(problem, options.batch, options.steps)
        state, _, _ = run.stretch(state, slice(0, options.steps), None)  # compiles
        size = sum(p.nbytes for p in jax.tree.leaves(state.weights.params))
        name = "split parameters" if sharded else "data parallel"
        if devices == DEVICES:
            keys = ("what", "collective", "times a step", "bytes a step")
            listed += [
                {"placement": name, **dict(zip(keys, (*of, count), strict=True))}
                | {"of the parameters' bytes": f"{count / size:.4f}"}
                for of, count in sent(problem, options.batch).most_common()
            ]
        held = sum(
            leaf.addressable_shards[0].data.nbytes
            for leaf in jax.tree.leaves((state.weights.params, state.scores))
        )
        runs.append((run, state))
        row = {"devices": devices, "placement": name, "steps a second": 0.0}
        speeds.append({**row, "bytes of weights and scores on one device": held})
        print(f"{devices} devices, {name}: compiled", flush=True)
    for row, speed in zip(speeds, rates(runs, options.steps, options.repetitions), strict=True):
        row["steps a second"] = round(speed, 3)
    _write.publish(
        options.out / "bench_devices",
        listed,
        f"# What an outer step sends: {options.model} (width {options.width}, 32x32, "
        f"{size:,} bytes of parameters), batch {options.batch}, {DEVICES} devices",
        _write.table(listed),
        "An outer step takes two gradients (one on fit, one on select). A step in which "
        "multipliers move takes a forward pass besides, which is counted in. In the program "
        "compiled for a CPU a gradient of split parameters is summed everywhere and then cut; "
        "XLA's GPU and TPU compilers turn that into a reduce-scatter.",
        f"## Steps a second on virtual devices of one {machine()['device']} "
        f"({machine()['cores']} cores, other work beside it)",
        _write.table(speeds),
        "Virtual devices share the cores: equal rates would mean that splitting costs nothing. "
        f"Medians of {options.repetitions} calls, the placements in turn.",
    )


if __name__ == "__main__":
    main()
