"""Constraints on how often groups get an answer: parity, opportunity and odds.

Each bounds the range over groups of rates ``P(answer = c | label in S, group = g)``. A rate is the
mean over the group's cells (group and label) by their shares in the role, so its Lagrangian term is
a weighted sum over cells of a smooth stand-in for "this row is answered ``c``", made of the row's
harms. With more than two classes every class is held against the rest.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fairbilevel.fairness._constraint import (
    Constraint,
    Duals,
    Logits,
    Numbers,
    Rows,
    against_rest,
    distance_to_extremes,
)
from fairbilevel.fairness._statistics import Answers, GroupStatistics

Cells = Float[Array, "groups classes"]
ByAnswer = Float[Array, "groups classes classes"]  # group, label, answer


class Rate(NamedTuple):
    """One rate that groups should share."""

    name: str  # for labels of multipliers
    answer: int  # the class counted
    among: Bool[np.ndarray, " classes"]  # labels of the rows among which it is counted


@dataclass(frozen=True)
class _EqualRates(Constraint):
    """Ranges over groups of one or several rates.

    Attributes:
        classes: names of the classes; a problem fills in its own. Of two only the second, the
            positive one, is counted: the other's rates are the complements.
    """

    surrogate: str = "sigmoid"
    classes: tuple[str, ...] = ("0", "1")

    of_shares: ClassVar[bool] = True
    unit: ClassVar[str] = "points"
    of_cells: ClassVar[bool] = True

    def bound_to(self, groups: Sequence[str], classes: Sequence[str]) -> Constraint:
        """The same constraint for these groups and classes."""
        bound = super().bound_to(groups, classes)
        assert isinstance(bound, _EqualRates)
        return dataclasses.replace(bound, classes=tuple(classes))

    def _of(self, what: str, among: Bool[np.ndarray, "classes classes"]) -> list[Rate]:
        """A rate for each class that is counted, among the labels in its row."""
        answers = range(1, 2) if len(self.classes) == 2 else range(len(self.classes))
        return [Rate(f"{what} {self.classes[c]}", c, among[c]) for c in answers]

    @abstractmethod
    def rates(self) -> list[Rate]:
        """The rates whose ranges are bounded."""

    def labels(self, groups: Sequence[str]) -> list[str]:
        """``"g: RATE too low"`` for every rate and group, then ``"g: RATE too high"``."""
        return [
            f"{group}: {rate.name} too {side}"
            for side in ("low", "high")
            for rate in self.rates()
            for group in groups
        ]

    def _arrays(self) -> tuple[Float[Array, "rates classes"], Int[np.ndarray, " rates"]]:
        rates = self.rates()
        among = jnp.asarray(np.stack([r.among for r in rates]), float)
        return among, np.array([r.answer for r in rates])

    def group_rates(
        self, answers: Answers
    ) -> tuple[Float[Array, "rates groups"], Bool[Array, "rates groups"]]:
        """Every rate of every group, and which were measured: all cells they are made of, those
        without rows in the role apart."""
        among, answer = self._arrays()
        mass = among @ answers.share.T
        part = jnp.moveaxis(answers.rate, -1, 0)[answer]  # rates, groups, labels
        total = jnp.einsum("qy,gy,qgy->qg", among, answers.share, part)
        unmeasured = among @ ((answers.share > 0) & ~answers.present).astype(among.dtype).T
        known = (mass > 0) & (unmeasured == 0)
        return jnp.where(known, total / jnp.where(mass > 0, mass, 1), 0), known

    def measured(self, stats: GroupStatistics) -> Duals:
        """``[highest rate - r_g, r_g - lowest rate]``, rate by rate."""
        if stats.answers is None:
            raise ValueError(f"{self.name} needs statistics of answers by group and label")
        rates, known = self.group_rates(stats.answers)
        return distance_to_extremes(rates, known & stats.counted)

    def coefficients(self, multipliers: Duals, share: Cells, stats: GroupStatistics) -> ByAnswer:
        """Weights of the cells' mean answers: ``[g, y, c]`` of rows of ``g`` and label ``y``."""
        among, answer = self._arrays()
        low, high = multipliers.reshape(2, len(answer), -1)
        mass = among @ share.T
        raise_ = jnp.where(mass > 0, low - high, 0)
        of_rate = -against_rest(raise_, mass / jnp.maximum(mass.sum(-1, keepdims=True), 1e-30))
        counted = jax.nn.one_hot(answer, share.shape[1], dtype=share.dtype)
        per_row = of_rate / jnp.where(mass > 0, mass, 1)
        return share[..., None] * jnp.einsum("qg,qy,qc->gyc", per_row, among, counted)

    def term(self, weight: ByAnswer, logits: Logits, v: Rows, y: Numbers, group: Numbers) -> Rows:
        """``sum_c weight[g, y, c] * stand-in for "answered c"``."""
        return jnp.sum(weight[group, y] * self.answered(logits, v, y), -1)

    def answered(self, logits: Logits, v: Rows, y: Numbers) -> Logits:
        """Smooth stand-in for "this row is answered ``c``".

        ``1 - harm(v)`` where ``c`` is the label, ``harm(-v_c)`` elsewhere (``v_c``: the margin if
        the label were ``c``): with the sigmoid both are the probability of ``c``, and with every
        surrogate the guard's bound holds for either.
        """
        harm, classes = self.harm.harm, logits.shape[-1]
        own = jax.nn.one_hot(y, classes, dtype=bool)
        if classes == 2:
            other = v[:, None]
        else:
            rest = jnp.where(jnp.eye(classes, dtype=bool), -jnp.inf, logits[:, None, :])
            other = jax.nn.logsumexp(rest, -1) - logits
        return jnp.where(own, 1 - harm(v)[:, None], harm(other))

    def opposition(self, weight: ByAnswer) -> Cells:
        """Holding back the right answer, or furthering a wrong one: the largest of these, since
        wrong answers share what the right one lacks of probability."""
        right = jnp.diagonal(weight, axis1=1, axis2=2)
        wrong = jnp.where(jnp.eye(weight.shape[-1], dtype=bool), 0, weight)
        return jnp.maximum(right, 0) + jnp.max(jnp.maximum(-wrong, 0), -1)

    def relieved(self, weight: ByAnswer, factor: Cells | float) -> ByAnswer:
        """``weight`` with what opposes the loss scaled by ``factor``."""
        opposes = jnp.where(jnp.eye(weight.shape[-1], dtype=bool), weight > 0, weight < 0)
        return jnp.where(opposes, weight * jnp.asarray(factor)[..., None], weight)


