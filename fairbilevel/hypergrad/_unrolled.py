"""Unrolled differentiation: through the steps of the inner optimizer itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from fairbilevel.hypergrad import _vectors as vectors
from fairbilevel.hypergrad._implicit import check_count
from fairbilevel.hypergrad._losses import MaskedLoss
from fairbilevel.hypergrad._point import Hypergradient, Info, Level, Point, Status, status_of


@dataclass(frozen=True)
class Unrolled(Hypergradient):
    """The derivative of ``outer`` after ``steps`` steps of an optax rule, start held fixed.

    In reverse (Domke 2012; Maclaurin et al. 2015) each step costs its gradient, and on the way
    back the derivative of that gradient along one direction. A gradient is never transposed: the
    Hessian is symmetric, so the way back through a gradient is the derivative of the joint
    gradient along the cotangent, on CPU three to four times cheaper than reverse over reverse.
    In forward mode (Franceschi et al. 2017) the cost grows with the entries of the outer variable
    and the memory does not grow with the steps.

    The bias is that of stopping early: with a start that does not depend on the outer variable it
    falls as the inner problem converges. ``Info.inner_var`` is where the steps ended and
    ``Info.state`` the rule's state there, both to go on from.

    Attributes:
        steps: K, inner steps a call.
        optimizer: any optax rule.
        truncate: differentiate the last ``truncate`` steps only (Shaban et al. 2019); all by
            default.
        keep: ``"all"`` keeps the weights and rule's state of each step, ``"sqrt"`` those of about
            ``sqrt(K)`` and runs the steps between them once more.
        mode: ``"reverse"``, or ``"forward"`` for few outer variables.
        args_per_step: ``inner_args`` carry a leading axis of ``steps``, a batch for each.
        restart: begin each call with a fresh state of the rule.
        threads: from the inner auxiliary output of a step to the last of the next step's
            ``inner_args`` (normalization statistics), which no derivative goes through; by default
            all arguments are those that were given.

    Raises:
        ValueError: an option outside its range.
    """

    steps: int = 10
    optimizer: optax.GradientTransformation = field(default_factory=lambda: optax.sgd(0.1))
    truncate: int | None = None
    keep: str = "all"
    mode: str = "reverse"
    args_per_step: bool = False
    restart: bool = False
    threads: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        if self.truncate is not None:
            check_count("truncate", self.truncate)
        if self.keep not in ("all", "sqrt"):
            raise ValueError(f"keep is 'all' or 'sqrt', got {self.keep!r}")
        if self.mode not in ("reverse", "forward"):
            raise ValueError(f"mode is 'reverse' or 'forward', got {self.mode!r}")

    @property
    def holds_outer_still(self) -> bool:
        """Forward mode moves it."""
        return self.mode == "reverse"

    @property
    def differentiated(self) -> int:
        """Steps that the derivative goes through."""
        return self.steps if self.truncate is None else min(self.truncate, self.steps)

    @property
    def gradient_evaluations(self) -> float:
        """``1 + K`` and 3 for each differentiated step, 1 more of these for ``"sqrt"``.

        Forward mode: for an outer variable of one entry.
        """
        again = 1 if self.keep == "sqrt" and self.mode == "reverse" else 0
        return 1.0 + self.steps + (3 + again) * self.differentiated

    def init(self, outer_var: Any, inner_var: Any) -> optax.OptState:
        """The rule's state."""
        return self.optimizer.init(inner_var)

    def compute(self, point: Point, state: Any) -> tuple[Any, Info]:
        """Run the steps, then differentiate what they led to."""
        if self.restart:
            state = self.optimizer.init(point.inner_var)
        args, thread = point.inner.args, ()
        if self.threads is not None:
            args, thread = args[:-1], args[-1]
        level = Level(point.inner.function, args, point.inner.has_aux)
        run = _Steps(level, self.optimizer, self.args_per_step, self.threads)
        if self.args_per_step:
            self._check_axis(args)
        skipped = self.steps - self.differentiated
        carry = (point.inner_var, state, thread)
        if skipped:
            carry, _ = run.forward(point.outer_var, carry, 0, skipped)
        differentiate = self._forward if self.mode == "forward" else self._reverse
        gradient, (y, state, _), (inner_grad, inner_out), outer_out = differentiate(
            point, run, carry, skipped
        )
        status = status_of((~vectors.all_finite(gradient, y), Status.NOT_FINITE))
        told = {"inner_var": y, "iterations": self.steps, "state": state}
        return gradient, Info.of(inner_grad, outer_out, inner_out, status, **told)

    def _check_axis(self, args: Any) -> None:
        for leaf in jax.tree.leaves(args):
            if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] != self.steps:
                raise ValueError(
                    f"with args_per_step every array in inner_args needs a leading axis of "
                    f"{self.steps}, got shape {jnp.shape(leaf)}"
                )

    def _reverse(self, point: Point, run: _Steps, carry: Any, first: int) -> Any:
        x, count = point.outer_var, self.differentiated
        size = count if self.keep == "all" else math.isqrt(count)
        # Segments of equal size, the remainder before them.
        rest = count % size
        starts = []
        if rest:
            starts.append((first, rest, carry))
            carry, last = run.forward(x, carry, first, rest)
        segments = (count - rest) // size
        begins = first + rest + size * jnp.arange(segments)
        if segments == 1:
            outer_start = carry
            trajectory, carry, last = run.trajectory(x, carry, first + rest, size)
        else:

            def segment(carry: Any, begin: Any) -> Any:
                end, last = run.forward(x, carry, begin, size)
                return end, (carry, last)

            carry, (outer_start, lasts) = jax.lax.scan(segment, carry, begins)
            last = jax.tree.map(lambda leaf: leaf[-1], lasts)
            trajectory = None
        y, state, _ = carry
        direct, of_y, outer_out = point.outer.gradients(x, y)
        bars = (direct, (of_y, optax.tree.zeros_like(_split(state)[0])))
        if trajectory is not None:
            bars = run.backward(x, trajectory, first + rest, size, bars)
        else:

            def back(bars: Any, saved: Any) -> Any:
                begin, start = saved
                trajectory, _, _ = run.trajectory(x, start, begin, size)
                return run.backward(x, trajectory, begin, size, bars), None

            bars, _ = jax.lax.scan(back, bars, (begins, outer_start), reverse=True)
        for begin, length, start in starts:
            trajectory, _, _ = run.trajectory(x, start, begin, length)
            bars = run.backward(x, trajectory, begin, length, bars)
        return bars[0], carry, last, outer_out

    def _forward(self, point: Point, run: _Steps, carry: Any, first: int) -> Any:
        if isinstance(point.inner.function, MaskedLoss) and point.inner.function.vjp is not None:
            raise ValueError(
                "forward mode differentiates the mask itself, and this relaxation brings its own "
                "vjp: use mode='reverse'"
            )
        x, count = point.outer_var, self.differentiated
        flat, unravel = ravel_pytree(x)
        basis = jnp.eye(flat.size, dtype=flat.dtype)
        float_state, other_state, rebuild = _split(carry[1])

        def step(carry: Any, index: Any) -> Any:
            (y, floats), others, thread, tangents = carry
            args = run.args(index, thread)

            def advance(x: Any, y: Any, floats: Any) -> Any:
                gradient, out = run.inner(args).inner_gradient(x, y)
                new, state = run.update(gradient, rebuild(floats, others), y)
                new_floats, new_others, _ = _split(state)
                return (new, new_floats), (new_others, (gradient, out))

            moved, linear, (others, last) = jax.linearize(advance, x, y, floats, has_aux=True)
            tangents = _each(lambda d, t: linear(unravel(d), *t), (basis, tangents))
            return (moved, others, run.threaded(last[1], thread), tangents), last

        start = (carry[0], float_state)
        tangents = jax.tree.map(lambda leaf: jnp.zeros((flat.size, *leaf.shape), leaf.dtype), start)
        (moved, others, thread, tangents), lasts = jax.lax.scan(
            step, (start, other_state, carry[2], tangents), first + jnp.arange(count)
        )
        last = jax.tree.map(lambda leaf: leaf[-1], lasts)
        y = moved[0]
        direct, of_y, outer_out = point.outer.gradients(x, y)
        through = jax.vmap(lambda t: vectors.dot(of_y, t))(tangents[0])
        gradient = vectors.add(direct, unravel(through.astype(flat.dtype)))
        return gradient, (y, rebuild(moved[1], others), thread), last, outer_out


