"""The update rules of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import optax
from jaxtyping import Array

from fairbilevel import fairness
from fairbilevel.fairness import Constraint
from fairbilevel.problem import FairPruningProblem
from fairbilevel.train._optimizers import SGD
from fairbilevel.train._state import DualState, WeightState
from fairbilevel.train._steps import Steps

BUFFER_SIZE = 32  # rows a group, by default


@dataclass(frozen=True)
class Rules:
    """What is felt, and what moves weights and multipliers.

    Attributes:
        constraints: with their tolerances; they act where a phase measures them.
        optimizer: of the weights; at a rate of one, which steps scale.
        duals: of the multipliers.
        buffer_size: rows a group in the replay buffers; 0 for none.
        joint: see ``Steps``.
        distill: share of a row's loss that is measured against the dense outputs.
        temperature: of both outputs there.
        shrink: whether what moves the multipliers is shrunken.
        row_weights: whether they move in units of row weight.
    """

    constraints: tuple[Constraint, ...]
    optimizer: optax.GradientTransformation = SGD
    duals: optax.GradientTransformation = field(
        default_factory=lambda: fairness.gradient_ascent(0.01)
    )
    buffer_size: int = BUFFER_SIZE
    joint: bool = False
    distill: float = 0.0
    temperature: float = 1.0
    shrink: bool = False
    row_weights: bool = False

    def steps(self, problem: FairPruningProblem) -> Steps:
        """The pure steps: none of the numbers above."""
        return Steps(
            problem.structure,
            tuple(c.structure for c in self.constraints),
            self.optimizer,
            optax.with_extra_args_support(self.duals).update,
            bool(self.buffer_size),
            self.joint,
        )


def _begin(
    optimizer: optax.GradientTransformation,
    params: Any,
    state: Any,
    duals: DualState,
    seed: Array,
    drawn: Array,
) -> WeightState:
    return WeightState(params, state, optimizer.init(params), duals, jax.random.key(seed), drawn)
