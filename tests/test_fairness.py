"""Constraints, surrogates, the guard, buffers, multipliers and reported metrics."""

from __future__ import annotations

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from by_group import group_statistics
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fairbilevel import fairness
from fairbilevel.fairness import (
    CONSTRAINTS,
    AbsoluteExcessAccuracyGap,
    AccuracyGap,
    DegradationGap,
    EqualizedLoss,
    ExcessAccuracyGap,
    Outcomes,
    SignedEqualizedLoss,
    WorstGroupAccuracy,
)
from fairbilevel.fairness._statistics import GroupStatistics
from fairbilevel.fairness._surrogate import SURROGATES

# Constraints on group means; those on rates of answers are in test_constraints.py.
GAPS = [name for name, kind in CONSTRAINTS.items() if not kind.of_cells]

# ---------------------------------------------------------------- margins and surrogates


def test_margin_identities():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        logits = jnp.asarray(rng.normal(0, 5, (50, 4)))
        y = jnp.asarray(rng.integers(0, 4, 50), jnp.int32)
        v = fairness.margin(logits, y)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        np.testing.assert_allclose(fairness.cross_entropy(v), loss, rtol=1e-12, atol=1e-14)
        chosen = jnp.take_along_axis(jax.nn.softmax(logits), y[:, None], 1)[:, 0]
        np.testing.assert_allclose(jax.nn.sigmoid(v), chosen, rtol=1e-12)
        # Positive only where right; for two classes exactly where right.
        assert np.all((logits.argmax(-1) == y) | (v <= 0))
        two = fairness.margin(logits[:, :2], y % 2)
        np.testing.assert_array_equal(two > 0, logits[:, :2].argmax(-1) == y % 2)
        np.testing.assert_allclose(
            two, logits[jnp.arange(50), y % 2] - logits[jnp.arange(50), 1 - y % 2]
        )


def test_gradient_of_the_loss_through_the_margin():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(0, 30, (20, 5)), jnp.float32)  # large: no overflow
    y = jnp.asarray(rng.integers(0, 5, 20), jnp.int32)

    def through_margin(x):
        return fairness.cross_entropy(fairness.margin(x, y)).mean()

    exact = jax.grad(lambda x: optax.softmax_cross_entropy_with_integer_labels(x, y).mean())(logits)
    np.testing.assert_allclose(jax.grad(through_margin)(logits), exact, atol=1e-6)


margins = st.floats(-40, 40)
slope = {
    name: jax.jit(jax.grad(lambda v, harm=s.harm: harm(v[None])[0]))
    for name, s in SURROGATES.items()
}
loss_slope = jax.jit(jax.grad(lambda v: fairness.cross_entropy(v[None])[0]))


@pytest.mark.parametrize("name", SURROGATES)
def test_harms_fall_with_the_margin(name):
    v = jnp.linspace(-30, 30, 2001)
    harm = SURROGATES[name].harm(v)
    assert np.all(np.diff(harm) <= 0)
    assert np.all(harm >= 0)
    assert SURROGATES[name].name == name


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SURROGATES)), margins)
def test_the_ratio_bounds_how_steep_a_harm_is(name, v):
    ratio = SURROGATES[name].ratio
    harm, loss = abs(float(slope[name](v))), abs(float(loss_slope(v)))
    if np.isfinite(ratio):
        assert harm <= ratio * loss * (1 + 1e-5) + 1e-12


@pytest.mark.parametrize("name", [n for n, s in SURROGATES.items() if np.isfinite(s.ratio)])
def test_the_ratio_is_the_least(name):
    """Some margin nearly attains it, so the guard gives nothing away."""
    v = jnp.linspace(-15, 15, 301)
    steepest = jnp.max(jax.vmap(slope[name])(v) / jax.vmap(loss_slope)(v))
    assert float(steepest) == pytest.approx(SURROGATES[name].ratio, rel=1e-3)


@pytest.mark.parametrize("name", [n for n, s in SURROGATES.items() if not np.isfinite(s.ratio)])
def test_an_infinite_ratio_is_none_at_all(name):
    """No multiple of the loss is as steep as a hinge where the margin is large."""
    s = jnp.asarray(0.999) if "squared" not in name else jnp.asarray(-20.0)
    if "squared" in name:  # grows without bound where the loss's slope stays below one
        assert float(slope[name](s) / loss_slope(s)) > 40
    else:
        assert float(slope[name](s)) == -1


# ---------------------------------------------------------------- statistics


def make_stats(accuracy, dense_accuracy=None, loss=None, share=None, present=None, counted=None):
    n = len(accuracy)
    zeros = np.zeros(n)
    return GroupStatistics(
        jnp.asarray(accuracy, float),
        jnp.asarray(zeros if dense_accuracy is None else dense_accuracy, float),
        jnp.asarray(zeros if loss is None else loss, float),
        jnp.zeros(n),
        jnp.asarray(np.full(n, 1 / n) if share is None else share, float),
        jnp.asarray(np.ones(n, bool) if present is None else present),
        jnp.asarray(np.ones(n, bool) if counted is None else counted),
    )


