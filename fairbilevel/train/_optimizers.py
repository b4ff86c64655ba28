"""Default update rules, all plain optax."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


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
