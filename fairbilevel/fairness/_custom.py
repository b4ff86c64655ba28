"""A user's own constraint: a quantity of each row, and a smooth stand-in for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from fairbilevel import _options
from fairbilevel.fairness._constraint import (
    Constraint,
    Duals,
    Groups,
    Logits,
    Numbers,
    Rows,
    Weights,
    against_average,
    against_rest,
    claimed_only,
    distance_to_extremes,
    look_up,
)
from fairbilevel.fairness._statistics import GroupStatistics

BOUNDS = ("level", "excess", "range")


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
