"""Pytrees as vectors of one inner-product space: what ``optax.tree`` has not.

Sums of products are in float32 at least, and a step keeps the dtypes of what it moves.
"""

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


def scaled(scale: Any, a: Any) -> Any:
    """``scale * a`` in the dtypes of ``a``."""
    return jax.tree.map(lambda x: jnp.asarray(scale * x).astype(x.dtype), a)


def share(part: Float[Array, ""], whole: Float[Array, ""]) -> Float[Array, ""]:
    """``part / whole``, 0 of nothing; NaN stays NaN."""
    return jnp.where(whole == 0, 0.0, part / whole)


def nan_unless(sound: Bool[Array, ""], a: Any) -> Any:
    """``a``, or NaN everywhere."""
    return jax.tree.map(lambda x: jnp.where(sound, x, jnp.nan).astype(x.dtype), a)


def all_finite(*trees: Any) -> Bool[Array, ""]:
    """Whether every entry is finite."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(trees)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.asarray(True)
