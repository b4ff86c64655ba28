"""A frontier as jobs: the dense model, then the baseline at every sparsity and the method at every
pair of sparsity and tolerance from it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fairbilevel import devices
from fairbilevel.fairness import Evaluation
from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.records import CHECKPOINTS, Checkpoints
from fairbilevel.run._config import Config
from fairbilevel.run._dense_part import read_reference, write_reference
from fairbilevel.run._prepare import Prepared, prepare
from fairbilevel.run._result import evaluate_roles
from fairbilevel.run._solve import BASELINE, dense_reference
from fairbilevel.sweeps import Job, NotReady, Part, Refused, Sweep, is_here
from fairbilevel.train import Costs, Solution

ROLES = ("tune", "test")
TABLE = "frontier.json"
_DENSE = "dense"


@dataclass(frozen=True)
class FrontierSweep(Sweep):
    """The jobs of a frontier. One that was stopped goes on from its checkpoints.

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
        return [Job(name, after=_DENSE) for name in self.points()]

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
        own = checkpoints.below(name)
        try:
            solution: Solution = chosen.run(problem, reference, checkpoints=own)
        finally:
            own.close()
        point = _point(
            solution.method,
            sparsity,
            tolerance,
            solution.evaluate,
            solution.costs.gradient_evaluations,
        )
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
        """A line for the dense model and every job; those without an outcome say why.

        Args:
            errors: what they came to, by name of the job.
        """
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
    config = sweep.config
    every, keep = config.checkpoint_every, config.checkpoint_keep
    return _prepared(sweep), Checkpoints(sweep.folder / CHECKPOINTS, every=every, keep=keep)


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
