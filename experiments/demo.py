"""The demo over ten seeds: is the solver as accurate as gradual magnitude pruning, and as quick?

    python -m experiments.demo

What ``make demo`` runs, ``fairbilevel solve`` with its defaults on the bundled digits, with other
seeds of roles, weights and batches. Writes ``results/demo.csv`` and ``demo.md``.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments._presets import points
from fairbilevel import comparison, devices
from fairbilevel.records import write_text
from fairbilevel.run import Config, machine, prepare, versions
from fairbilevel.train import train_dense

RESULTS = Path(__file__).parent / "results"
METHODS = ("bilevel", "gradual-magnitude")
LIMIT = 0.02
_SIZES = (15, 65)  # test rows beside those of fit and select, of which only the ratio counts


def judged(seed: int) -> list[dict[str, Any]]:
    """A row for each method, from the same dense model."""
    config = Config(seed=seed)
    problem = prepare(config).problem
    reference = train_dense(
        problem,
        steps=config.dense_steps,
        batch_size=config.batch_size,
        learning_rate=config.dense_learning_rate,
        seed=seed,
    )
    found = []
    for name in METHODS:
        solution = config.build(name).run(problem, reference)
        test, tune = solution.evaluate("test"), solution.evaluate("tune")
        gap = test.gaps.excess_accuracy
        rows = test.groups[gap.group].rows
        costs = solution.costs
        found.append(
            {
                "seed": seed,
                "method": name,
                "dense_test": float(reference.correct[problem.roles["test"]].mean()),
                "tune": tune.accuracy,
                "test": test.accuracy,
                "largest_gap": gap.largest,
                "rows_of_group": rows,
                # Wrong answers of that group without which the limit would hold.
                "rows_beyond_limit": max(int(np.ceil((gap.largest - LIMIT) * rows)), 0),
                "gradient_evaluations": costs.gradient_evaluations,
                "seconds_without_compiling": costs.seconds - costs.compile_seconds,
            }
        )
    return found


def told(rows: list[dict[str, Any]]) -> list[str]:
    """The means, and the difference that ten seeds can tell."""
    of = {m: [r for r in rows if r["method"] == m] for m in METHODS}
    out = [
        "# The demo over seeds: digits, 90 % of the weights removed",
        "",
        "| method | tune | test | limit met (seeds) | rows beyond it where missed | gradients | "
        "seconds, median |",
        "|---" * 7 + "|",
    ]
    for name, found in of.items():
        missed = [r for r in found if r["rows_beyond_limit"]]
        beyond = ", ".join(f"{r['rows_beyond_limit']} of {r['rows_of_group']}" for r in missed)
        mean = {k: float(np.mean([r[k] for r in found])) for k in ("tune", "test")}
        out.append(
            f"| {name} | {points(mean['tune'])} | {points(mean['test'])} | "
            f"{len(found) - len(missed)} of {len(found)} | {beyond or '-'} | "
            f"{np.mean([r['gradient_evaluations'] for r in found]):.0f} | "
            f"{np.median([r['seconds_without_compiling'] for r in found]):.1f} |"
        )
    own, other = (np.array([r["test"] for r in of[m]]) for m in METHODS)
    test = comparison.corrected_t(own - other, *_SIZES)
    dense = float(np.mean([r["dense_test"] for r in of[METHODS[0]]]))
    told = f"{points(test['mean'], signed=True)} points"
    if test["low"] is not None:
        told += f" ({points(test['low'], signed=True)} to {points(test['high'], signed=True)})"
    return [
        *out,
        "",
        f"The dense model: {points(dense)} on test. Solver less gradual magnitude pruning on test: "
        f"{told}, unadjusted 95 % interval.",
    ]


def main() -> None:
    devices.compile_cache()
    parser = argparse.ArgumentParser(description="The demo over several seeds")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        rows += judged(seed)
        for row in rows[-len(METHODS) :]:
            print(f"seed {seed}: {row['method']} {points(row['test'])} on test", flush=True)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    text = [
        *told(rows),
        "",
        f"- command: `python -m experiments.demo --seeds {arguments.seeds}`",
        f"- versions: {json.dumps(versions())}",
        f"- machine: {json.dumps(machine())}",
        "",
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out / "demo.csv", stream.getvalue())
    write_text(arguments.out / "demo.md", "\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
