"""Gradients of a batch summed over micro-batches, one after the other.

A batch then takes the memory of one micro-batch, whatever differentiates it: a gradient is taken
micro-batch by micro-batch as the value is, so that nothing of the forward pass waits for the way
back, and a derivative of that gradient (the products of implicit and unrolled methods) computes
each micro-batch again instead of keeping what all of them left.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fairbilevel import _xla
from fairbilevel.train._batches import Batch

Part = Callable[[Any, Batch, Array], tuple[Float[Array, ""], Any]]


def split(batch: Batch, parts: int) -> Batch:
    """Micro-batches with a leading axis of ``parts``; every ``parts``-th row is in the same one.

    Rows go round, so that a batch whose rows are shared out over devices in blocks is split on each
    device by itself.
    """
    rows = batch.y.shape[0]
    if rows % parts:
        raise ValueError(
            f"a batch of {rows} rows does not fall into {parts} equal micro-batches: choose a "
            "batch size that accumulate divides"
        )
    return jax.tree.map(
        lambda leaf: leaf.reshape(rows // parts, parts, *leaf.shape[1:]).swapaxes(0, 1), batch
    )


def accumulated(part: Part, z: Any, batch: Batch, key: Array, parts: int) -> tuple[Any, Any]:
    """``part(z, batch, key)``, a mean over rows with auxiliary output, by micro-batches.

    Its gradient with respect to ``z`` costs what that of the whole batch costs; the gradient's
    derivative along a vector takes the micro-batch's passes once more. Only the value is
    differentiated, never the auxiliary output, which is averaged (whole numbers: the last).
    """
    pieces = split(batch, parts), jax.random.split(key, parts)

    def mean(values: Array) -> Array:
        return values.mean(0) if jnp.issubdtype(values.dtype, jnp.floating) else values[-1]

    @jax.custom_vjp
    def whole(z: Any) -> tuple[Any, Any]:
        def body(_: None, piece: Any) -> tuple[None, Any]:
            return None, part(z, *piece)

        _, found = _xla.scan(body, None, pieces)
        return jax.tree.map(mean, found)

    def forward(z: Any) -> tuple[tuple[Any, Any], Any]:
        # In a loop nothing can be merged with the first time, so no barrier has to prevent it.
        @partial(jax.checkpoint, prevent_cse=False)
        def one(z: Any, piece: Any) -> tuple[Any, Any]:
            (value, aux), gradient = jax.value_and_grad(part, has_aux=True)(z, *piece)
            return gradient, (value, jax.lax.stop_gradient(aux))

        def body(total: Any, piece: Any) -> tuple[Any, Any]:
            gradient, found = one(z, piece)
            return jax.tree.map(lambda t, g: t + g / parts, total, gradient), found

        gradient, found = _xla.scan(body, jax.tree.map(jnp.zeros_like, z), pieces)
        return jax.tree.map(mean, found), gradient

    def backward(gradient: Any, cotangents: Any) -> tuple[Any]:
        return (jax.tree.map(lambda g: cotangents[0].astype(g.dtype) * g, gradient),)

    whole.defvjp(forward, backward)
    return whole(z)


def swept(
    part: Callable[[Batch, Array], Float[Array, "micro classes"]],
    batch: Batch,
    key: Array,
    parts: int,
) -> Float[Array, "rows classes"]:
    """``part(rows, key)`` of each micro-batch, in the order of the batch's rows."""
    pieces = split(batch, parts), jax.random.split(key, parts)

    def body(_: None, piece: Any) -> tuple[None, Array]:
        return None, part(*piece)

    _, out = _xla.scan(body, None, pieces)
    return out.swapaxes(0, 1).reshape(-1, *out.shape[2:])
