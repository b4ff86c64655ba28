"""Exact one-sided confidence bounds for a binomial rate (Clopper and Pearson 1934)."""

from __future__ import annotations

from scipy import special


def rate_upper(count: int, rows: int, level: float) -> float:
    """Largest rate not rejected by ``count`` of ``rows`` with one-sided error ``level``.

    Valid too for rows that are independent but not identically distributed, of their average rate,
    at any level up to 1/4 (Hoeffding 1956).
    """
    if count >= rows:
        return 1.0
    return float(special.betainccinv(count + 1, rows - count, level))


def rate_lower(count: int, rows: int, level: float) -> float:
    """Smallest rate not rejected: the mirror image of ``rate_upper``."""
    if count <= 0:
        return 0.0
    return float(special.betaincinv(count, rows - count + 1, level))
