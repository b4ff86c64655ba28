"""Smooth per-sample harms that stand for an error in the gradient.

Everything is written in the margin ``v = f_y - logsumexp_{c != y} f_c``, for which the
cross-entropy is ``log(1 + exp(-v))`` and ``sigmoid(v)`` is exactly the probability of ``y``. The
papers' increasing ``u(v)`` (BiFP, Wu et al. 2019) stands for a correct answer; a harm is ``u(-v)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def margin(logits: Float[Array, "rows classes"], y: Int[Array, " rows"]) -> Float[Array, " rows"]:
    """``f_y - logsumexp_{c != y} f_c``: positive only where the answer is right."""
    own = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    others = jnp.where(own, -jnp.inf, logits)
    return jnp.take_along_axis(logits, y[:, None], -1)[:, 0] - jax.nn.logsumexp(others, -1)


def cross_entropy(v: Float[Array, "..."]) -> Float[Array, "..."]:
    """The loss as a function of the margin."""
    return jax.nn.softplus(-v)


@dataclass(frozen=True)
class Surrogate:
    """A smooth harm: from margins to harms, entry by entry, decreasing in the margin.

    ``ratio`` is the least ``k`` with ``|harm'(v)| <= k |cross_entropy'(v)|`` everywhere: how much
    of it may be subtracted before a sample's own loss is climbed (infinite: none of it).
    """

    name: str
    harm: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    ratio: float


SURROGATES = {
    s.name: s
    for s in (
        # sigmoid'(v) = s (1 - s) <= 1 - s = |cross_entropy'(v)|
        Surrogate("sigmoid", lambda v: jax.nn.sigmoid(-v), 1.0),
        Surrogate("loss", cross_entropy, 1.0),
        Surrogate("logistic", lambda v: jax.nn.softplus(-v) / math.log(2), 1 / math.log(2)),
        Surrogate("hinge", lambda v: jnp.maximum(0, 1 - v), float("inf")),
        Surrogate("squared-hinge", lambda v: jnp.maximum(0, 1 - v) ** 2, float("inf")),
    )
}
