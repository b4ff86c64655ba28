"""Default update rules, all plain optax."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def sgd(
    rate: float, steps: int, *, decay_to_zero: bool, weight_decay: float = 5e-4
) -> optax.GradientTransformation:
    """Clipped Nesterov SGD with weight decay (kept weights only: the steps mask the update).

    Args:
        rate: peak learning rate, reached after a short warm-up.
        steps: steps of the phase.
        decay_to_zero: follow a cosine to zero, else stay at the peak.
        weight_decay: coupled L2 coefficient.
    """
    warm = max(1, min(steps // 20, 50))
    rest = max(steps - warm, 1)
    after = (
        optax.cosine_decay_schedule(rate, rest) if decay_to_zero else optax.constant_schedule(rate)
    )
    schedule = optax.join_schedules([optax.linear_schedule(rate / warm, rate, warm), after], [warm])
    return optax.chain(
        optax.clip_by_global_norm(2.0),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=0.9, nesterov=True),
    )


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


SCORE_RULES = ("adam", "momentum")


def score_descent(
    rule: str, step: float, spread: float, steps: int, hold: float = 0.8
) -> optax.GradientTransformation:
    """The outer rules by name; their steps are in units of the scores' spread.

    Gradients are brought to a root mean square of one over all scores first, so that a step means
    the same for every loss and network.

    ``"adam"`` moves a score as far as its gradient is consistent: little is risked where a score's
    gradient is mostly noise (few steps, masks that are nearly empty). ``"momentum"`` (SGD, 0.9)
    lets scores with large gradients run far ahead of the others: it finds better masks where the
    budget pays for hundreds of outer steps.

    Args:
        rule: ``"adam"`` or ``"momentum"``.
        step: of ``"adam"``, the most that a score moves per outer step; of ``"momentum"``, the
            root mean square move of a step without its momentum. As a share of ``spread``.
        spread: standard deviation of the scores at the start.
        steps: outer steps.
        hold: part of them at the full step, best while the budget moves; the step then falls to
            zero along a cosine, so that the mask settles.
    """
    held = round(hold * steps)
    schedule = optax.join_schedules(
        [
            optax.constant_schedule(step * spread),
            optax.cosine_decay_schedule(step * spread, max(steps - held, 1)),
        ],
        [held],
    )
    moved = optax.adam(schedule, eps=1e-3) if rule == "adam" else optax.sgd(schedule, momentum=0.9)
    return optax.chain(scale_by_global_rms(), moved)
