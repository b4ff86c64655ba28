"""Fairness constraints: what is measured, and how its multipliers weigh the groups' harms.

Every constraint here bounds group means, so its Lagrangian term is a weighted sum of the groups'
mean harms: ``sum_g c_g(multipliers) * harm_g``. The solver only needs the ``c``; one backward pass
then serves any number of constraints and groups.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fairbilevel.fairness._statistics import GroupStatistics
from fairbilevel.fairness._surrogate import SURROGATES, Surrogate


@dataclass(frozen=True)
class Constraint(ABC):
    """A bound on a disparity between groups.

    Attributes:
        tolerance: the bound, a fraction (0.02 is two points; nats for losses).
        surrogate: which smooth harm stands for the measured quantity in gradients.

    Raises:
        ValueError: a negative or NaN tolerance, or an unknown surrogate.
    """

    tolerance: float = 0.02
    surrogate: str = "loss"

    name: ClassVar[str]
    signed: ClassVar[bool] = False  # multipliers may be negative
    monotone: ClassVar[bool] = False  # multipliers never fall

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise ValueError(
                f"the tolerance of {self.name} must be at least 0, got {self.tolerance}"
            )
        if self.surrogate not in SURROGATES:
            raise ValueError(
                f"unknown surrogate {self.surrogate!r}: choose from {', '.join(SURROGATES)}"
            )

    @property
    def harm(self) -> Surrogate:
        """The smooth harm."""
        return SURROGATES[self.surrogate]

    def labels(self, groups: Sequence[str]) -> list[str]:
        """One name for each multiplier."""
        return list(groups)

    @abstractmethod
    def value(self, stats: GroupStatistics) -> Float[Array, ""]:
        """The disparity as reported; the constraint holds where it is at most ``tolerance``."""

    @abstractmethod
    def violations(self, stats: GroupStatistics) -> Float[Array, " multipliers"]:
        """What moves each multiplier: true quantity minus tolerance, 0 for groups not claimed."""

    @abstractmethod
    def coefficients(
        self,
        multipliers: Float[Array, " multipliers"],
        share: Float[Array, " groups"],
        stats: GroupStatistics,
    ) -> Float[Array, " groups"]:
        """Weights ``c_g`` of the groups' mean harms in the Lagrangian.

        Args:
            multipliers: current values.
            share: the groups' shares in the role whose loss is weighed.
            stats: what the multipliers last saw (a sign is needed by some constraints).
        """


def _against_average(
    weight: Float[Array, " groups"], share: Float[Array, " groups"]
) -> Float[Array, " groups"]:
    """Coefficients of ``sum_g w_g (harm_g - harm)`` with ``harm = sum_h share_h harm_h``."""
    return weight - share * jnp.sum(weight)


def _against_rest(
    weight: Float[Array, " groups"], share: Float[Array, " groups"]
) -> Float[Array, " groups"]:
    """Coefficients of ``sum_g w_g (harm_g - harm_{not g})``."""
    outside = weight / jnp.maximum(1 - share, 1e-6)
    return weight - share * (jnp.sum(outside) - outside)


def _extreme(
    values: Float[Array, " groups"], claimed: Bool[Array, " groups"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Smallest and largest value of the groups claimed (0, 0 if none is)."""
    some = jnp.any(claimed)
    low = jnp.min(jnp.where(claimed, values, jnp.inf))
    high = jnp.max(jnp.where(claimed, values, -jnp.inf))
    return jnp.where(some, low, 0), jnp.where(some, high, 0)


@dataclass(frozen=True)
class _Range(Constraint):
    """Largest minus smallest group value of something where more is better.

    Two multipliers a group: "below" moves by how far the best group is ahead of it, "above" by how
    far it is ahead of the worst. Their surrogates are BiFP's one-against-the-rest ``F_g`` and its
    mirror; for two groups that is the paper's constraint.
    """

    surrogate: str = "sigmoid"

    def labels(self, groups: Sequence[str]) -> list[str]:
        """``"g: below the best"`` for every group, then ``"g: above the worst"``."""
        return [f"{g}: below the best" for g in groups] + [f"{g}: above the worst" for g in groups]

    @abstractmethod
    def quantity(self, stats: GroupStatistics) -> Float[Array, " groups"]:
        """The group quantity whose range is bounded."""

    def value(self, stats: GroupStatistics) -> Float[Array, ""]:
        """Largest minus smallest."""
        low, high = _extreme(self.quantity(stats), stats.claimed)
        return high - low

    def violations(self, stats: GroupStatistics) -> Float[Array, " multipliers"]:
        """``[best - q_g, q_g - worst] - tolerance``."""
        quantity = self.quantity(stats)
        low, high = _extreme(quantity, stats.claimed)
        gap = jnp.stack([high - quantity, quantity - low]) - self.tolerance
        return jnp.where(stats.claimed, gap, 0).reshape(-1)

    def coefficients(
        self,
        multipliers: Float[Array, " multipliers"],
        share: Float[Array, " groups"],
        stats: GroupStatistics,
    ) -> Float[Array, " groups"]:
        """The below-multipliers raise a group, the above-multipliers hold it back."""
        below, above = multipliers.reshape(2, -1)
        return _against_rest(below - above, share)


@dataclass(frozen=True)
class AccuracyGap(_Range):
    """``max_g A_g - min_g A_g <= tolerance`` (performance fairness, BiFP)."""

    name: ClassVar[str] = "accuracy-gap"

    def quantity(self, stats: GroupStatistics) -> Float[Array, " groups"]:
        """``A_g``."""
        return stats.accuracy


