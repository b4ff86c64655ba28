"""Rules that move multipliers, as optax transformations: they see minus the violations.

Each may take two more arguments that ``ascend`` passes on: ``measured``, which violations were
measured this time (what was not measured leaves a rule's memory as it is), and ``lower``, 0 for
multipliers of inequalities and ``-inf`` for free ones.

The numbers of a rule (step, penalty, budget, ...) lie in its state and not in its code: one
compiled program serves all of them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from fairbilevel import _options

Number = float | Array  # traced where a rule runs in a compiled program


class RuleState(NamedTuple):
    """A rule's numbers by name, and what it remembers."""

    numbers: dict[str, Any]
    memory: Any


def _numbered(make: Callable[..., Any]) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """A rule whose numbers travel in its state: its update is one function for all of them."""
    signature = inspect.signature(make)

    def update(
        updates: Any,
        state: RuleState,
        params: Any = None,
        *,
        measured: Any = None,
        lower: Any = None,
        **extra: Any,
    ) -> tuple[Any, RuleState]:
        rule = optax.with_extra_args_support(make(**state.numbers))
        measured = _like(updates, True) if measured is None else measured
        lower = _like(updates, 0.0) if lower is None else lower
        updates, memory = rule.update(updates, state.memory, params, measured=measured, lower=lower)
        return updates, RuleState(state.numbers, memory)

    @functools.wraps(make)
    def build(*args: Any, **options: Any) -> optax.GradientTransformationExtraArgs:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        kind = jax.dtypes.canonicalize_dtype(float)
        numbers = {name: np.asarray(value, kind) for name, value in bound.arguments.items()}
        rule = make(**bound.arguments)
        # Arrays of their own: compiled steps take over the memory of each of their arguments.
        return optax.GradientTransformationExtraArgs(
            lambda params: RuleState(jax.device_put(numbers), rule.init(params)), update
        )

    return build


def _like(tree: Any, value: Any) -> Any:
    kind = bool if isinstance(value, bool) else jax.dtypes.canonicalize_dtype(float)
    return jax.tree.map(lambda leaf: jax.device_put(np.full(leaf.shape, value, kind)), tree)


def _required(params: Any) -> Any:
    if params is None:
        raise ValueError("this multiplier rule needs the multipliers themselves: pass params")
    return params


@_numbered
def gradient_ascent(step: Number) -> optax.GradientTransformation:
    """``lambda + step * e``: the violations ``e`` are the dual's gradient."""
    return optax.sgd(step)


@_numbered
def augmented_lagrangian(
    step: Number, penalty: Number = 0.1
) -> optax.GradientTransformationExtraArgs:
    """Augmented Lagrangian of inequality constraints (Hestenes, Powell, Rockafellar).

    The gradient of ``f + (max(0, lambda + rho e)^2 - lambda^2) / (2 rho)`` is the Lagrangian's with
    ``max(0, lambda + rho e)`` for the multiplier: this is what the weights feel, while the estimate
    ``lambda`` itself moves on by ``step * e``.

    Args:
        step: of the dual estimate; equal to ``penalty`` in the classical method, whose inner
            problems are solved before each dual step. One primal step a dual step wants less.
        penalty: ``rho``.
    """

    def init(params: optax.Params) -> optax.Updates:
        # The dual estimate, without the penalty that weights feel beside it.
        return jax.tree.map(jnp.copy, params)

    def update(updates: Any, state: Any, params: Any, *, measured: Any, lower: Any) -> Any:
        params = _required(params)

        def felt(g: Any, estimate: Any, now: Any, seen: Any, low: Any) -> Any:
            return jnp.where(seen, jnp.maximum(estimate - penalty * g, low), now) - now

        moves = jax.tree.map(felt, updates, state, params, measured, lower)
        estimate = jax.tree.map(
            lambda g, e, seen, low: jnp.where(seen, jnp.maximum(e - step * g, low), e),
            updates, state, measured, lower,
        )  # fmt: skip
        return moves, estimate

    return optax.GradientTransformationExtraArgs(init, update)


class NuPIState(NamedTuple):
    """Exponential moving average of each violation, and which were ever measured."""

    average: Any
    started: Any


@_numbered
def nupi(
    step: Number, proportional: Number = 0.1, smoothing: Number = 0.9
) -> optax.GradientTransformationExtraArgs:
    """nuPI (Sohrabi et al. 2024): a PI controller on a moving average of the violations.

    ``lambda_{t+1} = lambda_t + step * e_t + proportional * (xi_t - xi_{t-1})`` with
    ``xi_t = smoothing * xi_{t-1} + (1 - smoothing) * e_t``. The average starts at the first
    violation measured, so the first step is one of gradient ascent. The proportional term damps the
    oscillations of plain ascent: a multiplier already falls while its violation shrinks.

    Args:
        step: integral gain.
        proportional: proportional gain; 0 is gradient ascent.
        smoothing: of the average, in [0, 1).
    """
    if isinstance(smoothing, float | int) and not 0 <= smoothing < 1:
        raise ValueError(f"nupi's smoothing must lie in [0, 1), got {smoothing}")

    def init(params: optax.Params) -> NuPIState:
        return NuPIState(_like(params, 0.0), _like(params, False))

    def update(updates: Any, state: Any, params: Any, *, measured: Any, lower: Any) -> Any:
        def averaged(g: Any, old: Any, begun: Any, seen: Any) -> Any:
            return jnp.where(seen, jnp.where(begun, smoothing * old - (1 - smoothing) * g, -g), old)

        average = jax.tree.map(averaged, updates, state.average, state.started, measured)
        moves = jax.tree.map(
            lambda g, new, old, begun: (
                -step * g + proportional * jnp.where(begun, new - old, 0)
            ),
            updates, average, state.average, state.started,
        )  # fmt: skip
        started = jax.tree.map(jnp.logical_or, state.started, measured)
        return moves, NuPIState(average, started)

    return optax.GradientTransformationExtraArgs(init, update)


