"""Accuracy against the largest gap over sparsities and tolerances, as jobs: the dense model, then
the baseline at every sparsity and the method at every pair of sparsity and tolerance from it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairbilevel import devices, report
from fairbilevel.deploy import network_arrays, network_of
from fairbilevel.fairness import Evaluation
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.records import (
    CONFIG,
    SCHEMA_VERSION,
    Checkpoints,
    differences,
    read_object,
    write_csv,
    write_json,
    write_text,
)
from fairbilevel.run._config import FREE_OPTIONS, Config
from fairbilevel.run._folder import stopping
from fairbilevel.run._prepare import Prepared, prepare
from fairbilevel.run._result import command, describe_data, evaluate_roles, machine, versions
from fairbilevel.run._solve import BASELINE, checkpoints_of, dense_reference
from fairbilevel.sweeps import (
    Engine,
    Job,
    NotReady,
    Part,
    Refused,
    Sweep,
    carry_out,
    failures,
    is_here,
    once_at_a_time,
)
from fairbilevel.train import Costs, Solution

OUTCOMES = ("correct", "loss", "logits")
_NUMBERS = ("gradient_evaluations", "seed", "rollbacks", "warnings")


def write_reference(reference: Reference) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A dense model as plain JSON and as arrays, to the last bit; the inverse is
    ``read_reference``."""
    arrays = network_arrays(reference.network)
    arrays |= {f"row/{name}": getattr(reference, name) for name in OUTCOMES}
    return {name: getattr(reference, name) for name in _NUMBERS}, arrays


def read_reference(
    record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], problem: FairPruningProblem
) -> Reference:
    """The dense model that ``write_reference`` took apart, on the devices of its problem.

    Raises:
        RecordError: parameters of another model.
    """
    network = network_of(arrays, problem.model)
    return Reference(
        network=Network(*problem.placement.place((network.params, network.state))),
        **{name: arrays[f"row/{name}"] for name in OUTCOMES},
        gradient_evaluations=record["gradient_evaluations"],
        seed=record["seed"],
        rollbacks=tuple(record["rollbacks"]),
        warnings=tuple(record["warnings"]),
    )


ROLES = ("tune", "test")
TABLE = "frontier.json"
_DENSE = "dense"


@dataclass(frozen=True)
class FrontierSweep(Sweep):
    """The jobs of a frontier. One that was stopped goes on from its checkpoints, but for those side
    by side (``vmap``), which keep none: what writes them serves one thread.

    Attributes:
        config: of the problem and the method.
        sparsities: shares to remove.
        tolerances: of every constraint.
    """

    config: Config
    sparsities: tuple[float, ...]
    tolerances: tuple[float, ...]

    def points(self) -> dict[str, tuple[str, float, float | None]]:
        """Method, sparsity and tolerance of every job but the dense model's, by name."""
        found: dict[str, tuple[str, float, float | None]] = {}
        for s in self.sparsities:
            found[f"baseline-{s!r}"] = (BASELINE, s, None)
        for s in self.sparsities:
            found |= {f"{s!r}-{t!r}": (self.config.method, s, t) for t in self.tolerances}
        return found

    def jobs(self) -> list[Job]:
        """The baseline's first."""
        return [
            Job(name, after=_DENSE, kind=method) for name, (method, *_) in self.points().items()
        ]

    def merged(self) -> set[str]:
        """All of them, once the table is there."""
        return {_DENSE, *self.points()} if (self.folder / TABLE).is_file() else set()

    def run(self, name: str) -> Part:
        """Do one job."""
        if not is_here(self):
            devices.compile_cache(self.config.compile_cache)
        try:
            prepared, checkpoints = _held(self)
            if name == _DENSE:
                return self._dense(prepared, checkpoints)
            reference = _reference(self)
        except ValueError as error:
            raise Refused(str(error)) from error
        method, sparsity, tolerance = self.points()[name]
        problem, chosen = prepared.problem, dataclasses.replace(prepared.method, sparsity=sparsity)
        if tolerance is None:
            chosen = self.config.build(method, sparsity=sparsity)
        else:
            problem = with_tolerance(problem, tolerance)
        own = None if devices.lanes() else checkpoints.below(name)
        try:
            solution: Solution = chosen.run(problem, reference, checkpoints=own)
        finally:
            if own is not None:
                own.close()
        spent = solution.costs.gradient_evaluations
        point = _point(solution.method, sparsity, tolerance, solution.evaluate, spent)
        at = "" if tolerance is None else f", tolerance {tolerance:g}"
        return Part(point, line=f"{chosen.label} done at sparsity {sparsity:g}{at}")

    def _dense(self, prepared: Prepared, checkpoints: Checkpoints) -> Part:
        costs = Costs()
        try:
            reference = dense_reference(prepared, costs, checkpoints=checkpoints)
        finally:
            checkpoints.close()
        seen = evaluate_roles(prepared.problem, reference.network, reference)
        point = _point(_DENSE, 0.0, None, seen.__getitem__, reference.gradient_evaluations)
        numbers, arrays = write_reference(reference)
        said = "" if prepared.dense else f"dense model trained in {costs.seconds:.0f} s"
        return Part({"point": point, "reference": numbers}, arrays, said)

    def table(self, errors: dict[str, str]) -> list[dict[str, Any]]:
        """A line for the dense model and every job; those without an outcome say why: ``errors``,
        by name of the job."""
        dense = self.read_part(_DENSE)
        found = [] if dense is None else [dense.record["point"]]
        for name, (method, sparsity, tolerance) in self.points().items():
            part = self.read_part(name)
            if part is not None:
                found.append(part.record)
            elif name in errors:
                found.append(_without(method, sparsity, tolerance, errors[name]))
        return found


