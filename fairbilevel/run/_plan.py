"""What a run is about to do, and what its rows could prove, before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fairbilevel import fairness, train
from fairbilevel.certificates import Claim, least_rows, least_scale, least_tolerance, likely_upper
from fairbilevel.data import ROLES
from fairbilevel.run._prepare import Prepared
from fairbilevel.run._solve import BASELINE
from fairbilevel.train import dense_steps

DISCORDANCES = (0.0, 0.05, 0.1)
"""Shares of rows whose outcome pruning changes, as many lost as won, that a plan reckons with."""
_TIMES = (1, 2, 5, 10)
# Compiling, in that of the weight steps, as measured from MLPs to ResNets: the loop of outer steps
# is two to three of them, all other programs together are half of one.
_SEARCH, _SMALL_PROGRAMS = 2.5, 0.5


@dataclass(frozen=True)
class Power:
    """What the smallest counted group could prove with so many certify rows.

    Attributes:
        times: this many times the certify rows of the plan, in all groups.
        rows: of the smallest counted group.
        tolerances: excess accuracy gap that would be certified with 80 % power if no group really
            loses more than another, by share of discordant rows.
    """

    times: int
    rows: int
    tolerances: dict[float, float]


@dataclass(frozen=True)
class Need:
    """How many certify rows a tolerance takes in the smallest counted group.

    Attributes:
        tolerance: of the run's excess accuracy gap.
        least: about ``ln(1/delta)/tolerance``: below it nothing is certified, whatever happens.
        rows: for 80 % power by share of discordant rows; ``None`` beyond tens of thousands.
    """

    tolerance: float
    least: int
    rows: dict[float, int | None]


@dataclass(frozen=True)
class Plan:
    """Rows per group and role, what they could certify, the expected time.

    Attributes:
        rows: rows by group name and role.
        counted: names of the groups that claims speak of.
        least: the tolerance on excess accuracy gaps that each group's certify rows certify if no
            row changes its outcome, at ``confidence`` and first look; ``None`` without rows.
        confidence: of a certificate.
        power: what more rows would certify; empty without certify rows.
        need: rows that the run's tolerance takes, if it has one and there are certify rows.
        prunable: prunable units.
        removed: units that will be removed.
        gradient_evaluations: planned, by part of the run.
        phases: what the method will do, a line a phase.
        weight_updates: steps of the method that move weights.
        seconds: expected of a run, compilation included; ``None`` if it was not measured.
        compile_seconds: of that, compiling what no plan compiles; less where a run before has left
            its programs on disk.
    """

    rows: dict[str, dict[str, int]]
    counted: tuple[str, ...]
    least: dict[str, float | None]
    confidence: float
    power: tuple[Power, ...]
    need: Need | None
    prunable: int
    removed: int
    gradient_evaluations: dict[str, float]
    phases: tuple[str, ...]
    weight_updates: int
    seconds: float | None
    compile_seconds: float | None

    @property
    def least_tolerance(self) -> float | None:
        """The least tolerance that could be certified for all counted groups together."""
        values = [self.least[g] for g in self.counted]
        if not values or any(v is None for v in values):
            return None
        return max(v for v in values if v is not None)


def make_plan(prepared: Prepared, *, confidence: float = 0.95, measure: bool = True) -> Plan:
    """Count rows, bound tolerances, and time a few gradient steps.

    Args:
        prepared: the problem.
        confidence: of a certificate.
        measure: time gradient steps on this machine; some seconds of compilation.
    """
    config, problem = prepared.config, prepared.problem
    names = problem.groups
    counts = {
        role: np.bincount(problem.group[problem.roles[role]], minlength=len(names))
        for role in ROLES
    }
    counted = tuple(g for g, c in zip(names, problem.counted, strict=True) if c)
    delta = Claim(confidence=confidence).delta
    held = [int(n) for n in counts["certify"]]
    least = least_tolerance(held, delta)
    name = fairness.ExcessAccuracyGap.name
    asked = next((c.tolerance for c in problem.constraints if c.name == name), None)
    # Tolerances that differ from group to group are no one tolerance to plan for.
    tolerance = float(asked) if isinstance(asked, (int, float)) else None
    smallest = min((n for n, c in zip(held, problem.counted, strict=True) if c and n), default=None)
    power, need = _power(smallest, held, tolerance, delta)
    method = prepared.method
    allocation = method.allocation(problem)
    planned = method.plan(problem)
    work = {"pruning": planned.evaluations}
    if prepared.dense is None:
        work["dense"] = float(config.dense_steps or dense_steps(problem, config.batch_size))
    if config.compares:
        work["baseline"] = config.build(BASELINE).plan(problem).evaluations
    seconds = compiling = None
    if measure:
        step, unit = train.time_step(problem, config.batch_size)
        searches = any(phase.name == "bilevel" for phase in planned.phases)
        compiling = unit * (_SMALL_PROGRAMS + _SEARCH * searches)
        seconds = sum(work.values()) * step + compiling
    return Plan(
        {g: {role: int(counts[role][i]) for role in ROLES} for i, g in enumerate(names)},
        counted,
        dict(zip(names, least, strict=True)),
        confidence,
        power,
        need,
        allocation.budget.prunable,
        allocation.budget.prunable - sum(allocation.keep(method.sparsity).values()),
        work,
        tuple(planned.describe()),
        planned.weight_updates,
        seconds,
        compiling,
    )


def _power(
    smallest: int | None, held: list[int], tolerance: float | None, delta: float
) -> tuple[tuple[Power, ...], Need | None]:
    """Power of the smallest counted group, which is the one that limits a claim."""
    total, groups = sum(held), sum(n > 0 for n in held)
    if smallest is None or smallest == total:
        return (), None
    rest = total - smallest
    rest_bound = "sharp" if groups == 2 else "simple"
    power = tuple(
        Power(
            times,
            times * smallest,
            {
                q: likely_upper(
                    times * smallest, times * rest, delta, discordance=q, rest_bound=rest_bound
                )
                for q in DISCORDANCES
            },
        )
        for times in _TIMES
    )
    if not tolerance or tolerance >= 1:
        return power, None
    scales = {
        q: least_scale(smallest, rest, tolerance, delta, discordance=q, rest_bound=rest_bound)
        for q in DISCORDANCES
    }
    rows = {q: None if s is None else math.ceil(s * smallest) for q, s in scales.items()}
    return power, Need(tolerance, least_rows(tolerance, delta), rows)