def test_group_statistics_of_rows():
    outcomes = Outcomes(
        jnp.array([1.0, 0.0, 1.0, 1.0, 0.0]),
        jnp.array([1.0, 1.0, 1.0, 0.0, 1.0]),
        jnp.array([0.1, 2.0, 0.3, 0.5, 9.0]),
        jnp.array([0.2, 0.4, 0.6, 0.8, 9.0]),
    )
    group = jnp.array([0, 0, 2, 2, -1])
    stats = group_statistics(outcomes, group, jnp.array([0.5, 0.2, 0.3]), jnp.ones(3, bool))
    np.testing.assert_allclose(stats.accuracy, [0.5, 0, 1])
    np.testing.assert_allclose(stats.dense_accuracy, [1, 0, 0.5])
    np.testing.assert_allclose(stats.loss, [1.05, 0, 0.4], rtol=1e-6)
    assert stats.present.tolist() == [True, False, True]
    np.testing.assert_allclose(stats.damage, [0.5, 0, -0.5])
    # Overall by the role's shares, renormalized over the groups present.
    assert float(stats.overall(stats.damage)) == pytest.approx((0.5 * 0.5 - 0.3 * 0.5) / 0.8)


# ---------------------------------------------------------------- closed-form violations

STATS = make_stats(
    accuracy=[0.9, 0.7, 0.4],
    dense_accuracy=[0.95, 0.9, 0.3],
    loss=[0.2, 0.5, 1.4],
    share=[0.5, 0.3, 0.2],
)


def test_excess_accuracy_gap_by_hand():
    # damage 0.05, 0.2, -0.1; overall 0.025 + 0.06 - 0.02 = 0.065
    c = ExcessAccuracyGap(0.1)
    np.testing.assert_allclose(c.violations(STATS), [-0.115, 0.035, -0.265], atol=1e-6)
    assert float(c.value(STATS)) == pytest.approx(0.135, abs=1e-6)


def test_accuracy_gap_by_hand():
    c = AccuracyGap(0.1)
    assert float(c.value(STATS)) == pytest.approx(0.5, abs=1e-6)
    np.testing.assert_allclose(c.violations(STATS), [-0.1, 0.1, 0.4, 0.4, 0.2, -0.1], atol=1e-6)
    assert c.labels(["x", "y", "z"])[0] == "x: below the best"
    assert len(c.labels(["x", "y", "z"])) == 6


def test_degradation_gap_by_hand():
    c = DegradationGap(0.05)
    assert float(c.value(STATS)) == pytest.approx(0.3, abs=1e-6)
    np.testing.assert_allclose(c.violations(STATS), [0.1, 0.25, -0.05, 0.1, -0.05, 0.25], atol=1e-6)


def test_equalized_losses_by_hand():
    # overall loss 0.1 + 0.15 + 0.28 = 0.53; differences -0.33, -0.03, 0.87
    absolute, signed = EqualizedLoss(0.1), SignedEqualizedLoss(0.1)
    np.testing.assert_allclose(absolute.violations(STATS), [0.23, 0, 0.77], atol=1e-6)
    np.testing.assert_allclose(signed.violations(STATS), [-0.23, 0, 0.77], atol=1e-6)
    assert float(absolute.value(STATS)) == pytest.approx(0.87, abs=1e-6)
    assert float(signed.value(STATS)) == pytest.approx(0.87, abs=1e-6)


def test_absolute_excess_accuracy_gap_by_hand():
    # psi -0.015, 0.135, -0.165
    c = AbsoluteExcessAccuracyGap(0.1)
    np.testing.assert_allclose(
        c.violations(STATS), [-0.115, 0.035, -0.265, -0.085, -0.235, 0.065], atol=1e-6
    )
    assert float(c.value(STATS)) == pytest.approx(0.165, abs=1e-6)


def test_worst_group_accuracy_by_hand():
    c = WorstGroupAccuracy(0.6)
    np.testing.assert_allclose(c.violations(STATS), [-0.3, -0.1, 0.2], atol=1e-6)
    assert float(c.value(STATS)) == pytest.approx(0.4, abs=1e-6)
    with pytest.raises(ValueError, match="floor of worst-group-accuracy must be at most 1"):
        WorstGroupAccuracy(1.1)


fractions = st.floats(0, 1)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, (3, 5), elements=fractions))
def test_the_degradation_gap_is_the_range_of_excess_gaps(values):
    share = values[2] + 0.01
    with jax.enable_x64(True):
        stats = make_stats(values[0], values[1], share=share / share.sum())
        psi = stats.excess_accuracy_gap
        gap = DegradationGap(0.0).value(stats)
        np.testing.assert_allclose(gap, psi.max() - psi.min(), atol=1e-12)
        # Either side of zero: the range lies between the absolute gap and twice that.
        absolute = AbsoluteExcessAccuracyGap(0.0).value(stats)
        np.testing.assert_allclose(absolute, np.abs(psi).max(), atol=1e-12)
        assert absolute - 1e-12 <= gap <= 2 * absolute + 1e-12


