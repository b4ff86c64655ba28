"""Statistics of the protocol: noise floors, corrected intervals, a worst group without bias."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats


def excess_gaps(
    dense: np.ndarray, pruned: np.ndarray, group: np.ndarray, groups: int
) -> np.ndarray:
    """Excess accuracy gap of every group, NaN for groups without rows."""
    lost = dense.astype(float) - pruned.astype(float)
    size = np.bincount(group, minlength=groups)
    total = np.bincount(group, weights=lost, minlength=groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / size - lost.mean()


def permutation_floor(
    dense: np.ndarray,
    pruned: np.ndarray,
    group: np.ndarray,
    groups: int,
    *,
    seed: int = 0,
    permutations: int = 2000,
) -> dict[str, float]:
    """What the largest excess gap would be if groups meant nothing.

    Group labels are permuted over rows, outcomes fixed.
    """
    rng = np.random.default_rng(seed)
    seen = float(np.nanmax(excess_gaps(dense, pruned, group, groups)))
    null = np.array(
        [
            np.nanmax(excess_gaps(dense, pruned, rng.permutation(group), groups))
            for _ in range(permutations)
        ]
    )
    return {
        "largest": seen,
        "floor_mean": float(null.mean()),
        "floor_95": float(np.quantile(null, 0.95)),
        "p": float((1 + np.sum(null >= seen)) / (1 + permutations)),
    }


def cross_fitted_worst(
    dense: np.ndarray,
    pruned: np.ndarray,
    group: np.ndarray,
    groups: int,
    *,
    seed: int = 0,
    splits: int = 50,
) -> float:
    """Excess gap of the worst group: chosen on one half of the rows, measured on the other."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(splits):
        half = rng.permutation(len(group)) < len(group) // 2
        for choose, measure in ((half, ~half), (~half, half)):
            worst = np.nanargmax(excess_gaps(dense[choose], pruned[choose], group[choose], groups))
            gap = excess_gaps(dense[measure], pruned[measure], group[measure], groups)[worst]
            if not np.isnan(gap):
                values.append(gap)
    return float(np.mean(values))


def noise_free_spread(
    dense: np.ndarray, pruned: np.ndarray, group: np.ndarray, groups: int
) -> float:
    """``sum_g pi_g [psi_g^2 - (1 - pi_g)^2 (v_g + v_{not g})]``, ``v = (q - D^2) / (n - 1)``.

    Estimates the spread of the true excess gaps: their sampling noise is taken out, so it may be
    negative where there is nothing but noise.
    """
    lost = dense.astype(float) - pruned.astype(float)
    total = 0.0
    for g in range(groups):
        own, rest = lost[group == g], lost[group != g]
        if min(len(own), len(rest)) < 2:
            continue
        share = len(own) / len(lost)
        noise = sum(((part**2).mean() - part.mean() ** 2) / (len(part) - 1) for part in (own, rest))
        psi = own.mean() - lost.mean()
        total += share * (psi**2 - (1 - share) ** 2 * noise)
    return float(total)


def corrected_t(differences: np.ndarray, test_rows: int, train_rows: int) -> dict[str, Any]:
    """Mean paired difference over folds with the Nadeau-Bengio variance.

    Args:
        differences: one per repetition.
        test_rows: rows tested in a repetition.
        train_rows: rows trained on in a repetition.

    Returns:
        ``mean``, 95 % interval ``low`` and ``high`` (unadjusted), ``p``, and ``detectable``: the
        smallest difference that 80 % power would have found.
    """
    count = len(differences)
    mean = float(np.mean(differences))
    if count < 2:
        return {"mean": mean, "low": None, "high": None, "p": None, "detectable": None}
    variance = np.var(differences, ddof=1) * (1 / count + test_rows / train_rows)
    error = float(np.sqrt(variance))
    reach = float(stats.t.ppf(0.975, count - 1))
    p = 1.0 if error == 0 else float(2 * stats.t.sf(abs(mean) / error, count - 1))
    power = float(stats.t.ppf(0.8, count - 1))
    return {
        "mean": mean,
        "low": mean - reach * error,
        "high": mean + reach * error,
        "p": p,
        "detectable": (reach + power) * error,
    }