# What the calling process has already: its problem, and the checkpoints that a signal stops.
HELD: dict[str, tuple[Prepared, Checkpoints]] = {}


def _held(sweep: FrontierSweep) -> tuple[Prepared, Checkpoints]:
    if sweep.call in HELD:
        return HELD[sweep.call]
    return _prepared(sweep), checkpoints_of(sweep.folder, sweep.config)


@functools.lru_cache(maxsize=1)
def _prepared(sweep: FrontierSweep) -> Prepared:
    return prepare(sweep.config)


@functools.lru_cache(maxsize=1)
def _reference(sweep: FrontierSweep) -> Reference:
    part = sweep.read_part(_DENSE)
    if part is None:
        raise NotReady
    return read_reference(part.record["reference"], part.arrays, _held(sweep)[0].problem)


def with_tolerance(problem: FairPruningProblem, tolerance: float) -> FairPruningProblem:
    """A problem with one tolerance for all its constraints."""
    changed = [dataclasses.replace(c, tolerance=tolerance) for c in problem.constraints]
    return problem.under(changed)


def _point(
    method: str,
    sparsity: float,
    tolerance: float | None,
    seen: Callable[[str], Evaluation],
    evaluations: float,
) -> dict[str, Any]:
    """A line of the table; ``seen`` gives what a role's rows say."""
    point: dict[str, Any] = {"method": method, "sparsity": sparsity, "tolerance": tolerance}
    for role in ROLES:
        found = seen(role)
        point[f"{role}_accuracy"] = found.accuracy
        point[f"{role}_gap"] = found.gaps.excess_accuracy.largest
        point[f"{role}_worst_group"] = found.worst_group_accuracy
    return {**point, "gradient_evaluations": round(evaluations, 1), "chosen": False}


def _without(method: str, sparsity: float, tolerance: float | None, error: str) -> dict[str, Any]:
    names = [f"{role}_{what}" for role in ROLES for what in ("accuracy", "gap", "worst_group")]
    point = {"method": method, "sparsity": sparsity, "tolerance": tolerance}
    return {**point, **dict.fromkeys(names), "gradient_evaluations": None, "chosen": False,
            "error": error}  # fmt: skip


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
    if isinstance(executor, Engine):
        executor.check_devices(problem.placement.count)
    for sparsity in sparsities:  # refused before any work
        dataclasses.replace(prepared.method, sparsity=sparsity).plan(problem)
    for tolerance in tolerances:
        with_tolerance(problem, tolerance)
    _claim(path, config, sparsities, tolerances, problem.data.fingerprint)
    sweep = FrontierSweep(path.absolute(), config, tuple(sparsities), tuple(tolerances))
    engine = Engine() if executor is None else executor
    checkpoints = checkpoints_of(path, config, progress)
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
    """The points in their files, unless another call has written them; ``frontier.json``, which
    ends the frontier, once none has failed."""
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
    path: Path,
    config: Any,
    sparsities: Sequence[float],
    tolerances: Sequence[float],
    fingerprint: str,
) -> None:
    """Begin a frontier in a folder, or go on with the one that is there and nothing else."""
    asked = _asked(config, sparsities, tolerances, fingerprint)
    if _is_unfinished(path):
        # Former versions did not write down which rows they began with.
        other = differences({"rows": fingerprint, **read_object(path / CONFIG)}, asked)
        if other:
            raise ValueError(
                f"{path} holds an unfinished frontier with other options or rows: {other}; choose "
                "another --out"
            )
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is there already: choose another --out")
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / CONFIG, asked)


def _asked(
    config: Any, sparsities: Sequence[float], tolerances: Sequence[float], fingerprint: str
) -> dict[str, Any]:
    """What makes a frontier, as its folder tells."""
    asked = {k: v for k, v in config.to_json().items() if k not in FREE_OPTIONS}
    pairs = {"sparsities": list(sparsities), "tolerances": list(tolerances)}
    return {**asked, **pairs, "rows": fingerprint}


def _is_unfinished(path: Path) -> bool:
    return (path / CONFIG).is_file() and not (path / TABLE).exists()


def frontier_folder(
    prepared: Prepared, sparsities: Sequence[float], tolerances: Sequence[float], stem: Path
) -> Path:
    """Where a frontier is written that was given no place: where it was begun and has not ended, or
    the first of ``stem``, ``stem-2``, ... that does not exist."""
    fingerprint = prepared.problem.data.fingerprint
    asked = _asked(prepared.config, sparsities, tolerances, fingerprint)
    path, number = stem, 2
    while path.exists():
        if _is_unfinished(path) and not differences(read_object(path / CONFIG), asked):
            return path
        path, number = stem.with_name(f"{stem.name}-{number}"), number + 1
    return path


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
