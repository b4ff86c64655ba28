"""Multipliers: how they move, where they may lie, and what they weigh each row with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from fairbilevel.fairness._constraint import Constraint
from fairbilevel.fairness._statistics import GroupStatistics

# One array a constraint, each of its own length.
Multipliers = tuple[Float[Array, " _"], ...]


def initial_multipliers(constraints: Sequence[Constraint], groups: int) -> Multipliers:
    """Zeros, one array a constraint."""
    names, kind = [str(g) for g in range(groups)], jax.dtypes.canonicalize_dtype(float)
    return tuple(jax.device_put(np.zeros(len(c.labels(names)), kind)) for c in constraints)


def ascend(
    constraints: Sequence[Constraint],
    multipliers: Multipliers,
    violations: Multipliers,
    rule: optax.GradientTransformation,
    rule_state: optax.OptState,
    measured: tuple[Bool[Array, " _"], ...] | None = None,
    scale: Float[Array, ""] | float = 1.0,
    units: Multipliers | None = None,
) -> tuple[Multipliers, optax.OptState]:
    """One dual step by any optax rule, then the projection onto what is allowed.

    The rule sees minus the violations, so that its descent is the ascent of the dual. Rules that
    remember former violations also learn which multipliers are bounded below and which entries
    were measured (all by default): a violation that was not measured is no violation of zero.
    The moves are ``scale`` times what the rule says. It sees and moves multipliers in ``units``,
    where there are any: of a rule that says where they belong, and not how far they go, the answer
    is in these too.
    """
    if units is None:
        units = tuple(jnp.ones_like(m) for m in multipliers)
    seen = tuple(
        jnp.where(unit > 0, m / jnp.where(unit > 0, unit, 1), 0).astype(m.dtype)
        for m, unit in zip(multipliers, units, strict=True)
    )
    downhill = tuple(-v for v in violations)
    if measured is None:
        measured = tuple(jnp.ones(v.shape, bool) for v in violations)
    lower = tuple(
        jnp.full(m.shape, -jnp.inf if c.signed else 0.0, m.dtype)
        for c, m in zip(constraints, multipliers, strict=True)
    )
    updates, rule_state = optax.with_extra_args_support(rule).update(
        downhill, rule_state, seen, measured=measured, lower=lower
    )
    moved = []
    for constraint, old, update, unit in zip(constraints, multipliers, updates, units, strict=True):
        new = old + jnp.asarray(scale * unit, old.dtype) * update
        if constraint.monotone:
            new = jnp.maximum(new, old)
        moved.append(new if constraint.signed else jnp.maximum(new, 0))
    return tuple(moved), rule_state


class RowWeights(NamedTuple):
    """Factors of the Lagrangian's terms, ready to be looked up by row.

    Attributes:
        harm: one array a constraint: the factor of each row's surrogate harm beside a factor of one
            on its loss. ``[groups]``; ``[groups, classes]`` where it depends on the label too
            (beside a constraint of cells); ``[groups, classes, classes]`` for such a constraint
            itself (``Constraint.term`` says what it weighs).
        bound: whether the guard had to change a weight.
    """

    harm: tuple[Float[Array, "..."], ...]
    bound: Bool[Array, ""]


def row_weights(
    constraints: Sequence[Constraint],
    multipliers: Multipliers,
    share: Float[Array, " groups"],
    stats: GroupStatistics,
    cell_share: Float[Array, "groups classes"] | None = None,
    room: Float[Array, ""] | float = 1.0,
) -> RowWeights:
    """Weights under which no row's loss is ever climbed.

    The Lagrangian ``L + sum_g c_g harm_g`` is the mean over rows of ``loss + (c_g / P(g)) harm``.
    In every form ``L + sum_g lambda_g (L_g - L)`` a well-off group's ``c_g`` falls below ``-P(g)``
    once the multipliers sum past one, and its loss is then climbed without bound. **The guard**:
    the parts that oppose the loss, each counted with its surrogate's ``ratio`` (how much of the
    harm the loss outweighs on every single row), are scaled so that they add up to at most what
    the loss itself weighs. It looks at the multipliers as they are and so holds for every rule that
    moves them.

    Args:
        constraints: the constraints.
        multipliers: their current values.
        share: shares of the groups in the role whose loss is weighed.
        stats: what the multipliers last saw.
        cell_share: shares of the cells (group and label) in that role, for constraints of cells.
        room: weight of a row's loss, in [0, 1]; below 1 where the rest is distillation, which need
            not fall with the loss.
    """
    by_cell = any(c.of_cells for c in constraints)
    raw = []
    for constraint, values in zip(constraints, multipliers, strict=True):
        if not constraint.of_cells:
            weight = _per_share(constraint.coefficients(values, share, stats), share)
        elif cell_share is None:
            raise ValueError(f"{constraint.name} needs the shares of groups and labels")
        else:
            coefficients = constraint.coefficients(values, cell_share, stats)
            weight = _per_share(coefficients, cell_share[..., None])
        if by_cell and cell_share is not None and not constraint.of_cells:
            weight = jnp.broadcast_to(weight[:, None], cell_share.shape)
        raw.append(weight)
    finite = [c.ratio != float("inf") for c in constraints]
    debt = jnp.zeros_like(share if cell_share is None or not by_cell else cell_share)
    for constraint, weight, f in zip(constraints, raw, finite, strict=True):
        if f:
            debt = debt + constraint.ratio * constraint.opposition(weight)
    over = debt > room
    scale = jnp.where(over, room / jnp.where(over, debt, 1), 1)
    safe_weights, bound = [], jnp.any(over)
    for constraint, weight, f in zip(constraints, raw, finite, strict=True):
        if not f:
            bound = bound | jnp.any(constraint.opposition(weight) > 0)
        safe_weights.append(constraint.relieved(weight, scale if f else 0.0))
    return RowWeights(tuple(safe_weights), bound)


def _per_share(
    coefficients: Float[Array, "..."], share: Float[Array, "..."]
) -> Float[Array, "..."]:
    return jnp.where(share > 0, coefficients / jnp.where(share > 0, share, 1), 0)
