"""What a run is about to do, and what its rows could prove, before any work."""

from __future__ import annotations

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from fairbilevel.certify import least_tolerance
from fairbilevel.data import ROLES
from fairbilevel.masks import Budget, removed
from fairbilevel.problem import FairPruningProblem
from fairbilevel.run._prepare import Prepared
from fairbilevel.train import dense_steps


@dataclass(frozen=True)
class Plan:
    """Rows per group and role, the least certifiable tolerance, the expected time.

    Attributes:
        rows: rows by group name and role.
        counted: names of the groups that claims speak of.
        least: the least tolerance on excess accuracy gaps that the certify rows could ever certify
            for each group, at ``confidence``; ``None`` without rows.
        confidence: of a certificate.
        prunable: prunable units.
        removed: units that will be removed.
        gradient_evaluations: planned, by phase.
        seconds: expected, ``None`` if it was not measured.
    """

    rows: dict[str, dict[str, int]]
    counted: tuple[str, ...]
    least: dict[str, float | None]
    confidence: float
    prunable: int
    removed: int
    gradient_evaluations: dict[str, float]
    seconds: float | None

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
    least = least_tolerance([int(n) for n in counts["certify"]], confidence)
    budget = Budget.of(problem.layers, config.granularity, config.budget)
    work = {"pruning": float(config.steps)}
    if prepared.dense is None:
        work["dense"] = float(config.dense_steps or dense_steps(problem, config.batch_size))
    if config.baseline:
        work["baseline"] = float(config.steps)
    seconds = None
    if measure:
        step, compile_seconds = time_gradient(problem, config.batch_size)
        seconds = sum(work.values()) * step + 3 * len(work) * compile_seconds
    return Plan(
        {g: {role: int(counts[role][i]) for role in ROLES} for i, g in enumerate(names)},
        counted,
        dict(zip(names, least, strict=True)),
        confidence,
        budget.prunable,
        removed(config.sparsity, budget.prunable),
        work,
        seconds,
    )


def time_gradient(problem: FairPruningProblem, batch_size: int) -> tuple[float, float]:
    """Seconds of one gradient evaluation (median of five) and of its compilation."""
    rows = np.resize(problem.roles["fit"], batch_size)
    x, y = jnp.asarray(problem.inputs[rows]), jnp.asarray(problem.y[rows])
    params, state = problem.model.init(jax.random.key(0))

    def loss(values: object) -> jax.Array:
        logits, _ = problem.model.apply(
            values, state, problem.normalize(x), True, jax.random.key(0)
        )
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))

    start = time.perf_counter()
    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(params))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(compiled(params))
        times.append(time.perf_counter() - start)
    return float(np.median(times)), compile_seconds