class MultiplicativeWeightsState(NamedTuple):
    """Logarithms of the weights beside the slack's, and which violations were ever measured."""

    logits: Any
    started: Any


# Beyond this the budget is all but given away (1/3000 is left), and a weight that ran further would
# take as long to come back.
_REACH = 8.0


@_numbered
def multiplicative_weights(
    step: Number, budget: Number = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Exponentiated gradient on a budget (Kivinen & Warmuth 1997; Agarwal et al. 2018).

    ``lambda_i = budget * exp(theta_i) / (1 + sum_j exp(theta_j))`` with ``theta`` moving by
    ``step * e``: all multipliers together stay below ``budget``, and what is left is slack. A free
    multiplier is the difference of two weights, one for either sign. Violations that were never
    measured take no part.

    Args:
        step: of the logarithms; a violation of 0.1 over 100 steps of 1 is a factor of ``exp(10)``.
        budget: what multipliers may add up to.
    """
    if isinstance(budget, float | int) and not budget > 0:
        raise ValueError(f"the budget of multiplicative weights must be positive, got {budget}")

    def init(params: optax.Params) -> MultiplicativeWeightsState:
        return MultiplicativeWeightsState(_like(params, 0.0), _like(params, False))

    def update(updates: Any, state: Any, params: Any, *, measured: Any, lower: Any) -> Any:
        params = _required(params)
        started = jax.tree.map(jnp.logical_or, state.started, measured)
        logits = jax.tree.map(
            lambda g, old, seen: jnp.where(seen, jnp.clip(old - step * g, -_REACH, _REACH), old),
            updates, state.logits, measured,
        )  # fmt: skip

        def sides(theta: Any, seen: Any, low: Any) -> tuple[Any, Any]:
            up = jnp.where(seen, jnp.exp(theta), 0)
            return up, jnp.where(seen & (low < 0), jnp.exp(-theta), 0)

        both = jax.tree.map(sides, logits, started, lower)
        total = 1 + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(both))
        moves = jax.tree.map(
            lambda now, pair: budget * (pair[0] - pair[1]) / total - now, params, both
        )
        return moves, MultiplicativeWeightsState(logits, started)

    return optax.GradientTransformationExtraArgs(init, update)


@_numbered
def fixed_penalty(step: Number, weight: Number = 1.0) -> optax.GradientTransformation:
    """``weight`` on whatever is violated, 0 on the rest: nothing is learned.

    The subgradient of the exact penalty ``weight * max(e, 0)`` (``weight * |e|`` for free
    multipliers), and what a fairness term of fixed weight in the loss amounts to once it bounds a
    gap from both sides (BiFP, Dai et al. 2023, has weight 1).

    Args:
        step: without effect; every rule takes one.
        weight: of a violated constraint.
    """

    def update(updates: Any, state: Any, params: Any, *, measured: Any, lower: Any) -> Any:
        params = _required(params)

        def move(g: Any, now: Any, seen: Any, low: Any) -> Any:
            return jnp.where(seen, jnp.maximum(-weight * jnp.sign(g), low) - now, 0)

        return jax.tree.map(move, updates, params, measured, lower), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


MULTIPLIER_RULES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "gradient-ascent": gradient_ascent,
    "augmented-lagrangian": augmented_lagrangian,
    "nupi": nupi,
    "multiplicative-weights": multiplicative_weights,
    "penalty": fixed_penalty,
}


def multiplier_rule(text: str, step: float) -> optax.GradientTransformation:
    """A rule by name with options: ``"nupi"``, ``"nupi:proportional=1,smoothing=0.9"``.

    Args:
        text: name and options.
        step: the rule's step.

    Raises:
        ValueError: unknown name or option (with the nearest one), or a value outside its range.
    """
    name, _, rest = text.partition(":")
    _options.one_of("multiplier rule", name, MULTIPLIER_RULES)
    rule, what = MULTIPLIER_RULES[name], f"multiplier rule {name!r}"
    readers = {
        p: functools.partial(_number, f"{what}: {p}") for p in inspect.signature(rule).parameters
    }
    given = _options.parse(what, rule, rest, ("step",), readers)
    return rule(step, **given)


def _number(what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{what} must be a number of at least 0, got {text!r}")
    return value
