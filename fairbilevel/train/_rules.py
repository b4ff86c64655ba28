"""The update rules of a run: what moves weights, scores and multipliers, all plain optax."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from fairbilevel import fairness
from fairbilevel.fairness import Constraint
from fairbilevel.problem import FairPruningProblem
from fairbilevel.train._state import DualState, WeightState
from fairbilevel.train._steps import Steps


def sgd(weight_decay: float = 5e-4) -> optax.GradientTransformation:
    """Clipped Nesterov SGD with weight decay (kept weights only: the steps mask the update), at a
    learning rate of one: steps scale its updates (``learning_rates``).

    Args:
        weight_decay: coupled L2 coefficient.
    """
    return optax.chain(
        optax.clip_by_global_norm(2.0),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(1.0, momentum=0.9, nesterov=True),
    )


# One object, so that what is compiled for it once serves every phase of every method.
SGD = sgd()


class _GlobalScale(NamedTuple):
    mean_square: Float[Array, ""]
    steps: Int[Array, ""]


def scale_by_global_rms(decay: float = 0.95) -> optax.GradientTransformation:
    """Divide by one running root mean square over all entries of all leaves.

    Entries keep their sizes relative to each other (unlike Adam) while the step's overall size no
    longer depends on the scale of the loss, the weights or the number of scores.
    """

    def init(params: optax.Params) -> _GlobalScale:
        return _GlobalScale(jnp.zeros(()), jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: _GlobalScale, params: optax.Params | None = None
    ) -> tuple[optax.Updates, _GlobalScale]:
        leaves = jax.tree.leaves(updates)
        square = sum(jnp.sum(u**2) for u in leaves) / sum(u.size for u in leaves)
        mean = decay * state.mean_square + (1 - decay) * square
        steps = state.steps + 1
        root = jnp.sqrt(mean / (1 - decay**steps)) + 1e-30
        return jax.tree.map(lambda u: u / root, updates), _GlobalScale(mean, steps)

    return optax.GradientTransformation(init, update)


SCORE_RULES = {
    "adam": optax.chain(scale_by_global_rms(), optax.adam(1.0, eps=1e-3)),
    "momentum": optax.chain(scale_by_global_rms(), optax.sgd(1.0, momentum=0.9)),
}
"""The outer rules by name, at a step of one.

Gradients are brought to a root mean square of one over all scores first, so that a step means the
same for every loss and network.

``"adam"`` moves a score as far as its gradient is consistent: little is risked where a score's
gradient is mostly noise (few steps, masks that are nearly empty). ``"momentum"`` (SGD, 0.9) lets
scores with large gradients run far ahead of the others: it finds better masks where the budget pays
for hundreds of outer steps.
"""


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