@dataclass(frozen=True)
class DemographicParity(_EqualRates):
    """Groups get each answer equally often, up to ``tolerance``."""

    name: ClassVar[str] = "demographic-parity"
    title: ClassVar[str] = "Demographic parity"
    meaning: ClassVar[str] = "how far rates of positive answers may lie apart"

    def rates(self) -> list[Rate]:
        """``P(answer = c | g)``."""
        everyone = np.ones((len(self.classes),) * 2, bool)
        return self._of("rate of", everyone)


@dataclass(frozen=True)
class EqualOpportunity(_EqualRates):
    """Groups' true positive rates are equal up to ``tolerance`` (Hardt et al. 2016)."""

    name: ClassVar[str] = "equal-opportunity"
    title: ClassVar[str] = "Equal opportunity"
    meaning: ClassVar[str] = "how far true positive rates may lie apart"

    def rates(self) -> list[Rate]:
        """``P(answer = c | label = c, g)``."""
        return self._of("true rate of", np.eye(len(self.classes), dtype=bool))


@dataclass(frozen=True)
class EqualizedOdds(_EqualRates):
    """Groups' true and false positive rates are equal up to ``tolerance`` (Hardt et al. 2016)."""

    name: ClassVar[str] = "equalized-odds"
    title: ClassVar[str] = "Equalized odds"
    meaning: ClassVar[str] = "how far true and false positive rates may lie apart"

    def rates(self) -> list[Rate]:
        """``P(answer = c | label = c, g)``, then ``P(answer = c | label != c, g)``."""
        own = np.eye(len(self.classes), dtype=bool)
        return self._of("true rate of", own) + self._of("false rate of", ~own)
