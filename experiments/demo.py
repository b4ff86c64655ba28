"""The demo over ten seeds: is the solver as accurate as gradual magnitude pruning, and as quick?

    python -m experiments.demo

What ``make demo`` runs, ``fairbilevel solve`` with its defaults on the bundled digits, with other
seeds of roles, weights and batches. Writes ``results/demo.csv`` and ``demo.md``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments import _write
from experiments._write import interval, points
from fairbilevel import _numbers, comparison, devices
from fairbilevel.run import Config, prepare
from fairbilevel.train import train_dense

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
        assert gap.largest is not None
        assert gap.group is not None
        rows = test.groups[gap.group].rows
        assert rows is not None
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


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each method: means over seeds."""
    out = []
    for name in METHODS:
        found = [r for r in rows if r["method"] == name]
        missed = [r for r in found if r["rows_beyond_limit"]]
        beyond = ", ".join(f"{r['rows_beyond_limit']} of {r['rows_of_group']}" for r in missed)
        out.append(
            {
                "method": name,
                "tune": points(float(np.mean([r["tune"] for r in found]))),
                "test": points(float(np.mean([r["test"] for r in found]))),
                "limit met (seeds)": f"{len(found) - len(missed)} of {len(found)}",
                "rows beyond it where missed": beyond or _numbers.MISSING,
                "gradients": f"{np.mean([r['gradient_evaluations'] for r in found]):.0f}",
                "seconds, median": (
                    f"{np.median([r['seconds_without_compiling'] for r in found]):.1f}"
                ),
            }
        )
    return out


def difference(rows: list[dict[str, Any]]) -> str:
    """What so many seeds can tell."""
    own, other = (np.array([r["test"] for r in rows if r["method"] == m]) for m in METHODS)
    told = interval(comparison.corrected_t(own - other, *_SIZES))
    return (
        f"The dense model: {points(float(np.mean([r['dense_test'] for r in rows])))} on test. "
        f"Solver less gradual magnitude pruning on test, in points: {told}, unadjusted 95 % "
        "interval."
    )


def main() -> None:
    devices.compile_cache()
    options = _write.parser(__doc__, seeds=10).parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        rows += judged(seed)
        for row in rows[-len(METHODS) :]:
            print(f"seed {seed}: {row['method']} {points(row['test'])} on test", flush=True)
    _write.publish(
        options.out / "demo",
        rows,
        "# The demo over seeds: digits, 90 % of the weights removed",
        _write.table(table(rows)),
        difference(rows),
    )


if __name__ == "__main__":
    main()