def _each(function: Callable[..., Any], rows: Any) -> Any:
    """Over a leading axis: at once, but in a loop on CPU, where batched convolutions are slow."""
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda row: function(*row), rows)
    return jax.vmap(function)(*rows)


def _split(state: Any) -> tuple[list[Any], list[Any], Callable[[Any, Any], Any]]:
    """The floating leaves of a state, those that no derivative goes through (counts and keys), and
    how to put both together again."""
    leaves, structure = jax.tree.flatten(state)
    floating = [jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.inexact) for leaf in leaves]

    def rebuild(floats: list[Any], others: list[Any]) -> Any:
        moving, still = iter(floats), iter(others)
        return jax.tree.unflatten(structure, [next(moving if f else still) for f in floating])

    floats, others = (
        [leaf for leaf, f in zip(leaves, floating, strict=True) if f == kind]
        for kind in (True, False)
    )
    return floats, others, rebuild


@dataclass(frozen=True, eq=False)
class _Steps:
    """Steps of the inner problem, and the way back through them. A carry is weights, the rule's
    state, and what is threaded from step to step."""

    level: Level
    optimizer: optax.GradientTransformation
    args_per_step: bool
    threads: Callable[[Any], Any] | None = None

    def args(self, index: Any, thread: Any) -> Any:
        args = self.level.args
        if self.args_per_step:
            args = jax.tree.map(lambda leaf: leaf[index], args)
        return args if self.threads is None else (*args, thread)

    def threaded(self, out: Any, thread: Any) -> Any:
        return thread if self.threads is None else self.threads(out[1])

    def inner(self, args: Any) -> Level:
        return Level(self.level.function, args, self.level.has_aux)

    def update(self, gradient: Any, state: Any, y: Any) -> Any:
        updates, state = self.optimizer.update(gradient, state, y)
        return optax.apply_updates(y, updates), state

    def step(self, x: Any, carry: Any, index: Any) -> Any:
        y, state, thread = carry
        gradient, out = self.inner(self.args(index, thread)).inner_gradient(x, y)
        return (*self.update(gradient, state, y), self.threaded(out, thread)), (gradient, out)

    def forward(self, x: Any, carry: Any, first: Any, count: int) -> Any:
        """``count`` steps; the carry, and gradient and output of the last step."""

        def body(index: Any, both: Any) -> Any:
            return self.step(x, both[0], first + index)

        return jax.lax.fori_loop(0, count, body, (carry, self._nothing(x, carry, first)))

    def _nothing(self, x: Any, carry: Any, first: Any) -> Any:
        """Zeros like a step's gradient and output."""
        return optax.tree.zeros_like(jax.eval_shape(lambda c: self.step(x, c, first)[1], carry))

    def trajectory(self, x: Any, carry: Any, first: Any, count: int) -> Any:
        """The carry before each step, the last carry, and output of the last step."""

        def body(both: Any, index: Any) -> Any:
            carry, _ = both
            return self.step(x, carry, first + index), carry

        start = (carry, self._nothing(x, carry, first))
        (end, last), before = jax.lax.scan(body, start, jnp.arange(count))
        return before, end, last

    def backward(self, x: Any, trajectory: Any, first: Any, count: int, bars: Any) -> Any:
        """Cotangents (``bars``) before the steps from those after them.

        They are those of the outer variable, the weights and the state's floating leaves.
        """

        def body(bars: Any, saved: Any) -> Any:
            x_bar, (y_bar, state_bar) = bars
            index, (y, state, thread) = saved
            inner = self.inner(self.args(first + index, thread))
            floats, others, rebuild = _split(state)

            (_, gradient), linear, _ = jax.linearize(inner.joint(x), y, has_aux=True)

            def update(gradient: Any, floats: Any, y: Any) -> Any:
                y, state = self.update(gradient, rebuild(floats, others), y)
                return y, _split(state)[0]

            _, back = jax.vjp(update, gradient, floats, y)
            gradient_bar, floats_bar, direct_bar = back((y_bar, state_bar))
            # The Hessian is symmetric: its transpose along a vector is its product with it.
            x_more, y_more = linear(gradient_bar)
            return (vectors.add(x_bar, x_more), (vectors.add(direct_bar, y_more), floats_bar)), None

        bars, _ = jax.lax.scan(body, bars, (jnp.arange(count), trajectory), reverse=True)
        return bars