@pytest.mark.parametrize("name", GAPS)
def test_groups_that_are_absent_or_not_counted_say_nothing(name):
    constraint = CONSTRAINTS[name](tolerance=0.1)
    present, counted = [True, False, True, True], [True, True, True, False]
    stats = make_stats(
        [0.9, 0.0, 0.6, 0.1],
        [1, 0, 1, 1],
        [0.1, 0, 0.9, 5.0],
        [0.4, 0.1, 0.3, 0.2],
        present,
        counted,
    )
    violations = np.asarray(constraint.violations(stats)).reshape(-1, 4)
    assert np.isfinite(violations).all()
    assert not violations[:, [1, 3]].any()
    assert np.isfinite(constraint.value(stats))
    nothing = make_stats([0.0] * 4, present=[False] * 4)
    assert not np.any(constraint.violations(nothing))
    assert float(constraint.value(nothing)) == 0
    # What was left in an absent group's entries changes nothing.
    other = stats._replace(accuracy=stats.accuracy.at[1].set(7), loss=stats.loss.at[1].set(7))
    np.testing.assert_array_equal(constraint.violations(other), constraint.violations(stats))


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_bad_tolerances_and_surrogates(name):
    for tolerance in (-0.01, float("nan")):
        with pytest.raises(ValueError, match=f"tolerance of {name} must be at least 0"):
            CONSTRAINTS[name](tolerance)
    with pytest.raises(ValueError, match="unknown surrogate 'relu'"):
        CONSTRAINTS[name](0.1, surrogate="relu")


# ---------------------------------------------------------------- Lagrangian coefficients


