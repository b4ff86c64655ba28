"""Statistics that published tables rest on, against brute force and closed forms."""

import numpy as np
import pytest
from scipy import stats

from experiments import _protocol


def outcomes(seed=0, rows=400, groups=3):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, rows)
    dense = rng.random(rows) < 0.9
    pruned = rng.random(rows) < 0.8
    return dense, pruned, group, groups


def test_excess_gaps_are_group_means_beyond_the_average():
    dense = np.array([1, 1, 1, 1], bool)
    pruned = np.array([0, 1, 1, 1], bool)
    gaps = _protocol.excess_gaps(dense, pruned, np.array([0, 0, 1, 1]), 3)
    np.testing.assert_allclose(gaps[:2], [0.25, -0.25])
    assert np.isnan(gaps[2])


def test_the_floor_is_that_of_meaningless_groups():
    dense, pruned, group, groups = outcomes()
    floor = _protocol.permutation_floor(dense, pruned, group, groups, permutations=300)
    assert floor["floor_mean"] < floor["floor_95"]
    assert floor["p"] > 0.01
    # One group that loses everything stands far above it.
    floor = _protocol.permutation_floor(
        np.ones(400, bool), group != 0, group, groups, permutations=300
    )
    assert floor["largest"] > floor["floor_95"]
    assert floor["p"] == pytest.approx(1 / 301)


def test_the_worst_group_without_bias_is_smaller_than_the_largest_gap():
    # No group differs: the largest of noisy gaps is positive, the cross-fitted one is not.
    values = [_protocol.cross_fitted_worst(*outcomes(seed, 300), seed=seed) for seed in range(20)]
    largest = [np.nanmax(_protocol.excess_gaps(*outcomes(seed, 300))) for seed in range(20)]
    assert np.mean(largest) > 0.02
    assert abs(np.mean(values)) < 0.01


def test_the_spread_is_free_of_noise():
    # Groups of equal shares with losses 0.1 and 0.3: the true spread is 0.01.
    rng = np.random.default_rng(0)
    null, real = [], []
    for _ in range(200):
        group = np.repeat([0, 1], 150)
        dense = np.ones(300, bool)
        null.append(_protocol.noise_free_spread(dense, rng.random(300) > 0.2, group, 2))
        lost = rng.random(300) < np.where(group == 0, 0.1, 0.3)
        real.append(_protocol.noise_free_spread(dense, ~lost, group, 2))
    assert abs(np.mean(null)) < 3 * np.std(null) / np.sqrt(200)
    assert abs(np.mean(real) - 0.01) < 3 * np.std(real) / np.sqrt(200)


def test_corrected_intervals_are_wider_than_naive_ones():
    differences = np.array([0.01, 0.02, 0.0, 0.015, 0.005])
    found = _protocol.corrected_t(differences, 20, 80)
    naive = stats.t.interval(0.95, 4, differences.mean(), stats.sem(differences))
    factor = np.sqrt((1 / 5 + 0.25) / (1 / 5))
    assert found["mean"] == pytest.approx(0.01)
    assert found["high"] - found["mean"] == pytest.approx(factor * (naive[1] - 0.01))
    assert _protocol.corrected_t(np.zeros(5), 20, 80)["p"] == 1.0
    assert _protocol.corrected_t(np.array([0.1]), 20, 80)["low"] is None
