"""Gradient and curvature of each group's loss at given weights, without ever forming a Hessian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from fairbilevel import _trees
from fairbilevel.analysis._loss import Apply, GroupedRows, Loss, Span, portable, stream, total_loss


def hessian_product(
    apply: Apply, loss: Loss, params: Any, vector: Any, span: Span, batch_size: int
) -> tuple[Any, Any]:
    """Gradient of a span's mean loss, and its Hessian times a vector. Pure.

    Forward over reverse (Pearlmutter 1994), three gradients' work, summed over batches: memory is
    that of one batch.
    """

    def quantity(x: Array, y: Array, weight: Array) -> tuple[Any, Any]:
        gradient = jax.grad(lambda p: total_loss(apply, loss, p, x, y, weight))
        return jax.jvp(gradient, (params,), (vector,))

    return stream(quantity, span, batch_size)


@dataclass(frozen=True)
class Lanczos:
    """The largest eigenvalue of a symmetric matrix from products with it (Lanczos 1950).

    Started at a random vector, with full reorthogonalization. The largest eigenvalues of networks'
    Hessians stand apart from the others, so that some twenty products are enough; how far the
    answer may be off comes with it.

    Attributes:
        products: products with the matrix; at most as many as it has rows are done.
        seed: of the random vector.
    """

    products: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.products < 1:
            raise ValueError(f"Lanczos needs at least 1 product, got {self.products}")

    def decompose(
        self, product: Callable[[Any], Any], like: Any
    ) -> tuple[Float[Array, " k"], Float[Array, " k-1"], Float[Array, ""]]:
        """Diagonal and off-diagonal of the tridiagonal matrix, and what is left over. Pure."""
        size = min(self.products, _trees.size(like))
        leaves, structure = jax.tree.flatten(like)
        keys = jax.random.split(jax.random.key(self.seed), len(leaves))
        normals = [
            jax.random.normal(k, jnp.shape(leaf), jnp.result_type(leaf))
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        # Without its derivative rule, which would have to be resolved before convolutions are.
        from matfree import decomp  # it brings Pallas: half a second

        algorithm = decomp.tridiag_sym(size, materialize=False, custom_vjp=False)
        found = algorithm(product, jax.tree.unflatten(structure, normals))
        diagonal, off = found.J_small
        return diagonal, off, optax.tree.norm(found.residual)

    @staticmethod
    def largest(
        diagonal: Float[np.ndarray, " k"],
        off_diagonal: Float[np.ndarray, " k-1"],
        rest: Float[np.ndarray, ""],
    ) -> tuple[float, float]:
        """Largest eigenvalue, and within which distance of it the matrix has one for sure.

        Where the vectors span an invariant subspace, the random start has shown everything it can
        and what follows is rounding: it is cut off. The distance allows for rounding.

        Raises:
            ValueError: not even the first product is finite.
        """
        diagonal = np.asarray(diagonal, np.float64)
        behind = np.append(np.asarray(off_diagonal, np.float64), float(rest))
        if not np.isfinite(diagonal[0]):
            raise ValueError("the curvature of the loss is not finite at these weights")
        single = np.asarray(off_diagonal).dtype == np.float32
        small = 1e-5 if single else 1e-10
        size, scale = len(diagonal), 0.0
        for k in range(len(diagonal)):
            scale = max(scale, abs(diagonal[k]))
            if not behind[k] > small * scale:
                size = k + 1
                break
            scale = max(scale, behind[k])
        from scipy.linalg import eigh_tridiagonal

        values, vectors = eigh_tridiagonal(diagonal[:size], behind[: size - 1])
        last = behind[size - 1]
        error = abs(last * vectors[-1, -1]) if np.isfinite(last) else 0.0
        return float(values[-1]), float(error + small * abs(values[-1]))


TWENTY = Lanczos()
"""Twenty products, enough for networks."""


@partial(jax.jit, static_argnames=("loss", "batch_size"))
def _gradient_norm(apply: Any, params: Any, span: Span, *, loss: Loss, batch_size: int) -> Array:
    def quantity(x: Array, y: Array, weight: Array) -> Any:
        return jax.grad(lambda p: total_loss(apply, loss, p, x, y, weight))(params)

    gradient = stream(quantity, span, batch_size)
    return optax.tree.norm(gradient)


@partial(jax.jit, static_argnames=("loss", "batch_size", "lanczos"))
def _tridiagonal(
    apply: Any, params: Any, span: Span, *, loss: Loss, batch_size: int, lanczos: Lanczos
) -> tuple[Array, Array, Array]:
    def product(vector: Any) -> Any:
        return hessian_product(apply, loss, params, vector, span, batch_size)[1]

    return lanczos.decompose(product, params)


@partial(jax.jit, static_argnames=("loss", "batch_size"))
def _second_order(
    apply: Any, params: Any, step: Any, span: Span, *, loss: Loss, batch_size: int
) -> Array:
    gradient, product = hessian_product(apply, loss, params, step, span, batch_size)
    return optax.tree.vdot(gradient, step) + optax.tree.vdot(product, step) / 2


def gradient_norms(
    apply: Apply, loss: Loss, params: Any, rows: GroupedRows
) -> Float[np.ndarray, " groups"]:
    """``||grad L_g||`` of every group's mean loss over all parameters; NaN without rows."""
    run = partial(_gradient_norm, portable(apply), params, loss=loss, batch_size=rows.batch_size)
    return rows.means(run)


def largest_eigenvalues(
    apply: Apply, loss: Loss, params: Any, rows: GroupedRows, lanczos: Lanczos
) -> tuple[Float[np.ndarray, " groups"], Float[np.ndarray, " groups"]]:
    """``lambda_max(H_g)`` of every group's mean loss, and how far each may be off."""
    fixed = {"loss": loss, "batch_size": rows.batch_size, "lanczos": lanczos}
    run = partial(_tridiagonal, portable(apply), params, **fixed)
    found = {g: lanczos.largest(*parts) for g, parts in rows.each_group(run).items()}
    values = rows.spread({g: value for g, (value, _) in found.items()})
    return values, rows.spread({g: error for g, (_, error) in found.items()})


def second_order(
    apply: Apply, loss: Loss, params: Any, step: Any, rows: GroupedRows
) -> Float[np.ndarray, " groups"]:
    """``grad L_g . d + 1/2 d . H_g d`` of every group: exact where the loss is quadratic."""
    fixed = {"loss": loss, "batch_size": rows.batch_size}
    run = partial(_second_order, portable(apply), params, step, **fixed)
    return rows.means(run)
