"""Bounds and verdicts of certificates, against enumeration, closed forms and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fairbilevel import certificates
from fairbilevel.certificates import (
    Paired,
    Rate,
    difference_lower,
    difference_upper,
    excess_bounds,
    least_rows,
    least_scale,
    least_tolerance,
    likely_upper,
    rate_lower,
    rate_upper,
    rows_needed,
)
from fairbilevel.certificates import _paired as paired
from fairbilevel.certificates._judge import judge_excess, judge_floor, judge_spread
from fairbilevel.certificates._paired import _strata, tail
from fairbilevel.certificates._samples import BINS, Quantity, histogram, mean_lower, mean_upper

LEVELS = st.sampled_from([0.2, 0.05, 0.01, 0.001])


def outcomes(n):
    """All (b, c) of n rows."""
    return [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]


def trinomial(n, pb, pc):
    """Probability of every outcome."""
    pairs = np.array(outcomes(n))
    counts = np.column_stack([pairs, n - pairs.sum(1)])
    return stats.multinomial.pmf(counts, n, [pb, pc, max(1 - pb - pc, 0)])


def worlds(steps=12):
    """Pairs (pb, pc) all over the triangle, its edges among them."""
    grid = np.concatenate([[0, 0.001, 0.01], np.linspace(0.03, 1, steps)])
    return [(x, y) for x in grid for y in grid if x + y <= 1]


# ---------------------------------------------------------------- rates


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (3, 7), (1, 1000), (500, 1000), (12, 40_000)])
@pytest.mark.parametrize("level", [0.05, 0.001])
def test_rates_agree_with_scipy(k, n, level):
    exact = stats.binomtest(k, n).proportion_ci(1 - 2 * level, "exact")
    assert rate_lower(k, n, level) == pytest.approx(exact.low, abs=1e-10)
    assert rate_upper(k, n, level) == pytest.approx(exact.high, abs=1e-10)


def test_rates_without_rows_or_events():
    assert (rate_lower(0, 0, 0.05), rate_upper(0, 0, 0.05)) == (0, 1)
    assert rate_upper(0, 150, 0.05) == pytest.approx(1 - 0.05 ** (1 / 150))
    assert rate_lower(150, 150, 0.05) == pytest.approx(0.05 ** (1 / 150))


def _error(rates, level, alike=False):
    """Chance that the upper bound misses the average of these rates: every count, exactly."""
    chances = np.ones(1)
    for rate in rates:
        chances = np.convolve(chances, [1 - rate, rate])
    upper = [rate_upper(k, len(rates), level, alike=alike) for k in range(len(chances))]
    return chances[np.array(upper) < np.mean(rates) - 1e-12].sum()


@pytest.mark.parametrize("level", [0.25, 0.1, 0.05, 0.025, 0.0125, 0.001])
def test_rows_of_different_rates(level):
    """Up to a quarter the bound holds for their average; that for rows that are alike does not."""
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 9):
        for alike, worst in ((False, level), (True, -np.log1p(-level))):
            edge = np.ones(n)  # the least favourable: one row that may fail, the others cannot
            edge[0] = n * rate_upper(n - 1, n, level, alike=alike) - (n - 1) + 1e-9
            assert level - 1e-6 <= _error(edge, level, alike) <= worst + 1e-6
        assert _error(edge, level, alike=True) > level * 1.0002
        for _ in range(200):
            rates = rng.random(n) ** rng.choice([0.1, 1.0, 10.0])
            rates[rng.random(n) < 0.3] = rng.integers(0, 2)
            assert _error(rates, level) <= level + 1e-9
        mirrored = [1 - rate_lower(n - k, n, level, alike=False) for k in range(n + 1)]
        assert mirrored == pytest.approx(
            [rate_upper(k, n, level, alike=False) for k in range(n + 1)]
        )


# ---------------------------------------------------------------- paired differences


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_the_tail_is_that_of_the_trinomial(n):
    pairs = np.array(outcomes(n))
    for pb, pc in worlds(6):
        mass = trinomial(n, pb, pc)
        for t in range(-n, n + 1):
            exact = mass[pairs[:, 0] - pairs[:, 1] <= t].sum()
            found = tail(t, n, np.array([pb]), np.array([pc]))[0]
            assert exact - 1e-12 <= found <= exact + 1e-8


def test_the_tail_of_many_rows_agrees_with_another_summation():
    # Given B + C = m, C is binomial: another sum than the one that is used.
    n, pb, pc = 3000, 0.06, 0.04
    m = np.arange(n + 1)
    for t in (-20, 20, 60, 90):
        least = np.ceil((m - t) / 2)
        given_m = stats.binom.sf(least - 1, m, pc / (pb + pc))
        exact = (stats.binom.pmf(m, n, pb + pc) * given_m).sum()
        assert tail(t, n, np.array([pb]), np.array([pc]))[0] == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("bound", ["sharp", "simple"])
@pytest.mark.parametrize(
    ("n", "level"), [(1, 0.05), (3, 0.01), (10, 0.05), (10, 0.01), (20, 0.01), (30, 0.05)]
)
def test_bounds_cover_in_every_world(bound, n, level):
    """Exact enumeration: the bound lies below D with probability ``level`` at most."""
    pairs = outcomes(n)
    upper = np.array([difference_upper(b, c, n, level, bound) for b, c in pairs])
    lower = np.array([difference_lower(b, c, n, level, bound) for b, c in pairs])
    # By symmetry the lower bound is checked in the mirrored world.
    np.testing.assert_allclose(lower, [-upper[pairs.index((c, b))] for b, c in pairs], atol=1e-12)
    edges = [(x, 0.0) for x in np.unique(upper[(upper > 0) & (upper < 1)])[::7] + 1e-9 if x < 1]
    for pb, pc in worlds() + edges:
        wrong = trinomial(n, pb, pc)[upper < pb - pc].sum()
        assert wrong <= level + 1e-12, (pb, pc)


@pytest.mark.parametrize("n", [5, 15])
def test_the_sharp_bound_is_the_inverted_test(n):
    """A fine grid over worlds accepts nothing above it, and something just below it."""
    level, pairs = 0.05, outcomes(n)
    diff = np.array([b - c for b, c in pairs])
    for b, c in pairs[:: max(len(pairs) // 10, 1)]:
        q = rate_upper(b + c, n, level / 10)
        upper = difference_upper(b, c, n, level)
        assert upper <= q

        def accepts(d, points, q=q, t=b - c):
            grid = np.linspace(max(0, -d), (q - d) / 2, points)
            chance = [trinomial(n, pc + d, pc)[diff <= t].sum() for pc in grid]
            return max(chance) > 0.9 * level

        if upper < q:
            assert not any(accepts(d, 9) for d in np.linspace(upper + 1e-9, q - 1e-9, 9))
        assert accepts(upper - 0.004, 120)


@given(n=st.integers(1, 400), data=st.data(), level=LEVELS)
@settings(max_examples=20, deadline=None)
def test_what_is_true_of_both_bounds(n, data, level):
    b = data.draw(st.integers(0, n))
    c = data.draw(st.integers(0, n - b))
    slack = 2 * max(1e-5, 2e-3)
    for bound in ("sharp", "simple"):
        upper = difference_upper(b, c, n, level, bound)
        assert (b - c) / n <= upper + 1e-9
        assert -1 <= upper <= 1
        assert difference_lower(b, c, n, level, bound) == -difference_upper(c, b, n, level, bound)
        # More rows lost, and less error allowed, cannot lower the bound but by its resolution.
        if b + c < n:
            assert difference_upper(b + 1, c, n, level, bound) >= upper - slack
        assert difference_upper(b, c, n, level / 3, bound) >= upper - slack
    # No valid bound can beat the one for zero discordant rows.
    assert difference_upper(0, 0, n, level) >= 1 - level ** (1 / n) - 1e-9


def test_zero_discordant_rows():
    for n in (10, 100, 1000):
        assert difference_upper(0, 0, n, 0.05, "simple") == pytest.approx(1 - 0.025 ** (1 / n))
        assert 1 - 0.05 ** (1 / n) < difference_upper(0, 0, n, 0.05) < 1 - 0.01 ** (1 / n)
    assert difference_upper(0, 0, 0, 0.05) == 1
    # The rule of thumb: 150 rows for two points at 95 %.
    assert least_rows(0.02, 0.05) == 149
    assert least_rows(0.02, 0.05) == pytest.approx(math.log(1 / 0.05) / 0.02, rel=0.02)


def test_the_sharp_bound_saves_rows():
    """At 1,000 rows and 10 % discordance: width beyond the estimate, squared, is rows."""
    sharp, simple = (difference_upper(50, 50, 1000, 0.05, kind) for kind in ("sharp", "simple"))
    assert (sharp / simple) ** 2 < 0.6


@pytest.mark.parametrize("n", [4, 8])
def test_the_simple_bound_holds_for_strata(n):
    """Rows of two kinds: by enumeration, of their average difference."""
    level, half = 0.05, n // 2
    pairs = outcomes(half)
    upper = np.array(
        [[difference_upper(b + d, c + e, n, level, "simple") for d, e in pairs] for b, c in pairs]
    )
    mass = {world: trinomial(half, *world) for world in worlds(4)}
    for (pb, pc), (rb, rc) in itertools.product(mass, repeat=2):
        truth = (pb - pc + rb - rc) / 2
        wrong = np.outer(mass[pb, pc], mass[rb, rc])[upper < truth - 1e-12].sum()
        assert wrong <= level + 1e-9


@pytest.mark.parametrize("n", [4, 8, 12])
def test_the_bound_for_strata_holds_by_enumeration(n):
    """Rows of two kinds, also in what they share least: one kind never differs."""
    level, half = 0.05, n // 2
    pairs = outcomes(half)
    upper = np.array([[_strata(b + d, c + e, n, level) for d, e in pairs] for b, c in pairs])
    mass = {world: trinomial(half, *world) for world in worlds(4 if n < 12 else 2)}
    for (pb, pc), (rb, rc) in itertools.product(mass, repeat=2):
        truth = (pb - pc + rb - rc) / 2
        wrong = np.outer(mass[pb, pc], mass[rb, rc])[upper < truth - 1e-12].sum()
        assert wrong <= level


@pytest.mark.parametrize("churn", [(0.02, 0.02, 0.02), (0.0, 0.05, 0.4), (0.3, 0.1, 0.02)])
def test_the_bound_for_strata_holds_in_groups_of_many_rows(churn):
    """Counts of three groups of 2,000, 600 and 400 rows, drawn 4,000 times."""
    level, rows = 0.02, np.array([2000, 600, 400])
    rng = np.random.default_rng(1)
    lost, won = 0.7 * np.array(churn), 0.3 * np.array(churn)
    truth = (rows @ (lost - won)) / rows.sum()
    drawn = sum(
        rng.multinomial(n, [b, c, 1 - b - c], 4000) for n, b, c in zip(rows, lost, won, strict=True)
    )
    n = int(rows.sum())
    upper = np.array([difference_upper(int(b), int(c), n, level, "strata") for b, c, _ in drawn])
    simple = np.array([difference_upper(int(b), int(c), n, level, "simple") for b, c, _ in drawn])
    assert (upper < truth).mean() <= stats.binom.ppf(0.999, 4000, level) / 4000
    # It is there to be narrower, where rows lost and won are many.
    if sum(churn) > 0.1:
        assert np.median(upper - simple) < 0


@pytest.mark.parametrize("level", [0.022, 0.001])
def test_where_the_most_variable_world_is_the_worst_no_cover_is_needed(level, monkeypatch):
    rng, taken = np.random.default_rng(0), []
    for _ in range(25):
        n = int(rng.integers(20, 3000))
        b, c = rng.binomial(n, rng.choice([0.005, 0.05, 0.2, 0.4], 2))
        if b + c > n:
            continue
        counts = int(b), int(c), n, level
        short = difference_upper(*counts)
        proven = paired._most_variable_is_worst
        with monkeypatch.context() as cover:
            cover.setattr(paired, "_most_variable_is_worst", lambda *_: False)
            paired._sharp.cache_clear()
            slack = 2 * max(1e-5, 2e-3 * (short - (b - c) / n))
            assert difference_upper(*counts) == pytest.approx(short, abs=slack)
        paired._sharp.cache_clear()
        taken.append(proven(short, int(b - c), n, rate_upper(int(b + c), n, level / 10)))
    assert any(taken)


# ---------------------------------------------------------------- quantities


@pytest.mark.parametrize("n", [5, 30, 200])
def test_betting_bounds_cover_rates(n):
    level = 0.05
    ends = [0] * (BINS - 2)
    upper = np.array([mean_upper((n - k, *ends, k), level) for k in range(n + 1)])
    lower = np.array([mean_lower((n - k, *ends, k), level) for k in range(n + 1)])
    for p in np.linspace(0, 1, 41):
        mass = stats.binom.pmf(np.arange(n + 1), n, p)
        assert mass[upper < p].sum() <= level
        assert mass[lower > p].sum() <= level
    assert (lower <= np.arange(n + 1) / n).all()
    assert (upper >= np.arange(n + 1) / n).all()
    # And they learn: a half of the width of Hoeffding's where nothing happens.
    if n == 200:
        assert upper[0] < math.sqrt(math.log(1 / level) / (2 * n)) / 2


def test_betting_bounds_hold_for_strata():
    level, n = 0.05, 12
    ends = [0] * (BINS - 2)
    upper = np.array([mean_upper((n - k, *ends, k), level) for k in range(n + 1)])
    for p, q in itertools.product(np.linspace(0, 1, 11), repeat=2):
        mass = np.convolve(stats.binom.pmf(np.arange(7), 6, p), stats.binom.pmf(np.arange(7), 6, q))
        assert mass[upper < (p + q) / 2 - 1e-12].sum() <= level + 1e-12


@given(st.lists(st.floats(0, 2), min_size=1, max_size=60))
@settings(max_examples=40, deadline=None)
def test_bounds_of_a_quantity_enclose_its_mean(values):
    found = Quantity(histogram(np.array(values), 0.0, 2.0), float(sum(values)), 0.0, 2.0)
    assert found.rows == len(values)
    assert found.lower(0.05) - 1e-6 <= found.estimate <= found.upper(0.05) + 1e-6
    assert found.lower(0.05) >= 0
    assert found.upper(0.05) <= 2


# ---------------------------------------------------------------- verdicts

GROUP = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200))


@given(st.lists(GROUP.filter(sum), min_size=2, max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_identity_of_the_excess_gap(counts):
    samples = {str(i): Paired(b, c, b + c + a, "simple") for i, (b, c, a) in enumerate(counts)}
    total = sum(s.rows for s in samples.values())
    overall = sum(s.lost - s.won for s in samples.values()) / total
    judgement = judge_excess(samples, list(samples), 0.02, 0.05, two_sided=False)
    for f in judgement.findings:
        assert f.estimate == pytest.approx(samples[f.group].estimate - overall, abs=1e-12)
        assert f.share == samples[f.group].rows / total
        assert f.low <= f.estimate <= f.bound <= f.high + 1e-12
    assert judgement.smallest_tolerance == max(f.bound for f in judgement.findings)


def test_excess_bounds_are_put_together_as_declared():
    own, rest = Paired(12, 5, 100), Paired(30, 22, 900, "simple")
    low, high = excess_bounds(own, rest, 0.1, 0.05)
    assert high == 0.9 * (
        difference_upper(12, 5, 100, 0.04) - difference_lower(30, 22, 900, 0.01, "simple")
    )
    assert low == 0.9 * (
        difference_lower(12, 5, 100, 0.04) - difference_upper(30, 22, 900, 0.01, "simple")
    )


@pytest.mark.parametrize("two_sided", [False, True])
def test_errors_of_the_run_by_enumeration(two_sided):
    """Two groups of 4 and 6 rows: in no world is more than delta certified or violated wrongly.

    A large delta, so that so few rows say something.
    """
    small, large, tolerance, delta = 4, 6, 0.5, 0.4
    code = {"certified": 1, "violated": 2, "undecided": 0}

    def verdict(first, second):
        samples = {"a": Paired(*first, small), "b": Paired(*second, large)}
        judgement = judge_excess(samples, ["a", "b"], tolerance, delta, two_sided=two_sided)
        return code[judgement.verdict]

    found = np.array([[verdict(x, y) for y in outcomes(large)] for x in outcomes(small)])
    assert {0, 1} <= set(np.unique(found))
    own = {world: trinomial(small, *world) for world in worlds(6)}
    rest = {world: trinomial(large, *world) for world in worlds(6)}
    for (pb, pc), (rb, rc) in itertools.product(own, rest):
        gap = (pb - pc) - (rb - rc)
        psi = np.array([large * gap, -small * gap]) / (small + large)
        worst = np.abs(psi).max() if two_sided else psi.max()
        mass = np.outer(own[pb, pc], rest[rb, rc])
        assert mass[found == (1 if worst > tolerance else 2)].sum() <= delta + 1e-12


def test_holm_is_not_used():
    """Each group's verdict is at delta/G, the run's at delta: no step-down."""
    samples = {"a": Paired(3, 0, 400), "b": Paired(4, 2, 500), "c": Paired(2, 1, 600)}
    judgement = judge_excess(samples, ["a", "b", "c"], 0.021, 0.05, two_sided=False)
    for f in judgement.findings:
        own = samples[f.group]
        rest = [s for g, s in samples.items() if g != f.group]
        bound = excess_bounds(own, rest[0].pool(rest[1:]), f.share, 0.05 / 3)[1]
        assert f.verdict == ("certified" if bound <= 0.021 else "undecided")


def test_a_complement_of_several_groups_takes_no_sharp_bound():
    pooled = Paired(1, 0, 10).pool([Paired(2, 1, 20), Paired(0, 0, 5)])
    assert pooled == Paired(3, 1, 35, "strata")
    simple = Paired(1, 0, 10, "simple").pool([Paired(2, 1, 20, "simple")])
    assert simple == Paired(3, 1, 30, "simple")
    assert Paired(1, 0, 10).pool([]) == Paired(1, 0, 10, "sharp")


def test_spreads_by_hand():
    rates = {"a": Rate(90, 100), "b": Rate(180, 200), "c": Rate(30, 60)}
    judgement = judge_spread({None: rates}, ["a", "b", "c"], 0.1, 0.05)
    worst = max(
        rate_upper(g.count, g.rows, 0.025) - rate_lower(h.count, h.rows, 0.025)
        for g, h in itertools.permutations(rates.values(), 2)
    )
    assert judgement.smallest_tolerance == worst
    low = max(rate_lower(r.count, r.rows, 0.05 / 6) for r in rates.values())
    high = min(rate_upper(r.count, r.rows, 0.05 / 6) for r in rates.values())
    assert low - high > 0.1
    assert judgement.verdict == "violated"
    assert [f.verdict for f in judgement.findings] == ["violated", "violated", "violated"]
    same = {g: Rate(9000, 10_000) for g in "abc"}
    assert judge_spread({None: same}, list("abc"), 0.05, 0.05).verdict == "certified"


def test_verdicts_on_cells_share_the_error_between_layers():
    """Equalized odds: twice the cells of parity, so twice the bounds that may fail."""
    cells = {g: Rate(900, 1000) for g in "abc"}
    two = judge_spread({"right": cells, "wrong": cells}, list("abc"), 0.1, 0.05).findings
    half = judge_spread({None: cells}, list("abc"), 0.1, 0.025).findings
    assert [(f.low, f.high) for f in two] == [(f.low, f.high) for f in half] * 2
    apart = half[0].high - half[0].low
    for tolerance, verdict in ((apart + 1e-9, "certified"), (apart - 1e-9, "undecided")):
        found = judge_spread({"right": cells, "wrong": cells}, list("abc"), tolerance, 0.05)
        assert [f.verdict for f in found.findings] == [verdict] * 6


def test_an_empty_cell_is_undecided():
    full = {"a": Rate(9000, 10_000), "b": Rate(9000, 10_000)}
    empty = {"a": Rate(9000, 10_000), "b": Rate(0, 0)}
    judgement = judge_spread({"yes": full, "no": empty}, ["a", "b"], 0.5, 0.05)
    assert judgement.verdict == "undecided"
    assert judgement.smallest_tolerance is None
    assert {f.verdict for f in judgement.findings if f.label == "no"} == {"undecided"}


def test_floors_by_hand():
    rates = {"a": Rate(95, 100), "b": Rate(190, 200)}
    judgement = judge_floor(rates, ["a", "b"], 0.85, 0.05)
    assert judgement.smallest_tolerance == rate_lower(95, 100, 0.05)
    assert judgement.verdict == "certified"
    assert judge_floor(rates, ["a", "b"], 0.99, 0.01).verdict == "violated"
    assert judge_floor(rates, ["a", "b"], 0.94, 0.05).verdict == "undecided"


# ---------------------------------------------------------------- power


def test_the_best_case_of_a_plan():
    delta = 0.05
    found = least_tolerance([50, 150, 0], delta)
    assert found[2] is None
    own, rest = Paired(0, 0, 50), Paired(0, 0, 150)
    assert found[0] == excess_bounds(own, rest, 0.25, delta)[1]
    assert found[0] > found[1]


def test_power_is_what_simulation_finds():
    """At the tolerance it names, four in five samples are certified."""
    rng = np.random.default_rng(0)
    rows, rest, delta, q = 400, 3600, 0.05, 0.06
    tolerance = likely_upper(rows, rest, delta, discordance=q)
    certified = 0
    for _ in range(60):
        own, other = (rng.multinomial(n, [q / 2, q / 2, 1 - q]) for n in (rows, rest))
        everybody = Paired(int(other[0]), int(other[1]), rest, "simple")
        sample = Paired(int(own[0]), int(own[1]), rows)
        bound = excess_bounds(sample, everybody, 0.1, delta)[1]
        certified += bound <= tolerance
    assert 0.65 < certified / 60 < 0.95


def test_rows_needed():
    scale = least_scale(200, 1800, 0.03, 0.05, discordance=0.05)
    assert scale is not None
    grown = likely_upper(round(200 * scale), round(1800 * scale), 0.05, discordance=0.05)
    fewer = likely_upper(round(160 * scale), round(1440 * scale), 0.05, discordance=0.05)
    assert grown <= 0.03 < fewer
    rest = Paired(90, 90, 1800, "simple")
    vague = rows_needed("g", Paired(14, 10, 200), rest, 0.03, 0.05)
    assert "cannot be said from these rows" in vague["sentence"]
    clear = rows_needed("g", Paired(2, 2, 100), Paired(9, 9, 900, "simple"), 0.1, 0.001)
    assert clear["at_low_end"] <= clear["at_estimate"] <= clear["at_high_end"]
    assert f"About {clear['at_estimate']:,} rows of g" in clear["sentence"]
    hopeless = rows_needed("g", Paired(60, 2, 100), rest, 0.06, 0.05)
    assert "likely above the tolerance" in hopeless["sentence"]


def test_the_error_of_all_looks_together():
    spent = sum(certificates.Claim(look=k).delta for k in range(1, 20_000))
    assert 0.0499 < spent < 0.05
    assert certificates.Claim(candidates=4).delta == certificates.Claim().delta / 4
    assert certificates.Claim(only_look=True).delta == pytest.approx(0.05)
