"""Losses whose structure a method can use: masked ones, and compositions with a convex loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Pullback = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class MaskedLoss:
    """``loss(mask(scores) * weights, *args)``: a level that sees ``z = m * theta`` alone.

    A function of ``(scores, weights, *args)`` as every method takes it; ``Bilinear`` takes nothing
    else.

    Attributes:
        loss: from ``(z, *args)`` to a scalar, with auxiliary output if ``has_aux``.
        mask: from the scores to factors, a pytree like the weights and broadcastable to it.
        vjp: from the scores to ``(factors, pullback)`` for relaxations whose derivative is not
            their own (straight-through top-k): ``pullback`` maps a pytree like the weights, the
            derivative with respect to each entry's factor, to the gradient of the scores. By
            default the derivative of ``mask``.
    """

    loss: Callable[..., Any]
    mask: Callable[[Any], Any]
    vjp: Callable[[Any], tuple[Any, Pullback]] | None = None

    def __call__(self, scores: Any, weights: Any, *args: Any) -> Any:
        return self.loss(self.masked(scores, weights), *args)

    def masked(self, scores: Any, weights: Any) -> Any:
        """``z = m * theta``, with the relaxation's derivative."""
        if self.vjp is None:
            return _product(self.mask(scores), weights)

        @jax.custom_vjp
        def product(scores: Any, weights: Any) -> Any:
            return _product(self.mask(scores), weights)

        def forward(scores: Any, weights: Any) -> Any:
            # Plain code, not `product`: forward mode goes through here on the way to products
            # with the Hessian.
            return _product(self.mask(scores), weights), (scores, weights)

        def backward(saved: Any, q: Any) -> Any:
            scores, weights = saved
            factors, pullback = self.factors(scores)
            of_weights = jax.tree.map(lambda m, p, c: (m * c).astype(p.dtype), factors, weights, q)
            return pullback(jax.tree.map(jnp.multiply, weights, q)), of_weights

        product.defvjp(forward, backward)
        return product(scores, weights)

    def factors(self, scores: Any) -> tuple[Any, Pullback]:
        """``m`` and the way back from derivatives with respect to each entry's factor."""
        if self.vjp is not None:
            return self.vjp(scores)
        factors, back = jax.vjp(self.mask, scores)

        def pullback(entries: Any) -> Any:
            return back(jax.tree.map(_sum_to, entries, factors))[0]

        return factors, pullback


def share_mask(outer: Any, inner: Any, scores: Any) -> tuple[Any, Any]:
    """Two masked losses of one mask, the mask of ``scores`` taken once for all their passes.

    Anything else comes back as it is.
    """
    if not (isinstance(outer, MaskedLoss) and isinstance(inner, MaskedLoss)):
        return outer, inner
    if outer.mask is not inner.mask or outer.vjp is not inner.vjp:
        return outer, inner
    taken = inner.factors(scores)
    mask, vjp = (lambda _: taken[0]), (lambda _: taken)
    return MaskedLoss(outer.loss, mask, vjp), MaskedLoss(inner.loss, mask, vjp)


def _product(factors: Any, weights: Any) -> Any:
    return jax.tree.map(lambda m, p: m.astype(p.dtype) * p, factors, weights)


def _sum_to(entries: jax.Array, like: jax.Array) -> jax.Array:
    """The transpose of broadcasting ``like`` to the shape of ``entries``."""
    return jax.vjp(lambda m: jnp.broadcast_to(m, entries.shape), like)[1](
        entries.astype(like.dtype)
    )[0]


@dataclass(frozen=True, eq=False)
class CompositeLoss:
    """``loss(outputs(x, y, *args), *args) + regularizer(x, y, *args)``.

    What Gauss-Newton products need: with a loss that is convex in the outputs the product
    ``J^T (d^2 loss) J v`` is positive semi-definite where the Hessian is not. The regularizer
    keeps its full Hessian.

    Attributes:
        outputs: from ``(outer_var, inner_var, *args)`` to outputs (logits), with auxiliary output
            if ``has_aux``.
        loss: from ``(outputs, *args)`` to a scalar.
        regularizer: from ``(outer_var, inner_var, *args)`` to a scalar.
        has_aux: whether ``outputs`` returns ``(outputs, aux)``; say the same to ``hypergradient``.
    """

    outputs: Callable[..., Any]
    loss: Callable[..., Any]
    regularizer: Callable[..., Any] | None = None
    has_aux: bool = False

    def __call__(self, outer_var: Any, inner_var: Any, *args: Any) -> Any:
        outputs = self.outputs(outer_var, inner_var, *args)
        outputs, aux = outputs if self.has_aux else (outputs, None)
        value = self.loss(outputs, *args)
        if self.regularizer is not None:
            value = value + self.regularizer(outer_var, inner_var, *args)
        return (value, aux) if self.has_aux else value

    def gauss_newton(self, outer_var: Any, inner_var: Any, args: tuple[Any, ...]) -> Pullback:
        """``v -> (J^T (d^2 loss) J + d^2 regularizer) v``, linearized once."""

        def outputs(inner_var: Any) -> Any:
            out = self.outputs(outer_var, inner_var, *args)
            return out[0] if self.has_aux else out

        out, forward = jax.linearize(outputs, inner_var)
        backward = jax.linear_transpose(forward, inner_var)
        _, curvature = jax.linearize(jax.grad(lambda o: self.loss(o, *args)), out)
        ridge = None
        if self.regularizer is not None:
            regularizer = self.regularizer
            _, ridge = jax.linearize(
                jax.grad(lambda y: regularizer(outer_var, y, *args)), inner_var
            )

        def product(v: Any) -> Any:
            (through,) = backward(curvature(forward(v)))
            return through if ridge is None else jax.tree.map(jnp.add, through, ridge(v))

        return product
