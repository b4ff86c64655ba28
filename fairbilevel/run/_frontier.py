"""Accuracy against the largest gap over sparsities and tolerances."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fairbilevel import report
from fairbilevel.records import SCHEMA_VERSION, write_json, write_text
from fairbilevel.run._prepare import Prepared
from fairbilevel.run._result import command, describe_data, machine, versions
from fairbilevel.run._solve import dense_reference, make_baseline, make_solver
from fairbilevel.solver import Candidate, solve_many
from fairbilevel.train import Costs

ROLES = ("tune", "test")


def frontier_run(
    prepared: Prepared,
    sparsities: Sequence[float],
    tolerances: Sequence[float],
    path: Path,
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Solve every pair of sparsity and tolerance, and write table and picture into ``path``.

    One dense model serves all; all candidates are solved in one compiled program. Points are
    chosen on tune: one is not dominated if no other is at least as accurate with at most as large a
    gap. Nothing here is a certificate, and no certify row is looked at.

    Args:
        prepared: the problem, with a constraint.
        sparsities: shares to remove, each in [0, 1).
        tolerances: of every constraint.
        path: a folder that does not exist yet, or is empty.
        progress: receives a line for each part that is done.

    Raises:
        ValueError: no constraint, nothing to solve, or a folder with something in it.
    """
    config, problem = prepared.config, prepared.problem
    if not problem.constraints:
        raise ValueError("a frontier over tolerances needs a --constraint")
    if not sparsities or not tolerances:
        raise ValueError("give at least one sparsity and one tolerance")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is there already: choose another --out")
    candidates = [Candidate(s, t) for s in sparsities for t in tolerances]
    solver = make_solver(config)
    for sparsity in sparsities:
        dataclasses.replace(solver, sparsity=sparsity)  # refused before any work
    costs = Costs()
    reference = dense_reference(prepared, costs)
    if prepared.dense is None:
        progress(f"dense model trained in {costs.seconds:.0f} s")
    points = [_dense_point(problem, reference)]
    for sparsity in sparsities:
        baseline = dataclasses.replace(make_baseline(config), sparsity=sparsity)
        points.append(_point("gradual-magnitude", sparsity, None, baseline.run(problem, reference)))
    progress(f"gradual magnitude pruning done at {len(sparsities)} sparsities")
    solutions = solve_many(solver, problem, reference, candidates)
    for candidate, solution in zip(candidates, solutions, strict=True):
        points.append(_point("bilevel", candidate.sparsity, candidate.tolerance, solution))
    _choose(points)
    path.mkdir(parents=True, exist_ok=True)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(points[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    write_text(path / "frontier.csv", stream.getvalue())
    write_text(path / "frontier.svg", report.frontier_svg(points))
    write_json(
        path / "frontier.json",
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
    return points


def _point(method: str, sparsity: float, tolerance: float | None, solution: Any) -> dict[str, Any]:
    point: dict[str, Any] = {"method": method, "sparsity": sparsity, "tolerance": tolerance}
    for role in ROLES:
        seen = solution.evaluate(role)
        point[f"{role}_accuracy"] = seen["performance"]["accuracy"]
        point[f"{role}_gap"] = seen["gaps"]["max_excess_accuracy_gap"]
        point[f"{role}_worst_group"] = seen["gaps"]["worst_group_accuracy"]
    point["gradient_evaluations"] = round(solution.costs.gradient_evaluations, 1)
    point["chosen"] = False
    return point


def _dense_point(problem: Any, reference: Any) -> dict[str, Any]:
    point: dict[str, Any] = {"method": "dense", "sparsity": 0.0, "tolerance": None}
    for role in ROLES:
        rows = problem.roles[role]
        seen = problem.summarize(problem.outcomes(reference.network, reference, rows), rows)
        point[f"{role}_accuracy"] = seen["performance"]["accuracy"]
        point[f"{role}_gap"] = seen["gaps"]["max_excess_accuracy_gap"]
        point[f"{role}_worst_group"] = seen["gaps"]["worst_group_accuracy"]
    point["gradient_evaluations"] = round(reference.gradient_evaluations, 1)
    point["chosen"] = False
    return point


def _choose(points: list[dict[str, Any]]) -> None:
    """Mark the solver's points that no other of the same or a higher sparsity dominates on tune."""
    solved = [p for p in points if p["method"] == "bilevel"]
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
