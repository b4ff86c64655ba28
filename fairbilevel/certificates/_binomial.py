"""Exact one-sided confidence bounds for a binomial rate (Clopper and Pearson 1934)."""

from __future__ import annotations

from scipy import special


def rate_upper(count: int, rows: int, level: float) -> float:
    """Largest rate not rejected by ``count`` of ``rows`` with one-sided error ``level``.

    Of rows that are independent but not identically distributed it bounds their average rate
    (Hoeffding 1956), at any level up to 1/4 with one exception: where all rows but one are events,
    the error is at most ``-log(1 - level)`` (0.0513 at 0.05, 0.0126 at 0.0125), which all rows but
    one being certain attains.
    """
    if count >= rows:
        return 1.0
    return float(special.betainccinv(count + 1, rows - count, level))


def rate_lower(count: int, rows: int, level: float) -> float:
    """Smallest rate not rejected: the mirror image of ``rate_upper``, whose exception is here that
    of a single event."""
    if count <= 0:
        return 0.0
    return float(special.betaincinv(count, rows - count + 1, level))