def batch(groups=3, rows=60, seed=0):
    """Margins and groups of rows, their shares, and statistics with losses on both sides."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(rows) % (groups + 1) % groups)
    share = np.bincount(group, minlength=groups) / rows
    v = jnp.asarray(rng.normal(0, 2, rows))
    stats = make_stats(
        rng.uniform(size=groups), rng.uniform(size=groups), rng.uniform(0, 2, groups), share
    )
    return v, jnp.asarray(group, jnp.int32), jnp.asarray(share), stats


def group_mean(values, group, g):
    inside = group == g
    return jnp.sum(jnp.where(inside, values, 0)) / jnp.sum(inside)


def rest_mean(values, group, g):
    outside = group != g
    return jnp.sum(jnp.where(outside, values, 0)) / jnp.sum(outside)


def against_average(multipliers, harm, group, stats):
    """sum_g lambda_g (harm_g - harm): CEAG and the signed equalized loss."""
    return sum(multipliers[g] * (group_mean(harm, group, g) - jnp.mean(harm)) for g in range(3))


def absolute(multipliers, harm, group, stats):
    """sum_g lambda_g |L_g - L|; the sign as last measured."""
    signs = np.sign(np.asarray(stats.loss - jnp.sum(stats.share * stats.loss)))
    return sum(
        multipliers[g] * signs[g] * (group_mean(harm, group, g) - jnp.mean(harm)) for g in range(3)
    )


def one_against_the_rest(multipliers, harm, group, stats):
    """sum_g below_g (harm_g - harm_rest) + above_g (harm_rest - harm_g)."""
    total = 0.0
    for g in range(3):
        difference = group_mean(harm, group, g) - rest_mean(harm, group, g)
        total = total + (multipliers[g] - multipliers[3 + g]) * difference
    return total


def two_sided(multipliers, harm, group, stats):
    """sum_g (more_g - less_g) (harm_g - harm)."""
    return against_average(multipliers[:3] - multipliers[3:], harm, group, stats)


def raised(multipliers, harm, group, stats):
    """sum_g lambda_g harm_g."""
    return sum(multipliers[g] * group_mean(harm, group, g) for g in range(3))


LAGRANGIANS = {
    "absolute-excess-accuracy-gap": two_sided,
    "worst-group-accuracy": raised,
    "accuracy-gap": one_against_the_rest,
    "degradation-gap": one_against_the_rest,
    "excess-accuracy-gap": against_average,
    "equalized-loss": absolute,
    "equalized-loss-signed": against_average,
}


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("name", GAPS)
def test_coefficients_are_the_gradient_of_the_written_out_lagrangian(name, surrogate):
    constraint = CONSTRAINTS[name](0.1, surrogate=surrogate)
    with jax.enable_x64(True):
        v, group, share, stats = batch()
        count = len(constraint.labels("abc"))
        rng = np.random.default_rng(3)
        multipliers = jnp.asarray(
            rng.normal(size=count) if constraint.signed else rng.uniform(size=count)
        )

        def written_out(v):
            return LAGRANGIANS[name](multipliers, constraint.harm.harm(v), group, stats)

        def ours(v):
            weight = constraint.coefficients(multipliers, share, stats) / share
            return jnp.mean(weight[group] * constraint.harm.harm(v))

        np.testing.assert_allclose(jax.grad(ours)(v), jax.grad(written_out)(v), atol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_accuracy_gap_of_two_groups_is_bifps(sign):
    """``F_A = mean(u(s y f) / P(s)) - 1`` (Dai et al. 2023), u increasing; -F_A is bounded too.

    A binary network with one logit ``f`` and labels ``y`` in {-1, 1} has the margin ``y f``.
    """
    constraint = AccuracyGap(0.1)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        s = np.where(rng.uniform(size=80) < 0.3, 1, -1)
        p = jnp.asarray(np.where(s == 1, np.mean(s == 1), np.mean(s == -1)))
        y, f = jnp.asarray(rng.choice([-1, 1], 80)), jnp.asarray(rng.normal(0, 2, 80))

        def fairness_term(f):
            return jnp.mean(jax.nn.sigmoid(s * y * f) / p) - 1

        # Group 0 is s = +1. Its accuracy is F_A ahead: "above the worst" of group 0 holds it back.
        group = jnp.asarray(np.where(s == 1, 0, 1), jnp.int32)
        share = jnp.asarray([np.mean(s == 1), np.mean(s == -1)])
        multipliers = jnp.asarray([0.0, 0.0, 1.0, 0.0] if sign == 1 else [1.0, 0.0, 0.0, 0.0])
        stats = make_stats([0.5, 0.5], share=share)

        def ours(f):
            weight = constraint.coefficients(multipliers, share, stats) / share
            return jnp.mean(weight[group] * constraint.harm.harm(y * f))

        expected = sign * jax.grad(fairness_term)(f)
        np.testing.assert_allclose(jax.grad(ours)(f), expected, atol=1e-14)


def test_two_groups_have_one_difference():
    """Below for one group is above for the other."""
    constraint = AccuracyGap(0.1)
    share = jnp.array([0.3, 0.7])
    stats = make_stats([0.5, 0.5], share=share)
    c = [constraint.coefficients(m, share, stats) for m in jnp.eye(4)]
    np.testing.assert_allclose(c[0], [1, -1], atol=1e-6)
    np.testing.assert_allclose(c[0], c[3], atol=1e-6)
    np.testing.assert_allclose(c[1], c[2], atol=1e-6)


# ---------------------------------------------------------------- the guard

three_shares = hnp.arrays(np.float64, 3, elements=st.floats(0.05, 1)).map(lambda a: a / a.sum())


# Built beforehand: the type checker draws random numbers, which a strategy must not.
BUILT = {(k, s): CONSTRAINTS[k](0.1, surrogate=s) for k in GAPS for s in SURROGATES}
COUNTS = {k: len(CONSTRAINTS[k](0.1).labels("abc")) for k in GAPS}


@st.composite
def guarded_cases(draw):
    kinds = draw(st.lists(st.sampled_from(sorted(GAPS)), min_size=1, max_size=3, unique=True))
    constraints = [BUILT[k, draw(st.sampled_from(sorted(SURROGATES)))] for k in kinds]
    multipliers = [
        draw(hnp.arrays(np.float64, COUNTS[k], elements=st.floats(-3 if c.signed else 0, 3)))
        for k, c in zip(kinds, constraints, strict=True)
    ]
    return constraints, multipliers, draw(three_shares), draw(st.integers(0, 5))


MARGINS = np.linspace(-25, 25, 101)


@settings(max_examples=60, deadline=None)
@given(guarded_cases())
def test_no_rows_loss_is_ever_climbed(case):
    constraints, multipliers, share, seed = case
    room = (1.0, 0.5, 0.0)[seed % 3]  # what distillation leaves of the loss
    with jax.enable_x64(True):
        loss = np.asarray(np.random.default_rng(seed).uniform(0, 2, 3))
        stats = make_stats([0.5] * 3, loss=loss, share=share)
        m = tuple(jnp.asarray(v) for v in multipliers)
        got = fairness.row_weights(constraints, m, jnp.asarray(share), stats, room=room)
        raw = [
            np.asarray(c.coefficients(v, jnp.asarray(share), stats)) / share
            for c, v in zip(constraints, m, strict=True)
        ]
        weights = [np.asarray(w) for w in got.harm]
    # The derivative of a row's own objective with respect to its margin is never positive.
    own = -room / (1 + np.exp(MARGINS))
    for g in range(3):
        total = own.copy()
        for constraint, weight in zip(constraints, weights, strict=True):
            total += weight[g] * SLOPES[constraint.surrogate]
        assert (total <= 1e-9).all()
    # Without guard the same holds wherever it did not act; where it acted, something was changed.
    changed = any(not np.allclose(a, b, atol=1e-12) for a, b in zip(weights, raw, strict=True))
    if bool(got.bound):
        assert any((a > b).any() for a, b in zip(weights, raw, strict=True))
    else:
        assert not changed
    debt = np.zeros(3)
    for constraint, weight in zip(constraints, raw, strict=True):
        ratio = constraint.harm.ratio
        with np.errstate(invalid="ignore"):
            debt += np.where(weight < 0, ratio * -weight, 0)
    assume((np.abs(debt - room) > 1e-9).all())
    assert bool(got.bound) == bool((debt > room).any())
    # What is positive is never touched: needy groups get all they were promised.
    for a, b in zip(weights, raw, strict=True):
        np.testing.assert_allclose(a[b >= 0], b[b >= 0], atol=1e-300)


with jax.enable_x64(True):
    SLOPES = {
        name: np.asarray(
            jax.vmap(jax.grad(lambda v, h=s.harm: h(v[None])[0]))(jnp.asarray(MARGINS))
        )
        for name, s in SURROGATES.items()
    }


def test_without_the_guard_equalized_loss_climbs_once_multipliers_pass_one():
    constraint = SignedEqualizedLoss(0.0)
    share = jnp.array([0.8, 0.1, 0.1])
    stats = make_stats([0.5] * 3, loss=[0.1, 1, 1], share=share)
    for level, negative in ((0.45, False), (0.55, True)):
        multipliers = jnp.array([0.0, level, level])  # sum 0.9 or 1.1
        effective = 1 + constraint.coefficients(multipliers, share, stats) / share
        assert bool(effective[0] < 0) is negative
        guarded = fairness.row_weights([constraint], (multipliers,), share, stats)
        assert bool(guarded.bound) is negative
        assert float(1 + guarded.harm[0][0]) >= -1e-6
        np.testing.assert_allclose(1 + guarded.harm[0][1:], effective[1:], rtol=1e-6)


def test_a_group_without_share_has_no_weight():
    c = ExcessAccuracyGap(0.1)
    share = jnp.array([0.5, 0.5, 0.0])
    got = fairness.row_weights(
        [c], (jnp.array([0.1, 0.0, 5.0]),), share, make_stats([0.5] * 3, share=share)
    )
    assert np.isfinite(got.harm[0]).all()
    assert float(got.harm[0][2]) == 0


def test_no_constraints_no_weights():
    share = jnp.array([0.5, 0.5])
    got = fairness.row_weights([], (), share, make_stats([0.5, 0.5]))
    assert got.harm == ()
    assert not bool(got.bound)


def test_gradients_do_not_see_absent_groups():
    """A batch without rows of a group, statistics without it: finite gradients, nothing from it."""
    constraints = [CONSTRAINTS[name](0.1) for name in GAPS]
    share = jnp.array([0.6, 0.4, 0.0])
    stats = make_stats(
        [0.9, 0.5, 0.0], loss=[0.1, 0.9, 0.0], share=share, present=[True, True, False]
    )
    multipliers = tuple(jnp.full(len(c.labels("abc")), 0.2) for c in constraints)
    weights = fairness.row_weights(constraints, multipliers, share, stats)
    group = jnp.array([0, 1, 0, 1])

    def objective(v):
        total = fairness.cross_entropy(v)
        for c, w in zip(constraints, weights.harm, strict=True):
            total = total + w[group] * c.harm.harm(v)
        return jnp.mean(total)

    assert np.isfinite(jax.grad(objective)(jnp.array([-2.0, 0.0, 1.0, 50.0]))).all()


# ---------------------------------------------------------------- replay buffers

GROUPS, SIZE = 3, 4
write = jax.jit(fairness.write)
row_lists = st.lists(
    st.lists(st.integers(-1, GROUPS - 1), min_size=12, max_size=12), min_size=1, max_size=5
)


def numbered(start, rows):
    values = start + jnp.arange(rows, dtype=jnp.float32)
    return Outcomes(values, values + 0.25, values + 0.5, values + 0.75)


@settings(max_examples=60, deadline=None)
@given(row_lists)
def test_buffers_are_rings(batches):
    """Against a deque a group; one batch of twelve rows may hold more of a group than the four
    that fit."""
    buffers = fairness.empty_buffers(GROUPS, SIZE)
    reference = [deque(maxlen=SIZE) for _ in range(GROUPS)]
    seen = np.zeros(GROUPS, int)
    for number, groups in enumerate(batches):
        start = 100.0 * number
        buffers = write(buffers, numbered(start, len(groups)), jnp.asarray(groups, jnp.int32))
        for i, g in enumerate(groups):
            if g >= 0:
                reference[g].append(start + i)
                seen[g] += 1
    np.testing.assert_array_equal(buffers.written, seen)
    share, counted = jnp.array([0.7, 0.2, 0.1]), jnp.ones(GROUPS, bool)
    stats = fairness.buffer_statistics(buffers, share, counted)
    for g in range(GROUPS):
        kept = np.asarray(buffers.values[g])[: min(seen[g], SIZE)]
        assert sorted(kept[:, 0]) == sorted(reference[g])
        np.testing.assert_allclose(
            kept - kept[:, :1], np.tile([0, 0.25, 0.5, 0.75], (len(kept), 1))
        )
        assert bool(stats.present[g]) == (len(reference[g]) == SIZE)
        if len(reference[g]) == SIZE:
            assert float(stats.accuracy[g]) == pytest.approx(np.mean(reference[g]))
            assert float(stats.dense_loss[g]) == pytest.approx(np.mean(reference[g]) + 0.75)
        else:
            assert float(stats.accuracy[g]) == 0
    # Overall: groups weigh by their share in the role, not equally.
    full = np.array([len(r) == SIZE for r in reference])
    if full.any():
        means = np.array([np.mean(r) if len(r) == SIZE else 0 for r in reference])
        weight = np.where(full, np.asarray(share), 0)
        assert float(stats.overall(stats.accuracy)) == pytest.approx(
            (weight * means).sum() / weight.sum(), rel=1e-5
        )


@settings(max_examples=30, deadline=None)
@given(row_lists)
def test_rings_hold_no_more_rows_than_there_are(batches):
    """A group of two rows is measured on two, one of seven on the four that fit, one of none not at
    all."""
    rows = np.array([[1, 1], [4, 3], [0, 0]])
    buffers = fairness.empty_buffers(GROUPS, SIZE, classes=2, rows=rows)
    np.testing.assert_array_equal(buffers.capacity, [2, 4, 0])
    np.testing.assert_array_equal(buffers.cells.capacity, [1, 1, 4, 3, 0, 0])
    reference = [deque(maxlen=n) for n in (2, 4, 0)]
    cells = [deque(maxlen=n) for n in (1, 1, 4, 3, 0, 0)]
    for number, groups in enumerate(batches):
        groups = [min(g, 1) for g in groups]  # there is no row of the last group
        labels = [(number + i) % 2 for i in range(len(groups))]
        outcomes = numbered(100.0 * number, len(groups))._replace(
            label=jnp.asarray(labels, jnp.int32), answer=jnp.asarray(labels[::-1], jnp.int32)
        )
        buffers = write(buffers, outcomes, jnp.asarray(groups, jnp.int32))
        for i, (g, label) in enumerate(zip(groups, labels, strict=True)):
            if g >= 0:
                reference[g].append(100.0 * number + i)
                cells[2 * g + label].append(labels[::-1][i])
    share = jnp.array([0.6, 0.4, 0.0])
    cell_share = jnp.array([[0.3, 0.3], [0.2, 0.2], [0.0, 0.0]])
    stats = fairness.buffer_statistics(buffers, share, jnp.ones(GROUPS, bool), cell_share)
    for g, held in enumerate(reference):
        assert bool(stats.present[g]) == (0 < len(held) == held.maxlen)
        if stats.present[g]:
            assert float(stats.accuracy[g]) == pytest.approx(np.mean(held), rel=1e-5)
    for c, held in enumerate(cells):
        g, label = divmod(c, 2)
        assert bool(stats.answers.present[g, label]) == (0 < len(held) == held.maxlen)
        if stats.answers.present[g, label]:
            assert float(stats.answers.rate[g, label, 1]) == pytest.approx(np.mean(held))


def filled(lost, size, groups):
    """Buffers of rows that the dense model has right and of which the pruned one loses some."""
    buffers = fairness.empty_buffers(groups, size)
    group = np.repeat(np.arange(groups), size)
    correct = 1.0 - np.asarray(lost, np.float32)
    loss = -np.log(np.where(correct, 0.9, 0.1)).astype(np.float32)
    ones = np.ones(len(group), np.float32)
    return write(
        buffers, Outcomes(*map(jnp.asarray, (correct, ones, loss, 0.1 * ones))), jnp.asarray(group)
    )


def test_shrunken_means_are_empirical_bayes_written_out():
    rng = np.random.default_rng(0)
    size, share = 40, np.array([0.5, 0.3, 0.2])
    lost = rng.random((3, size)) < np.array([[0.1], [0.2], [0.7]])
    raw = fairness.buffer_statistics(
        filled(lost.ravel(), size, 3), jnp.asarray(share, jnp.float32), jnp.ones(3, bool)
    )
    stats = raw.shrunken()
    damage = lost.mean(1)
    apart = damage - share @ damage
    error = damage * (1 - damage) / (size - 1)
    noise = [(1 - share[g]) ** 2 * error[g] + sum(
        share[h] ** 2 * error[h] for h in range(3) if h != g) for g in range(3)]  # fmt: skip
    tau = max(share @ (apart**2 - noise), 0)
    kept = tau / (tau + np.asarray(noise))
    assert 0.3 < kept.min() < kept.max() < 1
    np.testing.assert_allclose(stats.damage, share @ damage + kept * apart, rtol=1e-4)
    np.testing.assert_allclose(stats.accuracy, 1 - stats.damage, rtol=1e-5)
    np.testing.assert_allclose(raw.shrunken(0.0).damage, raw.damage, rtol=1e-6)
    halfway = raw.shrunken(0.5).damage
    np.testing.assert_allclose(halfway, (raw.damage + stats.damage) / 2, rtol=1e-5)
    # Losses have a noise of their own.
    middle = share @ np.asarray(raw.loss)
    pulled = np.abs(np.asarray(stats.loss) - middle) / np.abs(np.asarray(raw.loss) - middle)
    assert (pulled > 0).all()
    assert (pulled < 1).all()


def test_shrunken_gaps_vanish_where_groups_are_equal_and_stay_where_they_are_not():
    """Multipliers would chase the first and must not lose the second."""
    rng, share = np.random.default_rng(1), jnp.full(8, 0.125)
    largest = {"equal": [], "one harmed": []}
    for name, rates in (
        ("equal", np.full(8, 0.15)),
        ("one harmed", np.array([0.6, *[0.1] * 7])),
    ):
        for _ in range(60):
            lost = rng.random((8, 30)) < rates[:, None]
            raw = fairness.buffer_statistics(filled(lost.ravel(), 30, 8), share, jnp.ones(8, bool))
            both = (float(s.excess_accuracy_gap.max()) for s in (raw, raw.shrunken()))
            largest[name].append(tuple(both))
    equal, harmed = (np.mean(v, 0) for v in largest.values())
    assert equal[0] > 0.07
    assert equal[1] < 0.3 * equal[0]
    assert harmed[1] > 0.8 * harmed[0] > 0.3


def test_one_row_of_a_group_is_no_certainty():
    buffers = fairness.empty_buffers(2, 8, rows=np.array([[1], [8]]))
    group = jnp.array([0, *[1] * 8])
    correct = jnp.array([0.0, *[1.0] * 8])
    ones = jnp.ones(9)
    buffers = write(buffers, Outcomes(correct, ones, 1 - correct, 0 * ones), group)
    stats = fairness.buffer_statistics(buffers, jnp.array([0.1, 0.9]), jnp.ones(2, bool))
    assert float(stats.excess_accuracy_gap[0]) == pytest.approx(0.9)
    assert float(stats.shrunken().excess_accuracy_gap[0]) < 0.3
    # Means without rows behind them have no noise that is known.
    bare = stats._replace(errors=None)
    assert bare.shrunken() is bare


def test_overall_is_no_macro_mean():
    buffers = fairness.empty_buffers(2, 1)
    ones, zeros = jnp.array([1.0, 0.0]), jnp.zeros(2)
    buffers = fairness.write(buffers, Outcomes(ones, ones, zeros, zeros), jnp.array([0, 1]))
    stats = fairness.buffer_statistics(buffers, jnp.array([0.9, 0.1]), jnp.ones(2, bool))
    assert float(stats.overall(stats.accuracy)) == pytest.approx(0.9)


def test_empty_buffers_claim_nothing():
    with pytest.raises(ValueError, match="at least 1 row"):
        fairness.empty_buffers(3, 0)
    stats = fairness.buffer_statistics(
        fairness.empty_buffers(3, 2), jnp.full(3, 1 / 3), jnp.ones(3, bool)
    )
    assert not stats.present.any()
    for name in GAPS:
        assert not np.any(CONSTRAINTS[name](0.1).violations(stats))


# ---------------------------------------------------------------- multipliers


@pytest.mark.parametrize("rule", [optax.sgd(0.5), optax.adam(0.5)], ids=["sgd", "adam"])
@settings(max_examples=20, deadline=None)
@given(steps=st.lists(hnp.arrays(np.float32, 3, elements=st.floats(-1, 1, width=32)), max_size=6))
def test_multipliers_stay_where_they_may_lie(rule, steps):
    constraints = [ExcessAccuracyGap(0.1), EqualizedLoss(0.1), SignedEqualizedLoss(0.1)]
    multipliers = fairness.initial_multipliers(constraints, 3)
    state = rule.init(multipliers)
    for step in steps:
        violation = jnp.asarray(step)
        before = multipliers
        multipliers, state = fairness.ascend(
            constraints, multipliers, (violation, violation, violation), rule, state
        )
        assert (multipliers[0] >= 0).all()
        assert (multipliers[1] >= before[1]).all()


def test_ascent_by_plain_gradient_steps():
    constraints = [ExcessAccuracyGap(0.1), EqualizedLoss(0.1), SignedEqualizedLoss(0.1)]
    rule = optax.sgd(0.5)
    multipliers = tuple(jnp.array([0.1, 0.1, 0.1]) for _ in constraints)
    violations = tuple(jnp.array([1.0, -1.0, 0.1]) for _ in constraints)
    got, _ = fairness.ascend(constraints, multipliers, violations, rule, rule.init(multipliers))
    np.testing.assert_allclose(got[0], [0.6, 0, 0.15], atol=1e-6)  # projected
    np.testing.assert_allclose(got[1], [0.6, 0.1, 0.15], atol=1e-6)  # never falls
    np.testing.assert_allclose(got[2], [0.6, -0.4, 0.15], atol=1e-6)  # free


def test_multipliers_start_at_zero_one_a_label():
    constraints = [c(0.1) for c in CONSTRAINTS.values()]
    got = fairness.initial_multipliers(constraints, 4)
    assert [len(m) for m in got] == [len(c.labels("abcd")) for c in constraints]
    assert not any(m.any() for m in got)


# ---------------------------------------------------------------- reported metrics


@st.composite
def judged_rows(draw):
    rows = draw(st.integers(1, 60))
    bools = st.lists(st.booleans(), min_size=rows, max_size=rows)
    group = draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
    return np.array(draw(bools)), np.array(draw(bools)), np.array(group)


@settings(max_examples=50, deadline=None)
@given(judged_rows())
def test_metrics_agree_with_fairlearn(case):
    from fairlearn.metrics import MetricFrame, count
    from sklearn.metrics import accuracy_score

    dense, correct, group = case
    names = ["a", "b", "c", "d"]
    right = np.ones(len(group), int)
    frames = {
        key: MetricFrame(
            metrics={"accuracy": accuracy_score, "count": count},
            y_true=right,
            y_pred=values.astype(int),
            sensitive_features=[names[g] for g in group],
        )
        for key, values in (("dense", dense), ("pruned", correct))
    }
    got = fairness.gaps(dense, correct, group, names)
    shown = fairness.performance(correct, np.ones(len(group), np.float32), group, names)
    by_group = {k: f.by_group["accuracy"] for k, f in frames.items()}
    overall = {k: f.overall["accuracy"] for k, f in frames.items()}
    assert shown["accuracy"] == pytest.approx(overall["pruned"], abs=1e-12)
    assert got["accuracy_gap"] == pytest.approx(
        frames["pruned"].difference(method="between_groups")["accuracy"], abs=1e-12
    )
    assert got["worst_group_accuracy"] == pytest.approx(
        frames["pruned"].group_min()["accuracy"], abs=1e-12
    )
    loss_of_accuracy = by_group["dense"] - by_group["pruned"]
    assert got["degradation_gap"] == pytest.approx(
        loss_of_accuracy.max() - loss_of_accuracy.min(), abs=1e-12
    )
    excess = loss_of_accuracy - (overall["dense"] - overall["pruned"])
    assert got["max_excess_accuracy_gap"] == pytest.approx(excess.max(), abs=1e-12)
    for name in names:
        if name in by_group["pruned"]:
            assert shown["group_accuracy"][name] == pytest.approx(
                by_group["pruned"][name], abs=1e-12
            )
            assert shown["group_size"][name] == frames["pruned"].by_group["count"][name]
            assert got["excess_accuracy_gap"][name] == pytest.approx(excess[name], abs=1e-12)
        else:
            assert shown["group_accuracy"][name] is None
            assert got["excess_accuracy_gap"][name] is None
        inside = group == names.index(name)
        assert got["discordant"][name] == [
            int((dense & ~correct)[inside].sum()),
            int((~dense & correct)[inside].sum()),
        ]


@settings(max_examples=50, deadline=None)
@given(judged_rows(), st.sampled_from(sorted(GAPS)))
def test_the_largest_violation_is_the_reported_gap_less_the_tolerance(case, name):
    dense, correct, group = case
    rng = np.random.default_rng(0)
    loss = rng.uniform(0, 3, len(group)).astype(np.float32)
    outcomes = Outcomes(correct, dense, loss, loss)
    constraint = CONSTRAINTS[name](tolerance=0.03)
    (got,) = fairness.measure([constraint], outcomes, group, list("abcd"))
    reported = fairness.gaps(dense, correct, group, list("abcd"))
    sizes = np.bincount(group, minlength=4)
    means = [loss[group == g].astype(np.float64).mean() for g in range(4) if sizes[g]]
    expected = {
        "accuracy-gap": reported["accuracy_gap"],
        "degradation-gap": reported["degradation_gap"],
        "excess-accuracy-gap": reported["max_excess_accuracy_gap"],
        "equalized-loss": np.abs(np.array(means) - loss.astype(np.float64).mean()).max(),
        "equalized-loss-signed": np.abs(np.array(means) - loss.astype(np.float64).mean()).max(),
        "worst-group-accuracy": reported["worst_group_accuracy"],
        "absolute-excess-accuracy-gap": max(
            abs(v) for v in reported["excess_accuracy_gap"].values() if v is not None
        ),
    }[name]
    assert got.value == pytest.approx(expected, abs=1e-12)
    over = 0.03 - expected if constraint.floor else expected - 0.03
    assert got.violation == pytest.approx(over, abs=1e-12)
    assert max(got.distances.values()) == got.violation


def test_uncounted_groups_stand_outside_every_claim():
    group = np.array([0, 0, 1, 1, 2])
    dense, correct = np.ones(5, bool), np.array([True, True, True, False, False])
    counted = np.array([True, True, False])
    got = fairness.gaps(dense, correct, group, list("abc"), counted)
    assert got["accuracy_gap"] == 0.5
    assert got["worst_group_accuracy"] == 0.5
    assert got["excess_accuracy_gap"]["c"] == pytest.approx(0.6)  # shown all the same
    zero = np.zeros(5, np.float32)
    (found,) = fairness.measure(
        [AccuracyGap(0.1)], Outcomes(correct, dense, zero, zero), group, list("abc"), counted
    )
    assert found.violation == pytest.approx(0.4, abs=1e-12)
    assert not any(label.startswith("c:") for label in found.distances)


def test_no_rows_no_numbers():
    none = np.zeros(0, bool)
    group = np.zeros(0, int)
    shown = fairness.performance(none, np.zeros(0, np.float32), group, ["a"])
    assert shown == {
        "accuracy": None,
        "loss": None,
        "group_accuracy": {"a": None},
        "group_size": {"a": 0},
    }
    assert fairness.gaps(none, none, group, ["a"])["accuracy_gap"] is None
    outcomes = Outcomes(none, none, np.zeros(0), np.zeros(0))
    (found,) = fairness.measure([AccuracyGap(0.1)], outcomes, group, ["a"])
    assert found == (None, None, {})


# ---------------------------------------------------------------- as written by a user


@pytest.mark.parametrize(
    ("text", "value"), [("2%", 0.02), ("0.02", 0.02), (" 5 % ", 0.05), ("0", 0), ("150%", 1.5)]
)
def test_tolerances(text, value):
    assert fairness.parse_tolerance(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["nan", "-1%", "-0.01", "inf", "two", "", "%", "2", "1", "2 %%"])
def test_refused_tolerances(text):
    with pytest.raises(ValueError, match="tolerance") as caught:
        fairness.parse_tolerance(text)
    assert "\n" not in str(caught.value)


def test_a_bare_two_is_ambiguous():
    with pytest.raises(ValueError, match="ambiguous: write 2% or a fraction"):
        fairness.parse_tolerance("2")


def test_constraints():
    assert fairness.parse_constraint("excess-accuracy-gap=2%") == ExcessAccuracyGap(0.02)
    assert fairness.parse_constraint("Accuracy_Gap <= 0.1") == AccuracyGap(0.1)
    assert fairness.parse_constraint("degradation-gap:3%") == DegradationGap(0.03)
    assert fairness.parse_constraint("equalized-loss") == EqualizedLoss()
    with pytest.raises(
        ValueError, match="unknown constraint 'acuracy-gap': did you mean 'accuracy-gap'"
    ):
        fairness.parse_constraint("acuracy-gap=2%")
    with pytest.raises(ValueError, match="tolerance"):
        fairness.parse_constraint("accuracy-gap=")


def test_what_an_accuracy_is_worth():
    """Against scikit-learn, with a class that has no rows."""
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(3)
    label = rng.choice(3, 200, p=[0.7, 0.2, 0.1])
    answer = np.where(rng.random(200) < 0.8, 0, label)
    shown = fairness.performance(
        answer == label, np.ones(200, np.float32), label * 0, ["a"],
        label=label, answer=answer, classes=["x", "y", "z", "none"],
    )  # fmt: skip
    assert shown["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, answer))
    assert (shown["majority_class"], shown["majority_share"]) == ("x", np.mean(label == 0))
    said = (shown["commonest_answer"], shown["commonest_answer_share"])
    assert said == ("x", np.mean(answer == 0))
    nothing = np.zeros(0, int)
    assert set(fairness._metrics.of_answers(nothing, nothing, ["x", "y"]).values()) == {None}
