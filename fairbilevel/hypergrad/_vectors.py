"""Pytrees as vectors of one inner-product space, with sums of products in float32 at least."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def dot(a: Any, b: Any) -> Float[Array, ""]:
    """Inner product over all leaves."""

    def leaf(x: Array, y: Array) -> Array:
        wide = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
        return jnp.sum(x.astype(wide) * y.astype(wide))

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jnp.asarray(sum(leaf(x, y) for x, y in pairs))


def norm(a: Any) -> Float[Array, ""]:
    """Euclidean norm over all leaves."""
    return jnp.sqrt(dot(a, a))


def add(a: Any, b: Any, scale: Any = 1.0) -> Any:
    """``a + scale * b`` in the dtypes of ``a``."""
    return jax.tree.map(lambda x, y: x + jnp.asarray(scale * y).astype(x.dtype), a, b)


def sub(a: Any, b: Any) -> Any:
    """``a - b``."""
    return jax.tree.map(jnp.subtract, a, b)


def scaled(scale: Any, a: Any) -> Any:
    """``scale * a`` in the dtypes of ``a``."""
    return jax.tree.map(lambda x: jnp.asarray(scale * x).astype(x.dtype), a)


def zeros(a: Any) -> Any:
    """The zero vector of the space of ``a``."""
    return jax.tree.map(jnp.zeros_like, a)


def where(condition: Bool[Array, ""], a: Any, b: Any) -> Any:
    """``a`` if the scalar condition holds, else ``b``."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def all_finite(*trees: Any) -> Bool[Array, ""]:
    """Whether every entry is finite."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(trees)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.asarray(True)
