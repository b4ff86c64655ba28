"""Normalization statistics of a finished network, and whether it still depends on its input."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from fairbilevel import _xla, data, models
from fairbilevel.devices import Program
from fairbilevel.problem import FairPruningProblem, Network
from fairbilevel.train._batches import Batch


def settled_statistics(
    structure: tuple[models.Model, str], model_state: Any, z: Any, batches: Batch, moments: Any
) -> Any:
    """Normalization statistics of the network ``z``: running statistics over stacked batches,
    averaged over their second half. Pure."""
    model, kind = structure

    def body(carry: Any, batch: Batch) -> tuple[Any, Any]:
        x = data.standardize(kind, batch.x, moments)
        _, carry = model.apply(z, carry, x, True, jax.random.key(0))
        return carry, carry

    last, seen = _xla.scan(body, model_state, batches)
    half = batches.y.shape[0] // 2

    def settle(final: Array, history: Array) -> Array:
        if not jnp.issubdtype(final.dtype, jnp.floating):
            return final
        return history[half:].mean(0)

    return jax.tree.map(settle, last, seen)


_SETTLED = Program(settled_statistics)


def recalibrated(problem: FairPruningProblem, network: Network, batches: Batch) -> Network:
    """The network with the statistics that its own weights make on these batches."""
    place, (model, kind) = problem.placement, (problem.model, problem.encoder.kind)
    arguments = place.place((network.state, network.params))
    moments = place.place(problem.encoder.moments)
    state = _SETTLED((model, kind), *arguments, batches, moments, placement=place)
    return Network(network.params, state)


def answers(
    problem: FairPruningProblem, network: Network, rows: Int[np.ndarray, " rows"], sparsity: float
) -> str | None:
    """The class that a network answers on all of 256 rows, ``None`` if there are several.

    Raises:
        ValueError: its logits are the same for every row: the masks cut it.
    """
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), 256)).astype(int)]
    logits = problem.logits(network, problem.rows(sample))
    if len(sample) > 1 and not np.any(logits != logits[:1]):
        raise ValueError(
            f"sparsity {sparsity} cut the network: its logits no longer depend on the input; ask "
            "for less, or for the uniform budget"
        )
    said = np.unique(logits.argmax(-1))
    always = len(said) == 1 and len(np.unique(problem.y[sample])) > 1
    return problem.data.classes[said[0]] if always else None
