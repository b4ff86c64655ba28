"""Rules that move multipliers: saddle points known by hand, oscillation, projection, names."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fairbilevel as fb
from fairbilevel import fairness
from fairbilevel.fairness import (
    AbsoluteExcessAccuracyGap,
    ExcessAccuracyGap,
    SignedEqualizedLoss,
    ascend,
)
from fairbilevel.fairness._rules import MULTIPLIER_RULES

INEQUALITY, EQUALITY = ExcessAccuracyGap(0.0), SignedEqualizedLoss(0.0)


def saddle(objective, residuals, x, rule, steps, rate, kind=INEQUALITY):
    """Descent on ``x`` and the rule on multipliers, by turns; the whole course of both."""
    multipliers = (jnp.zeros(len(residuals(x))),)
    state = rule.init(multipliers)

    def lagrangian(x, values):
        return objective(x) + jnp.sum(values * residuals(x))

    def step(carry, _):
        x, multipliers, state = carry
        x = x - rate * jax.grad(lagrangian)(x, multipliers[0])
        multipliers, state = ascend([kind], multipliers, (residuals(x),), rule, state)
        return (x, multipliers, state), (x, multipliers[0])

    return jax.lax.scan(step, (x, multipliers, state), None, steps)[1]


def nearest(x):
    """Squared distance from (2, 1, 0)."""
    return 0.5 * jnp.sum((x - jnp.array([2.0, 1.0, 0.0])) ** 2)


def halfspaces(x):
    """``x_1 <= 1``, ``x_1 + x_2 <= 1.5`` and ``x_3 <= 1``, which is slack.

    Stationarity ``x = (2 - l_1 - l_2, 1 - l_2, 0)`` with both active gives ``x = (1, 1/2, 0)`` and
    ``l = (1/2, 1/2, 0)``.
    """
    return jnp.array([x[0] - 1.0, x[0] + x[1] - 1.5, x[2] - 1.0])


RULES = {
    "gradient-ascent": (fairness.gradient_ascent(0.05), 4000),
    "augmented-lagrangian": (fairness.augmented_lagrangian(0.05, penalty=1.0), 4000),
    "nupi": (fairness.nupi(0.05, proportional=0.5, smoothing=0.5), 4000),
    "multiplicative-weights": (fairness.multiplicative_weights(0.05, budget=3.0), 8000),
}


def test_every_rule_is_tested():
    assert {*RULES, "penalty"} == set(MULTIPLIER_RULES)


def test_a_fixed_penalty_is_exact_once_it_outweighs_the_multipliers():
    # The exact penalty has the constrained solution where its weight exceeds every multiplier, here
    # 1/2; below that the constraints are broken: x = (2 - 2w, 1 - w, 0) wherever both are.
    rule = fairness.fixed_penalty(1.0, weight=2.0)
    x, multipliers = saddle(nearest, halfspaces, jnp.zeros(3), rule, 4000, 0.002)
    np.testing.assert_allclose(x[-1], [1, 0.5, 0], atol=0.02)
    assert set(np.unique(multipliers)) <= {0.0, 2.0}
    x, _ = saddle(nearest, halfspaces, jnp.zeros(3), fairness.fixed_penalty(1.0, 0.2), 4000, 0.01)
    np.testing.assert_allclose(x[-1], [1.6, 0.8, 0], atol=1e-3)


@pytest.mark.parametrize("name", RULES)
def test_rules_reach_a_known_saddle_point(name):
    rule, steps = RULES[name]
    x, multipliers = saddle(nearest, halfspaces, jnp.zeros(3), rule, steps, 0.1)
    np.testing.assert_allclose(x[-1], [1, 0.5, 0], atol=2e-3)
    # Multiplicative weights never give a multiplier up wholly: exp(-8) of the slack is left.
    np.testing.assert_allclose(multipliers[-1], [0.5, 0.5, 0], atol=2e-3)


@pytest.mark.parametrize("name", RULES)
def test_rules_reach_a_saddle_point_with_a_free_multiplier(name):
    """Of ``x_1^2 / 2`` under ``x_1 = 1``: the multiplier is -1."""
    rule, steps = RULES[name]
    x, multipliers = saddle(
        lambda x: 0.5 * jnp.sum(x**2), lambda x: x - 1.0, jnp.zeros(1), rule, steps, 0.1, EQUALITY
    )
    np.testing.assert_allclose(x[-1], [1], atol=2e-3)
    np.testing.assert_allclose(multipliers[-1], [-1], atol=2e-3)


@pytest.mark.parametrize("name", RULES)
def test_a_linear_objective_oscillates_under_ascent_alone(name):
    """``min -x`` under ``x <= 1`` has its saddle at ``x = 1, lambda = 1``. Plain ascent circles
    around it for ever; a proportional term (nuPI, the augmented Lagrangian) damps it."""
    rules = {
        "gradient-ascent": fairness.gradient_ascent(0.5),
        "nupi": fairness.nupi(0.5, proportional=1.0, smoothing=0.0),
        "augmented-lagrangian": fairness.augmented_lagrangian(0.5, penalty=1.0),
        "multiplicative-weights": fairness.multiplicative_weights(0.5, budget=2.0),
    }
    x, _ = saddle(lambda x: -jnp.sum(x), lambda x: x - 1.0, jnp.zeros(1), rules[name], 1500, 0.1)
    swing = float(jnp.ptp(x[-200:]))
    if name in ("nupi", "augmented-lagrangian"):
        assert swing < 1e-3
        assert float(x[-1, 0]) == pytest.approx(1, abs=1e-3)
    else:
        assert swing > 0.5


def test_a_moving_average_damps_too():
    """nuPI's own regime: the error is smoothed before the proportional term sees it."""
    rule = fairness.nupi(0.5, proportional=5.0, smoothing=0.8)
    x, _ = saddle(lambda x: -jnp.sum(x), lambda x: x - 1.0, jnp.zeros(1), rule, 3000, 0.05)
    assert float(jnp.ptp(x[-200:])) < 1e-3


