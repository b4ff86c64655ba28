"""Group statistics that constraints are written in, on the device and without NaN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
        label: the row's class, where a constraint counts answers.
        answer: the class that the pruned model says, likewise.
        own: quantities of the user's own constraints, by their names.
    """

    correct: Shaped[Array | np.ndarray, " rows"]
    dense_correct: Shaped[Array | np.ndarray, " rows"]
    loss: Shaped[Array | np.ndarray, " rows"]
    dense_loss: Shaped[Array | np.ndarray, " rows"]
    label: Int[Array | np.ndarray, " rows"] | None = None
    answer: Int[Array | np.ndarray, " rows"] | None = None
    own: Mapping[str, Shaped[Array | np.ndarray, " rows"]] = {}

    @property
    def paired(self) -> tuple[Any, Any, Any, Any]:
        """The four quantities that every constraint's statistics hold."""
        return self.correct, self.dense_correct, self.loss, self.dense_loss


class Answers(NamedTuple):
    """What the rows of every cell (a group and a label) are answered.

    ``rate[g, y, c]`` is the share of the rows of group ``g`` and label ``y`` that are answered
    ``c``, 0 in cells that are not ``present``; ``share`` are the cells' shares in the role.
    """

    rate: Float[Array, "groups classes classes"]
    share: Float[Array, "groups classes"]
    present: Bool[Array, "groups classes"]


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
        answers: answers by group and label, where a constraint needs them.
        own: means of the quantities of the user's own constraints, by their names.
        errors: squared standard errors of accuracy, damage and loss, where they were estimated.
    """

    accuracy: Float[Array, " groups"]
    dense_accuracy: Float[Array, " groups"]
    loss: Float[Array, " groups"]
    dense_loss: Float[Array, " groups"]
    share: Float[Array, " groups"]
    present: Bool[Array, " groups"]
    counted: Bool[Array, " groups"]
    answers: Answers | None = None
    own: Mapping[str, Float[Array, " groups"]] = {}
    errors: Float[Array, "3 groups"] | None = None

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

    def shrunken(self, share: Float[Array, ""] | float = 1.0) -> GroupStatistics:
        """Group means drawn towards the overall mean, as far as their noise explains them.

        Empirical Bayes: a deviation ``x_g`` of squared standard error ``nu_g`` counts ``B_g x_g``,
        ``B_g = tau^2 / (tau^2 + nu_g)``, where ``tau^2`` is the spread of the true deviations:
        ``sum_g pi_g (x_g^2 - nu_g)``, at least 0. Accuracy, damage and loss are shrunken each by
        its own noise; rates of answers and the user's own quantities stay as they are.

        Args:
            share: how far, from 0 (not at all) to 1.
        """
        if self.errors is None:
            return self
        weight = jnp.where(self.present, self.share, 0)
        weight = weight / jnp.maximum(jnp.sum(weight), 1e-12)

        def drawn(values: Float[Array, " groups"], error: Float[Array, " groups"]) -> Array:
            middle = self.overall(values)
            apart = values - middle
            noise = (1 - 2 * weight) * error + jnp.sum(weight**2 * error)
            spread = jnp.maximum(jnp.sum(weight * (apart**2 - noise)), 0)
            kept = spread / jnp.maximum(spread + jnp.maximum(noise, 0), 1e-12)
            return jnp.where(self.present, values - share * (1 - kept) * apart, 0)

        accuracy, damage, loss = map(drawn, (self.accuracy, self.damage, self.loss), self.errors)
        # Damage is what the dense accuracy is read for.
        return self._replace(accuracy=accuracy, dense_accuracy=accuracy + damage, loss=loss)


def from_means(
    means: Sequence[Float[Array, " groups"]],
    share: Float[Array, " groups"],
    present: Bool[Array, " groups"],
    counted: Bool[Array, " groups"],
    answers: Answers | None = None,
    own: Mapping[str, Float[Array, " groups"]] | None = None,
    errors: Float[Array, "3 groups"] | None = None,
) -> GroupStatistics:
    """Statistics from the group means of ``Outcomes.paired``, in their order."""
    correct, dense_correct, loss, dense_loss = means
    rest = share, present, counted, answers, own or {}, errors
    return GroupStatistics(correct, dense_correct, loss, dense_loss, *rest)


def cell_answers(
    count: Shaped[Array, "cells classes"],
    least: int | Int[Array, "groups classes"],
    cell_share: Float[Array, "groups classes"],
) -> Answers:
    """Rates from how often each cell got each answer; cells with fewer rows than ``least`` are
    absent."""
    count = count.reshape(*cell_share.shape, -1).astype(cell_share.dtype)
    rows = count.sum(-1)
    present = rows >= least
    rate = jnp.where(present[..., None], count / jnp.maximum(rows, 1)[..., None], 0)
    return Answers(rate, cell_share, present)
