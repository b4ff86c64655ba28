"""What a hypergradient method is given and what it gives back."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Status(enum.IntEnum):
    """How a computation ended; what ``Info.status`` holds as an int32 array."""

    DONE = 0
    NOT_CONVERGED = 1
    NEGATIVE_CURVATURE = 2
    DIVERGED = 3
    NOT_FINITE = 4


_WORDS = {
    Status.DONE: "it ran as asked",
    Status.NOT_CONVERGED: "the linear system's residual stayed above the tolerance: allow more "
    "iterations, add damping, or precondition",
    Status.NEGATIVE_CURVATURE: "the inner Hessian is not positive definite along a direction that "
    "was met: the inner problem is not at a strict minimum; add damping, use Gauss-Newton "
    "products, or a method for indefinite systems (GMRES, BiCGStab)",
    Status.DIVERGED: "the residual ended larger than it began, so the implicit term was left out: "
    "add damping, or for a tracked system take smaller steps",
    Status.NOT_FINITE: "a value was not finite: the hypergradient is NaN, or the implicit term was "
    "left out where that alone was not",
}


class Info(NamedTuple):
    """What comes with a hypergradient. A pytree, so it passes through ``jit`` and ``vmap``.

    Attributes:
        inner_grad: gradient of ``inner`` with respect to its variable where it was last taken: at
            ``inner_var``, or one step before ``Info.inner_var`` for methods that move it.
        outer_value: value of ``outer``.
        inner_value: value of ``inner``.
        outer_aux: auxiliary output of ``outer``, ``None`` without ``has_aux``.
        inner_aux: auxiliary output of ``inner``, likewise.
        inner_var: the inner variable where the method moved it itself (unrolled, sequential
            first-order), else ``None``: then take a step along ``inner_grad``.
        iterations: iterations of the linear solver, inner steps, or 0.
        residual: norm of ``(H + damping) v - grad outer`` over that of ``grad outer``, for methods
            that solve this system; 0 for others.
        status: a ``Status``.
        state: to be given to the next call (warm start, tracked system, optimizer state).
        outer_grad: gradient of ``outer`` with respect to the inner variable at ``inner_var``, by
            methods that move nothing themselves, else ``None``.
    """

    inner_grad: Any
    outer_value: Float[Array, ""]
    inner_value: Float[Array, ""]
    outer_aux: Any
    inner_aux: Any
    inner_var: Any
    iterations: Int[Array, ""]
    residual: Float[Array, ""]
    status: Int[Array, ""]
    state: Any
    outer_grad: Any = None

    @classmethod
    def of(
        cls,
        inner_grad: Any,
        outer: tuple[Any, Any],
        inner: tuple[Any, Any],
        status: Any,
        *,
        inner_var: Any = None,
        iterations: Any = 0,
        residual: Any = None,
        state: Any = (),
        outer_grad: Any = None,
    ) -> Info:
        """From the outputs ``(value, aux)`` of both levels."""
        values, aux = zip(outer, inner, strict=True)
        steps = jnp.asarray(iterations, jnp.int32)
        left = jnp.zeros(()) if residual is None else residual
        return cls(inner_grad, *values, *aux, inner_var, steps, left, status, state, outer_grad)

    def describe(self) -> str:
        """The diagnosis in a sentence, outside ``jit`` and of one problem only."""
        status = Status(int(self.status))
        return (
            f"{status.name}: {_WORDS[status]} (iterations {int(self.iterations)}, relative "
            f"residual {float(self.residual):.2g})"
        )


@dataclass(frozen=True, eq=False)
class Level:
    """One level: a scalar function of ``(outer_var, inner_var, *args)`` and its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    has_aux: bool

    def __call__(self, outer_var: Any, inner_var: Any) -> tuple[Float[Array, ""], Any]:
        out = self.function(outer_var, inner_var, *self.args)
        return out if self.has_aux else (out, None)

    def gradients(self, outer_var: Any, inner_var: Any) -> tuple[Any, Any, tuple[Any, Any]]:
        """With respect to both variables in one pass, and ``(value, aux)``."""
        out, (of_outer, of_inner) = jax.value_and_grad(self, argnums=(0, 1), has_aux=True)(
            outer_var, inner_var
        )
        return of_outer, of_inner, out

    def inner_gradient(self, outer_var: Any, inner_var: Any) -> tuple[Any, tuple[Any, Any]]:
        """With respect to the inner variable alone, and ``(value, aux)``."""
        out, gradient = jax.value_and_grad(self, argnums=1, has_aux=True)(outer_var, inner_var)
        return gradient, out

    def joint(self, outer_var: Any) -> Callable[[Any], Any]:
        """From the inner variable to both gradients, and ``(value, aux)`` beside them."""

        def joint(inner_var: Any) -> Any:
            of_outer, of_inner, out = self.gradients(outer_var, inner_var)
            return (of_outer, of_inner), out

        return joint


@dataclass(frozen=True, eq=False)
class Point:
    """Both levels and where they are taken."""

    outer: Level
    inner: Level
    outer_var: Any
    inner_var: Any


class Hypergradient(ABC):
    """A method: options in a frozen dataclass, state in a pytree."""

    def init(self, outer_var: Any, inner_var: Any) -> Any:
        """The state of the first call; methods without memory keep ``()``."""
        return ()

    @abstractmethod
    def compute(self, point: Point, state: Any) -> tuple[Any, Info]:
        """The hypergradient, like ``point.outer_var``, and what comes with it."""

    @property
    def holds_outer_still(self) -> bool:
        """Whether levels are only differentiated at ``point.outer_var``, never along it."""
        return True

    @property
    @abstractmethod
    def gradient_evaluations(self) -> float:
        """Cost of a call by arithmetic, in gradients of one batch (forward plus backward).

        A product with a linearized gradient counts 2, a gradient with its derivative along one
        direction 3.
        """


def status_of(*cases: tuple[Any, Status]) -> Int[Array, ""]:
    """The status of the first case that holds, else ``DONE``."""
    code = jnp.asarray(int(Status.DONE), jnp.int32)
    for holds, status in reversed(cases):
        code = jnp.where(holds, jnp.asarray(int(status), jnp.int32), code)
    return code
