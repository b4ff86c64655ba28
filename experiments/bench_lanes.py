"""Runs a minute of a comparison, its runs side by side by ``vmap`` and one after the other.

    python -m experiments.bench_lanes                  # digits, an MLP and a small CNN
    python -m experiments.bench_lanes --data FOLDER    # the claim's UTKFace setting too

Dense models and two methods on every fold, as ``fairbilevel compare --executor vmap --processes
LANES`` carries them out; one by one on the folds of one round alone. A few steps are made before,
to compile. Writes ``results/bench_lanes.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments import _write
from experiments._presets import PRESETS, SOLVER, Setting
from fairbilevel import comparison, devices
from fairbilevel.run import machine
from fairbilevel.sweeps import Engine

METHODS = ("gradual-magnitude", SOLVER)
_DIGITS = {"batch_size": 64, "min_group_rows": 50}


def settings(options: argparse.Namespace) -> dict[str, Setting]:
    """What is timed, by name."""
    found = {
        f"digits, {model}": Setting("digits", METHODS, (0.9,), {**_DIGITS, "model": model})
        for model in options.models.split(",")
    }
    if options.data is not None:
        found["UTKFace, cnn"] = PRESETS["claim"]["small"]["gender-300"]
    return found


def rate(design: comparison.Comparison, engine: Engine) -> float:
    """Networks a minute."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        comparison.run_comparison(design, Path(folder) / "runs", executor=engine)
        seconds = time.perf_counter() - begin
    return 60 * len(design.repetitions) * (1 + len(METHODS)) / seconds


def measure(name: str, setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """A line of the table."""

    def design(steps: int, rounds: int) -> comparison.Comparison:
        made = setting.design(options.data)
        few: dict[str, Any] = {"dense_steps": steps, "steps": steps}
        short = dataclasses.replace(made.config, **few)
        return dataclasses.replace(
            made, config=short, methods=METHODS, rounds=rounds, dense_seeds=0
        )

    engines = {
        "one by one": (Engine(), 1),
        f"{options.lanes} side by side": (Engine("vmap", options.lanes), options.rounds),
    }
    rates = {}
    for way, (engine, rounds) in engines.items():
        rate(design(8, rounds), engine)
        rates[way] = rate(design(options.steps, rounds), engine)
    alone, together = rates.values()
    told = {way: round(found, 1) for way, found in rates.items()}
    return {"rows": name, **told, "ratio": round(together / alone, 2)}


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    return _write.parser(__doc__, data=Path, models="mlp,cnn", lanes=20, rounds=4, steps=300)


def main() -> None:
    options = parser().parse_args()
    devices.compile_cache()
    lines = [measure(*named, options) for named in settings(options).items()]
    _write.publish(
        options.out / "bench_lanes",
        lines,
        f"# Trained networks a minute, one by one and {options.lanes} side by side, "
        f"{machine()['device']}, {machine()['cores']} cores",
        _write.table(lines),
        f"Dense models, {' and '.join(METHODS)}, {options.steps} steps each; evaluation and files "
        "included, compilation not.",
    )


if __name__ == "__main__":
    main()
