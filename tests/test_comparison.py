"""Statistics that published tables rest on, against brute force and closed forms."""

import numpy as np
import pytest
from certified import certify
from scipy import stats

from fairbilevel import comparison
from fairbilevel.comparison import _statistics


def outcomes(seed=0, rows=400, groups=3):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, rows)
    dense = rng.random(rows) < 0.9
    pruned = rng.random(rows) < 0.8
    return dense, pruned, group, groups


def test_excess_gaps_are_group_means_beyond_the_average():
    dense = np.array([1, 1, 1, 1], bool)
    pruned = np.array([0, 1, 1, 1], bool)
    gaps = _statistics.excess_gaps(dense, pruned, np.array([0, 0, 1, 1]), 3)
    np.testing.assert_allclose(gaps[:2], [0.25, -0.25])
    assert np.isnan(gaps[2])


def test_the_floor_is_that_of_meaningless_groups():
    dense, pruned, group, groups = outcomes()
    floor = comparison.permutation_floor(dense, pruned, group, groups, permutations=300)
    assert floor["floor_mean"] < floor["floor_95"]
    assert floor["p"] > 0.01
    # One group that loses everything stands far above it.
    floor = comparison.permutation_floor(
        np.ones(400, bool), group != 0, group, groups, permutations=300
    )
    assert floor["largest"] > floor["floor_95"]
    assert floor["p"] == pytest.approx(1 / 301)


def test_the_worst_group_without_bias_is_smaller_than_the_largest_gap():
    # No group differs: the largest of noisy gaps is positive, the cross-fitted one is not.
    values = [_statistics.cross_fitted_worst(*outcomes(seed, 300), seed=seed) for seed in range(20)]
    largest = [np.nanmax(_statistics.excess_gaps(*outcomes(seed, 300))) for seed in range(20)]
    assert np.mean(largest) > 0.02
    assert abs(np.mean(values)) < 0.01


def test_the_spread_is_free_of_noise():
    # Groups of equal shares with losses 0.1 and 0.3: the true spread is 0.01.
    rng = np.random.default_rng(0)
    null, real = [], []
    for _ in range(200):
        group = np.repeat([0, 1], 150)
        dense = np.ones(300, bool)
        null.append(_statistics.noise_free_spread(dense, rng.random(300) > 0.2, group, 2))
        lost = rng.random(300) < np.where(group == 0, 0.1, 0.3)
        real.append(_statistics.noise_free_spread(dense, ~lost, group, 2))
    assert abs(np.mean(null)) < 3 * np.std(null) / np.sqrt(200)
    assert abs(np.mean(real) - 0.01) < 3 * np.std(real) / np.sqrt(200)


def test_corrected_intervals_are_wider_than_naive_ones():
    differences = np.array([0.01, 0.02, 0.0, 0.015, 0.005])
    found = comparison.corrected_t(differences, 20, 80)
    naive = stats.t.interval(0.95, 4, differences.mean(), stats.sem(differences))
    factor = np.sqrt((1 / 5 + 0.25) / (1 / 5))
    assert found["mean"] == pytest.approx(0.01)
    assert found["high"] - found["mean"] == pytest.approx(factor * (naive[1] - 0.01))
    assert comparison.corrected_t(np.zeros(5), 20, 80)["p"] == 1.0
    assert comparison.corrected_t(np.array([0.1]), 20, 80)["low"] is None


def test_pseudo_values_of_a_mean_are_the_values():
    values = np.array([0.3, -0.1, 0.7, 0.2])
    without = np.array([np.delete(values, i).mean() for i in range(4)])
    np.testing.assert_allclose(comparison.pseudo_values(values.mean(), without), values)


def test_the_jackknife_tests_the_ratio_of_pooled_tolerances():
    """Two methods, ten folds, five groups; a tolerance is the largest estimate and its width.

    Where both are alike the test errs no more than it may. Its estimate is the ratio itself:
    corrected for a bias as Tukey does, it would vary half as much again, and the plain test of it
    err twice as often as it may. It has little power in a single setting: tolerances of many rows
    vary as much, relative to their size, as those of few.
    """
    rng, folds, rows = np.random.default_rng(0), 10, np.array([400, 200, 100, 60, 40])

    def tolerance(lost, won, size):
        width = 2.5 * np.sqrt((lost + won + 1) / size**2)
        return np.max((lost - won) / size + width, -1)

    def p_values(churn):
        n = np.broadcast_to(rows, (folds, 5))
        counts = [rng.binomial(n, c / 2) for method in churn for c in (method, method)]
        of = {}
        for m in (0, 1):
            lost, won = counts[2 * m], counts[2 * m + 1]
            whole = tolerance(lost.sum(0), won.sum(0), folds * rows)
            left = tolerance(lost.sum(0) - lost, won.sum(0) - won, (folds - 1) * rows)
            of[m] = whole, left
        whole, left = (np.log(a / b) for a, b in zip(of[0], of[1], strict=True))
        values = comparison.pseudo_values(whole, left)
        assert values.mean() == pytest.approx(whole)
        tukey = folds * whole - (folds - 1) * left
        p = comparison.corrected_t(values, 200, 800)["p"]
        return p, whole, tukey.mean(), stats.ttest_1samp(tukey, 0).pvalue

    p, whole, tukey, plain = np.array([p_values((0.1, 0.1)) for _ in range(400)]).T
    assert (p < 0.05).mean() <= stats.binom.ppf(0.999, 400, 0.05) / 400
    assert np.std(tukey) > 1.5 * np.std(whole)
    assert (plain < 0.05).mean() > 0.1


