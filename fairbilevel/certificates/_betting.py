"""Betting bounds for the mean of a quantity with a declared range (Waudby-Smith and Ramdas 2024).

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

from functools import lru_cache

import numpy as np
from jaxtyping import Float

BINS = 1000
_SHARES = np.append(1 - np.geomspace(0.5, 1e-3, 10), np.geomspace(1e-4, 0.45, 40))
_RESOLUTION = 1e-6


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
