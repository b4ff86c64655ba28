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

import argparse
import csv
import io
import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fairbilevel as fb
from fairbilevel.devices import Collective, bytes_of, collectives
from fairbilevel.records import write_text
from fairbilevel.run import machine, versions
from fairbilevel.solver import BilevelRun, outer_stretch
from fairbilevel.train import RunState

RESULTS = Path(__file__).parent / "results"
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
    """Bytes of a collective by what they are, told by types and shapes.

    Args:
        found: the collective.
        weights: sorted shapes of parameters of two axes and more (the canonical layout of
            convolutions permutes axes).
        batch: rows of a batch.
    """
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
    """Steps per second of each run, medians of calls in turn, so that other work on the machine
    falls on all of them alike."""
    states = [state for _, state in runs]
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repetitions):
        for i, (run, _) in enumerate(runs):
            begin = time.perf_counter()
            states[i], _, log = run.stretch(states[i], slice(0, steps), None)
            jax.block_until_ready(log.finite)
            seconds[i].append(time.perf_counter() - begin)
    return [steps / float(np.median(t)) for t in seconds]


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Markdown."""
    rows = list(rows)
    return [
        "| " + " | ".join(rows[0]) + " |",
        "|" + "---|" * len(rows[0]),
        *("| " + " | ".join(str(v) for v in row.values()) + " |" for row in rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="resnet10")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    # Read when the first array is made.
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    )
    listed, speeds, runs = [], [], []
    for devices, sharded in ((1, False), (2, False), (DEVICES, False), (DEVICES, True)):
        placement = fb.Placement.over(devices, shard_params=sharded)
        problem = images(arguments.model, arguments.width, placement, 20 * arguments.batch)
        run, state = begun(problem, arguments.batch, arguments.steps)
        state, _, _ = run.stretch(state, slice(0, arguments.steps), None)  # compiles
        size = sum(p.nbytes for p in jax.tree.leaves(state.weights.params))
        name = "split parameters" if sharded else "data parallel"
        if devices == DEVICES:
            weights = weight_shapes(problem)
            total: Counter[tuple[str, str]] = Counter()
            times: Counter[tuple[str, str]] = Counter()
            in_steps = (c for c in collectives(outer_stretch.newest().as_text()) if c.looped)
            for found in in_steps:
                for what, count in carries(found, weights, arguments.batch).items():
                    total[what, found.kind] += count
                    times[what, found.kind] += found.times
            for (what, kind), count in sorted(total.items(), key=lambda item: -item[1]):
                listed.append(
                    {
                        "placement": name,
                        "what": what,
                        "collective": kind,
                        "times a step": times[what, kind],
                        "bytes a step": count,
                        "of the parameters' bytes": f"{count / size:.4f}",
                    }
                )
        held = sum(
            leaf.addressable_shards[0].data.nbytes
            for leaf in jax.tree.leaves((state.weights.params, state.scores))
        )
        runs.append((run, state))
        speeds.append(
            {
                "devices": devices,
                "placement": name,
                "steps a second": 0.0,
                "bytes of weights and scores on one device": held,
            }
        )
        print(speeds[-1], flush=True)
    found_rates = rates(runs, arguments.steps, arguments.repetitions)
    for row, speed in zip(speeds, found_rates, strict=True):
        row["steps a second"] = round(speed, 3)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(listed[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    made = machine()
    lines = [
        f"# What an outer step sends: {arguments.model} (width {arguments.width}, 32x32, "
        f"{size:,} bytes of parameters), batch {arguments.batch}, {DEVICES} devices",
        "",
        *table(listed),
        "",
        "An outer step takes two gradients (one on fit, one on select). A step in which "
        "multipliers move takes a forward pass besides, which is counted in. In the program "
        "compiled for a CPU a gradient of split parameters is summed everywhere and then cut; "
        "XLA's GPU and TPU compilers turn that into a reduce-scatter.",
        "",
        f"## Steps a second on virtual devices of one {made['device']} ({made['cores']} cores, "
        "other work beside it)",
        "",
        *table(speeds),
        "",
        "Virtual devices share the cores: equal rates would mean that splitting costs nothing. "
        f"Medians of {arguments.repetitions} calls, the placements in turn.",
        "",
        f"Made by `python -m experiments.bench_devices --model {arguments.model} --width "
        f"{arguments.width} --batch {arguments.batch} --steps {arguments.steps}` (seed 0) with "
        + ", ".join(f"{k} {v}" for k, v in versions().items())
        + f" on {made['platform']}.",
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / "bench_devices.csv", stream.getvalue())
    write_text(RESULTS / "bench_devices.md", "\n".join(lines))


if __name__ == "__main__":
    main()
