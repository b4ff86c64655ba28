"""Least favourable worlds of paired outcomes, and bounds of gaps, by array, judged in them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from scipy import special, stats

from fairbilevel.certificates import difference_upper

DELTA, GROUPS = 0.05, 5
OWN, REST = 0.8, 0.2
ROWS, DISCORDANCES = (10, 30, 100, 1000), (0.02, 0.1, 0.3)
METHODS = ("sharp", "simple", "wald", "newcombe", "bootstrap")
RESAMPLES = 500


@dataclass(frozen=True)
class World:
    """Rates of every group: ``lost`` and ``won``, with ``rows`` rows each."""

    name: str
    q: float
    rows: int
    lost: np.ndarray
    won: np.ndarray

    @property
    def psi(self) -> np.ndarray:
        """True excess gaps; groups are equally large."""
        gap = self.lost - self.won
        return gap - gap.mean()


def worlds() -> list[World]:
    """Every least favourable world."""
    found = []
    for rows, q in product(ROWS, DISCORDANCES):
        eps, none = q / 4, np.zeros(GROUPS)
        one, most = none.copy(), np.full(GROUPS, eps * GROUPS / 2)
        one[0] = eps * GROUPS / (GROUPS - 1)
        most[-1] *= -1
        found.append(World("one group above", q, rows, (q + one) / 2, (q - one) / 2))
        found.append(World("all but one above", q, rows, (q + most) / 2, (q - most) / 2))
        found.append(World("one above, c = 0", q, rows, one, none))
    return found


# ------------------------------------------------------------ bounds of a difference, by array


def rate_upper(k: np.ndarray, n: int, level: float) -> np.ndarray:
    inside = special.betainccinv(np.minimum(k, n - 1) + 1, np.maximum(n - k, 1), level)
    return np.where(k >= n, 1.0, inside)


def rate_lower(k: np.ndarray, n: int, level: float) -> np.ndarray:
    return np.where(k <= 0, 0.0, special.betaincinv(np.maximum(k, 1), n - k + 1, level))


def simple_upper(b: np.ndarray, c: np.ndarray, n: int, level: float) -> np.ndarray:
    return rate_upper(b, n, level / 2) - rate_lower(c, n, level / 2)


def sharp_below(b: np.ndarray, c: np.ndarray, n: int, level: float, x: np.ndarray) -> np.ndarray:
    """Where the sharp upper bound lies below ``x``.

    The exact bound never falls as ``b`` grows (its probability only rises), so for each ``c`` the
    largest ``b`` that can matter is found by bisection; all bounds up to it are computed.
    """
    upper = lru_cache(maxsize=None)(lambda i, j: difference_upper(i, j, n, level))
    out = np.zeros(b.shape, bool)
    slack = 0.01 * n**-0.5  # the resolution of the bound
    for value in np.unique(c):
        here = np.flatnonzero(c == value)
        counts = np.unique(b[here])
        largest = x[here].max() + slack
        low = bisect_left(counts, largest, key=lambda k: upper(int(k), int(value)))
        for i in here[b[here] < (counts[low] if low < len(counts) else n + 1)]:
            out[i] = upper(int(b[i]), int(value)) < x[i]
    return out


def wilson(k: np.ndarray, n: int, z: float) -> tuple[np.ndarray, np.ndarray]:
    p = k / n
    centre, reach = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (centre - reach) / (1 + z**2 / n), (centre + reach) / (1 + z**2 / n)


def newcombe_upper(b: np.ndarray, c: np.ndarray, n: int, z: float) -> np.ndarray:
    """Square-and-add of two Wilson intervals with the correlation of ``B`` and ``C``."""
    p, r = b / n, c / n
    _, up = wilson(b, n, z)
    low, _ = wilson(c, n, z)
    scale = np.sqrt(np.maximum(p * (1 - p) * r * (1 - r), 1e-300))
    rho = np.where(p * r > 0, -p * r / scale, 0.0)
    above, below = up - p, r - low
    return p - r + np.sqrt(np.maximum(above**2 + below**2 - 2 * rho * above * below, 0))


# ------------------------------------------------------------------ excess gaps, by array

Counts = tuple[np.ndarray, np.ndarray]


def psi_upper_below(
    method: str,
    counts: Counts,
    g: int,
    rows: int,
    level: float,
    x: float,
    alive: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """In which of the worlds alive ``U_psi(g) <= x``: the tolerance ``x`` would be certified."""
    out = np.zeros(len(alive), bool)
    i = np.flatnonzero(alive)
    if not i.size:
        return out
    b, c = counts[0][i, g], counts[1][i, g]
    rb, rc = ((v.sum(1) - v[:, g])[i] for v in counts)
    others = rows * (GROUPS - 1)
    factor = 1 - 1 / GROUPS
    if method in ("sharp", "simple"):
        # L_D(rest) = -U(c, b), always simple: the complement mixes several distributions.
        rest_low = -simple_upper(rc, rb, others, REST * level)
        limit = x / factor + rest_low
        if method == "simple":
            out[i] = simple_upper(b, c, rows, OWN * level) <= limit
        else:
            out[i] = sharp_below(b, c, rows, OWN * level, limit)
        return out
    own, rest = (b - c) / rows, (rb - rc) / others
    z = float(stats.norm.isf(level))
    if method == "wald":
        variance = ((b + c) / rows - own**2) / rows + ((rb + rc) / others - rest**2) / others
        out[i] = factor * (own - rest + z * np.sqrt(np.maximum(variance, 0))) <= x
    elif method == "newcombe":
        above = newcombe_upper(b, c, rows, z) - own
        below = rest + newcombe_upper(rc, rb, others, z)
        out[i] = factor * (own - rest + np.sqrt(above**2 + below**2)) <= x
    else:
        quantile = np.empty(len(i))
        for start in range(0, len(i), 200):
            s = slice(start, start + 200)
            draws = []
            for lost, won, n in ((b[s], c[s], rows), (rb[s], rc[s], others)):
                share = np.column_stack([lost, won, n - lost - won]) / n
                again = rng.multinomial(n, share, size=(RESAMPLES, len(lost)))
                draws.append((again[..., 0] - again[..., 1]) / n)
            quantile[s] = np.quantile(factor * (draws[0] - draws[1]), 1 - level, axis=0)
        out[i] = quantile <= x
    return out


def simulate(world: World, method: str, count: int, seed: int) -> dict[str, Any]:
    """Shares of wrong answers among ``count`` draws from a world."""
    rng = np.random.default_rng(seed)
    shape = (count, GROUPS)
    lost, won = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for g in range(GROUPS):
        p = [world.lost[g], world.won[g], 1 - world.lost[g] - world.won[g]]
        draws = rng.multinomial(world.rows, np.clip(p, 0, 1), size=count)
        lost[:, g], won[:, g] = draws[:, 0], draws[:, 1]
    counts, psi = (lost, won), world.psi
    worst = float(psi.max())
    # The tolerance is just below the worst gap: whoever is certified at it is certified wrongly.
    below = worst - 1e-9
    above = np.flatnonzero(psi > worst - 1e-12).tolist()
    run = np.ones(count, bool)
    for g in sorted(range(GROUPS), key=lambda g: g not in above):
        run &= psi_upper_below(method, counts, g, world.rows, DELTA, below, run, rng)
    own = np.zeros(count, bool)
    for g in above:
        own |= psi_upper_below(method, counts, int(g), world.rows, DELTA / GROUPS, below, ~own, rng)
    # The tolerance is just above it: whoever is violated is violated wrongly. L_psi = -U mirrored.
    violated = np.zeros(count, bool)
    mirrored = (won, lost)
    for g in range(GROUPS):
        violated |= psi_upper_below(
            method, mirrored, g, world.rows, DELTA / GROUPS, -worst - 1e-9, ~violated, rng
        )
    return {
        "world": world.name,
        "q": world.q,
        "rows_per_group": world.rows,
        "tolerance_points": round(100 * worst, 4),
        "method": method,
        "worlds": count,
        "run_wrongly_certified": float(run.mean()),
        "group_wrongly_certified": float(own.mean()),
        "run_wrongly_violated": float(violated.mean()),
        "allowed": allowed(count),
    }


def allowed(count: int) -> float:
    """The 99.9 % binomial quantile at ``DELTA``."""
    return float(stats.binom.ppf(0.999, count, DELTA) / count)
