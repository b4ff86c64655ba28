"""Samples that a mean can be bounded from: paired outcomes, rates, and quantities with a range.

All have one face: ``rows``, ``estimate``, and exact one-sided ``upper`` and ``lower`` bounds at a
level. Samples of the same kind can be pooled. A quantity's bounds are betting bounds (Waudby-Smith
and Ramdas 2024):

Against "the mean is at least m", a gambler stakes a fixed share of the capital on every row lying
below ``m``. If the claim is true the capital does not grow on average, so it exceeds ``1/level``
with probability ``level`` at most (Markov), and claims that it has refuted lie above the bound. The
capital is a mixture over shares that were fixed beforehand. A fixed share makes the bound valid for
rows that are independent but not identically distributed, too, of their average mean: the product
of means is at most the power of their mean.

Values are counted in bins and stand for the end of their bin that makes the bound wider, so that
counts are all that is needed to compute it again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from fairbilevel.certificates._paired import (
    difference_lower,
    difference_upper,
    rate_lower,
    rate_upper,
)

BINS = 1000
_SHARES = np.append(1 - np.geomspace(0.5, 1e-3, 10), np.geomspace(1e-4, 0.45, 40))
_RESOLUTION = 1e-6


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
    """A number per row with a declared range."""

    counts: tuple[int, ...]  # rows by bin of the range
    total: float  # sum of the values, for the estimate
    low: float  # smallest value that is possible
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


def histogram(values: Float[np.ndarray, " rows"], low: float, high: float) -> tuple[int, ...]:
    """Rows in each of ``BINS`` equal bins from ``low`` to ``high``."""
    place = np.floor((np.asarray(values, np.float64) - low) / (high - low) * BINS).astype(np.int64)
    return tuple(np.bincount(np.clip(place, 0, BINS - 1), minlength=BINS).tolist())


def mean_upper(counts: tuple[int, ...], level: float) -> float:
    """Upper bound, with one-sided error ``level``, of the mean as a share of the range."""
    return _upper(tuple(counts), level)


def mean_lower(counts: tuple[int, ...], level: float) -> float:
    """Lower bound: the mirror image of ``mean_upper``."""
    return 1 - mean_upper(tuple(reversed(counts)), level)


@lru_cache(maxsize=1 << 12)
def _upper(counts: tuple[int, ...], level: float) -> float:
    taken = np.flatnonzero(counts)
    if not taken.size:
        return 1.0
    size, x = np.asarray(counts)[taken], (taken + 1) / len(counts)

    def refuted(mean: float) -> bool:
        # Per row and share: 1 - share + share * (1 - x) / (1 - mean), whose mean is 1 at most.
        factors = 1 - _SHARES[:, None] + _SHARES[:, None] * (1 - x) / (1 - mean)
        capital = np.log(factors) @ size
        top = capital.max()
        return bool(top + np.log(np.mean(np.exp(capital - top))) >= -np.log(level))

    low, high = 0.0, 1.0
    while high - low > _RESOLUTION:
        middle = (low + high) / 2
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high
