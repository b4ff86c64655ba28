"""What makes groups pay for pruning, read off the dense network alone (Tran et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fairbilevel.analysis._curvature import TWENTY, Lanczos, gradient_norms, largest_eigenvalues
from fairbilevel.analysis._loss import Apply, Loss, cross_entropy, outcomes
from fairbilevel.analysis._rows import GroupedRows


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