def test_nupi_by_hand():
    """Sohrabi et al. 2024: theta += kappa_i e + kappa_p (xi_t - xi_{t-1})."""
    rule = fairness.nupi(0.1, proportional=2.0, smoothing=0.75)
    errors, multipliers = [1.0, 0.2, -0.4, 0.6], (jnp.array([3.0]),)
    state = rule.init(multipliers)
    theta, xi = 3.0, errors[0]
    for error in errors:
        before, xi = xi, 0.75 * xi + 0.25 * error
        theta += 0.1 * error + 2.0 * (xi - before)
        multipliers, state = ascend([INEQUALITY], multipliers, (jnp.array([error]),), rule, state)
        assert float(multipliers[0][0]) == pytest.approx(theta, rel=1e-5)


def test_nupi_without_a_proportional_term_is_gradient_ascent():
    for rule in (fairness.nupi(0.3, proportional=0.0), fairness.gradient_ascent(0.3)):
        multipliers = (jnp.array([0.0, 0.5]),)
        state = rule.init(multipliers)
        for error in ([0.5, -1.0], [0.25, -2.0], [-0.1, 0.3]):
            multipliers, state = ascend([INEQUALITY], multipliers, (jnp.array(error),), rule, state)
        np.testing.assert_allclose(multipliers[0], [0.195, 0.09], atol=1e-6)


def test_the_augmented_lagrangian_feels_the_penalty_at_once():
    rule = fairness.augmented_lagrangian(0.1, penalty=2.0)
    multipliers = (jnp.zeros(2),)
    state = rule.init(multipliers)
    for error, felt in (
        ([0.5, -0.5], [1.0, 0]),
        ([0.5, 0.5], [1.05, 1.0]),
        ([0.0, 0.0], [0.1, 0.05]),
    ):
        multipliers, state = ascend([INEQUALITY], multipliers, (jnp.array(error),), rule, state)
        np.testing.assert_allclose(multipliers[0], felt, atol=1e-6)