@dataclass(frozen=True)
class DegradationGap(_Range):
    """``max_g R_g - min_g R_g <= tolerance``, ``R_g = A_g(dense) - A_g`` (BiFP).

    Equal to the range of excess accuracy gaps: the overall loss of accuracy cancels.
    """

    name: ClassVar[str] = "degradation-gap"

    def quantity(self, stats: GroupStatistics) -> Float[Array, " groups"]:
        """``-R_g``: more is better."""
        return -stats.damage


@dataclass(frozen=True)
class ExcessAccuracyGap(Constraint):
    """``psi_g = D_g - D <= tolerance`` for every group (CEAG, Hashemizadeh et al. 2024)."""

    name: ClassVar[str] = "excess-accuracy-gap"

    def value(self, stats: GroupStatistics) -> Float[Array, ""]:
        """``max_g psi_g``."""
        return _extreme(stats.excess_accuracy_gap, stats.claimed)[1]

    def violations(self, stats: GroupStatistics) -> Float[Array, " multipliers"]:
        """``psi_g - tolerance``."""
        return jnp.where(stats.claimed, stats.excess_accuracy_gap - self.tolerance, 0)

    def coefficients(
        self,
        multipliers: Float[Array, " multipliers"],
        share: Float[Array, " groups"],
        stats: GroupStatistics,
    ) -> Float[Array, " groups"]:
        """Of ``sum_g lambda_g (harm_g - harm)``."""
        return _against_average(multipliers, share)


@dataclass(frozen=True)
class _EqualizedLoss(Constraint):
    tolerance: float = 0.05

    def _difference(self, stats: GroupStatistics) -> Float[Array, " groups"]:
        return jnp.where(stats.claimed, stats.loss - stats.overall(stats.loss), 0)

    def value(self, stats: GroupStatistics) -> Float[Array, ""]:
        """``max_g |L_g - L|``, in nats."""
        return jnp.max(jnp.abs(self._difference(stats)))


@dataclass(frozen=True)
class EqualizedLoss(_EqualizedLoss):
    """``|L_g - L| <= tolerance``, absolute form (Tran et al. 2022): multipliers only grow."""

    name: ClassVar[str] = "equalized-loss"
    monotone: ClassVar[bool] = True

    def violations(self, stats: GroupStatistics) -> Float[Array, " multipliers"]:
        """``max(|L_g - L| - tolerance, 0)``."""
        excess = jnp.abs(self._difference(stats)) - self.tolerance
        return jnp.where(stats.claimed, jnp.maximum(excess, 0), 0)

    def coefficients(
        self,
        multipliers: Float[Array, " multipliers"],
        share: Float[Array, " groups"],
        stats: GroupStatistics,
    ) -> Float[Array, " groups"]:
        """Of ``sum_g lambda_g |L_g - L|``, the sign as last measured."""
        return _against_average(multipliers * jnp.sign(self._difference(stats)), share)


@dataclass(frozen=True)
class SignedEqualizedLoss(_EqualizedLoss):
    """``L_g = L`` up to ``tolerance``, signed form (the EL of CEAG): multipliers are free."""

    name: ClassVar[str] = "equalized-loss-signed"
    signed: ClassVar[bool] = True

    def violations(self, stats: GroupStatistics) -> Float[Array, " multipliers"]:
        """``L_g - L`` less the tolerance on either side."""
        difference = self._difference(stats)
        return jnp.sign(difference) * jnp.maximum(jnp.abs(difference) - self.tolerance, 0)

    def coefficients(
        self,
        multipliers: Float[Array, " multipliers"],
        share: Float[Array, " groups"],
        stats: GroupStatistics,
    ) -> Float[Array, " groups"]:
        """Of ``sum_g lambda_g (L_g - L)``."""
        return _against_average(multipliers, share)


CONSTRAINTS: dict[str, type[Constraint]] = {
    c.name: c
    for c in (AccuracyGap, DegradationGap, ExcessAccuracyGap, EqualizedLoss, SignedEqualizedLoss)
}


def parse_tolerance(text: str) -> float:
    """A tolerance as a fraction (``0.02``) or a percentage (``2%``).

    Raises:
        ValueError: not a number, negative, NaN, or a bare number of 1 or more, which would be read
            as a percentage by some and as a fraction by others.
    """
    percent = text.strip().endswith("%")
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        raise ValueError(
            f"a tolerance is a fraction such as 0.02 or a percentage such as 2%, got {text!r}"
        ) from None
    if not 0 <= value < float("inf"):
        raise ValueError(f"a tolerance must be a number of at least 0, got {text!r}")
    if percent:
        return value / 100
    if value >= 1:
        raise ValueError(
            f"a tolerance of {text} is ambiguous: write {text.strip()}% or a fraction below 1"
        )
    return value


def parse_constraint(text: str) -> Constraint:
    """A constraint written ``NAME=TOLERANCE`` (or ``NAME`` alone, with its default tolerance).

    Raises:
        ValueError: unknown name (with the nearest one) or a bad tolerance.
    """
    name, separator, tolerance = text.replace("<=", "=").partition("=")
    if not separator:
        name, separator, tolerance = text.partition(":")
    name = name.strip().lower().replace("_", "-")
    if name not in CONSTRAINTS:
        near = difflib.get_close_matches(name, CONSTRAINTS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown constraint {name!r}: {hint}choose from {', '.join(CONSTRAINTS)}")
    kind = CONSTRAINTS[name]
    return kind(tolerance=parse_tolerance(tolerance)) if separator else kind()
