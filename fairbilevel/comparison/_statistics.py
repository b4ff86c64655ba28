"""Statistics of the protocol: noise floors, corrected intervals, a worst group without bias."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from fairbilevel.certificates import Paired, smallest_excess

_DRAWS = 50  # of a bootstrap at a time


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
    row: np.ndarray | None = None,
    seed: int = 0,
    permutations: int = 2000,
) -> dict[str, float]:
    """What the largest excess gap would be if groups meant nothing.

    Group labels are permuted over rows, outcomes fixed. A row that several repetitions measured
    takes all its outcomes along: they are no independent rows.

    Args:
        dense: whether the dense model is right, one entry a measured row.
        pruned: whether the pruned model is.
        group: of each.
        groups: how many there are.
        row: number or name of each row; none is repeated by default.
        seed: of the permutations.
        permutations: how many.

    Returns:
        ``largest`` gap, mean ``floor_mean`` and 95 % quantile ``floor_95`` of the permuted ones,
        and ``p``, the share of them that are as large.
    """
    rng = np.random.default_rng(seed)
    seen = float(np.nanmax(excess_gaps(dense, pruned, group, groups)))
    first, which = _rows(row, len(group))
    times = np.bincount(which)
    lost = np.bincount(which, weights=dense.astype(float) - pruned.astype(float))
    label, mean = group[first], lost.sum() / times.sum()

    def largest(label: np.ndarray) -> float:
        size = np.bincount(label, weights=times, minlength=groups)
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = np.bincount(label, weights=lost, minlength=groups) / size
        return float(np.nanmax(rates - mean))

    null = np.array([largest(rng.permutation(label)) for _ in range(permutations)])
    return {
        "largest": seen,
        "floor_mean": float(null.mean()),
        "floor_95": float(np.quantile(null, 0.95)),
        # Sums in another order differ in their last digit.
        "p": float((1 + np.sum(null >= seen - 1e-12)) / (1 + permutations)),
    }


def cross_fitted_worst(
    dense: np.ndarray,
    pruned: np.ndarray,
    group: np.ndarray,
    groups: int,
    *,
    row: np.ndarray | None = None,
    seed: int = 0,
    splits: int = 50,
) -> float:
    """Excess gap of the worst group: chosen on one half of the rows, measured on the other; all
    measurements of a ``row`` lie in one half (arguments as of ``permutation_floor``)."""
    rng = np.random.default_rng(seed)
    first, which = _rows(row, len(group))
    values = []
    for _ in range(splits):
        half = (rng.permutation(len(first)) < len(first) // 2)[which]
        for choose, measure in ((half, ~half), (~half, half)):
            worst = np.nanargmax(excess_gaps(dense[choose], pruned[choose], group[choose], groups))
            gap = excess_gaps(dense[measure], pruned[measure], group[measure], groups)[worst]
            if not np.isnan(gap):
                values.append(gap)
    return float(np.mean(values))


def _rows(row: np.ndarray | None, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each row stands first, and which row each entry is."""
    names = np.arange(size) if row is None else row
    _, first, which = np.unique(names, return_index=True, return_inverse=True)
    return first, which


def certified_tolerance(
    dense: np.ndarray,
    pruned: np.ndarray,
    group: np.ndarray,
    groups: int,
    *,
    row: np.ndarray | None = None,
    confidence: float = 0.95,
) -> float | None:
    """The smallest tolerance of every group's excess accuracy gap that these rows would certify.

    What a user is told of a method: harm and churn in one number (``fb.certify``). Rows that
    several rounds of folds measured are taken a round at a time, and the rounds averaged; groups
    without rows are outside the claim. All confidence is spent on one look (``only_look``).
    Arguments as of ``permutation_floor``; a fraction, ``None`` where there are not two groups.
    """
    lost, won = dense & ~pruned, pruned & ~dense
    found = []
    for part in _rounds(row, len(group)):
        size, b, c = (
            np.bincount(group[part], weights=w[part], minlength=groups).astype(int)
            for w in (np.ones(len(group)), lost, won)
        )
        samples = {str(g): Paired(int(b[g]), int(c[g]), int(size[g])) for g in range(groups)}
        samples = {name: sample for name, sample in samples.items() if sample.rows}
        if len(samples) < 2:
            return None
        found.append(smallest_excess(samples, list(samples), 1 - confidence))
    return float(np.mean(found))


def _rounds(row: np.ndarray | None, size: int) -> list[np.ndarray]:
    """The first measurement of every row, the second, ...; those that are complete to the half."""
    _, which = _rows(row, size)
    order = np.argsort(which, kind="stable")
    starts = np.r_[0, np.cumsum(np.bincount(which))[:-1]]
    turn = np.empty(size, int)
    turn[order] = np.arange(size) - starts[which[order]]
    rounds = [np.flatnonzero(turn == t) for t in range(turn.max() + 1)]
    return [part for part in rounds if 2 * len(part) >= len(rounds[0])]


def noise_free_spread(
    dense: np.ndarray, pruned: np.ndarray, group: np.ndarray, groups: int
) -> float:
    """``sum_g pi_g [psi_g^2 - (1 - pi_g)^2 (v_g + v_{not g})]``, ``v = (q - D^2) / (n - 1)``.

    Estimates the spread of the true excess gaps: their sampling noise is taken out, so it may be
    negative where there is nothing but noise.
    """
    lost = dense.astype(float) - pruned.astype(float)
    size = np.bincount(group, minlength=groups)
    total = np.bincount(group, weights=lost, minlength=groups)
    squares = np.bincount(group, weights=lost**2, minlength=groups)
    return float(spread_of_sums(size, total, squares))