def test_multiplicative_weights_by_hand():
    rule = fairness.multiplicative_weights(2.0, budget=3.0)
    multipliers = (jnp.zeros(3),)
    state = rule.init(multipliers)
    violation = np.array([0.5, -0.25, 0.0])
    for step in (1, 2):
        multipliers, state = ascend(
            [INEQUALITY], multipliers, (jnp.asarray(violation, jnp.float32),), rule, state
        )
        weights = np.exp(2.0 * step * violation)
        np.testing.assert_allclose(multipliers[0], 3 * weights / (1 + weights.sum()), rtol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_what_was_not_measured_moves_nothing(name):
    """Buffers are emptied when the budget moves: no violation then is no violation of zero."""
    rule, _ = RULES[name]
    seen, unseen = (jnp.array([True, True]),), (jnp.array([False, True]),)
    violations = (jnp.array([0.4, 0.4]),)
    gone = (jnp.array([0.0, 0.4]),)
    multipliers, state = (jnp.zeros(2),), rule.init((jnp.zeros(2),))
    multipliers, state = ascend([INEQUALITY], multipliers, violations, rule, state, seen)
    after, later = ascend([INEQUALITY], multipliers, gone, rule, state, unseen)
    if name != "multiplicative-weights":  # shares of one budget, and the other goes on
        assert float(after[0][0]) == float(multipliers[0][0])
    # Back again, it goes on as if the gap had not been.
    again, _ = ascend([INEQUALITY], after, violations, rule, later, seen)
    straight, _ = ascend([INEQUALITY], multipliers, violations, rule, state, seen)
    if name != "multiplicative-weights":
        np.testing.assert_allclose(again[0][0], straight[0][0], rtol=1e-6)
    never, state = (jnp.zeros(2),), rule.init((jnp.zeros(2),))
    for _ in range(3):
        never, state = ascend([INEQUALITY], never, gone, rule, state, unseen)
    assert float(never[0][0]) == 0
    assert float(never[0][1]) > 0


def test_units_are_of_multipliers_and_of_what_rules_say_they_are():
    """A rule that sets multipliers outright sets them in these units, at once."""
    violations, units = (jnp.array([0.2, -0.1, 0.3]),), (jnp.array([0.5, 0.1, 0.0]),)
    nothing = now = (jnp.zeros(3),)
    penalty = fairness.fixed_penalty(0.1, weight=2.0)
    for _ in range(2):
        now, _ = ascend([INEQUALITY], now, violations, penalty, penalty.init(nothing), units=units)
        np.testing.assert_allclose(now[0], [1.0, 0, 0])
    steps = fairness.gradient_ascent(3.0)
    now, _ = ascend([INEQUALITY], nothing, violations, steps, steps.init(nothing), units=units)
    np.testing.assert_allclose(now[0], [0.3, 0, 0], rtol=1e-6)


errors = st.lists(hnp.arrays(np.float32, 6, elements=st.floats(-1, 1, width=32)), max_size=6)
CONSTRAINTS = [AbsoluteExcessAccuracyGap(0.1), SignedEqualizedLoss(0.1)]
STEEP = {
    "gradient-ascent": fairness.gradient_ascent(3.0),
    "augmented-lagrangian": fairness.augmented_lagrangian(1.0, penalty=10.0),
    "nupi": fairness.nupi(1.0, proportional=20.0, smoothing=0.5),
    "multiplicative-weights": fairness.multiplicative_weights(5.0, budget=20.0),
    "any optax rule": optax.adam(2.0),
}
moved = {
    name: jax.jit(lambda m, v, s, rule=rule: ascend(CONSTRAINTS, m, v, rule, s))
    for name, rule in STEEP.items()
}


@pytest.mark.parametrize("name", STEEP)
@settings(max_examples=20, deadline=None)
@given(steps=errors)
def test_the_guard_holds_for_every_rule(name, steps):
    """Wherever a rule takes the multipliers, inequality multipliers stay at or above 0 and no
    group's weight falls below 0."""
    share = jnp.array([0.7, 0.2, 0.1])
    zero, on = jnp.zeros(3), jnp.ones(3, bool)
    stats = fairness.GroupStatistics(zero, zero, zero, zero, share, on, on)
    multipliers = (jnp.zeros(6), jnp.zeros(3))
    state = STEEP[name].init(multipliers)
    for step in steps:
        violations = (jnp.asarray(step), jnp.asarray(step[:3]))
        multipliers, state = moved[name](multipliers, violations, state)
        assert (np.asarray(multipliers[0]) >= 0).all()
        got = guarded(multipliers, share, stats)
        opposed = sum(np.maximum(-np.asarray(w), 0) for w in got.harm)
        assert (opposed <= 1 + 1e-5).all()
        if name == "multiplicative-weights":
            assert sum(np.abs(m).sum() for m in multipliers) < 20


guarded = jax.jit(lambda m, share, stats: fairness.row_weights(CONSTRAINTS, m, share, stats))


def test_rules_that_would_break_the_guard_are_held():
    """The property above is not idle: these rules do take the multipliers too far."""
    share = jnp.array([0.7, 0.2, 0.1])
    zero, on = jnp.zeros(3), jnp.ones(3, bool)
    stats = fairness.GroupStatistics(zero, zero, zero, zero, share, on, on)
    for name, rule in STEEP.items():
        multipliers = (jnp.zeros(6), jnp.zeros(3))
        state = rule.init(multipliers)
        violations = (jnp.array([-1, 1, 1, -1, -1, -1.0]), jnp.array([-1, 1, 1.0]))
        for _ in range(4):
            multipliers, state = moved[name](multipliers, violations, state)
        assert bool(guarded(multipliers, share, stats).bound), name


# ---------------------------------------------------------------- by name


def test_rules_by_name_take_options():
    errors = (jnp.array([1.0, -0.5]),)
    zeros = (jnp.zeros(2),)
    for text, rule in (
        ("gradient-ascent", fairness.gradient_ascent(0.2)),
        ("nupi:proportional=3,smoothing=0.5", fairness.nupi(0.2, 3.0, 0.5)),
        ("augmented-lagrangian:penalty=7", fairness.augmented_lagrangian(0.2, 7.0)),
        ("multiplicative-weights:budget=4", fairness.multiplicative_weights(0.2, 4.0)),
    ):
        named = fairness.multiplier_rule(text, 0.2)
        results = []
        for found in (named, rule):
            m, state = zeros, found.init(zeros)
            for _ in range(2):
                m, state = ascend([INEQUALITY], m, errors, found, state)
            results.append(np.asarray(m[0]))
        np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nuppi", "unknown multiplier rule 'nuppi': did you mean 'nupi'"),
        ("nupi:gain=1", "multiplier rule 'nupi' has no option 'gain': choose from proportional"),
        ("gradient-ascent:step=1", "has no option 'step': it has none"),
        ("nupi:smoothing=1", "nupi's smoothing must lie in"),
        ("nupi:proportional=much", "proportional must be a number of at least 0, got 'much'"),
        ("augmented-lagrangian:penalty=-1", "penalty must be a number of at least 0"),
        ("multiplicative-weights:budget=0", "budget of multiplicative weights must be positive"),
    ],
)
def test_bad_rules(text, message):
    with pytest.raises(ValueError, match=message):
        fairness.multiplier_rule(text, 0.1)
    with pytest.raises(ValueError, match=message):
        fb.BilevelSolver(multiplier_rule=text)


