"""Accuracy against the largest gap over sparsities and tolerances."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
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
    write_csv,
    write_json,
    write_text,
)
from fairbilevel.run._config import FREE_OPTIONS
from fairbilevel.run._frontier_sweep import HELD, TABLE, FrontierSweep, with_tolerance
from fairbilevel.run._prepare import Prepared
from fairbilevel.run._result import command, describe_data, machine, versions
from fairbilevel.run._resume import stopping
from fairbilevel.sweeps import Engine, carry_out, failures, once_at_a_time


def frontier_run(
    prepared: Prepared,
    sparsities: Sequence[float],
    tolerances: Sequence[float],
    path: Path,
    progress: Callable[[str], None] = lambda line: None,
    *,
    executor: Any = None,
) -> list[dict[str, Any]]:
    """Solve every pair of sparsity and tolerance, and write table and picture into ``path``.

    One dense model serves all, and so do the programs compiled for the first pair: sparsities and
    tolerances are their arguments. Points are chosen on tune: one is not dominated if no other is
    at least as accurate with at most as large a gap. Nothing here is a certificate, and no certify
    row is looked at. What was stopped is gone on with by the same call, and several calls on one
    folder share the work. A point that failed twice is a line with an ``error`` and no numbers.

    Args:
        prepared: the problem, with a constraint.
        sparsities: shares to remove, each in [0, 1).
        tolerances: of every constraint.
        path: a folder that does not exist yet, is empty, or holds a frontier that was stopped.
        progress: receives a line for each job that is done.
        executor: an ``Engine``, or any executor of ``concurrent.futures``; this process by default.

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
    for tolerance in tolerances:
        with_tolerance(problem, tolerance)
    _claim(path, config, sparsities, tolerances)
    sweep = FrontierSweep(path.absolute(), config, tuple(sparsities), tuple(tolerances))
    engine = Engine() if executor is None else executor
    checkpoints = Checkpoints(
        path / CHECKPOINTS,
        every=config.checkpoint_every,
        keep=config.checkpoint_keep,
        say=progress,
    )
    HELD[sweep.call] = prepared, checkpoints
    try:
        if isinstance(engine, Engine):
            # Other processes do not hear of this one's signals: their jobs end with it.
            with contextlib.ExitStack() as stack:
                if engine.is_here:
                    stack.enter_context(stopping(checkpoints, progress))
                opened, at_once = stack.enter_context(engine.open(sweep))
                carry_out(sweep, opened, at_once=at_once, progress=progress)
        else:
            carry_out(sweep, engine, progress=progress)
    finally:
        checkpoints.close()
        del HELD[sweep.call]
    with once_at_a_time(sweep, "table"):
        points = _write(sweep, problem)
    if (path / TABLE).is_file():
        checkpoints.discard()
        shutil.rmtree(sweep.parts, ignore_errors=True)
    return points


def _write(sweep: FrontierSweep, problem: FairPruningProblem) -> list[dict[str, Any]]:
    """The points in their files; ``frontier.json``, which ends the frontier, once none has failed.

    Another call may have written them.
    """
    path = sweep.folder
    if (path / TABLE).is_file():
        return list(read_object(path / TABLE)["points"])
    errors = failures(sweep)
    points = sweep.table(errors)
    known = [p for p in points if "error" not in p]
    if not known:
        raise ValueError(f"no point of the frontier has an outcome: {next(iter(errors.values()))}")
    _choose(known)
    write_csv(path / "frontier.csv", points)
    write_text(path / "frontier.svg", report.frontier_svg(known))
    if not errors:
        about = {
            "command": command(),
            "seed": sweep.config.seed,
            "versions": versions(),
            "machine": machine(),
            "data": dataclasses.asdict(describe_data(problem)),
            "constraints": [c.name for c in problem.constraints],
            "points": points,
        }
        write_json(path / TABLE, {"schema_version": SCHEMA_VERSION, **about})
    return points


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
