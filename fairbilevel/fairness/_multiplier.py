"""Multipliers: how they move, where they may lie, and what they weigh each row with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from fairbilevel.fairness._constraint import Constraint
from fairbilevel.fairness._statistics import GroupStatistics

# One array a constraint, each of its own length.
Multipliers = tuple[Float[Array, " _"], ...]


def initial_multipliers(constraints: Sequence[Constraint], groups: int) -> Multipliers:
    """Zeros, one array a constraint."""
    names = [str(g) for g in range(groups)]
    return tuple(jnp.zeros(len(c.labels(names))) for c in constraints)


def ascend(
    constraints: Sequence[Constraint],
    multipliers: Multipliers,
    violations: Multipliers,
    rule: optax.GradientTransformation,
    rule_state: optax.OptState,
) -> tuple[Multipliers, optax.OptState]:
    """One dual step by any optax rule, then the projection onto what is allowed.

    The rule sees minus the violations, so that its descent is the ascent of the dual.
    """
    downhill = tuple(-v for v in violations)
    updates, rule_state = rule.update(downhill, rule_state, multipliers)
    moved = []
    for constraint, old, update in zip(constraints, multipliers, updates, strict=True):
        new = old + update
        if constraint.monotone:
            new = jnp.maximum(new, old)
        moved.append(new if constraint.signed else jnp.maximum(new, 0))
    return tuple(moved), rule_state


class RowWeights(NamedTuple):
    """Per-group factors of the Lagrangian, ready to be looked up by row.

    Attributes:
        harm: one ``[groups]`` array a constraint: the factor of each row's surrogate harm beside a
            factor of one on its loss.
        bound: whether the guard had to change a weight.
    """

    harm: tuple[Float[Array, " groups"], ...]
    bound: Bool[Array, ""]


def row_weights(
    constraints: Sequence[Constraint],
    multipliers: Multipliers,
    share: Float[Array, " groups"],
    stats: GroupStatistics,
) -> RowWeights:
    """Weights under which no group's loss is ever climbed.

    The Lagrangian ``L + sum_g c_g harm_g`` is the mean over rows of ``loss + (c_g / P(g)) harm``.
    In every form ``L + sum_g lambda_g (L_g - L)`` a well-off group's ``c_g`` falls below ``-P(g)``
    once the multipliers sum past one, and its loss is then climbed without bound. **The guard**:
    the negative parts, each counted with its surrogate's ``ratio`` (how much of the harm the loss
    outweighs on every single row), are scaled so that they add up to at least -1.

    Args:
        constraints: the constraints.
        multipliers: their current values.
        share: shares of the groups in the role whose loss is weighed.
        stats: what the multipliers last saw.
    """
    safe = jnp.where(share > 0, share, 1)
    raw = [
        jnp.where(share > 0, c.coefficients(m, share, stats) / safe, 0)
        for c, m in zip(constraints, multipliers, strict=True)
    ]
    finite = [c.harm.ratio != float("inf") for c in constraints]
    debt = sum(
        (
            c.harm.ratio * jnp.maximum(-w, 0)
            for c, w, f in zip(constraints, raw, finite, strict=True)
            if f
        ),
        jnp.zeros_like(share),
    )
    scale = 1 / jnp.maximum(debt, 1)
    safe_weights, bound = [], jnp.any(debt > 1)
    for weight, f in zip(raw, finite, strict=True):
        if not f:
            bound = bound | jnp.any(weight < 0)
        safe_weights.append(jnp.where(weight < 0, weight * scale if f else 0.0, weight))
    return RowWeights(tuple(safe_weights), bound)