def test_two_data_sets_by_default(tiny_problem):
    """Weights, masks and multipliers each move by rows of their own: the multipliers answer to
    true violations on the half of select that no gradient sees."""
    problem = tiny_problem(ExcessAccuracyGap(0.0))
    solver = fb.BilevelSolver(sparsity=0.5, steps=120, batch_size=16, buffer_size=2)
    assert solver.multipliers_from == "start"
    run = solver.start(problem, problem.refer(problem.initial_network(0)))
    taken: dict[int, set[int]] = {}
    take = run.feed.take

    def watch(rows, stream, *arguments, **options):
        taken.setdefault(stream, set()).update(np.asarray(rows).tolist())
        return take(rows, stream, *arguments, **options)

    run.feed.take = watch
    run.step(run.init())
    fit, select, duals = (
        taken[s] for s in (fb.train.STREAM_FIT, fb.train.STREAM_SELECT, fb.train.STREAM_DUALS)
    )
    assert fit == set(problem.roles["fit"].tolist())
    assert select == set(problem.select_outer.tolist())
    assert duals == set(problem.select_duals.tolist())
    assert len(fit | select | duals) == len(fit) + len(select) + len(duals)


# ---------------------------------------------------------------- after a divergence


@pytest.mark.parametrize("name", [*RULES, "penalty"])
def test_a_rule_stays_itself_after_a_divergence(name, tiny_problem):
    """Smaller steps scale a rule's moves; what it remembers, what was measured and where its
    multipliers may lie reach it as before."""
    problem = tiny_problem(
        fairness.ExcessAccuracyGap(0.0), fairness.SignedEqualizedLoss(0.0), width=8
    )
    solver = fb.BilevelSolver(
        sparsity=0.5,
        steps=60,
        batch_size=32,
        buffer_size=4,
        multiplier_rule=name,
        dual_step=0.1,
        bilevel_share=0.5,
    )
    run = solver.start(problem, problem.refer(problem.initial_network(0)))
    state = run.init()
    for _ in range(6):
        state = run.step(state)
    duals, numbers = state.weights.duals, run.numbers
    assert any(np.asarray(b).any() for b in (duals.buffers.written,))

    seen, attempt, scales = [], run._stage, []

    def diverging(state):
        scales.append(run.retreats.scale)
        state, log, z = attempt(state)
        if len(scales) < 3:
            log = log._replace(finite=np.asarray(False))
        else:
            seen.append(state.weights.duals)
        return state, log, z

    run._stage = diverging
    run.step(state)
    assert scales == [1, 1 / 4, 1 / 16]
    assert len(run.report.rollbacks) == 2
    after = seen[0]
    for constraint, m in zip(run.rules.constraints, after.multipliers, strict=True):
        assert np.isfinite(np.asarray(m)).all()
        assert constraint.signed or (np.asarray(m) >= 0).all()
    # The same dual steps by the rule itself, moved a sixteenth of what it says.
    rule = run.rules.duals
    stats = run.steps.statistics(after, numbers)
    violations = run.steps.violations(after, numbers)
    measured = tuple(jnp.isfinite(c.distances(stats)) for c in run.rules.constraints)
    lower = tuple(
        jnp.full(m.shape, -jnp.inf if c.signed else 0.0)
        for c, m in zip(run.rules.constraints, duals.multipliers, strict=True)
    )
    whole, _ = optax.with_extra_args_support(rule).update(
        tuple(-v for v in violations), duals.rule, duals.multipliers, measured=measured, lower=lower
    )
    part, memory = ascend(
        run.rules.constraints, duals.multipliers, violations, rule, duals.rule, measured, 1 / 16
    )
    for constraint, old, move, short in zip(
        run.rules.constraints, duals.multipliers, whole, part, strict=True
    ):
        moved = old + move / 16
        if constraint.monotone:
            moved = jnp.maximum(moved, old)
        if not constraint.signed:
            moved = jnp.maximum(moved, 0)
        np.testing.assert_allclose(short, moved, rtol=1e-4, atol=1e-7)
    if sum(run.plan.phases[0].measures[6:7]):  # the stage looked once
        for short, got in zip(part, after.multipliers, strict=True):
            np.testing.assert_allclose(got, short, rtol=1e-4, atol=1e-7)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
            memory.memory,
            after.rule.memory,
        )