def spread_of_sums(
    size: np.ndarray, total: np.ndarray, squares: np.ndarray
) -> np.ndarray | np.float64:
    """``noise_free_spread`` from groups' rows, sums of ``dense - pruned`` and of its square, all
    ``[..., groups]``."""
    size, total, squares = (np.asarray(a, float) for a in (size, total, squares))
    n, s, q = (a.sum(-1, keepdims=True) for a in (size, total, squares))
    use = (size >= 2) & (n - size >= 2)
    share = size / n
    with np.errstate(invalid="ignore", divide="ignore"):

        def noise(n: np.ndarray, s: np.ndarray, q: np.ndarray) -> np.ndarray:
            return (q / n - (s / n) ** 2) / (n - 1)

        psi = total / size - s / n
        both = noise(size, total, squares) + noise(n - size, s - total, q - squares)
        parts = share * (psi**2 - (1 - share) ** 2 * both)
    return np.where(use, parts, 0.0).sum(-1)


def bootstrap_differences(
    folds: Sequence[Sequence[np.ndarray]], groups: int, *, seed: int = 0, draws: int = 500
) -> dict[str, tuple[float, float]]:
    """Intervals of a method's difference from another, by a centred two-level bootstrap.

    Repetitions are drawn with replacement, and rows with Poisson weights: the same for both methods
    and in every repetition that measured the row. A drawn sample holds the noise of the rows twice
    and the spread's correction takes it out once, so that drawn spreads lie too high: the interval
    is the estimate less the deviations of the draws from their own mean. It covers at least 95 %:
    rows are drawn along with their repetition, and once more within it.

    ``folds`` holds for each repetition ``dense``, ``method``, ``other`` (whether rows are right),
    ``group`` and the rows' numbers or names ``row``. 95 % intervals of the mean difference of
    ``accuracy`` and of ``spread`` come back, as fractions and fractions squared.
    """
    rng = np.random.default_rng(seed)
    # Rows of a group differ only in three outcomes: eight kinds.
    right = np.array([[(k >> b) & 1 for b in (2, 1, 0)] for k in range(8)], float)
    names, which = np.unique(np.concatenate([f[4] for f in folds]), return_inverse=True)
    ends = np.cumsum([len(f[4]) for f in folds])[:-1]
    at, kinds = [], []  # rows of a kind side by side, and where each kind begins
    for rows, (d, m, o, g, _) in zip(np.split(which, ends), folds, strict=True):
        kind = 8 * g + 4 * d.astype(int) + 2 * m.astype(int) + o
        order = np.argsort(kind, kind="stable")
        at.append(rows[order])
        kinds.append(np.unique(kind[order], return_index=True))

    def differences(weight: np.ndarray) -> list[list[np.ndarray]]:
        """Of accuracy and spread in each repetition, under some draws' row weights."""
        found = []
        for rows, (kind, first) in zip(at, kinds, strict=True):
            drawn = np.zeros((len(weight), groups, 8))
            drawn[:, *np.divmod(kind, 8)] = np.add.reduceat(weight[:, rows], first, axis=1)
            size, values = drawn.sum(-1), []
            for column in (1, 2):
                lost = right[:, 0] - right[:, column]
                spread = spread_of_sums(size, drawn @ lost, drawn @ lost**2)
                accuracy = (drawn @ right[:, column]).sum(-1) / size.sum(-1)
                values.append((accuracy, spread))
            found.append([a - b for a, b in zip(*values, strict=True)])
        return found

    # The first "draw" takes every row once: the estimate itself. Then some at a time: the weights
    # of all draws may be more than memory holds.
    parts = [differences(np.ones((1, len(names)), np.float32))]
    for first in range(0, draws, _DRAWS):
        count = min(_DRAWS, draws - first)
        parts.append(differences(rng.poisson(1.0, (count, len(names))).astype(np.float32)))
    every = np.concatenate(parts, -1)  # [folds, 2, 1 + draws]
    picked = rng.integers(0, len(folds), (len(folds), draws))
    means = np.stack([every[picked[:, i], :, 1 + i].mean(0) for i in range(draws)], 1)
    high, low = np.quantile(means - means.mean(1, keepdims=True), (0.025, 0.975), axis=1)
    estimate = every[:, :, 0].mean(0)
    return {
        name: (float(estimate[i] - low[i]), float(estimate[i] - high[i]))
        for i, name in enumerate(("accuracy", "spread"))
    }


def dense_floor(
    correct: Sequence[np.ndarray], group: np.ndarray, groups: int
) -> dict[str, float | int]:
    """Largest excess gaps between dense models that differ in nothing but their seed, at least two:
    ``mean`` and 95 % quantile ``q95`` over all ordered pairs, and their number ``pairs``."""
    largest = [
        float(np.nanmax(excess_gaps(a, b, group, groups)))
        for a, b in itertools.permutations(correct, 2)
    ]
    return {
        "mean": float(np.mean(largest)),
        "q95": float(np.quantile(largest, 0.95)),
        "pairs": len(largest),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given."""
    order = np.argsort(p_values)
    adjusted, running = np.ones(len(p_values)), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted.tolist()


def pseudo_values(whole: float, without: np.ndarray) -> np.ndarray:
    """Jackknife of a quantity that is measured on the rows of all repetitions together.

    Its variance alone is taken from there (Tukey 1958): values without a repetition vary about
    their own mean, and not about the quantity. The difference of the two, times the number of
    repetitions, would correct a bias that falls as one over the rows; that of a largest bound does
    not, and the correction is then noise of several times the quantity's own.

    Args:
        whole: the quantity.
        without: ``[repetitions]`` the same without each of them.

    Returns:
        One value a repetition, whose mean is the quantity, to be tested as if it had been measured
        there.
    """
    left = np.asarray(without, float)
    return whole - (len(left) - 1) * (left - left.mean())


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
