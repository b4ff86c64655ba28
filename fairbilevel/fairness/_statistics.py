"""Group statistics that constraints are written in, on the device and without NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped


class Outcomes(NamedTuple):
    """What one forward pass says of each row, beside what the dense model said of it.

    Attributes:
        correct: 1 where the pruned model is right.
        dense_correct: 1 where the dense model was right.
        loss: cross-entropy of the pruned model, in nats.
        dense_loss: cross-entropy of the dense model, in nats.
    """

    correct: Shaped[Array | np.ndarray, " rows"]
    dense_correct: Shaped[Array | np.ndarray, " rows"]
    loss: Shaped[Array | np.ndarray, " rows"]
    dense_loss: Shaped[Array | np.ndarray, " rows"]


class GroupStatistics(NamedTuple):
    """Group means; entries of groups that are not ``present`` are 0 and mean nothing.

    Attributes:
        accuracy: accuracy of the pruned model.
        dense_accuracy: accuracy of the dense model on the same rows.
        loss: mean cross-entropy of the pruned model.
        dense_loss: mean cross-entropy of the dense model.
        share: the groups' shares in the role, fixed for the run (never a batch's).
        present: which groups were measured; overall means run over them.
        counted: which groups a claim speaks of; largest and smallest values run over those that
            are present too. Groups too small to say anything about are not counted.
    """

    accuracy: Float[Array, " groups"]
    dense_accuracy: Float[Array, " groups"]
    loss: Float[Array, " groups"]
    dense_loss: Float[Array, " groups"]
    share: Float[Array, " groups"]
    present: Bool[Array, " groups"]
    counted: Bool[Array, " groups"]

    @property
    def claimed(self) -> Bool[Array, " groups"]:
        """Present and counted."""
        return self.present & self.counted

    def overall(self, values: Float[Array, " groups"]) -> Float[Array, ""]:
        """The role's mean of a group quantity, over the groups present."""
        weight = jnp.where(self.present, self.share, 0)
        total = jnp.sum(weight)
        return jnp.sum(weight * values) / jnp.where(total > 0, total, 1)

    @property
    def damage(self) -> Float[Array, " groups"]:
        """Accuracy lost by each group: ``D_g``."""
        return self.dense_accuracy - self.accuracy

    @property
    def excess_accuracy_gap(self) -> Float[Array, " groups"]:
        """``psi_g = D_g - D`` (CEAG), 0 for absent groups."""
        return jnp.where(self.present, self.damage - self.overall(self.damage), 0)


def from_means(
    means: Sequence[Float[Array, " groups"]],
    share: Float[Array, " groups"],
    present: Bool[Array, " groups"],
    counted: Bool[Array, " groups"],
) -> GroupStatistics:
    """Statistics from the group means of the four fields of ``Outcomes``, in their order."""
    correct, dense_correct, loss, dense_loss = means
    return GroupStatistics(correct, dense_correct, loss, dense_loss, share, present, counted)


def group_statistics(
    outcomes: Outcomes,
    group: Int[Array, " rows"],
    share: Float[Array, " groups"],
    counted: Bool[Array, " groups"],
) -> GroupStatistics:
    """Group means of a set of rows; groups without rows are absent, negative groups ignored."""
    groups = share.shape[0]
    count = jax.ops.segment_sum(jnp.ones(group.shape, share.dtype), group, groups)
    present = count > 0
    safe = jnp.where(present, count, 1)

    def mean(values: Any) -> Float[Array, " groups"]:
        return jax.ops.segment_sum(values, group, groups) / safe

    return from_means([mean(v) for v in outcomes], share, present, counted)
