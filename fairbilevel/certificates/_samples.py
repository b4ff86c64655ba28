"""Samples that a mean can be bounded from: paired outcomes, rates, and quantities with a range.

All have one face: ``rows``, ``estimate``, and exact one-sided ``upper`` and ``lower`` bounds at a
level. Samples of the same kind can be pooled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fairbilevel.certificates._betting import mean_lower, mean_upper
from fairbilevel.certificates._paired import (
    difference_lower,
    difference_upper,
    rate_lower,
    rate_upper,
)


@dataclass(frozen=True)
class Paired:
    """Loss of accuracy from paired outcomes.

    Attributes:
        lost: rows that only the dense model gets right.
        won: rows that only the pruned model gets right.
        rows: all rows.
        bound: ``sharp`` (rows of one distribution), ``strata`` or ``simple`` (of several).
    """

    lost: int
    won: int
    rows: int
    bound: str = "sharp"

    @property
    def estimate(self) -> float | None:
        """Accuracy lost."""
        return (self.lost - self.won) / self.rows if self.rows else None

    def upper(self, level: float) -> float:
        """Upper bound of the accuracy lost."""
        return difference_upper(self.lost, self.won, self.rows, level, self.bound)

    def lower(self, level: float) -> float:
        """Lower bound of the accuracy lost."""
        return difference_lower(self.lost, self.won, self.rows, level, self.bound)

    def pool(self, others: list[Paired]) -> Paired:
        """All rows together; of several distributions, hence no sharp bound."""
        if not others:
            return self
        parts = [self, *others]
        lost, won = sum(p.lost for p in parts), sum(p.won for p in parts)
        bound = "strata" if self.bound == "sharp" else self.bound
        return Paired(lost, won, sum(p.rows for p in parts), bound)


@dataclass(frozen=True)
class Rate:
    """How often something happens.

    Attributes:
        count: rows where it did.
        rows: all rows.
    """

    count: int
    rows: int

    @property
    def estimate(self) -> float | None:
        """The rate seen."""
        return self.count / self.rows if self.rows else None

    def upper(self, level: float) -> float:
        """Exact binomial bound."""
        return rate_upper(self.count, self.rows, level)

    def lower(self, level: float) -> float:
        """Exact binomial bound."""
        return rate_lower(self.count, self.rows, level)


@dataclass(frozen=True)
class Quantity:
    """A number per row with a declared range.

    Attributes:
        counts: rows by bin of the range.
        total: sum of the values, for the estimate.
        low: smallest value that is possible.
        high: largest.
    """

    counts: tuple[int, ...]
    total: float
    low: float
    high: float

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(self.counts)

    @property
    def estimate(self) -> float | None:
        """The mean seen."""
        return self.total / self.rows if self.rows else None

    def upper(self, level: float) -> float:
        """Betting bound."""
        return self.low + (self.high - self.low) * mean_upper(self.counts, level)

    def lower(self, level: float) -> float:
        """Betting bound."""
        return self.low + (self.high - self.low) * mean_lower(self.counts, level)

    def pool(self, others: list[Quantity]) -> Quantity:
        """All rows together."""
        parts = np.array([self.counts, *(o.counts for o in others)], np.int64)
        return replace(
            self,
            counts=tuple(parts.sum(axis=0).tolist()),
            total=self.total + sum(o.total for o in others),
        )


Sample = Paired | Rate | Quantity
"""Rows whose mean can be bounded."""
