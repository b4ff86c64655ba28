"""Fully first-order: a penalty on the value function, gradients only (F2SA)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from fairbilevel import _trees
from fairbilevel.hypergrad import _vectors as vectors
from fairbilevel.hypergrad._implicit import check_count
from fairbilevel.hypergrad._point import Hypergradient, Info, Level, Point, Status, status_of


class FirstOrderState(NamedTuple):
    """The penalized copy of the inner variable.

    Attributes:
        y: tracks ``argmin_y g(x, y) + f(x, y) / penalty``.
        rule: state of the rule that moves ``y``.
        plain: state of the rule that moves the inner variable itself, in sequential mode.
        calls: so far; the argument of a scheduled penalty.
    """

    y: Any
    rule: optax.OptState
    plain: optax.OptState
    calls: Int[Array, ""]


@dataclass(frozen=True)
class FirstOrder(Hypergradient):
    """``grad_x f(x, y) + penalty (grad_x g(x, y) - grad_x g(x, z))`` (Kwon et al. 2023).

    ``z`` is the inner variable, ``y`` a second copy that minimizes ``g + f / penalty``: the
    derivative of the penalized value function, no second derivatives. The bias is of the order of
    one over the penalty; a larger one asks for better solved copies, and amplifies the noise of
    batches unless both gradients of ``g`` share theirs, as here.

    *Fused* (``inner_steps=0``): three gradients at ``y`` and ``z`` as they are give the
    hypergradient and both inner directions: ``y`` moves by ``optimizer``, ``z`` is the caller's to
    move along ``Info.inner_grad``. *Sequential*: both copies take ``inner_steps`` steps first,
    ``Info.inner_var`` is the new ``z``. ``f`` is evaluated at ``y``.

    Attributes:
        penalty: positive, or a schedule of the number of calls.
        inner_steps: steps of both copies before the hypergradient; 0 fuses.
        optimizer: any optax rule for ``y`` (and for ``z`` in sequential mode), which gets the
            gradient of ``g + f / penalty``; best the one that moves the inner variable.

    Raises:
        ValueError: an option outside its range.
    """

    penalty: float | Callable[[Any], Any] = 10.0
    inner_steps: int = 0
    optimizer: optax.GradientTransformation = field(default_factory=lambda: optax.sgd(0.1))

    def __post_init__(self) -> None:
        if not callable(self.penalty) and not 0 < self.penalty < float("inf"):
            raise ValueError(f"penalty must be positive and finite, got {self.penalty}")
        check_count("inner_steps", self.inner_steps, 0)

    @property
    def gradient_evaluations(self) -> float:
        """``3 (inner_steps + 1)``."""
        return 3.0 * (self.inner_steps + 1)

    def init(self, outer_var: Any, inner_var: Any) -> FirstOrderState:
        """Both copies together."""
        rule = self.optimizer.init(inner_var)
        return FirstOrderState(
            _trees.copy(inner_var),  # its own buffers: callers donate states
            rule,
            self.optimizer.init(inner_var) if self.inner_steps else (),
            jnp.zeros((), jnp.int32),
        )

    def compute(self, point: Point, state: FirstOrderState) -> tuple[Any, Info]:
        """The penalized difference, and a step of the copy."""
        x, z = point.outer_var, point.inner_var
        penalty = self.penalty(state.calls) if callable(self.penalty) else self.penalty
        y, rule, plain = state.y, state.rule, state.plain
        if self.inner_steps:

            def both(x: Any, y: Any) -> Any:
                return point.inner(x, y)[0] + point.outer(x, y)[0] / penalty

            def body(_: Any, carry: Any) -> Any:
                y, rule, z, plain = carry
                of_y, _ = Level(both, (), False).inner_gradient(x, y)
                of_z, _ = point.inner.inner_gradient(x, z)
                y, rule = self._move(of_y, rule, y)
                z, plain = self._move(of_z, plain, z)
                return y, rule, z, plain

            y, rule, z, plain = jax.lax.fori_loop(0, self.inner_steps, body, (y, rule, z, plain))
        f_x, f_y, outer_out = point.outer.gradients(x, y)
        near_x, near_y, _ = point.inner.gradients(x, y)
        far_x, far_z, inner_out = point.inner.gradients(x, z)
        gradient = vectors.add(f_x, optax.tree.sub(near_x, far_x), penalty)
        gradient = vectors.nan_unless(vectors.all_finite(f_y, near_y, far_z), gradient)
        if not self.inner_steps:
            y, rule = self._move(vectors.add(near_y, f_y, 1 / penalty), rule, y)
        finite = vectors.all_finite(gradient, y)
        moved = FirstOrderState(y, rule, plain, state.calls + 1)
        fresh = self.init(x, z)._replace(calls=state.calls + 1)
        status = status_of((~finite, Status.NOT_FINITE))
        told: Any = {"inner_var": z, "iterations": self.inner_steps} if self.inner_steps else {}
        state = optax.tree.where(finite, moved, fresh)
        return gradient, Info.of(far_z, outer_out, inner_out, status, state=state, **told)

    def _move(self, gradient: Any, rule: Any, y: Any) -> tuple[Any, Any]:
        updates, rule = self.optimizer.update(gradient, rule, y)
        return optax.apply_updates(y, updates), rule
