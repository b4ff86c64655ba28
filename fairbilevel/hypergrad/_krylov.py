"""Implicit differentiation for indefinite inner Hessians: GMRES and BiCGStab, from JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.scipy.sparse import linalg

from fairbilevel.hypergrad import _vectors as vectors
from fairbilevel.hypergrad._implicit import PRODUCT_COST, Implicit, Operator, Solved, check_count


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
