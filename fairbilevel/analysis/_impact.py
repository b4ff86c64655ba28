"""What makes groups pay for pruning, read off the dense network alone, and the disparate impact of
pruning: every group's excess loss beside its Taylor bound.

Tran et al. 2022, "Pruning has a disparate impact on model accuracy", theorem 1: with gradient and
Hessian of a group's loss at the dense weights and ``d = pruned - dense`` over all parameters,

    R(g) = L_g(pruned) - L_g(dense) <= ||grad L_g|| ||d|| + 1/2 lambda_max(H_g) ||d||^2 + O(||d||^3)

in evaluation mode with the dense network's normalization statistics on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from fairbilevel.analysis._correlation import Correlation, correlate
from fairbilevel.analysis._curvature import (
    TWENTY,
    Lanczos,
    gradient_norms,
    largest_eigenvalues,
    second_order,
)
from fairbilevel.analysis._loss import Apply, GroupedRows, Loss, cross_entropy, outcomes, overall


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """How each group's loss answers to a change of the dense weights.

    Attributes:
        groups: names.
        size: rows of each group.
        loss: mean loss at the dense weights (nats for the cross-entropy); NaN without rows, here
            and below.
        accuracy: share of rows that are right; NaN where there are no classes.
        closeness: mean nearness to the decision boundary, see ``boundary_closeness``.
        gradient_norm: ``||grad L_g||`` over all parameters.
        lambda_max: largest eigenvalue of the Hessian ``H_g`` over all parameters.
        lambda_error: ``H_g`` has an eigenvalue within this distance of ``lambda_max``.
    """

    groups: tuple[str, ...]
    size: Int[np.ndarray, " groups"]
    loss: Float[np.ndarray, " groups"]
    accuracy: Float[np.ndarray, " groups"]
    closeness: Float[np.ndarray, " groups"]
    gradient_norm: Float[np.ndarray, " groups"]
    lambda_max: Float[np.ndarray, " groups"]
    lambda_error: Float[np.ndarray, " groups"]

    def bound(self, distance: float) -> Float[np.ndarray, " groups"]:
        """``||grad L_g|| ||d|| + 1/2 lambda_max(H_g) ||d||^2`` for a step of length ``||d||``.

        No group's excess loss is larger, up to terms of third order (Tran et al. 2022, theorem 1).
        """
        return self.gradient_norm * distance + self.lambda_max * distance**2 / 2


def sensitivity(
    apply: Apply,
    params: Any,
    x: Any,
    y: Any,
    group: Any,
    *,
    loss: Loss = cross_entropy,
    groups: Sequence[str] | None = None,
    weight: Any = None,
    batch_size: int = 256,
    lanczos: Lanczos = TWENTY,
) -> Sensitivity:
    """Loss, gradient norm, largest Hessian eigenvalue and boundary closeness of every group.

    Args:
        apply: ``apply(params, x) -> outputs`` in evaluation mode, with the normalization
            statistics of these weights held fixed. A ``jax.tree_util.Partial`` carries them
            without compiling anew for each.
        params: the dense weights, a pytree of arrays.
        x: ``[rows, ...]``.
        y: ``[rows, ...]``; int classes for the default loss.
        group: int ``[rows]``.
        loss: ``loss(outputs, y) -> [rows]``, a function of its own name (a new lambda each time
            compiles each time).
        groups: names; numbers by default.
        weight: of each row in its group's means; all equal by default.
        batch_size: rows a batch; memory grows with it and not with the rows.
        lanczos: how the eigenvalue is found: three gradients over a group's rows a product.

    Raises:
        ValueError: see ``GroupedRows.of``; or curvature that is not finite.
    """
    rows = GroupedRows.of(x, y, group, groups=groups, weight=weight, batch_size=batch_size)
    return sensitivity_of(apply, loss, params, rows, lanczos)


def sensitivity_of(
    apply: Apply, loss: Loss, params: Any, rows: GroupedRows, lanczos: Lanczos
) -> Sensitivity:
    """``sensitivity`` of rows that are grouped already."""
    means = outcomes(apply, loss, params, rows)
    value, error = largest_eigenvalues(apply, loss, params, rows, lanczos)
    slope = gradient_norms(apply, loss, params, rows)
    return Sensitivity(
        rows.groups, rows.size, **means, gradient_norm=slope, lambda_max=value, lambda_error=error
    )


PROPERTIES = {
    "gradient_norm": "Gradient norm",
    "lambda_max": "Largest Hessian eigenvalue",
    "closeness": "Boundary closeness",
}


@dataclass(frozen=True)
class GroupImpact:
    """One group, or all rows together, in a table. ``None`` where there is no such number.

    Attributes:
        group: its name.
        rows: how many.
        dense_loss: mean loss of the dense network.
        pruned_loss: of the pruned one with the dense normalization statistics.
        excess_loss: ``R(g)``, the difference.
        dense_accuracy: share of rows the dense network has right.
        pruned_accuracy: the pruned one, with its own statistics if they were given.
        gradient_norm: ``||grad L_g||`` at the dense weights.
        lambda_max: largest eigenvalue of the Hessian there.
        lambda_error: how far from it an eigenvalue may lie.
        closeness: nearness to the decision boundary.
        bound: the Taylor bound on ``excess_loss``.
        expansion: the Taylor expansion of it to second order.
        own_pruned_loss: loss of the pruned network with its own statistics.
        own_excess_loss: its difference to the dense network's.
    """

    group: str
    rows: int
    dense_loss: float | None
    pruned_loss: float | None
    excess_loss: float | None
    dense_accuracy: float | None
    pruned_accuracy: float | None
    gradient_norm: float | None
    lambda_max: float | None
    lambda_error: float | None
    closeness: float | None
    bound: float | None
    expansion: float | None
    own_pruned_loss: float | None
    own_excess_loss: float | None


@dataclass(frozen=True, eq=False)
class DisparateImpact:
    """What pruning did to each group, and what the dense network foretold.

    Attributes:
        sensitivity: of the dense network, by group.
        distance: ``||d||`` over all parameters.
        pruned_loss: of the pruned network with the dense statistics; NaN without rows, here and
            below.
        pruned_accuracy: of the pruned network, with its own statistics if they were given.
        bound: the Taylor bound on the excess loss.
        expansion: ``grad L_g . d + 1/2 d . H_g d``.
        own_pruned_loss: of the pruned network with its own statistics, ``None`` if not given.
        dense_overall: loss of the dense network over all rows.
        pruned_overall: of the pruned one.
    """

    sensitivity: Sensitivity
    distance: float
    pruned_loss: Float[np.ndarray, " groups"]
    pruned_accuracy: Float[np.ndarray, " groups"]
    bound: Float[np.ndarray, " groups"]
    expansion: Float[np.ndarray, " groups"]
    own_pruned_loss: Float[np.ndarray, " groups"] | None
    dense_overall: float
    pruned_overall: float

    @property
    def excess_loss(self) -> Float[np.ndarray, " groups"]:
        """``R(g) = L_g(pruned) - L_g(dense)``, both with the dense statistics."""
        return self.pruned_loss - self.sensitivity.loss

    @property
    def own_excess_loss(self) -> Float[np.ndarray, " groups"] | None:
        """The same with the pruned network's own statistics."""
        if self.own_pruned_loss is None:
            return None
        return self.own_pruned_loss - self.sensitivity.loss

    @property
    def violation(self) -> float | None:
        """``xi = max_{g,h} |R(g) - R(h)|`` over groups with rows, as the bound speaks of it."""
        return _spread(self.excess_loss)

    @property
    def own_violation(self) -> float | None:
        """``xi`` with the pruned network's own statistics."""
        own = self.own_excess_loss
        return None if own is None else _spread(own)

    @property
    def correlations(self) -> tuple[Correlation, ...]:
        """Of each property of the dense network with excess loss, own statistics if given."""
        excess = self.excess_loss if self.own_excess_loss is None else self.own_excess_loss
        return tuple(
            correlate(words, getattr(self.sensitivity, name), "excess loss", excess)
            for name, words in PROPERTIES.items()
        )

    def table(self) -> list[GroupImpact]:
        """One line a group."""
        dense = self.sensitivity
        columns = {
            "dense_loss": dense.loss,
            "pruned_loss": self.pruned_loss,
            "excess_loss": self.excess_loss,
            "dense_accuracy": dense.accuracy,
            "pruned_accuracy": self.pruned_accuracy,
            "gradient_norm": dense.gradient_norm,
            "lambda_max": dense.lambda_max,
            "lambda_error": dense.lambda_error,
            "closeness": dense.closeness,
            "bound": self.bound,
            "expansion": self.expansion,
            "own_pruned_loss": self.own_pruned_loss,
            "own_excess_loss": self.own_excess_loss,
        }
        absent = np.full(len(dense.groups), np.nan)
        return [
            GroupImpact(
                name,
                int(dense.size[g]),
                **{
                    column: _number((absent if values is None else values)[g])
                    for column, values in columns.items()
                },
            )
            for g, name in enumerate(dense.groups)
        ]

    def to_json(self) -> dict[str, Any]:
        """JSON values; ``None`` where there is no number."""
        return {
            "distance": self.distance,
            "dense_loss": self.dense_overall,
            "pruned_loss": _number(self.pruned_overall),
            "violation": self.violation,
            "own_violation": self.own_violation,
            "groups": [asdict(line) for line in self.table()],
            "correlations": [c.to_json() for c in self.correlations],
        }


