"""``result.json``: what other tools read."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import jax
import msgspec
import numpy as np

from fairbilevel import _trees
from fairbilevel.fairness import Constraint, Evaluation
from fairbilevel.problem import REPORTED_ROLES, FairPruningProblem, Network, Reference
from fairbilevel.records import (
    ConstraintResult,
    CostResult,
    DataResult,
    FeasibilityResult,
    Kept,
    LayerResult,
    MachineResult,
    ModelResult,
    Result,
    SparsityResult,
)
from fairbilevel.train import Costs, Solution, rollback_warnings

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    from fairbilevel import __version__

    found = {"python": platform.python_version(), "fairbilevel": __version__}
    return found | {name: importlib.metadata.version(name) for name in _PACKAGES}


def machine(problem: FairPruningProblem | None = None) -> dict[str, Any]:
    """What the numbers were made on; of a problem's run also the precision of its training and the
    axes of the mesh of devices that shared it (``None``: one device)."""
    device = jax.devices()[0]
    of_run: dict[str, Any] = {}
    if problem is not None:
        mesh = None if problem.placement is None else dict(problem.placement.mesh.shape)
        of_run = {"precision": problem.precision, "mesh": mesh}
    return {
        "platform": platform.platform(terse=True),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        **of_run,
    }


def describe_machine(problem: FairPruningProblem) -> str:
    """The setting of a run in a line: devices, precision, mesh, version of JAX."""
    here = machine(problem)
    mesh = here["mesh"] or {}
    axes = " x ".join(f"{name} {size}" for name, size in mesh.items()) or "one device"
    kind, backend = here["device"], here["backend"]
    named = kind if kind == backend else f"{kind} ({backend})"
    return (
        f"{here['devices']} device{'s' * (here['devices'] != 1)} of kind {named}, "
        f"{here['precision']}, mesh: {axes}, jax {jax.__version__}"
    )


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def command() -> str:
    """The command line as typed."""
    words = [os.path.basename(sys.argv[0]) or "python", *sys.argv[1:]]
    if words[0] in ("__main__.py", "fairbilevel"):
        words[0] = "fairbilevel"
    return shlex.join(words)


def describe_data(problem: FairPruningProblem) -> DataResult:
    """The ``data`` part."""
    data = problem.data
    return DataResult(
        name=data.name,
        classes=list(data.classes),
        groups=list(data.groups),
        counted_groups=[g for g, c in zip(data.groups, problem.counted, strict=True) if c],
        roles={name: len(rows) for name, rows in problem.roles.items()},
        skipped=dict(data.skipped),
        notes=list(data.notes),
        fingerprint=data.fingerprint,
    )


def evaluate_roles(
    problem: FairPruningProblem, network: Network, reference: Reference
) -> dict[str, Evaluation]:
    """A network on every role that is reported."""
    return {
        role: problem.evaluate(problem.outcomes(network, reference, rows), rows, role)
        for role, rows in ((r, problem.roles[r]) for r in REPORTED_ROLES)
    }


def _constraint(
    constraint: Constraint, groups: Sequence[str], multipliers: dict[str, float]
) -> ConstraintResult:
    given = constraint.tolerance
    own = dict(zip(groups, given, strict=True)) if isinstance(given, tuple) else {}
    return ConstraintResult(
        constraint.name,
        constraint.called,
        constraint.meaning,
        constraint.unit,
        constraint.common,
        own,
        constraint.floor,
        constraint.surrogate,
        multipliers,
    )


def _sparsity(solution: Solution) -> SparsityResult:
    cost = solution.network_cost()
    return SparsityResult(
        requested=solution.sparsity,
        unit=solution.granularity,
        granularity=solution.granularity,
        budget=solution.allocation.budget.kind,
        parameters=Kept(cost.parameters, cost.dense_parameters),
        multiply_adds=Kept(cost.multiply_adds, cost.dense_multiply_adds),
        **solution.allocation.describe(solution.masks),
    )


def build_result(
    solution: Solution,
    baseline: Solution | None,
    *,
    seed: int,
    dense_costs: Costs | None = None,
    typed: str | None = None,
) -> Result:
    """The whole of ``result.json``: of the method's solution, of gradual magnitude pruning's if it
    ran, with what the dense model cost if it was trained here, and the command that began the run
    (this process's by default)."""
    problem, reference = solution.problem, solution.reference
    costs = [c for c in (dense_costs, solution.costs, baseline and baseline.costs) if c]
    spent = None if baseline is None else round(baseline.costs.gradient_evaluations, 2)
    feasibility = solution.feasibility and solution.feasibility.to_json()
    return Result(
        command=command() if typed is None else typed,
        method=solution.method,
        seed=seed,
        versions=versions(),
        machine=MachineResult(**machine(problem)),
        data=describe_data(problem),
        model=ModelResult(problem.model.name, _trees.size(reference.network.params)),
        sparsity=_sparsity(solution),
        layers=[
            LayerResult(
                units.name,
                int(np.size(solution.masks[units.name])),
                int(np.count_nonzero(np.asarray(solution.masks[units.name]))),
            )
            for units in problem.layers.units(solution.granularity)
        ],
        constraints=[
            _constraint(c, problem.groups, solution.multipliers.get(c.name, {}))
            for c in problem.constraints
        ],
        dense=evaluate_roles(problem, reference.network, reference),
        pruned=evaluate_roles(problem, solution.network, reference),
        baseline={} if baseline is None else evaluate_roles(problem, baseline.network, reference),
        feasibility=None
        if feasibility is None
        else msgspec.convert(feasibility, FeasibilityResult),
        cost=CostResult(
            gradient_evaluations=round(solution.costs.gradient_evaluations, 2),
            dense_gradient_evaluations=round(reference.gradient_evaluations, 2),
            baseline_gradient_evaluations=spent,
            seconds=round(sum(c.seconds for c in costs), 3),
            compile_seconds=round(sum(c.compile_seconds for c in costs), 3),
            peak_memory_mb=peak_memory_mb(),
        ),
        constant_answer=solution.constant_answer,
        rollbacks=[*reference.rollbacks, *solution.rollbacks],
        warnings=[*rollback_warnings(reference.rollbacks), *solution.warnings],
    )
