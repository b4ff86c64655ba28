"""Preconditioners for the inner Hessian, from random products with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fairbilevel import _options

Operator = Callable[[Any], Any]


class Preconditioner(ABC):
    """Approximates the inverse of a positive definite operator by a cheaper one."""

    @abstractmethod
    def build(self, operator: Operator, like: Any, damping: float) -> Operator:
        """The approximate inverse of the damped Hessian, whose ``damping`` is part of it.

        ``like`` is a vector of its space.
        """

    @property
    @abstractmethod
    def products(self) -> int:
        """Products with the operator that building takes."""


@dataclass(frozen=True)
class Diagonal(Preconditioner):
    """Jacobi: divides by an estimate of the diagonal (Hutchinson; Bekas et al. 2007).

    The mean of ``z * (A z)`` over random signs ``z``; exact for diagonal operators. Entries below
    a thousandth of the mean absolute entry are raised to it, so that noise cannot turn the sign.

    Attributes:
        samples: products to average.
        seed: of the signs, the same in every call.
    """

    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _options.at_least(self, 1, "samples")

    @property
    def products(self) -> int:
        """One a sample."""
        return self.samples

    def build(self, operator: Operator, like: Any, damping: float) -> Operator:
        """Estimate the diagonal, return the division by it."""
        flat, unravel = ravel_pytree(like)

        def sample(total: Any, key: Any) -> tuple[Any, None]:
            z = jax.random.rademacher(key, flat.shape, flat.dtype)
            return total + z * ravel_pytree(operator(unravel(z)))[0], None

        keys = jax.random.split(jax.random.key(self.seed), self.samples)
        total, _ = jax.lax.scan(sample, jnp.zeros_like(flat), keys)
        diagonal = jnp.abs(total / self.samples)
        floor = 1e-3 * jnp.mean(diagonal) + jnp.finfo(flat.dtype).tiny
        inverse = unravel(1 / jnp.maximum(diagonal, floor))
        return lambda r: jax.tree.map(jnp.multiply, inverse, r)


@dataclass(frozen=True)
class Nystrom(Preconditioner):
    """Randomized Nystrom: inverts a low-rank sketch, leaves the rest (Frangella et al. 2023).

    Best where few curvatures stand out and the damping is of the size of the others. Holds
    ``rank`` vectors.

    Attributes:
        rank: products to sketch with.
        seed: of the sketch, the same in every call.
    """

    rank: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        _options.at_least(self, 1, "rank")

    @property
    def products(self) -> int:
        """One a rank."""
        return self.rank

    def build(self, operator: Operator, like: Any, damping: float) -> Operator:
        """Sketch the operator, return the inverse of the sketch plus a multiple of the identity."""
        flat, unravel = ravel_pytree(like)
        rank = min(self.rank, flat.size)
        key = jax.random.key(self.seed)
        basis, _ = jnp.linalg.qr(jax.random.normal(key, (flat.size, rank), flat.dtype))

        def column(carry: None, z: Any) -> tuple[None, Any]:
            return carry, ravel_pytree(operator(unravel(z)))[0] - damping * z

        _, sketch = jax.lax.scan(column, None, basis.T)
        core = basis.T @ sketch.T
        values, vectors = jnp.linalg.eigh((core + core.T) / 2)
        # Directions of no or negative curvature in the sketch are left to the identity.
        good = values > jnp.finfo(flat.dtype).eps * rank * jnp.max(jnp.abs(values))
        root = jnp.where(good, 1 / jnp.sqrt(jnp.where(good, values, 1)), 0)
        u, singular, _ = jnp.linalg.svd(sketch.T @ (vectors * root), full_matrices=False)
        curvature = singular**2
        found = curvature > jnp.finfo(flat.dtype).eps * jnp.max(curvature)
        last = jnp.min(jnp.where(found, curvature, jnp.inf))
        last = jnp.where(jnp.isfinite(last), last, 1.0)
        inside = jnp.where(found, (last + damping) / (curvature + damping), 1.0)

        def inverse(r: Any) -> Any:
            vector, _ = ravel_pytree(r)
            along = u.T @ vector
            return unravel(vector + u @ ((inside - 1) * along))

        return inverse
