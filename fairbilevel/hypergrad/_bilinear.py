"""The closed-form hypergradient of a masked problem (BiP, Zhang et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from fairbilevel import _xla
from fairbilevel.hypergrad import _vectors as vectors
from fairbilevel.hypergrad._losses import MaskedLoss
from fairbilevel.hypergrad._point import Hypergradient, Info, Level, Point, Status, status_of


@dataclass(frozen=True)
class Bilinear(Hypergradient):
    """``theta * q_up - (1 / gamma) * q_low * (m * q_up)``, pulled back to the scores.

    Both losses are ``MaskedLoss``: functions of ``z = m * theta`` alone with the same mask;
    ``q_up`` and ``q_low`` are their gradients with respect to ``z``, ridge left out. The second
    term is ``(d theta* / dm)^T dL/d theta`` for an inner problem ``L(m * theta) + gamma / 2
    |theta|^2`` whose loss is linear around its solution: **exact where d^2 L / dz^2 = 0**, an
    approximation with ``gamma`` standing for the curvature everywhere else.

    Two gradients, whatever the size of the inner problem: one backward pass gives ``q``, and both
    ``dL/dm = theta * q`` and ``dL/d theta = m * q`` follow.

    Attributes:
        gamma: stands for the inner curvature, positive. Infinity leaves the implicit term out.

    Raises:
        ValueError: ``gamma`` is not positive.
        TypeError: when called with losses that are not ``MaskedLoss`` of one mask.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma must be positive, got {self.gamma}")

    @property
    def gradient_evaluations(self) -> float:
        """Two."""
        return 2.0

    def compute(self, point: Point, state: Any) -> tuple[Any, Info]:
        """The closed form at ``point``."""
        outer, inner = point.outer.function, point.inner.function
        if not (isinstance(outer, MaskedLoss) and isinstance(inner, MaskedLoss)):
            raise TypeError(
                "Bilinear is the closed form of a masked problem: give both levels as "
                "fb.hypergrad.MaskedLoss, or choose another method"
            )
        if outer.mask is not inner.mask or outer.vjp is not inner.vjp:
            raise TypeError("Bilinear needs the same mask function in both levels")
        factors, pullback = inner.factors(point.outer_var)
        z = jax.tree.map(lambda m, p: m.astype(p.dtype) * p, factors, point.inner_var)
        up, outer_out = _at(outer, point.outer, z)
        # One after the other: side by side they would hold the activations of both.
        low, inner_out = _xla.after(up, partial(_at, inner, point.inner), z)

        def entry(w: Any, m: Any, up: Any, low: Any) -> Any:
            if self.gamma == float("inf"):
                return w * up
            return w * up - low * (m * up) / self.gamma

        gradient = pullback(jax.tree.map(entry, point.inner_var, factors, up, low))
        inner_grad, outer_grad = (
            jax.tree.map(lambda m, q: m.astype(q.dtype) * q, factors, q) for q in (low, up)
        )
        status = status_of((~vectors.all_finite(gradient), Status.NOT_FINITE))
        return gradient, Info.of(inner_grad, outer_out, inner_out, status, outer_grad=outer_grad)


def _at(masked: MaskedLoss, level: Level, z: Any) -> tuple[Any, tuple[Any, Any]]:
    """Gradient with respect to ``z``, and ``(value, aux)``."""

    def loss(z: Any) -> Any:
        out = masked.loss(z, *level.args)
        return out if level.has_aux else (out, None)

    out, gradient = jax.value_and_grad(loss, has_aux=True)(z)
    return gradient, out
