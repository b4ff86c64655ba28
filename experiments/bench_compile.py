"""What a solve compiles: how many programs, for how long, and what the next process saves.

    python -m experiments.bench_compile
    python -m experiments.bench_compile --against path/to/another/checkout

Runs ``fairbilevel solve`` on the digits in processes of their own and counts what JAX logs
(``JAX_LOG_COMPILES``): cold, then with another seed on the programs that the first one left on
disk. With ``--against`` another checkout runs in turn with this one, so that other work on the
machine falls on both alike. Writes ``results/bench_compile.csv`` and ``.md``.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments import _write

HERE = Path(__file__).parents[1]
_COMPILED = re.compile(r"Finished XLA compilation of (\S+) in ([\d.e-]+) sec")
_TRACED = re.compile(r"Finished (?:tracing|jaxpr to MLIR).*? in ([\d.e-]+) sec")
_RAN = re.compile(r"compiled in ([\d.,]+) s, ran ([\d.,]+) s")


def solve(checkout: Path, seed: int, cache: Path) -> dict[str, Any]:
    """One run of a checkout's command in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "fairbilevel", "solve", "--seed", str(seed), "--out", f"{folder}/run"]
        told = {"JAX_LOG_COMPILES": "1", "XDG_CACHE_HOME": str(cache)}
        environment = {**os.environ, **told, "PYTHONPATH": str(checkout)}
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
        )
        wall = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"the run failed: {done.stderr.strip()[-500:]}")
    compiled = [float(s) for _, s in _COMPILED.findall(done.stderr)]
    said = _RAN.search(done.stdout)
    assert said is not None
    return {
        "programs": len(compiled),
        "XLA seconds": sum(compiled),
        "lowering seconds": sum(float(s) for s in _TRACED.findall(done.stderr)),
        "compiling as printed": float(said[1].replace(",", "")),
        "running as printed": float(said[2].replace(",", "")),
        "wall seconds": wall,
    }


def main() -> None:
    options = _write.parser(__doc__, against=Path, repetitions=3).parse_args()
    checkouts = {"this": HERE}
    if options.against is not None:
        checkouts["other"] = options.against.resolve()
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for repetition in range(options.repetitions):
        for name, checkout in checkouts.items():
            cache = Path(tempfile.mkdtemp())
            for kind, seed in (("cold", 0), ("next process, another seed", repetition + 1)):
                seen.setdefault((name, kind), []).append(solve(checkout, seed, cache))
                print(name, kind, seen[name, kind][-1], flush=True)
            shutil.rmtree(cache)
    rows = [
        {
            "checkout": name,
            "run": kind,
            **{k: round(statistics.median(run[k] for run in runs), 2) for k in runs[0]},
        }
        for (name, kind), runs in seen.items()
    ]
    _write.publish(
        options.out / "bench_compile",
        rows,
        "# What a solve on the digits compiles",
        _write.table(rows),
        f"Medians of {options.repetitions} runs, each in a process of its own."
        + " *Other*: the checkout it was compared with, run in turn with this one."
        * (options.against is not None),
    )


if __name__ == "__main__":
    main()
