"""Constraints on accuracies and losses of groups, and on a user's own quantity of their rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fairbilevel import _options
from fairbilevel.fairness._constraint import (
    Constraint,
    Duals,
    Groups,
    Limits,
    Logits,
    Numbers,
    Rows,
    Tolerance,
    Weights,
    against_average,
    against_rest,
    claimed_only,
    distance_to_extremes,
    look_up,
)
from fairbilevel.fairness._statistics import GroupStatistics

BOUNDS = ("level", "excess", "range")


@dataclass(frozen=True)
class _Range(Constraint):
    """Largest minus smallest group value of something where more is better.

    Two multipliers a group: "below" moves by how far the best group is ahead of it, "above" by how
    far it is ahead of the worst. Their surrogates are BiFP's one-against-the-rest ``F_g`` and its
    mirror; for two groups that is the paper's constraint.
    """

    surrogate: str = "sigmoid"

    of_shares: ClassVar[bool] = True
    unit: ClassVar[str] = "points"

    def labels(self, groups: Sequence[str]) -> list[str]:
        """``"g: below the best"`` for every group, then ``"g: above the worst"``."""
        return [f"{g}: below the best" for g in groups] + [f"{g}: above the worst" for g in groups]

    @abstractmethod
    def quantity(self, stats: GroupStatistics) -> Groups:
        """The group quantity whose range is bounded."""

    def measured(self, stats: GroupStatistics) -> Duals:
        """``[best - q_g, q_g - worst]``."""
        return distance_to_extremes(self.quantity(stats), stats.claimed)

    def coefficients(self, multipliers: Duals, share: Groups, stats: GroupStatistics) -> Groups:
        """The below-multipliers raise a group, the above-multipliers hold it back."""
        below, above = multipliers.reshape(2, -1)
        return against_rest(below - above, share)


@dataclass(frozen=True)
class AccuracyGap(_Range):
    """``max_g A_g - min_g A_g <= tolerance`` (performance fairness, BiFP)."""

    name: ClassVar[str] = "accuracy-gap"
    title: ClassVar[str] = "Accuracy gap"
    meaning: ClassVar[str] = "how far the groups’ accuracies may lie apart"

    def quantity(self, stats: GroupStatistics) -> Groups:
        """``A_g``."""
        return stats.accuracy


@dataclass(frozen=True)
class DegradationGap(_Range):
    """``max_g R_g - min_g R_g <= tolerance``, ``R_g = A_g(dense) - A_g`` (BiFP).

    Equal to the range of excess accuracy gaps: the overall loss of accuracy cancels.
    """

    name: ClassVar[str] = "degradation-gap"
    title: ClassVar[str] = "Degradation gap"
    meaning: ClassVar[str] = "how far the groups’ losses of accuracy may lie apart"

    def quantity(self, stats: GroupStatistics) -> Groups:
        """``-R_g``: more is better."""
        return -stats.damage


@dataclass(frozen=True)
class ExcessAccuracyGap(Constraint):
    """``psi_g = D_g - D <= tolerance`` for every group (CEAG, Hashemizadeh et al. 2024)."""

    name: ClassVar[str] = "excess-accuracy-gap"
    title: ClassVar[str] = "Excess accuracy gap"
    meaning: ClassVar[str] = "how much more accuracy a group may lose than the average row"
    of_shares: ClassVar[bool] = True
    unit: ClassVar[str] = "points"

    def measured(self, stats: GroupStatistics) -> Duals:
        """``psi_g``."""
        return claimed_only(stats.excess_accuracy_gap, stats.claimed)

    def coefficients(self, multipliers: Duals, share: Groups, stats: GroupStatistics) -> Groups:
        """Of ``sum_g lambda_g (harm_g - harm)``."""
        return against_average(multipliers, share)


@dataclass(frozen=True)
class AbsoluteExcessAccuracyGap(Constraint):
    """``|psi_g| <= tolerance`` for every group: none may lose much more than the average, or less.

    Two multipliers a group, one for either side.
    """

    name: ClassVar[str] = "absolute-excess-accuracy-gap"
    title: ClassVar[str] = "Absolute excess accuracy gap"
    meaning: ClassVar[str] = "how much more or less accuracy a group may lose than the average row"
    of_shares: ClassVar[bool] = True
    unit: ClassVar[str] = "points"

    def labels(self, groups: Sequence[str]) -> list[str]:
        """``"g: loses more"`` for every group, then ``"g: loses less"``."""
        return [f"{g}: loses more" for g in groups] + [f"{g}: loses less" for g in groups]

    def measured(self, stats: GroupStatistics) -> Duals:
        """``[psi_g, -psi_g]``."""
        psi = stats.excess_accuracy_gap
        return claimed_only(jnp.stack([psi, -psi]), jnp.stack([stats.claimed] * 2))

    def coefficients(self, multipliers: Duals, share: Groups, stats: GroupStatistics) -> Groups:
        """Of ``sum_g (more_g - less_g) (harm_g - harm)``."""
        more, less = multipliers.reshape(2, -1)
        return against_average(more - less, share)


@dataclass(frozen=True)
class WorstGroupAccuracy(Constraint):
    """``A_g >= tolerance`` for every group: the tolerance is a floor, and more is better.

    Raises:
        ValueError: a floor outside [0, 1].
    """

    tolerance: Tolerance = 0.5

    name: ClassVar[str] = "worst-group-accuracy"
    title: ClassVar[str] = "Accuracy of the worst group"
    meaning: ClassVar[str] = "the accuracy that every group must reach"
    floor: ClassVar[bool] = True
    unit: ClassVar[str] = "points"

    def _check_tolerance(self, value: float) -> None:
        super()._check_tolerance(value)
        if not value <= 1:
            raise ValueError(f"the floor of {self.name} must be at most 1, got {value}")

    def measured(self, stats: GroupStatistics) -> Duals:
        """``-A_g``, bounded by minus the floor."""
        return claimed_only(-stats.accuracy, stats.claimed)

    def limits(self, groups: int) -> Float[np.ndarray, " multipliers"]:
        """Minus the floor."""
        return -super().limits(groups)

    def value(self, stats: GroupStatistics) -> Float[Array, ""]:
        """``min_g A_g``."""
        return -super().value(stats)

    def coefficients(self, multipliers: Duals, share: Groups, stats: GroupStatistics) -> Groups:
        """Of ``sum_g lambda_g harm_g``."""
        return multipliers


@dataclass(frozen=True)
class _EqualizedLoss(Constraint):
    tolerance: Tolerance = 0.05

    unit: ClassVar[str] = "nats"

    def _difference(self, stats: GroupStatistics) -> Groups:
        return jnp.where(stats.claimed, stats.loss - stats.overall(stats.loss), 0)

    def measured(self, stats: GroupStatistics) -> Duals:
        """``|L_g - L|``, in nats."""
        return claimed_only(jnp.abs(self._difference(stats)), stats.claimed)


@dataclass(frozen=True)
class EqualizedLoss(_EqualizedLoss):
    """``|L_g - L| <= tolerance``, absolute form (Tran et al. 2022): multipliers only grow."""

    name: ClassVar[str] = "equalized-loss"
    title: ClassVar[str] = "Equalized loss"
    meaning: ClassVar[str] = "how far a group’s loss may lie from the average loss"
    monotone: ClassVar[bool] = True

    def violations(
        self, stats: GroupStatistics, limits: Limits | None = None, multipliers: Duals | None = None
    ) -> Duals:
        """``max(|L_g - L| - tolerance, 0)``."""
        return jnp.maximum(super().violations(stats, limits), 0)

    def coefficients(self, multipliers: Duals, share: Groups, stats: GroupStatistics) -> Groups:
        """Of ``sum_g lambda_g |L_g - L|``, the sign as last measured."""
        return against_average(multipliers * jnp.sign(self._difference(stats)), share)


@dataclass(frozen=True)
class SignedEqualizedLoss(_EqualizedLoss):
    """``L_g = L`` up to ``tolerance``, signed form (the EL of CEAG): multipliers are free.

    The band ``|L_g - L| <= tolerance`` has two sides, each with a multiplier of its own that falls
    while its side holds; the one kept here is their difference. At a tolerance of 0 it moves by
    ``L_g - L``, as CEAG has it.
    """

    name: ClassVar[str] = "equalized-loss-signed"
    title: ClassVar[str] = "Equalized loss, signed"
    meaning: ClassVar[str] = "how far a group’s loss may lie from the average loss"
    signed: ClassVar[bool] = True

    def violations(
        self, stats: GroupStatistics, limits: Limits | None = None, multipliers: Duals | None = None
    ) -> Duals:
        """``L_g - L`` less the tolerance on the side that a multiplier is on, so that it comes back
        once that side holds; at zero, whichever side is violated."""
        given = self.limits(stats.share.shape[0]) if limits is None else limits
        difference, over = self._difference(stats), self.distances(stats, given)
        moves = jnp.sign(difference) * jnp.maximum(over, 0)
        if multipliers is not None:
            band = jnp.sign(multipliers) * jnp.asarray(given, difference.dtype)
            moves = jnp.where(multipliers == 0, moves, difference - band)
        return jnp.where(jnp.isfinite(over), moves, 0)

    def coefficients(self, multipliers: Duals, share: Groups, stats: GroupStatistics) -> Groups:
        """Of ``sum_g lambda_g (L_g - L)``."""
        return against_average(multipliers, share)


@dataclass(frozen=True, kw_only=True)
class Custom(Constraint):
    """A bound on group means of any quantity of a row of which less is better.

    Attributes:
        name: for reports and files.
        true: ``(logits, y) -> [rows]``, what is measured; it need not be differentiable.
        smooth: ``(logits, y) -> [rows]``, what stands for it in gradients.
        bound: what the tolerance bounds: ``"level"``, every group's mean; ``"excess"``, how far a
            group's mean is above the average; ``"range"``, largest minus smallest group mean.
        steepness: the least ``k`` for which ``smooth`` is, on any row and along any logit, at most
            ``k`` times as steep as the cross-entropy. It tells the guard how much of a group's
            ``smooth`` may be subtracted before losses are climbed; unknown (infinite), none is:
            better-off groups are then not held back.
        title: the name in words, for reports; made of the name where it is empty.
        meaning: what is bounded, for reports: "how far ... may ...".
        unit: that reports print behind a value, such as ``"nats"``. With ``"points"`` the quantity
            is a share, and shown in percentage points.

    Raises:
        ValueError: an unknown bound, a steepness that is not positive, a bad tolerance.
    """

    name: str  # type: ignore[misc]
    true: Callable[[Any, Any], Any]
    smooth: Callable[[Any, Any], Any]
    bound: str = "excess"
    steepness: float = float("inf")
    title: str = ""  # type: ignore[misc]
    meaning: str = ""  # type: ignore[misc]
    unit: str = ""  # type: ignore[misc]
    surrogate: str = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        _options.one_of("bound", self.bound, BOUNDS)
        if not self.steepness > 0:
            raise ValueError(f"the steepness of {self.name} must be positive, got {self.steepness}")

    def _check_surrogate(self) -> None:
        if self.surrogate != "own":
            raise ValueError(f"{self.name} brings its own surrogate, got {self.surrogate!r}")

    @property
    def ratio(self) -> float:
        """The steepness of ``smooth``."""
        return self.steepness

    def labels(self, groups: Sequence[str]) -> list[str]:
        """The groups; for a range ``"g: above the least"``, then ``"g: below the most"``."""
        if self.bound != "range":
            return list(groups)
        return [f"{g}: above the least" for g in groups] + [f"{g}: below the most" for g in groups]

    def measured(self, stats: GroupStatistics) -> Duals:
        """Group means, their excess over the average, or their distances from the extremes."""
        mean = stats.own[self.name]
        if self.bound == "range":
            return distance_to_extremes(-mean, stats.claimed)
        if self.bound == "excess":
            mean = mean - stats.overall(mean)
        return claimed_only(mean, stats.claimed)

    def coefficients(self, multipliers: Duals, share: Groups, stats: GroupStatistics) -> Groups:
        """Weights of the groups' mean ``smooth``."""
        if self.bound == "range":
            above, below = multipliers.reshape(2, -1)
            return against_rest(above - below, share)
        return against_average(multipliers, share) if self.bound == "excess" else multipliers

    def term(self, weight: Weights, logits: Logits, v: Rows, y: Numbers, group: Numbers) -> Rows:
        """``weight_g * smooth``."""
        return look_up(weight, group, y) * self.quantity(self.smooth, logits, y)

    def quantity(self, of: Callable[[Any, Any], Any], logits: Logits, y: Numbers) -> Rows:
        """``true`` or ``smooth`` of rows.

        Raises:
            ValueError: it is not one number a row.
        """
        values = jnp.asarray(of(logits, y), logits.dtype)
        if values.shape != y.shape:
            raise ValueError(
                f"{self.name} must give one number a row, got shape {list(values.shape)} for "
                f"{len(y)} rows"
            )
        return values
