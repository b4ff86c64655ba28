"""The closed-form hypergradient of a masked problem (BiP, Zhang et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Bilinear:
    """``theta * q_up - (1 / gamma) * q_low * (m * q_up)``, pulled back to the scores.

    Both losses are functions of ``z = m * theta`` alone; ``q_up`` and ``q_low`` are their gradients
    with respect to ``z``, ridge left out. The second term is ``(d theta* / dm)^T dL/d theta`` for
    an inner problem ``L(m * theta) + gamma / 2 |theta|^2`` whose loss is linear around its
    solution: **exact where d^2 L / dz^2 = 0**, an approximation with ``gamma`` standing for the
    curvature everywhere else.

    ``q_low`` comes from the weights before their update (the pass that moved them), so weights and
    scores cost two gradient evaluations together and the implicit term is one step stale.

    Attributes:
        gamma: stands for the inner curvature, positive. Infinity leaves the implicit term out.

    Raises:
        ValueError: ``gamma`` is not positive.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma must be positive, got {self.gamma}")

    def __call__(
        self,
        weights: Any,
        factors: Any,
        outer_gradient: Any,
        inner_gradient: Any,
        pullback: Callable[[Any], Any],
    ) -> Any:
        """The hypergradient of the scores.

        Args:
            weights: ``theta``, a pytree of arrays.
            factors: ``m`` expanded to a pytree like ``theta``, broadcastable to it.
            outer_gradient: ``q_up``, like ``theta``.
            inner_gradient: ``q_low``, like ``theta``.
            pullback: from a pytree like ``theta``, holding the derivative with respect to each
                entry's multiplier, to the gradient of the scores: the sum over shared units and
                the relaxation's VJP.
        """
        if self.gamma == float("inf"):
            entries = jax.tree.map(lambda w, up: w * up, weights, outer_gradient)
        else:
            entries = jax.tree.map(
                lambda w, m, up, low: w * up - low * (m * up) / self.gamma,
                weights,
                factors,
                outer_gradient,
                inner_gradient,
            )
        return pullback(entries)
