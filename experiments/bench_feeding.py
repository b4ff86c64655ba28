"""Steps a second on rows that are read batch by batch, beside the same rows in memory.

    python -m experiments.bench_feeding                          # 50,000 rows of 48x48x3
    python -m experiments.bench_feeding --rows 5000 --rounds 3   # a quick look

The same weight steps on the same rows, which lie in memory, in shards of arrays and in ArrayRecord
files; and, by an MLP, on as many rows of twenty numbers, in memory and in a Parquet file. A round
trains a stage of each, in an order drawn anew; medians over rounds are compared. A stage is what
a run trains between two looks at tune, its reading included. The last column is the share of the
time in which devices had nothing to do until rows were there. Writes
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
import pandas as pd

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
        table = source.suffix == ".parquet"
        named: dict[str, Any] = {"target": "y", "group": ("group",)} if table else {}
        rows = data.load(source, data.Options(in_memory=in_memory, **named))
        model, width = ("mlp", 256) if table else (options.model, options.width)
        self.problem = FairPruningProblem(model, rows, width=width)
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


def write_table(path: Path, rows: int) -> None:
    """Two classes and two groups, and twenty numbers that tell the classes apart."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, rows)
    x = rng.normal(size=(rows, 20)).astype(np.float32) + y[:, None] / 2
    table = pd.DataFrame(x, columns=[f"x{i}" for i in range(20)])
    table.assign(y=y, group=rng.integers(0, 2, rows)).to_parquet(path, row_group_size=10_000)


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A line for each place where rows lie."""
    write(folder / "arrays", options.rows, -(-options.rows // SHARDS), options.size, 0)
    data.convert(folder / "arrays", folder / "records")
    write_table(folder / "table.parquet", options.rows)
    places = {
        "in memory": (folder / "arrays", "yes"),
        "shards of arrays": (folder / "arrays", "no"),
        "ArrayRecord": (folder / "records", "no"),
        "table in memory": (folder / "table.parquet", "yes"),
        "Parquet": (folder / "table.parquet", "no"),
    }
    beside = dict.fromkeys(places, "in memory") | {"Parquet": "table in memory"}
    beside["table in memory"] = "table in memory"
    stages = {name: Stages(*place, options) for name, place in places.items()}
    waited: dict[str, list[float]] = {name: [] for name in places}

    def call(name: str) -> None:
        stages[name]()
        waited[name].append(stages[name].waited)

    calls: dict[str, Callable[[], None]] = {name: partial(call, name) for name in places}
    times = devices.timed(calls, rounds=options.rounds)
    return [
        {
            "rows": name,
            "steps a second": round(1e3 * options.steps / t.median, 2),
            "quartiles": f"{1e3 * options.steps / t.high:.2f} to {1e3 * options.steps / t.low:.2f}",
            "beside in memory": round(times[beside[name]].median / t.median, 3),
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
        f"Medians of {options.rounds} interleaved rounds of {options.steps} steps. Tables: twenty "
        "numbers a row, an MLP of 256 neurons.",
    )


if __name__ == "__main__":
    main()
