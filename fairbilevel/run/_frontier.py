"""Accuracy against the largest gap over sparsities and tolerances."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fairbilevel import report
from fairbilevel.problem import FairPruningProblem
from fairbilevel.records import (
    CHECKPOINTS,
    CONFIG,
    SCHEMA_VERSION,
    Checkpoints,
    differences,
    read_object,
    write_json,
    write_text,
)
from fairbilevel.run._config import FREE_OPTIONS
from fairbilevel.run._prepare import Prepared
from fairbilevel.run._result import command, describe_data, evaluate_roles, machine, versions
from fairbilevel.run._resume import stopping
from fairbilevel.run._solve import BASELINE, dense_reference
from fairbilevel.train import Costs, Solution

ROLES = ("tune", "test")
TABLE = "frontier.json"


def frontier_run(
    prepared: Prepared,
    sparsities: Sequence[float],
    tolerances: Sequence[float],
    path: Path,
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Solve every pair of sparsity and tolerance, and write table and picture into ``path``.

    One dense model serves all, and so do the programs compiled for the first pair: sparsities and
    tolerances are their arguments. Points are chosen on tune: one is not dominated if no other is
    at least as accurate with at most as large a gap. Nothing here is a certificate, and no certify
    row is looked at. What was stopped is gone on with by the same call.

    Args:
        prepared: the problem, with a constraint.
        sparsities: shares to remove, each in [0, 1).
        tolerances: of every constraint.
        path: a folder that does not exist yet, is empty, or holds a frontier that was stopped.
        progress: receives a line for each part that is done.

    Raises:
        ValueError: no constraint, nothing to solve, or a folder with something else in it.
        Interrupted: a signal asked to stop, and a checkpoint was written.
    """
    config, problem = prepared.config, prepared.problem
    if not problem.constraints:
        raise ValueError("a frontier over tolerances needs a --constraint")
    if not sparsities or not tolerances:
        raise ValueError("give at least one sparsity and one tolerance")
    for constraint in problem.constraints:
        if not isinstance(constraint.tolerance, (int, float)):
            raise ValueError(
                f"{constraint.name} has a tolerance for each group: a frontier varies one number"
            )
    for sparsity in sparsities:  # refused before any work
        dataclasses.replace(prepared.method, sparsity=sparsity).plan(problem)
    problems = [(t, _with_tolerance(problem, t)) for t in tolerances]
    _claim(path, config, sparsities, tolerances)
    every, keep = config.checkpoint_every, config.checkpoint_keep
    checkpoints = Checkpoints(path / CHECKPOINTS, every=every, keep=keep, say=progress)
    try:
        with stopping(checkpoints, progress):
            points = _solved(prepared, sparsities, problems, checkpoints, progress)
    finally:
        checkpoints.close()
    _choose(points)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(points[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    write_text(path / "frontier.csv", stream.getvalue())
    write_text(path / "frontier.svg", report.frontier_svg(points))
    write_json(
        path / TABLE,
        {
            "schema_version": SCHEMA_VERSION,
            "command": command(),
            "seed": config.seed,
            "versions": versions(),
            "machine": machine(),
            "data": describe_data(problem),
            "constraints": [c.name for c in problem.constraints],
            "points": points,
        },
    )
    checkpoints.discard()
    return points


def _with_tolerance(problem: FairPruningProblem, tolerance: float) -> FairPruningProblem:
    changed = [dataclasses.replace(c, tolerance=tolerance) for c in problem.constraints]
    return problem.under(changed)


def _claim(
    path: Path, config: Any, sparsities: Sequence[float], tolerances: Sequence[float]
) -> None:
    """Begin a frontier in a folder, or go on with the one that is there.

    Raises:
        ValueError: it holds something else.
    """
    asked = {k: v for k, v in config.to_json().items() if k not in FREE_OPTIONS}
    asked |= {"sparsities": list(sparsities), "tolerances": list(tolerances)}
    if (path / CONFIG).is_file() and not (path / TABLE).exists():
        other = differences(read_object(path / CONFIG), asked)
        if other:
            raise ValueError(
                f"{path} holds an unfinished frontier with other options: {other}; choose another "
                "--out"
            )
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is there already: choose another --out")
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / CONFIG, asked)


def _solved(
    prepared: Prepared,
    sparsities: Sequence[float],
    problems: Sequence[tuple[float, FairPruningProblem]],
    checkpoints: Checkpoints,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Every point: the dense model's, the baseline's by sparsity, the method's by both."""
    config, problem, costs = prepared.config, prepared.problem, Costs()
    reference = dense_reference(prepared, costs, checkpoints=checkpoints)
    if prepared.dense is None:
        progress(f"dense model trained in {costs.seconds:.0f} s")
    dense = evaluate_roles(problem, reference.network, reference)
    points = [_point("dense", 0.0, None, dense.__getitem__, reference.gradient_evaluations)]
    for sparsity in sparsities:
        baseline = config.build(BASELINE, sparsity=sparsity)
        own = checkpoints.below(f"baseline-{sparsity:g}")
        solution = baseline.run(problem, reference, checkpoints=own)
        points.append(_solved_point(sparsity, None, solution))
    progress(f"gradual magnitude pruning done at {len(sparsities)} sparsities")
    for sparsity in sparsities:
        method = dataclasses.replace(prepared.method, sparsity=sparsity)
        for tolerance, bounded in problems:
            own = checkpoints.below(f"{sparsity:g}-{tolerance:g}")
            solution = method.run(bounded, reference, checkpoints=own)
            points.append(_solved_point(sparsity, tolerance, solution))
        progress(f"{method.label} done at sparsity {sparsity:g}")
    return points


def _point(
    method: str, sparsity: float, tolerance: float | None, seen: Any, evaluations: float
) -> dict[str, Any]:
    """A line of the table; ``seen`` gives what a role's rows say."""
    point: dict[str, Any] = {"method": method, "sparsity": sparsity, "tolerance": tolerance}
    for role in ROLES:
        found = seen(role)
        point[f"{role}_accuracy"] = found["performance"]["accuracy"]
        point[f"{role}_gap"] = found["gaps"]["max_excess_accuracy_gap"]
        point[f"{role}_worst_group"] = found["gaps"]["worst_group_accuracy"]
    return {**point, "gradient_evaluations": round(evaluations, 1), "chosen": False}


def _solved_point(sparsity: float, tolerance: float | None, solution: Solution) -> dict[str, Any]:
    spent = solution.costs.gradient_evaluations
    return _point(solution.method, sparsity, tolerance, solution.evaluate, spent)


def _choose(points: list[dict[str, Any]]) -> None:
    """Mark the method's points that no other of the same or a higher sparsity dominates on tune."""
    solved = [p for p in points if p["tolerance"] is not None]
    for p in solved:
        p["chosen"] = not any(
            q is not p
            and q["sparsity"] >= p["sparsity"]
            and q["tune_accuracy"] >= p["tune_accuracy"]
            and q["tune_gap"] <= p["tune_gap"]
            and (q["tune_accuracy"], -q["tune_gap"], q["sparsity"])
            != (p["tune_accuracy"], -p["tune_gap"], p["sparsity"])
            for q in solved
        )
