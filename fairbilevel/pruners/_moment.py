"""What a pruner sees of a network when it scores it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fairbilevel import _xla, fairness, masks, models
from fairbilevel.masks import Layers, Masks
from fairbilevel.problem import Structure
from fairbilevel.train import Batch, accumulated


@dataclass(frozen=True, eq=False)
class Moment:
    """A network under its present masks, and rows to judge its weights by.

    Everything is traced: scores are computed in one compiled call. The network is taken in
    evaluation mode, where rows do not influence each other and nothing is dropped.

    Attributes:
        structure: of the problem that is pruned: model, layers, shape of a row.
        network: ``z = m * theta``, the parameters as the network computes with them.
        model_state: normalization statistics.
        kept: the masks so far, one where a unit is still there.
        granularity: ``"weight"`` or ``"filter"``.
        batches: rows to look at, leaves ``[parts, batches, batch size, ...]``; ``None`` where the
            method looks at none.
        key: random key of this scoring.
        moments: what inputs are standardized by.
    """

    structure: Structure
    network: Any
    model_state: Any
    kept: Masks
    granularity: str
    batches: Batch | None
    key: Array
    moments: tuple[Array, ...] = ()

    @property
    def layers(self) -> Layers:
        """What can be pruned."""
        return self.structure.layers

    def logits(self, params: Any, batch: Batch) -> Float[Array, "rows classes"]:
        """Logits of a batch, in the precision of training."""
        model = models.in_precision(self.structure.model, self.structure.precision)
        given = dataclasses.replace(self.structure, model=model)
        return given.forward(params, self.model_state, batch.x, self.moments, False, self.key)[0]

    def loss(self, params: Any, batch: Batch, temperature: float = 1.0) -> Float[Array, ""]:
        """Mean cross-entropy of a batch in nats, rows weighted, logits divided by a temperature."""

        def part(params: Any, batch: Batch, key: Array) -> Float[Array, ""]:
            v = fairness.margin(self.logits(params, batch) / temperature, batch.y)
            return jnp.mean(batch.weight * fairness.cross_entropy(v))

        return self.over_rows(part, params, batch, self.key)

    def over_rows(
        self, part: Callable[[Any, Batch, Array], Float[Array, ""]],
        params: Any, batch: Batch, key: Array,
    ) -> Float[Array, ""]:  # fmt: skip
        """``part(params, batch, key)``, a mean over rows; where the problem accumulates that of its
        micro-batches, one after the other, so that a gradient takes the memory of one of them."""
        count = self.structure.accumulate
        if count == 1:
            return part(params, batch, key)
        return accumulated(lambda *piece: (part(*piece), ()), params, batch, key, count)[0]

    def by_part(self, function: Callable[[Batch, Array], Any]) -> Any:
        """The mean of ``function(batch, key)`` over the batches of each part: ``[parts, ...]``."""
        batches = self.batches
        if batches is None:
            raise ValueError("this pruner looks at no rows: give its class a number of passes")
        parts, count = batches.y.shape[:2]
        keys = jax.random.split(self.key, (parts, count))

        def part(_: None, xs: tuple[Batch, Array]) -> tuple[None, Any]:
            first = jax.tree.map(lambda leaf: leaf[0], xs)
            zero = optax.tree.zeros_like(jax.eval_shape(function, *first))

            def add(total: Any, one: tuple[Batch, Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, function(*one)), None

            total, _ = jax.lax.scan(add, zero, xs)
            return None, jax.tree.map(lambda leaf: leaf / count, total)

        _, means = _xla.scan(part, None, (batches, keys))
        return means

    def mean(self, function: Callable[[Batch, Array], Any]) -> Any:
        """The mean of ``function(batch, key)`` over all batches."""
        return jax.tree.map(lambda leaf: leaf.mean(0), self.by_part(function))

    def units(self, entries: Any) -> Masks:
        """Sums over the parameters that share a mask's entry: what entry by entry is ``z * dF/dz``,
        like the parameters, becomes the derivative ``dF/dm`` of a unit's mask at one."""
        return masks.collect(entries, self.layers, self.granularity)
