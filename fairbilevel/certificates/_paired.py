"""Exact bounds for a rate, and for a paired difference ``D = P(dense right) - P(pruned right)``.

A rate's are those of Clopper and Pearson (1934); a difference's are made from ``(b, c, n)``:

``b`` rows are right dense and wrong pruned, ``c`` the reverse, of ``n`` rows in all. Conditioning
on ``b + c`` (McNemar) would test ``D = 0`` only, so all bounds here use ``n`` too:

* *sharp*: the unconditional exact test inverted, with the nuisance parameter ``q = P(b or c)``
  confined (Berger and Boos 1994). For identically distributed rows.
* *strata*: its counterpart for rows that are independent but not identically distributed, such as
  those of several groups, of their average difference. Row ``i`` adds +1, -1 or 0 to ``T = b - c``.
  By Markov, ``P(T <= t) <= exp(s t) prod_i E exp(-s X_i)`` for every ``s >= 0``, and the product is
  at most the ``n``-th power of the rows' average ``1 + q (cosh s - 1) - D sinh s`` (means of
  products are products of means at most), which rises in ``q``. As ``P(T <= t)`` is bounded for
  every ``t`` by a number that rises in ``t``, rejecting ``D`` where the least of these numbers over
  ``s`` is at most ``a`` errs with probability ``a`` at most. No use is made of rows being alike:
  the exact tail of the average row is not proven to be the largest, and where rows differ in ``q``
  it can be exceeded, if by little.
* *simple*: the difference of two exact binomial bounds, for the same rows as *strata*. Narrower
  than that for few rows that differ.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import special

BOUNDS = ("sharp", "simple")

_NUISANCE_SHARE = 0.1
# Below this many rows the simple bound is used for strata: narrower at most shares of rows that
# differ. The number of rows is fixed beforehand, so the choice costs nothing.
_FEW = 1000
# The sharp bound is searched to this width, or this share of its distance to the estimate, and
# rounded up; 1e-5 is a thousandth of a point.
_RESOLUTION = 1e-5
_RELATIVE_RESOLUTION = 2e-3
_FINEST_CELL = 1e-6
_MOST_CELLS = 4096
# Above the rounding errors of the sums, and far below any level.
_ROUNDING = 1e-9


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


def difference_upper(b: int, c: int, n: int, level: float, bound: str = "sharp") -> float:
    """Upper confidence bound of ``D`` with one-sided error ``level``.

    Args:
        b: rows that only the dense model gets right.
        c: rows that only the pruned model gets right.
        n: all rows.
        level: probability that the bound lies below ``D``, at most.
        bound: ``sharp``, ``strata`` or ``simple``; to be chosen before the rows are seen.
    """
    if n == 0:
        return 1.0
    if bound == "sharp":
        return _sharp(b, c, n, level)
    return _strata(b, c, n, level) if bound == "strata" and n >= _FEW else _simple(b, c, n, level)


def difference_lower(b: int, c: int, n: int, level: float, bound: str = "sharp") -> float:
    """Lower confidence bound of ``D``: the mirror image of ``difference_upper``."""
    return -difference_upper(c, b, n, level, bound)


def _simple(b: int, c: int, n: int, level: float) -> float:
    return rate_upper(b, n, level / 2, alike=False) - rate_lower(c, n, level / 2, alike=False)


def _strata(b: int, c: int, n: int, level: float) -> float:
    """The least ``d`` that is rejected by some ``s``: where the bound of the tail is the level."""
    q = rate_upper(b + c, n, _NUISANCE_SHARE * level, alike=False)
    left, t = math.log((1 - _NUISANCE_SHARE) * level), b - c

    def rejected_from(log_s: float) -> float:
        s = math.exp(log_s)
        moment = 2 * q * math.sinh(s / 2) ** 2 - math.expm1((left - s * t) / n)
        return moment / math.sinh(s)

    # Every s gives a bound, so the search need not find the least.
    ends = math.log(1e-6), math.log(20)
    from scipy import optimize  # it brings sparse matrices: a third of a second

    found = optimize.minimize_scalar(rejected_from, bounds=ends, method="bounded")
    return min(float(found.fun), q)


@lru_cache(maxsize=1 << 18)
def _sharp(b: int, c: int, n: int, level: float) -> float:
    """The smallest ``d`` at which every trinomial with ``D = d`` and ``q <= qU`` is rejected.

    The largest probability over these trinomials falls as ``d`` grows, so that rejecting at one
    ``d`` rejects all above it.
    """
    nuisance = _NUISANCE_SHARE * level
    q = rate_upper(b + c, n, nuisance)
    left = level - nuisance
    t = b - c

    def most_variable(d: float) -> float:
        d = min(max(d, -q), q)
        return float(tail(t, n, np.array([(q + d) / 2]), np.array([(q - d) / 2]))[0])

    def above(d: float) -> float:
        return math.log(max(most_variable(d), 1e-300) / left)

    if most_variable(q) > left:
        return q
    # The most variable trinomial is most often the least favourable one: start from its root, by
    # secants from that of a Gaussian tail, whose logarithm is nearly straight here.
    spread = math.sqrt(q / n)
    low = t / n - special.ndtri(left) * spread
    last, at_last = low + 0.03 * spread, above(low + 0.03 * spread)
    for _ in range(8):
        at_low = above(low)
        if at_low == at_last or abs(low - last) < _RESOLUTION / 10:
            break
        low, last, at_last = low - at_low * (low - last) / (at_low - at_last), low, at_low
    if not (-q <= low <= q and abs(above(low)) < 0.01):
        from scipy import optimize

        low = optimize.brentq(above, -q, q, xtol=_RESOLUTION / 10)
    low = float(low)
    resolution = max(_RESOLUTION, _RELATIVE_RESOLUTION * (low - t / n))
    step = resolution
    high = low + step
    while high < q and not _rejected(high, t, n, q, left):
        low, step = high, 4 * step
        high = low + step
    high = min(high, q)
    while high - low > 1.01 * resolution:
        middle = (low + high) / 2
        low, high = (low, middle) if _rejected(middle, t, n, q, left) else (middle, high)
    return high


def _most_variable_is_worst(d: float, t: int, n: int, q: float) -> bool:
    """Whether ``P(B - C <= t)`` surely rises with ``pc`` at ``D = d``, up to ``pc = (q - d) / 2``.

    Its derivative is ``n`` times ``p(t + 1) - p(t)``, with ``p`` the probabilities of ``B - C`` of
    one row less. These are log-concave where one row's are (``(1 - q)^2 >= pb pc``, so for all
    ``q`` up to 2/3), thus rise up to their mode, which lies within ``sqrt(3)`` standard deviations
    of their mean (Johnson and Rogers 1951; the twelfth makes the steps a density).
    """
    variance = (n - 1) * max(q - d * d, 0.0)
    return q <= 2 / 3 and t + 1 <= (n - 1) * d - math.sqrt(3 * (variance + 1 / 12))


def _rejected(d: float, t: int, n: int, q: float, level: float) -> bool:
    """Whether ``P(B - C <= t) <= level`` for all trinomials with difference ``d`` and up to ``q``.

    ``pc`` runs over an interval that is covered by cells. The probability falls in ``pb`` and
    rises in ``pc``, so its value at a cell's smallest ``pb`` and largest ``pc`` is at least that of
    every point inside. Cells that do not settle the matter are cut; no grid is trusted.
    """
    start, end = max(0.0, -d), (q - d) / 2
    if end < start:
        return True
    if _most_variable_is_worst(d, t, n, q):
        return bool(tail(t, n, np.array([end + d]), np.array([end]))[0] <= level)
    points = np.array([start, (start + end) / 2, end])
    if (tail(t, n, points + d, points) > level).any():
        return False
    # Finer towards the end, where the maximum most often lies.
    edges = end - (end - start) * np.append(2.0 ** -np.arange(8), 0.0)
    u, v = edges[:-1], edges[1:]
    while u.size:
        open_ = tail(t, n, np.maximum(u + d, 0), v) > level
        u, v = u[open_], v[open_]
        if not u.size:
            return True
        if u.size > _MOST_CELLS or (v - u).min() < _FINEST_CELL:
            return False
        if (tail(t, n, v + d, v) > level).any():
            return False
        cuts = np.linspace(u, v, 5)
        u, v = cuts[:-1].ravel(), cuts[1:].ravel()
    return True


def tail(
    t: int, n: int, pb: Float[np.ndarray, " cells"], pc: Float[np.ndarray, " cells"]
) -> Float[np.ndarray, " cells"]:
    """``P(B - C <= t)`` of trinomials, from above by no more than rounding.

    Given ``C``, ``B`` is binomial. The sum over ``C`` leaves out what is more than seven standard
    deviations away and adds its probability instead.
    """
    mean = n * pc
    reach = 7 * np.sqrt(mean * (1 - pc)) + 20
    # B - C <= t asks for C >= -t.
    first = np.maximum(np.floor(mean - reach), max(0, -t))
    last = np.minimum(np.ceil(mean + reach), n)
    width = int(max((last - first).max(), 0)) + 1
    j = first[:, None] + np.arange(width)
    inside = j <= last[:, None]
    j = np.minimum(j, n)
    p = pc[:, None]
    log_pmf = (
        special.gammaln(n + 1)
        - special.gammaln(j + 1)
        - special.gammaln(n - j + 1)
        + special.xlogy(j, p)
        + special.xlog1py(n - j, -p)
    )
    rest = n - j
    k = t + j
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(pc < 1, np.clip(pb / (1 - pc), 0, 1), 0)[:, None]
    below = np.where(
        k >= rest,
        1.0,
        special.betaincc(
            np.maximum(k + 1, 1), np.maximum(rest - k, 1), np.broadcast_to(share, j.shape)
        ),
    )
    total = np.sum(np.where(inside, np.exp(log_pmf) * below, 0), axis=1)
    cut_low = np.where(first > 0, special.betaincc(np.maximum(first, 1), n - first + 1, pc), 0)
    # What lies below -t is no part of the event.
    cut_low = np.where(first > max(0, -t), cut_low, 0)
    cut_high = np.where(last < n, special.betainc(last + 1, np.maximum(n - last, 1), pc), 0)
    return np.minimum(total * (1 + _ROUNDING) + cut_low + cut_high, 1.0)
