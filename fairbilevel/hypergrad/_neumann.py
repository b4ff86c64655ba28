"""Implicit differentiation by a truncated Neumann series (Lorraine et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fairbilevel.hypergrad import _vectors as vectors
from fairbilevel.hypergrad._implicit import PRODUCT_COST, Implicit, Operator, Solved, check_count

_FADE = 0.9  # how far the estimate of the largest curvature may fall from one call to the next


@dataclass(frozen=True)
class Neumann(Implicit):
    """``v = (1/s) sum_{k=0}^{products} (I - (H + damping) / s)^k grad_y f``.

    With ``s`` at least the largest eigenvalue the error shrinks by ``1 - mu / s`` a term, ``mu``
    the smallest one. Fewer terms regularize: directions of little curvature stay small.

    Spectral scaling: without a given ``scale``, ``s`` is the largest ratio ``|A r| / |r|`` met so
    far, in this call and (fading) in former ones. It costs no products and is a lower bound of the
    largest curvature; where it is too low, the component along the largest curvature grows, raises
    the ratio and so corrects ``s``.

    Attributes:
        products: with the Hessian, besides the cross term's.
        damping: see ``Implicit``; so are ``tolerance``, ``curvature`` and ``keep``.
        scale: ``s``, positive; ``None`` estimates it.

    Raises:
        ValueError: an option outside its range.
    """

    products: int = 10
    damping: float = 0.0
    tolerance: float = 0.0
    curvature: str = "hessian"
    scale: float | None = None
    keep: str = "nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("products", self.products)
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be positive and finite, got {self.scale}")

    @property
    def gradient_evaluations(self) -> float:
        """``2 + 2 (products + 1)``."""
        return 2 + PRODUCT_COST * (self.products + 1)

    def init(self, outer_var: Any, inner_var: Any) -> Any:
        """No curvature met yet."""
        return jnp.zeros((), vectors.norm(inner_var).dtype) if self.scale is None else ()

    def solve(self, operator: Operator, b: Any, state: Any) -> Solved:
        """Sum the series, residual by residual."""
        size = vectors.norm(b)
        tiny = jnp.finfo(size.dtype).tiny

        def unfinished(c: Any) -> Any:
            k, _, _, _, left, _ = c
            return (k < self.products) & (left > self.tolerance * size)

        def iterate(c: Any) -> Any:
            k, v, r, scale, left, negative = c
            through = operator(r)
            if self.scale is None:
                scale = jnp.maximum(scale, vectors.norm(through) / jnp.maximum(left, tiny))
            step = 1 / jnp.maximum(scale, tiny)
            negative = negative | ~(vectors.dot(r, through) > 0)
            v, r = vectors.add(v, r, step), vectors.add(r, through, -step)
            return k + 1, v, r, scale, vectors.norm(r), negative

        first = jnp.asarray(self.scale, size.dtype) if self.scale else _FADE * state
        none, zero = jnp.zeros((), jnp.int32), optax.tree.zeros_like(b)
        start = (none, zero, b, first, size, jnp.asarray(False))
        k, v, r, scale, _, negative = jax.lax.while_loop(unfinished, iterate, start)
        # The last residual is the next term of the series, at no product.
        v = vectors.add(v, r, jnp.where(scale > 0, 1 / jnp.maximum(scale, tiny), 0))
        return Solved(v, k, negative, True, scale if self.scale is None else ())