def disparate_impact(
    apply: Apply,
    dense: Any,
    pruned: Any,
    x: Any,
    y: Any,
    group: Any,
    *,
    own_apply: Apply | None = None,
    loss: Loss = cross_entropy,
    groups: Sequence[str] | None = None,
    weight: Any = None,
    batch_size: int = 256,
    lanczos: Lanczos = TWENTY,
    known: Sensitivity | None = None,
) -> DisparateImpact:
    """Every group's excess loss, what the dense weights say of it, and the Taylor bound on it.

    Args:
        apply: ``apply(params, x) -> outputs`` in evaluation mode with the dense network's
            normalization statistics.
        dense: the dense weights, a pytree of arrays.
        pruned: the pruned weights, removed ones zero; the same structure.
        x: ``[rows, ...]``.
        y: ``[rows, ...]``; int classes for the default loss.
        group: int ``[rows]``.
        own_apply: ``apply`` with the pruned network's own statistics, where they differ.
        loss: ``loss(outputs, y) -> [rows]``.
        groups: names; numbers by default.
        weight: of each row in its group's means; all equal by default.
        batch_size: rows a batch; memory grows with it and not with the rows.
        lanczos: how the largest eigenvalue is found.
        known: the sensitivity of the same dense weights on the same rows, if it is known already.

    Raises:
        ValueError: see ``GroupedRows.of``; weights of different structure or shape; ``known`` of
            other groups or rows; curvature that is not finite.
    """
    rows = GroupedRows.of(x, y, group, groups=groups, weight=weight, batch_size=batch_size)
    step = difference(pruned, dense)
    if known is None:
        known = sensitivity_of(apply, loss, dense, rows, lanczos)
    elif known.groups != rows.groups or not np.array_equal(known.size, rows.size):
        raise ValueError("the known sensitivity speaks of other groups or other rows")
    distance = float(optax.tree.norm(step))
    after = outcomes(apply, loss, pruned, rows)
    own = None if own_apply is None else outcomes(own_apply, loss, pruned, rows)
    return DisparateImpact(
        known,
        distance,
        after["loss"],
        (own or after)["accuracy"],
        known.bound(distance),
        second_order(apply, loss, dense, step, rows),
        None if own is None else own["loss"],
        float(overall(known.loss, rows)),
        float(overall(after["loss"], rows)),
    )


def difference(a: Any, b: Any) -> Any:
    """``a - b`` of two networks' weights, of the same structure and shapes (``ValueError``)."""
    one: Any = jax.tree.structure(a)
    other: Any = jax.tree.structure(b)
    if one != other or any(
        jnp.shape(u) != jnp.shape(v)
        for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ):
        raise ValueError("the networks have parameters of different structure or shape")
    return jax.tree.map(lambda u, v: jnp.asarray(u) - jnp.asarray(v), a, b)


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _spread(values: Float[np.ndarray, " groups"]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.ptp(finite)) if len(finite) else None
