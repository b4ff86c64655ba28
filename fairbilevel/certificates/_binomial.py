"""Exact one-sided confidence bounds for a binomial rate (Clopper and Pearson 1934)."""

from __future__ import annotations

from scipy import special


def rate_upper(count: int, rows: int, level: float, *, alike: bool = True) -> float:
    """Largest rate not rejected by ``count`` of ``rows`` with one-sided error ``level``.

    Of rows that are independent but not identically distributed (``alike=False``) it bounds their
    average rate, at any level up to 1/4 (Hoeffding 1956). Where all rows but one are events the
    exact bound would err with probability ``-log(1 - level)`` then (0.0513 at 0.05); there it is
    ``1 - level / rows``, for the chance that not all are events is at most the sum of the rows'
    chances not to be one.
    """
    if count >= rows:
        return 1.0
    if count == rows - 1 and not alike:
        return 1 - level / rows
    return float(special.betainccinv(count + 1, rows - count, level))


def rate_lower(count: int, rows: int, level: float, *, alike: bool = True) -> float:
    """Smallest rate not rejected: the mirror image of ``rate_upper``."""
    if count <= 0:
        return 0.0
    if count == 1 and not alike:
        return level / rows
    return float(special.betaincinv(count, rows - count + 1, level))