def test_a_signed_multiplier_comes_back_once_its_side_holds():
    """Of ``|L_g - L| <= 0.1``: at 0.3 above it rises; back within the band it returns to zero, and
    stays about there."""
    constraint = fairness.SignedEqualizedLoss(0.1)
    share = jnp.array([0.5, 0.5])
    on = jnp.ones(2, bool)

    def stats(loss):
        zero = jnp.zeros(2)
        return fairness.GroupStatistics(zero, zero, jnp.asarray(loss), zero, share, on, on)

    rule = fairness.gradient_ascent(0.5)
    multipliers = (jnp.zeros(2),)
    state = rule.init(multipliers)

    def move(multipliers, state, loss):
        violations = (constraint.violations(stats(loss), None, multipliers[0]),)
        return ascend([constraint], multipliers, violations, rule, state)

    for _ in range(4):
        multipliers, state = move(multipliers, state, [1.3, 0.7])
    # 0.3 - 0.1 above and below, four times a half.
    np.testing.assert_allclose(multipliers[0], [0.4, -0.4], rtol=1e-5)
    for _ in range(20):
        multipliers, state = move(multipliers, state, [1.05, 0.95])
    np.testing.assert_allclose(multipliers[0], [0, 0], atol=0.08)
    # At a tolerance of zero it is CEAG's: L_g - L, whatever the multiplier.
    exact = fairness.SignedEqualizedLoss(0.0)
    for now in ([0.0, 0.0], [1.0, -1.0], [-1.0, 1.0]):
        found = exact.violations(stats([1.3, 0.7]), None, jnp.array(now))
        np.testing.assert_allclose(found, [0.3, -0.3], rtol=1e-5)


def test_violations_without_buffers_cannot_be_shrunken():
    with pytest.raises(ValueError, match="shrink_violations needs replay buffers"):
        fb.pruners.CEAG(shrink_violations=True, buffer_size=0)
