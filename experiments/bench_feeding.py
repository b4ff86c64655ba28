"""Steps a second on rows that are read batch by batch, beside the same rows in memory.

    python -m experiments.bench_feeding                          # 50,000 rows of 48x48x3
    python -m experiments.bench_feeding --rows 5000 --rounds 3   # a quick look

The same weight steps on the same rows, which lie in memory, in shards of arrays and in ArrayRecord
files: a round trains a stage of each, in an order drawn anew, and medians over rounds are compared.
A stage is what a run trains between two looks at tune, its reading included. The last column is the
share of the time in which devices had nothing to do until rows were there. Writes
``results/bench_feeding.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments import _write
from experiments.make_rows import write
from fairbilevel import _numbers, data, devices
from fairbilevel.problem import FairPruningProblem
from fairbilevel.run import machine
from fairbilevel.train._dense import STAGES, _DenseRun

SHARDS = 8


class Stages:
    """Stages of training on the rows of one source (as ``--data``), one after the other."""

    def __init__(self, source: Path, in_memory: str, options: argparse.Namespace):
        rows = data.load(source, data.Options(in_memory=in_memory))
        self.problem = FairPruningProblem(options.model, rows, width=options.width)
        # A stage more than rounds: the first one compiles.
        rates = np.zeros(STAGES * options.steps)
        self.run = _DenseRun(self.problem, rates, None, 0, options.batch)
        self.state, self.waited = self.run.init(), 0.0

    def __call__(self) -> None:
        """Train one; after the last the first comes again."""
        before = self.run.feed.waited
        self.state, _, _ = self.run._stage(self.state)
        self.waited = self.run.feed.waited - before
        self.run.stage = (self.run.stage + 1) % STAGES


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A line for each place where rows lie."""
    write(folder / "arrays", options.rows, -(-options.rows // SHARDS), options.size, 0)
    data.convert(folder / "arrays", folder / "records")
    places = {
        "in memory": (folder / "arrays", "yes"),
        "shards of arrays": (folder / "arrays", "no"),
        "ArrayRecord": (folder / "records", "no"),
    }
    stages = {name: Stages(*place, options) for name, place in places.items()}
    waited: dict[str, list[float]] = {name: [] for name in places}

    def call(name: str) -> None:
        stages[name]()
        waited[name].append(stages[name].waited)

    calls: dict[str, Callable[[], None]] = {name: partial(call, name) for name in places}
    times = devices.timed(calls, rounds=options.rounds)
    held = times["in memory"].median
    return [
        {
            "rows": name,
            "steps a second": round(1e3 * options.steps / t.median, 2),
            "quartiles": f"{1e3 * options.steps / t.high:.2f} to {1e3 * options.steps / t.low:.2f}",
            "beside in memory": round(held / t.median, 3),
            "waiting": _numbers.percent(float(np.median(waited[name][1:])) / (t.median / 1e3)),
        }
        for name, t in times.items()
    ]


def parser() -> argparse.ArgumentParser:
    """Of the command line; ``steps`` are those of a stage."""
    return _write.parser(
        __doc__, rows=50_000, size=48, model="resnet10", width=16, batch=128, steps=16, rounds=7
    )


def main() -> None:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(options, Path(folder))
    _write.publish(
        options.out / "bench_feeding",
        lines,
        f"# Steps a second of {options.model} (width {options.width}, batch {options.batch}) "
        f"on {options.rows:,} rows of {options.size}x{options.size}x3, {machine()['device']}, "
        f"{machine()['cores']} cores",
        _write.table(lines),
        f"Medians of {options.rounds} interleaved rounds of {options.steps} steps.",
    )


if __name__ == "__main__":
    main()