def test_the_spread_of_sums_is_the_formula_written_out():
    dense, pruned, group, groups = outcomes(3, rows=200)
    lost = dense.astype(float) - pruned
    expected = 0.0
    for g in range(groups):
        own, rest = lost[group == g], lost[group != g]
        share = len(own) / len(lost)
        noise = sum(part.var() / (len(part) - 1) for part in (own, rest))
        expected += share * ((own.mean() - lost.mean()) ** 2 - (1 - share) ** 2 * noise)
    assert _statistics.noise_free_spread(dense, pruned, group, groups) == pytest.approx(expected)


def test_groups_of_a_single_row_do_not_enter_the_spread():
    dense, pruned, group, groups = outcomes(4, rows=200)
    alone = np.append(group, groups)
    with_one = _statistics.noise_free_spread(
        np.append(dense, True), np.append(pruned, False), alone, groups + 1
    )
    assert np.isfinite(with_one)


def test_the_bootstrap_draws_rows_within_groups_and_folds():
    def fold(seed, shift):
        rng = np.random.default_rng(seed)
        group = rng.integers(0, 2, 300)
        dense = np.ones(300, bool)
        pruned, other = rng.random(300) < 0.9 - shift, rng.random(300) < 0.9
        return dense, pruned, other, group, 1000 * seed + np.arange(300)

    same = _statistics.bootstrap_differences([fold(s, 0.0) for s in range(5)], 2)
    low, high = same["accuracy"]
    assert low < 0 < high
    worse = _statistics.bootstrap_differences([fold(s, 0.3) for s in range(5)], 2)
    assert worse["accuracy"][1] < -0.2
    # One fold alone: the interval is that of its rows, by the normal approximation.
    one = fold(7, 0.1)
    _, method, other, group, _ = one
    low, high = _statistics.bootstrap_differences([one], 2, draws=4000)["accuracy"]
    difference = method.astype(float) - other
    error = np.sqrt(sum(difference[group == g].var() * (group == g).sum() for g in (0, 1))) / 300
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_identical_methods_differ_by_nothing():
    dense, pruned, group, groups = outcomes(5)
    fold = (dense, pruned, pruned, group, np.arange(len(group)))
    found = _statistics.bootstrap_differences([fold] * 3, groups)
    assert found == {"accuracy": (0.0, 0.0), "spread": (0.0, 0.0)}


def repeated(rng, rounds, rows=400, groups=8, harm=0.0):
    """Rows that every round measures once with another network; some are hard for all networks.
    Group 0 is hurt in ``harm`` of its rows more than the others."""
    group = rng.integers(0, groups, rows)
    hard = np.clip(rng.beta(0.15, 1.2, rows) + harm * (group == 0), 0, 1)
    row = np.tile(np.arange(rows), rounds)
    pruned = rng.random(rows * rounds) > hard[row]
    return np.ones(rows * rounds, bool), pruned, group[row], groups, row


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_the_floor_holds_its_level_where_rows_are_measured_again(rounds):
    """At 5 %, in a simulation; rows taken as independent would raise it three times as often."""
    rng, worlds = np.random.default_rng(rounds), 300
    alarms = {"rows": 0, "measurements": 0}
    for seed in range(worlds):
        *world, row = repeated(rng, rounds)
        for name, which in (("rows", row), ("measurements", None)):
            floor = comparison.permutation_floor(*world, row=which, seed=seed, permutations=99)
            alarms[name] += floor["p"] <= 0.05
    assert stats.binom.sf(alarms["rows"] - 1, worlds, 0.05) > 0.01
    assert alarms["rows"] > 0
    if rounds > 1:
        assert alarms["measurements"] > 2 * 0.05 * worlds


def test_a_worst_group_is_measured_on_other_rows_than_it_was_chosen_on():
    """Where no group is harmed it is none; a row measured twice must not lie in both halves."""
    rng, values = np.random.default_rng(0), {"rows": [], "measurements": []}
    for seed in range(60):
        *world, row = repeated(rng, 4)
        for name, which in (("rows", row), ("measurements", None)):
            values[name].append(
                _statistics.cross_fitted_worst(*world, row=which, seed=seed, splits=10)
            )
    error = np.std(values["rows"]) / np.sqrt(60)
    assert abs(np.mean(values["rows"])) < 3 * error
    assert np.mean(values["measurements"]) > 4 * error


