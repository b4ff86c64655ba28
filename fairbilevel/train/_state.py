"""What steps carry along and hand back."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Bool, Float, Int

from fairbilevel import fairness
from fairbilevel.fairness import Buffers


class DualState(NamedTuple):
    """Multipliers, and what moves them.

    Attributes:
        multipliers: one array a constraint.
        rule: state of their update rule.
        buffers: rows their violations are measured on.
    """

    multipliers: fairness.Multipliers
    rule: optax.OptState
    buffers: Buffers


class WeightState(NamedTuple):
    """Everything a weight step reads and writes.

    Attributes:
        params: dense weights ``theta``; the network computes with ``m * theta``.
        model_state: normalization statistics.
        optimizer: state of the inner optimizer.
        duals: multipliers and buffers.
        key: random key of the run (dropout).
        drawn: steps taken; each draws its own key from ``key``, and models that draw nothing have
            nothing compiled for it.
    """

    params: Any
    model_state: Any
    optimizer: optax.OptState
    duals: DualState
    key: Array
    drawn: Int[Array, ""]

    @property
    def draw(self) -> Array:
        """The key of the step to come."""
        return jax.random.fold_in(self.key, self.drawn)


class StepLog(NamedTuple):
    """What one step reports.

    Attributes:
        loss: cross-entropy on the fit batch, in nats.
        accuracy: accuracy on the fit batch.
        guard: whether the guard against negative weights changed one.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    guard: Bool[Array, ""]


class Aux(NamedTuple):
    """What the objective says beside its value: normalization statistics after the pass,
    cross-entropy in nats, share of rows that are right."""

    model_state: Any
    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
