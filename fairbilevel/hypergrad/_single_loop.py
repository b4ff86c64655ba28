"""Single loop: the linear system's solution is tracked, one product a step (SOBA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fairbilevel import _options
from fairbilevel.hypergrad import _vectors as vectors
from fairbilevel.hypergrad._point import Hypergradient, Info, Point, Status, status_of


class SingleLoopState(NamedTuple):
    """The tracked system: ``v``, the current solution of ``(H + damping) v = grad_y f`` like the
    inner variable, the state of the rule that moves it, the largest ``|(H + damping) v| / |v|``
    met."""

    v: Any
    rule: optax.OptState
    curvature: Float[Array, ""]


@dataclass(frozen=True)
class SingleLoop(Hypergradient):
    """``grad_x f - (d^2 g / dx dy)^T v``, ``v`` moved by one step a call (Dagreou et al. 2022).

    One derivative of the joint inner gradient along ``v`` gives the inner gradient, the cross term
    and the product with the Hessian together; ``v`` then moves against the residual
    ``(H + damping) v - grad_y f``. All three variables move at once, so the system is solved only
    as the run goes on: the first calls give the direct gradient, and outer steps must be small
    beside the system's. Exact where ``v`` has converged; unbiased noise for batches averages out
    in ``v``.

    A step is never longer than one over the largest ratio ``|(H + damping) v| / |v|`` met in
    the run: too long a step makes the stiffest direction grow, which raises the ratio.

    Attributes:
        step: along the residual, in units of one over curvature; stable below 2 over the largest.
        damping: added to the Hessian's diagonal, at least 0.
        optimizer: any optax rule for ``v`` instead (schedules, momentum); its updates are taken as
            they are, and ``step`` is not used.

    Raises:
        ValueError: an option outside its range.
    """

    step: float = 0.1
    damping: float = 0.0
    optimizer: optax.GradientTransformation | None = None

    def __post_init__(self) -> None:
        if not 0 < self.step < float("inf"):
            raise ValueError(f"step must be positive and finite, got {self.step}")
        _options.finite(self, "damping")

    @property
    def gradient_evaluations(self) -> float:
        """Four: the outer gradient, and the inner one with its derivative."""
        return 4.0

    def _rule(self) -> optax.GradientTransformation:
        return optax.sgd(self.step) if self.optimizer is None else self.optimizer

    def init(self, outer_var: Any, inner_var: Any) -> SingleLoopState:
        """A zero solution."""
        v = optax.tree.zeros_like(inner_var)
        return SingleLoopState(v, self._rule().init(v), jnp.zeros_like(vectors.norm(v)))

    def compute(self, point: Point, state: SingleLoopState) -> tuple[Any, Info]:
        """The hypergradient at the tracked solution, and the solution's own step."""
        x, y = point.outer_var, point.inner_var
        direct, b, outer_out = point.outer.gradients(x, y)
        (_, inner_grad), (cross, through), inner_out = jax.jvp(
            point.inner.joint(x), (y,), (state.v,), has_aux=True
        )
        through = vectors.add(through, state.v, self.damping)
        miss = optax.tree.sub(through, b)
        updates, rule = self._rule().update(miss, state.rule, state.v)
        length = vectors.norm(state.v)
        ratio = vectors.norm(through) / jnp.where(length > 0, length, 1)
        curvature = jnp.maximum(state.curvature, ratio)
        if self.optimizer is None:
            updates = vectors.scaled(1 / jnp.maximum(1, self.step * curvature), updates)
        moved = SingleLoopState(optax.apply_updates(state.v, updates), rule, curvature)
        finite = vectors.all_finite(cross, moved.v)
        residual = vectors.share(vectors.norm(miss), vectors.norm(b))
        gradient = optax.tree.where(finite, optax.tree.sub(direct, cross), direct)
        gradient = vectors.nan_unless(vectors.all_finite(b, inner_grad), gradient)
        bad = ~finite | ~vectors.all_finite(gradient, inner_grad)
        # A system that went wrong starts again from zero: it must not spoil the calls that follow.
        state = optax.tree.where(finite, moved, self.init(x, y))
        status = status_of(
            (bad, Status.NOT_FINITE), (vectors.dot(state.v, through) < 0, Status.NEGATIVE_CURVATURE)
        )
        told = {"iterations": 1, "residual": residual, "state": state, "outer_grad": b}
        return gradient, Info.of(inner_grad, outer_out, inner_out, status, **told)
