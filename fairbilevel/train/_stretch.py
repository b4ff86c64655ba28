"""The two compiled loops, of weight steps and (``solver``) of outer steps: as many steps as asked.

A program is made for a fixed number of batches and told how many of them count, so that phases and
stages of any length, and all methods, are served by the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fairbilevel import _xla
from fairbilevel.devices import Program
from fairbilevel.fairness import Multipliers
from fairbilevel.problem import Numbers
from fairbilevel.train._batches import Batch
from fairbilevel.train._state import DualState, StepLog, WeightState
from fairbilevel.train._steps import Steps, masked

LENGTH = 32  # steps of a program at most
_BYTES = 2**26  # of inputs in a program's batches at most
DUAL_SHARE = 4  # steps of a program for each batch that moves multipliers


class Stretch(NamedTuple):
    """What one compiled call does, in numbers.

    Attributes:
        count: steps that are taken; the entries behind them mean nothing.
        rates: of the weights' updates, one a step.
        measures: which of the dual batches each step measures violations on, -1 for none.
        dual_scale: of the multipliers' updates.
    """

    count: Int[Any, ""]
    rates: Float[Any, " length"]
    measures: Int[Any, " length"]
    dual_scale: Float[Any, ""]


class StretchLog(NamedTuple):
    """What a compiled call reports: steps with a leading axis, and what they left behind.

    Attributes:
        steps: a ``StepLog`` of arrays ``[length]``.
        finite: whether every number of the state is finite.
        violations: last seen by the multipliers, one array a constraint.
        more: what a method adds.
    """

    steps: StepLog
    finite: Bool[Array, ""]
    violations: Multipliers
    more: Any = ()


def lengths(batch_bytes: int) -> tuple[int, int]:
    """Batches of a program, and dual batches, for inputs of so many bytes a batch."""
    length = int(np.clip(_BYTES // max(batch_bytes, 1), 1, LENGTH))
    return length, -(-length // DUAL_SHARE)


def pieces(measures: Bool[np.ndarray, " steps"], length: int, duals: int) -> list[tuple[int, int]]:
    """A stage cut into calls of at most ``length`` steps that measure at most ``duals`` times: the
    first step and the number of steps of each."""
    found, first, count, measured = [], 0, 0, 0
    for step, looks in enumerate(measures):
        if count == length or (looks and measured == duals):
            found.append((first, count))
            first, count, measured = step, 0, 0
        count, measured = count + 1, measured + bool(looks)
    return [*found, (first, count)] if count else found


def stretch(
    rates: Float[np.ndarray, " steps"],
    measures: Bool[np.ndarray, " steps"],
    length: int,
    dual_scale: float,
) -> Stretch:
    """The numbers of a call, filled up to the program's length."""
    count = len(rates)
    kind = jax.dtypes.canonicalize_dtype(float)
    whole_rates, which = np.zeros(length, kind), np.full(length, -1, np.int32)
    whole_rates[:count] = rates
    which[:count] = np.where(measures, np.cumsum(measures) - 1, -1)
    return Stretch(np.int32(count), whole_rates, which, np.asarray(dual_scale, kind))


def at(batches: Any, index: Any) -> Any:
    """One entry of each array's leading axis."""
    return jax.tree.map(lambda leaf: leaf[index], batches)


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every floating entry is finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


def repeated(
    step: Callable[[Any, Array], tuple[Any, Any]], state: Any, count: Array, length: int
) -> tuple[Any, Any]:
    """``state, log = step(state, index)`` for the first ``count`` indices; the logs stacked."""
    step, (_, shapes) = _xla.traced(step, state, jnp.zeros((), jnp.int32))
    logs = jax.tree.map(lambda s: jnp.zeros((length, *s.shape), s.dtype), shapes)

    def body(carry: Any) -> Any:
        index, state, logs = carry
        state, log = step(state, index)
        logs = jax.tree.map(lambda whole, one: whole.at[index].set(one), logs, log)
        return index + 1, state, logs

    start = (jnp.zeros((), jnp.int32), state, logs)
    end = jax.lax.while_loop(lambda carry: carry[0] < count, body, start)
    return end[1], end[2]


def maybe_dual_step(
    steps: Steps,
    which: Int[Array, ""],
    duals: DualState,
    z: Any,
    model_state: Any,
    batches: Batch,
    numbers: Numbers,
    scale: Any,
) -> DualState:
    """A dual step on batch ``which``, or the duals as they are where it is negative."""
    if not steps.constraints:
        return duals

    def measured(duals: DualState) -> DualState:
        return steps.dual_step(duals, z, model_state, at(batches, which), numbers, scale)

    return jax.lax.cond(which >= 0, measured, lambda duals: duals, duals)


def _weight_stretch(
    steps: Steps,
    state: WeightState,
    factors: Any,
    numbers: Numbers,
    run: Stretch,
    batches: Batch,
    dual_batches: Batch,
) -> tuple[WeightState, Any, StretchLog]:
    """Weight steps under fixed masks: the state, the network ``z``, the log."""

    def step(state: WeightState, index: Array) -> tuple[WeightState, StepLog]:
        batch, rate, which = at(batches, index), run.rates[index], run.measures[index]
        if steps.joint:
            return steps.joint_step(
                state, factors, numbers, batch, rate, which >= 0, run.dual_scale
            )
        state, log = steps.weight_step(state, factors, numbers, batch, rate)
        duals = maybe_dual_step(
            steps,
            which,
            state.duals,
            masked(factors, state.params),
            state.model_state,
            dual_batches,
            numbers,
            run.dual_scale,
        )
        return state._replace(duals=duals), log

    state, log = repeated(step, state, run.count, run.rates.shape[0])
    finite = all_finite((state.params, state.model_state))
    violations = steps.violations(state.duals, numbers)
    return state, masked(factors, state.params), StretchLog(log, finite, violations)


weight_stretch = Program(
    _weight_stretch,
    donate=True,
    steers=lambda state, factors, numbers, run, *batches: (run.count, run.measures),
)
"""``(steps, state, factors, numbers, stretch, batches, dual_batches)``: see ``Steps``."""


def joined(logs: list[StretchLog], counts: list[int]) -> StretchLog:
    """The log of a stage from those of its calls, on the host."""

    def steps(*each: Any) -> np.ndarray:
        return np.concatenate([np.asarray(e)[:n] for e, n in zip(each, counts, strict=True)])

    whole = jax.tree.map(steps, *[(log.steps, log.more) for log in logs])
    finite: Any = np.all([np.asarray(log.finite) for log in logs])
    return StretchLog(whole[0], finite, logs[-1].violations, whole[1])
