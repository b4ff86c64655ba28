"""The loss between solutions, overall and by group: along a line, and over a plane.

As in the last figure of Dai et al. 2023 (BiFP), after Goodfellow et al. 2015 (lines) and Garipov
et al. 2018 (planes through three networks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fairbilevel.analysis._impact import difference
from fairbilevel.analysis._loss import (
    Apply,
    GroupedRows,
    Loss,
    Span,
    cross_entropy,
    overall,
    portable,
    stream,
    total_loss,
)

EVENLY = tuple(k / 20 for k in range(21))


@dataclass(frozen=True, eq=False)
class LossLine:
    """The loss along ``(1 - t) a + t b``.

    Attributes:
        groups: names.
        t: positions; ``a`` is at 0 and ``b`` at 1.
        distance: ``||b - a||``.
        loss: over all rows.
        group_loss: by group; NaN without rows.
    """

    groups: tuple[str, ...]
    t: Float[np.ndarray, " points"]
    distance: float
    loss: Float[np.ndarray, " points"]
    group_loss: Float[np.ndarray, "points groups"]

    @property
    def barrier(self) -> float:
        """How far the loss rises at most above the straight line between its ends."""
        between = (self.t >= 0) & (self.t <= 1)
        chord = np.interp(self.t[between], [0, 1], np.interp([0, 1], self.t, self.loss))
        return float(np.max(self.loss[between] - chord))

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "t": self.t.tolist(),
            "distance": self.distance,
            "loss": _plain(self.loss),
            "group_loss": {g: _plain(self.group_loss[:, i]) for i, g in enumerate(self.groups)},
        }


@dataclass(frozen=True, eq=False)
class LossPlane:
    """The loss over the plane through three networks, in coordinates of true distances.

    Attributes:
        groups: names.
        u: coordinates along ``b - a``.
        v: coordinates orthogonal to it, towards ``c``.
        solutions: coordinates ``(u, v)`` of ``a``, ``b`` and ``c``.
        loss: over all rows.
        group_loss: by group; NaN without rows.
    """

    groups: tuple[str, ...]
    u: Float[np.ndarray, " across"]
    v: Float[np.ndarray, " up"]
    solutions: Float[np.ndarray, "3 2"]
    loss: Float[np.ndarray, "up across"]
    group_loss: Float[np.ndarray, "up across groups"]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "u": self.u.tolist(),
            "v": self.v.tolist(),
            "solutions": self.solutions.tolist(),
            "loss": [_plain(line) for line in self.loss],
            "group_loss": {
                g: [_plain(line) for line in self.group_loss[..., i]]
                for i, g in enumerate(self.groups)
            },
        }


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def loss_line(
    apply: Apply,
    a: Any,
    b: Any,
    x: Any,
    y: Any,
    group: Any,
    *,
    t: Sequence[float] | Float[np.ndarray, " points"] = EVENLY,
    loss: Loss = cross_entropy,
    groups: Sequence[str] | None = None,
    weight: Any = None,
    batch_size: int = 256,
) -> LossLine:
    """Loss along the line through two networks.

    Args:
        apply: ``apply(network, x) -> outputs`` in evaluation mode. A network is whatever pytree is
            to be interpolated: weights alone, or weights and normalization statistics. Leaves that
            are no floats (counters) are taken from ``a``.
        a: the network at 0.
        b: the network at 1.
        x: ``[rows, ...]``.
        y: ``[rows, ...]``.
        group: int ``[rows]``.
        t: positions, beyond 0 and 1 too.
        loss: ``loss(outputs, y) -> [rows]``.
        groups: names; numbers by default.
        weight: of each row in its group's means; all equal by default.
        batch_size: rows a batch.

    Raises:
        ValueError: see ``GroupedRows.of``; networks of different structure or shape.
    """
    rows = GroupedRows.of(x, y, group, groups=groups, weight=weight, batch_size=batch_size)
    step = difference(b, a)
    positions = np.asarray(t, np.float64)
    values = np.stack([_group_losses(apply, loss, a, (step,), [s], rows) for s in positions])
    return LossLine(rows.groups, positions, _length(step), overall(values, rows), values)


def loss_plane(
    apply: Apply,
    a: Any,
    b: Any,
    c: Any,
    x: Any,
    y: Any,
    group: Any,
    *,
    points: int = 11,
    margin: float = 0.2,
    loss: Loss = cross_entropy,
    groups: Sequence[str] | None = None,
    weight: Any = None,
    batch_size: int = 256,
) -> LossPlane:
    """Loss over the plane through three networks.

    Args:
        apply: as for ``loss_line``.
        a: the network at the origin.
        b: the network on the first axis.
        c: the network that spans the second one.
        x: ``[rows, ...]``.
        y: ``[rows, ...]``.
        group: int ``[rows]``.
        points: positions along each axis.
        margin: how far the grid reaches beyond the networks, as a share of their extent.
        loss: ``loss(outputs, y) -> [rows]``.
        groups: names; numbers by default.
        weight: of each row in its group's means; all equal by default.
        batch_size: rows a batch.

    Raises:
        ValueError: see ``loss_line``; fewer than two points; networks on one line.
    """
    if points < 2:
        raise ValueError(f"a plane needs at least 2 points along each axis, got {points}")
    rows = GroupedRows.of(x, y, group, groups=groups, weight=weight, batch_size=batch_size)
    first, second = difference(b, a), difference(c, a)
    across = _length(first)
    along = _dot(first, second) / across if across > 0 else 0.0
    up = float(np.sqrt(max(_length(second) ** 2 - along**2, 0.0)))
    if across == 0 or up <= 1e-3 * _length(second):
        raise ValueError("the three networks lie on one line: give others, or take loss_line")
    first = jax.tree.map(lambda leaf: leaf / across, first)
    second = jax.tree.map(lambda p, q: (p - along * q) / up, second, first)
    solutions = np.array([[0.0, 0.0], [across, 0.0], [along, up]])
    low, high = solutions.min(0), solutions.max(0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    u, v = (np.linspace(low[i], high[i], points) for i in (0, 1))
    axes = (first, second)
    grid = [[_group_losses(apply, loss, a, axes, [p, q], rows) for p in u] for q in v]
    values = np.array(grid)
    return LossPlane(rows.groups, u, v, solutions, overall(values, rows), values)


@partial(jax.jit, static_argnames=("loss", "batch_size"))
def _loss_at(
    apply: Any,
    origin: Any,
    axes: tuple[Any, ...],
    position: Array,
    span: Span,
    *,
    loss: Loss,
    batch_size: int,
) -> Array:
    def move(leaf: Array, *steps: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        moved = sum(position[i] * s for i, s in enumerate(steps))
        return (leaf + jnp.asarray(moved)).astype(leaf.dtype)

    network = jax.tree.map(move, origin, *axes)

    def quantity(x: Array, y: Array, weight: Array) -> Array:
        return total_loss(apply, loss, network, x, y, weight)

    return stream(quantity, span, batch_size)


def _group_losses(
    apply: Apply,
    loss: Loss,
    origin: Any,
    axes: tuple[Any, ...],
    position: Sequence[float],
    rows: GroupedRows,
) -> Float[np.ndarray, " groups"]:
    origin, at = jax.tree.map(jnp.asarray, origin), jnp.asarray(position)
    fixed = {"loss": loss, "batch_size": rows.batch_size}
    return rows.means(partial(_loss_at, portable(apply), origin, axes, at, **fixed))


def _dot(a: Any, b: Any) -> float:
    pairs = zip(_floats(a), _floats(b), strict=True)
    return float(sum(jnp.sum(p * q) for p, q in pairs))


def _length(a: Any) -> float:
    return float(np.sqrt(_dot(a, a)))


def _floats(tree: Any) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