@pytest.mark.parametrize("rounds", [1, 2])
def test_intervals_of_the_bootstrap_cover_the_truth_and_lie_around_it(rounds):
    """One method harms group 0, the other nobody: the true spreads are known, and the noise in the
    draws is that of one method alone."""
    rng, groups, rows, worlds = np.random.default_rng(rounds), 4, 600, 150
    rates = np.array([[0.3, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0]])
    inside = {"accuracy": 0, "spread": 0}
    middles, widths = ({name: [] for name in inside} for _ in range(2))
    excess = rates - rates.mean(1, keepdims=True)
    truth = {"accuracy": rates[1].mean() - rates[0].mean()}
    truth["spread"] = (excess[0] ** 2).mean() - (excess[1] ** 2).mean()
    group = np.arange(rows) % groups
    for seed in range(worlds):
        folds = []
        for _ in range(rounds):
            for part in np.split(rng.permutation(rows), 5):
                right = rng.random((2, len(part))) > rates[:, group[part]]
                folds.append((np.ones(len(part), bool), *right, group[part], part))
        found = _statistics.bootstrap_differences(folds, groups, seed=seed, draws=200)
        for name, (low, high) in found.items():
            inside[name] += low <= truth[name] <= high
            middles[name].append((low + high) / 2)
            widths[name].append(high - low)
    for name, count in inside.items():
        # At least 95 %: repetitions that differ by their rows alone are drawn at both levels.
        assert stats.binom.cdf(count, worlds, 0.95) > 0.01, name
        bias = np.mean(middles[name]) - truth[name]  # that of skewness is left
        assert abs(bias) < 0.1 * np.mean(widths[name]), name


def test_holm_against_the_textbook():
    # Holm 1979: sorted p times m, m - 1, ..., made monotone.
    assert comparison.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparison.holm([0.9, 0.8]) == [1.0, 1.0]
    assert comparison.holm([]) == []


def test_dense_models_that_agree_have_no_floor():
    dense, pruned, group, groups = outcomes(6)
    assert _statistics.dense_floor([dense, dense], group, groups)["q95"] == 0.0
    floor = _statistics.dense_floor([dense, pruned, ~dense], group, groups)
    assert floor["pairs"] == 6
    there = np.nanmax(_statistics.excess_gaps(dense, pruned, group, groups))
    back = np.nanmax(_statistics.excess_gaps(pruned, dense, group, groups))
    two = _statistics.dense_floor([dense, pruned], group, groups)
    assert two["mean"] == pytest.approx((there + back) / 2)


def test_methods_with_options_are_told_apart():
    split = comparison.split_methods
    assert split("bilevel:steps=9,hypergradient=cg:iterations=5,seed=1,snip") == (
        "bilevel:steps=9,hypergradient=cg:iterations=5,seed=1",
        "snip",
    )
    assert split("snip, bilevel:score_step=0.3,dual_step=0.1,random") == (
        "snip",
        "bilevel:score_step=0.3,dual_step=0.1",
        "random",
    )
    with pytest.raises(ValueError, match="belongs to no method"):
        split("snip,steps=3")


def test_the_certified_tolerance_is_that_of_the_certificate():
    dense, pruned, group, groups = outcomes(2, rows=600)
    found = _statistics.certified_tolerance(dense, pruned, group, groups + 1)
    y = np.ones(600, int)
    given = {"tolerance": 0.02, "min_group_rows": 1, "only_look": True}
    columns = (y, dense.astype(int), pruned.astype(int), group)
    certificate = certify(*columns, classes=[0, 1], **given)
    assert found == pytest.approx(certificate.smallest_tolerance)
    assert _statistics.certified_tolerance(dense, pruned, 0 * group, 1) is None


def test_rounds_are_certified_one_by_one():
    """Rows that were measured twice are not twice as many."""
    dense, pruned, group, groups = outcomes(2, rows=600)
    other = outcomes(3, rows=600)[1]
    one, two = (_statistics.certified_tolerance(dense, p, group, groups) for p in (pruned, other))
    twice = np.tile(np.arange(600), 2)
    found = _statistics.certified_tolerance(
        np.tile(dense, 2), np.r_[pruned, other], np.tile(group, 2), groups, row=twice
    )
    assert found == pytest.approx((one + two) / 2)
    # A fold of a third round that has only begun is left out.
    begun = _statistics.certified_tolerance(
        np.r_[np.tile(dense, 2), dense[:50]],
        np.r_[pruned, other, pruned[:50]],
        np.r_[np.tile(group, 2), group[:50]],
        groups,
        row=np.r_[twice, np.arange(50)],
    )
    assert begun == found
