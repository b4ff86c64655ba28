"""Implicit differentiation in Krylov spaces: conjugate gradients, preconditioned if asked, and for
indefinite inner Hessians GMRES and BiCGStab from JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse import linalg
from jaxtyping import Array, Bool, Float, Int

from fairbilevel import _options
from fairbilevel.hypergrad import _vectors as vectors
from fairbilevel.hypergrad._implicit import PRODUCT_COST, Implicit, Operator, Solved, check_count
from fairbilevel.hypergrad._preconditioner import Preconditioner


class _Carry(NamedTuple):
    k: Int[Array, ""]
    v: Any
    r: Any
    p: Any
    rz: Float[Array, ""]
    done: Bool[Array, ""]
    negative: Bool[Array, ""]


@dataclass(frozen=True)
class ConjugateGradient(Implicit):
    """Solves ``(H + damping) v = grad_y f`` by conjugate gradients.

    Exact after as many iterations as the Hessian has distinct eigenvalues; after ``k`` the error
    in the Hessian's norm is at most ``2 ((sqrt(c) - 1) / (sqrt(c) + 1))^k`` of the first, ``c``
    the condition number. A direction along which the damped Hessian is not positive ends the
    solve with what it has (Steihaug 1983), and the status says so.

    Attributes:
        iterations: products at most, besides the cross term's.
        damping: see ``Implicit``; so are ``tolerance``, ``curvature`` and ``keep``.
        warm_start: begin at the former call's solution (``state``); costs one product more.
        proximal: with a warm start, weight of ``|v - v_former|^2 / 2``: the solution moves towards
            that of each call's system by a share of about ``curvature / (curvature + proximal)``.
            On a whole sum it changes the way there, not the end. **On batches it is needed**: the
            inverse of a batch's Hessian is not on average the inverse of the Hessian, so that a
            system solved well on each batch is solved wrongly on average.
        preconditioner: ``Diagonal`` or ``Nystrom``; costs its products in every call.

    Raises:
        ValueError: an option outside its range.
    """

    iterations: int = 10
    damping: float = 0.0
    tolerance: float = 0.0
    curvature: str = "hessian"
    warm_start: bool = False
    proximal: float = 0.0
    preconditioner: Preconditioner | None = None
    keep: str = "nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("iterations", self.iterations)
        _options.finite(self, "proximal")
        if self.proximal and not self.warm_start:
            raise ValueError("proximal needs warm_start: it holds on to the former solution")

    @property
    def gradient_evaluations(self) -> float:
        """``2 + 2 (iterations + 1)``, plus the warm start's and the preconditioner's products."""
        extra = 0 if self.preconditioner is None else self.preconditioner.products
        return 2 + PRODUCT_COST * (self.iterations + 1 + self.warm_start + extra)

    def solve(self, operator: Operator, b: Any, state: Any) -> Solved:
        """Conjugate gradients from zero or from ``state``."""

        def moved(v: Any) -> Any:
            return vectors.add(operator(v), v, self.proximal)

        inverse = (
            (lambda r: r)
            if self.preconditioner is None
            else self.preconditioner.build(moved, b, self.damping + self.proximal)
        )
        size = vectors.norm(b)
        epsilon = jnp.finfo(size.dtype).eps
        # Below this the recurrences hold rounding errors alone, and no curvature can be read.
        stop = jnp.maximum(self.tolerance, 4 * epsilon) * size
        if self.warm_start:
            v = state
            # Of the proximal system too: its pull towards v vanishes at v.
            r = optax.tree.sub(b, operator(v))
        else:
            v, r = optax.tree.zeros_like(b), b
        z = inverse(r)
        none, solved = jnp.zeros((), jnp.int32), vectors.norm(r) <= stop
        start = _Carry(none, v, r, z, vectors.dot(r, z), solved, jnp.asarray(False))

        def unfinished(c: _Carry) -> Bool[Array, ""]:
            return (c.k < self.iterations) & ~c.done

        def iterate(c: _Carry) -> _Carry:
            through = moved(c.p)
            curvature = vectors.dot(c.p, through)
            # Written so that a NaN counts as negative curvature and stops the loop.
            negative = ~(curvature > 0)
            step = jnp.where(negative, 0, c.rz / jnp.where(negative, 1, curvature))
            v = vectors.add(c.v, c.p, step)
            r = vectors.add(c.r, through, -step)
            z = inverse(r)
            rz = vectors.dot(r, z)
            # Without a preconditioner z is r, and the norm is known.
            left = jnp.sqrt(rz) if self.preconditioner is None else vectors.norm(r)
            p = vectors.add(z, c.p, rz / c.rz)
            return _Carry(c.k + 1, v, r, p, rz, negative | (left <= stop), negative)

        end = jax.lax.while_loop(unfinished, iterate, start)
        return Solved(end.v, end.k, end.negative, False, end.v if self.warm_start else ())


@dataclass(frozen=True)
class _Krylov(Implicit):
    iterations: int = 10
    damping: float = 0.0
    tolerance: float = 0.0
    curvature: str = "hessian"
    warm_start: bool = False
    keep: str = "nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("iterations", self.iterations)

    def _solved(self, v: Any) -> Solved:
        # How many iterations it took is not told: all that were allowed are reported.
        count = jnp.asarray(self.iterations, jnp.int32)
        return Solved(v, count, jnp.asarray(False), True, v if self.warm_start else ())


@dataclass(frozen=True)
class GMRES(_Krylov):
    """Solves ``(H + damping) v = grad_y f`` with the least residual in the Krylov space.

    The residual never grows, whatever the signs of the curvatures. Holds one vector an iteration.
    (Saad and Schultz 1986; ``jax.scipy.sparse.linalg.gmres`` without restarts.)

    Attributes:
        iterations: size of the Krylov space at most.
        damping: see ``Implicit``; so are ``tolerance``, ``curvature`` and ``keep``.
        warm_start: begin at the former call's solution (``state``).

    Raises:
        ValueError: an option outside its range.
    """

    @property
    def gradient_evaluations(self) -> float:
        """``2 + 2 (iterations + 3)``: the residuals before and after take a product each."""
        return 2 + PRODUCT_COST * (self.iterations + 3)

    def solve(self, operator: Operator, b: Any, state: Any) -> Solved:
        """GMRES from zero or from ``state``."""
        v, _ = linalg.gmres(
            operator,
            b,
            state if self.warm_start else None,
            tol=self.tolerance,
            restart=self.iterations,
            solve_method="incremental",  # the batched one squares the condition number
            maxiter=1,
        )
        return self._solved(v)


@dataclass(frozen=True)
class BiCGStab(_Krylov):
    """Solves ``(H + damping) v = grad_y f`` by stabilized biconjugate gradients.

    Two products an iteration and a handful of vectors, whatever the signs of the curvatures; the
    residual may jump. (van der Vorst 1992; ``jax.scipy.sparse.linalg.bicgstab``.)

    Attributes:
        iterations: at most, of two products each.
        damping: see ``Implicit``; so are ``tolerance``, ``curvature`` and ``keep``.
        warm_start: begin at the former call's solution (``state``).

    Raises:
        ValueError: an option outside its range.
    """

    @property
    def gradient_evaluations(self) -> float:
        """``2 + 2 (2 iterations + 2)``."""
        return 2 + PRODUCT_COST * (2 * self.iterations + 2)

    def solve(self, operator: Operator, b: Any, state: Any) -> Solved:
        """BiCGStab from zero or from ``state``."""
        # At a tolerance of zero it would divide rounding errors by each other once it is done.
        tolerance = max(self.tolerance, 4 * float(jnp.finfo(vectors.norm(b).dtype).eps))
        v, _ = linalg.bicgstab(
            operator, b, state if self.warm_start else None, tol=tolerance, maxiter=self.iterations
        )
        return self._solved(v)
