"""Constraints on rates of answers, tolerances by group, and the user's own quantities."""

from __future__ import annotations

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_group import group_statistics
from hypothesis import given, settings
from hypothesis import strategies as st

import fairbilevel as fb
from fairbilevel import fairness
from fairbilevel.fairness import (
    AccuracyGap,
    Custom,
    DemographicParity,
    EqualizedOdds,
    EqualOpportunity,
    ExcessAccuracyGap,
    GroupStatistics,
    Outcomes,
    WorstGroupAccuracy,
)
from fairbilevel.fairness._statistics import Answers
from fairbilevel.fairness._surrogate import SURROGATES

NAMES = ("a", "b", "c")
RATES = (DemographicParity, EqualOpportunity, EqualizedOdds)


def rows_of_every_cell(classes, seed, rows=90):
    """Labels, answers and groups in which every group has every label."""
    rng = np.random.default_rng(seed)
    group, y = np.divmod(np.arange(3 * classes), classes)
    group = np.concatenate([group, rng.integers(0, 3, rows)])
    y = np.concatenate([y, rng.integers(0, classes, rows)])
    answer = np.where(rng.uniform(size=len(y)) < 0.2 + 0.25 * group, y, rng.integers(0, classes))
    return y.astype(np.int32), answer.astype(np.int32), group.astype(np.int32)


def bound(kind, classes, tolerance=0.0, **options):
    names = [f"class {c}" for c in range(classes)]
    return kind(tolerance, **options).bound_to(NAMES, names)


def as_outcomes(y, answer):
    zero = np.zeros(len(y))
    return Outcomes(answer == y, answer == y, zero, zero, y, answer)


# ---------------------------------------------------------------- reported rates


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 3, 4]))
def test_rates_agree_with_fairlearn(seed, classes):
    """For two classes fairlearn's own measures; for more the largest over one class against the
    rest."""
    from fairlearn.metrics import (
        demographic_parity_difference,
        equal_opportunity_difference,
        equalized_odds_difference,
    )

    y, answer, group = rows_of_every_cell(classes, seed)
    fairlearns = {
        DemographicParity: demographic_parity_difference,
        EqualOpportunity: equal_opportunity_difference,
        EqualizedOdds: equalized_odds_difference,
    }
    constraints = [bound(kind, classes, 0.05) for kind in RATES]
    measured = fairness.measure(constraints, as_outcomes(y, answer), group, NAMES, classes=classes)
    for kind, got in zip(RATES, measured, strict=True):
        expected = max(
            fairlearns[kind](y == c, answer == c, sensitive_features=group)
            for c in (range(1, 2) if classes == 2 else range(classes))
        )
        assert got.value == pytest.approx(expected, abs=1e-12)
        assert got.violation == pytest.approx(expected - 0.05, abs=1e-12)


@pytest.mark.parametrize("kind", RATES)
def test_each_groups_rates_agree_with_fairlearn(kind):
    from fairlearn.metrics import (
        MetricFrame,
        false_positive_rate,
        selection_rate,
        true_positive_rate,
    )

    y, answer, group = rows_of_every_cell(2, 1)
    metrics = {
        DemographicParity: [selection_rate],
        EqualOpportunity: [true_positive_rate],
        EqualizedOdds: [true_positive_rate, false_positive_rate],
    }[kind]
    with jax.enable_x64():
        count = np.bincount(group * 2 + y, minlength=6).reshape(3, 2) / len(y)
        stats = group_statistics(
            as_outcomes(y, answer), jnp.asarray(group), jnp.asarray(count.sum(1)),
            jnp.ones(3, bool), jnp.asarray(count),
        )  # fmt: skip
        rates, known = bound(kind, 2).group_rates(stats.answers)
    assert known.all()
    for got, metric in zip(rates, metrics, strict=True):
        frame = MetricFrame(metrics=metric, y_true=y, y_pred=answer, sensitive_features=group)
        np.testing.assert_allclose(got, frame.by_group.to_numpy(), atol=1e-12)


def test_labels_name_group_rate_and_side():
    labels = bound(EqualizedOdds, 2).labels(NAMES)
    assert labels[0] == "a: true rate of class 1 too low"
    assert labels[4] == "b: false rate of class 1 too low"
    assert labels[-1] == "c: false rate of class 1 too high"
    assert len(bound(EqualizedOdds, 4).labels(NAMES)) == 2 * 8 * 3


def test_a_group_without_a_label_says_nothing_of_its_rates():
    """Group c has no row of label 1: no true positive rate, but a rate of answers."""
    y = np.array([0, 1, 0, 1, 0, 0], np.int32)
    answer = np.array([0, 1, 1, 0, 1, 1], np.int32)
    group = np.array([0, 0, 1, 1, 2, 2], np.int32)
    opportunity, parity = fairness.measure(
        [bound(EqualOpportunity, 2), bound(DemographicParity, 2)],
        as_outcomes(y, answer), group, NAMES, classes=2,
    )  # fmt: skip
    assert not any(label.startswith("c") for label in opportunity.distances)
    assert opportunity.value == 1.0
    assert parity.value == pytest.approx(0.5)  # 1/2, 1/2, 1


# ---------------------------------------------------------------- rings by group and label


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(-1, 1), st.integers(0, 2), st.integers(0, 2)),
            min_size=8, max_size=8,
        ),
        min_size=1, max_size=5,
    )
)  # fmt: skip
def test_rings_of_cells_count_what_they_hold(batches):
    size, classes = 3, 3
    buffers = fairness.empty_buffers(2, size, classes=classes)
    held = {(g, y): deque(maxlen=size) for g in range(2) for y in range(classes)}
    for rows in batches:
        group, y, answer = (jnp.asarray(column, jnp.int32) for column in zip(*rows, strict=True))
        zero = jnp.zeros(8)
        buffers = write(buffers, Outcomes(zero, zero, zero, zero, y, answer), group)
        for g, label, said in rows:
            if g >= 0:
                held[g, label].append(said)
    share = jnp.full((2, classes), 1 / 6)
    stats = fairness.buffer_statistics(buffers, share.sum(1), jnp.ones(2, bool), share)
    for (g, label), ring in held.items():
        tally = np.bincount(list(ring), minlength=classes)
        np.testing.assert_array_equal(buffers.cells.tally[g * classes + label], tally)
        full = len(ring) == size
        assert bool(stats.answers.present[g, label]) == full
        np.testing.assert_allclose(stats.answers.rate[g, label], tally / size * full, rtol=1e-6)


write = jax.jit(fairness.write)


def test_buffers_hold_no_cells_unless_asked():
    buffers = fairness.empty_buffers(1000, 64)
    assert buffers.cells is None
    assert len(jax.tree.leaves(buffers)) == 3


def test_rates_are_put_together_by_the_roles_shares():
    """Rings of equal length, labels of unequal share."""
    answers = Answers(
        jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]]),
        jnp.array([[0.4, 0.1], [0.1, 0.4]]),
        jnp.ones((2, 2), bool),
    )
    rates, _ = bound(DemographicParity, 2).group_rates(answers)
    np.testing.assert_allclose(rates, [[0.2, 0.8]], rtol=1e-6)


# ---------------------------------------------------------------- the Lagrangian and its guard


def some_stats(share, answers=None):
    zero = jnp.zeros(share.shape[0])
    on = jnp.ones(share.shape[0], bool)
    return GroupStatistics(zero, zero, zero, zero, share.sum(1), on, on, answers)


def some_rows(classes, seed=0):
    y, _, group = rows_of_every_cell(classes, seed)
    rng = np.random.default_rng(seed)
    share = np.bincount(group * classes + y, minlength=3 * classes).reshape(3, classes) / len(y)
    logits = rng.normal(0, 2, (len(y), classes))
    return jnp.asarray(logits), jnp.asarray(y), jnp.asarray(group), jnp.asarray(share)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_sigmoid_stands_for_an_answer_by_its_probability(classes):
    with jax.enable_x64():
        logits, y, _, _ = some_rows(classes)
        got = bound(DemographicParity, classes).answered(logits, fairness.margin(logits, y), y)
        np.testing.assert_allclose(got, jax.nn.softmax(logits), atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "surrogate"),
    [(kind, "sigmoid") for kind in RATES] + [(EqualizedOdds, s) for s in SURROGATES],
)
@pytest.mark.parametrize("classes", [2, 3])
def test_weights_of_cells_are_the_gradient_of_the_written_out_lagrangian(kind, classes, surrogate):
    """sum (low - high) (rate of the others - rate of g), rates by the smooth stand-in."""
    constraint = bound(kind, classes, surrogate=surrogate)
    with jax.enable_x64():
        logits, y, group, share = some_rows(classes)
        rng = np.random.default_rng(3)
        multipliers = jnp.asarray(rng.uniform(size=len(constraint.labels(NAMES))))
        rates = constraint.rates()
        low, high = multipliers.reshape(2, len(rates), 3)
        answer = np.array([rate.answer for rate in rates])
        among = np.stack([rate.among for rate in rates])[:, np.asarray(y)]

        def written_out(logits):
            smooth = constraint.answered(logits, fairness.margin(logits, y), y)
            value = smooth[:, answer].T
            total = 0.0
            for g in range(3):
                own, rest = among & (group == g), among & (group != g)
                of_own = jnp.sum(own * value, 1) / own.sum(1)
                of_rest = jnp.sum(rest * value, 1) / rest.sum(1)
                total = total + jnp.sum((low - high)[:, g] * (of_rest - of_own))
            return total

        coefficients = constraint.coefficients(multipliers, share, some_stats(share))

        def ours(logits):
            weight = coefficients / share[..., None]
            v = fairness.margin(logits, y)
            return jnp.mean(constraint.term(weight, logits, v, y, group))

        np.testing.assert_allclose(
            jax.grad(ours)(logits), jax.grad(written_out)(logits), atol=1e-12
        )


BUILT = {
    (kind, classes, s): bound(kind, classes, 0.1, surrogate=s)
    for kind in RATES
    for classes in (2, 3)
    for s in SURROGATES
}


@pytest.mark.parametrize("first", SURROGATES)
@pytest.mark.parametrize("classes", [2, 3])
def test_no_row_is_pushed_from_its_class(classes, first):
    """With constraints of cells and of groups together, over many multipliers: the objective never
    falls with a row's own logit."""
    second = {"sigmoid": "loss", "hinge": "sigmoid"}.get(first, "squared-hinge")
    constraints = [BUILT[kind, classes, first] for kind in RATES]
    constraints.append(ExcessAccuracyGap(0.1, surrogate=second))
    rng = np.random.default_rng(classes)
    scale = np.array([0.1, 0.5, 1.0, 5.0]).repeat(10)[:, None]
    with jax.enable_x64():
        logits, y, group, share = some_rows(classes)
        logits = logits * jnp.asarray(rng.choice([0.1, 1, 4], (len(y), 1)))
        multipliers = tuple(
            jnp.asarray(scale * rng.uniform(size=(40, len(c.labels(NAMES)))) ** 2)
            for c in constraints
        )

        def own_slope(multipliers):
            stats = some_stats(share)
            got = fairness.row_weights(constraints, multipliers, share.sum(1), stats, share)

            def objective(logits):
                v = fairness.margin(logits, y)
                total = fairness.cross_entropy(v)
                for constraint, weight in zip(constraints, got.harm, strict=True):
                    total = total + constraint.term(weight, logits, v, y, group)
                return jnp.sum(total)

            return jnp.take_along_axis(jax.grad(objective)(logits), y[:, None], 1), got.bound

        slope, bound = jax.jit(jax.vmap(own_slope))(multipliers)
    assert (np.asarray(slope) <= 1e-12).all()
    assert np.asarray(bound).any()  # the guard was needed


def test_without_the_guard_rows_would_be_pushed_from_their_class():
    """The rows that the property looks at are those the guard is for."""
    constraint = BUILT[DemographicParity, 2, "sigmoid"]
    with jax.enable_x64():
        share = some_rows(2)[-1]
        stats = some_stats(share)
        multipliers = jnp.asarray([0, 0, 0, 0, 0, 5.0])  # group c is answered 1 too often
        coefficients = constraint.coefficients(multipliers, share, stats) / share[..., None]
        got = fairness.row_weights([constraint], (multipliers,), share.sum(1), stats, share)
        assert coefficients[2, 1, 1] > 1
        assert bool(got.bound)
        np.testing.assert_allclose(got.harm[0][2, 1, 1], 1)
        # Rows of the other label are answered better as they are held back: nothing is taken.
        np.testing.assert_allclose(got.harm[0][2, 0, 1], coefficients[2, 0, 1])


# ---------------------------------------------------------------- tolerances by group


def test_tolerances_by_group():
    by_name = ExcessAccuracyGap({"b": 0.2, "*": 0.1}).bound_to(NAMES, ("0", "1"))
    in_order = ExcessAccuracyGap(np.array([0.1, 0.2, 0.1]))
    assert by_name == in_order
    hash(by_name)
    share = jnp.full(3, 1 / 3)
    stats = some_stats(share[:, None])._replace(
        dense_accuracy=jnp.array([0.9, 0.9, 0.9]), accuracy=jnp.array([0.9, 0.6, 0.6])
    )
    np.testing.assert_allclose(by_name.violations(stats), [-0.3, -0.1, 0.0], atol=1e-6)
    ranged = AccuracyGap((0.0, 0.1, 0.2))
    np.testing.assert_allclose(ranged.violations(stats), [0, 0.2, 0.1, 0.3, -0.1, -0.2], atol=1e-6)
    floor = WorstGroupAccuracy({"a": 0.5, "b": 0.7, "c": 0.6}).bound_to(NAMES, ("0", "1"))
    np.testing.assert_allclose(floor.violations(stats), [-0.4, 0.1, 0.0], atol=1e-6)
    assert fairness.parse_constraint("accuracy-gap=2%,group a=5%") == AccuracyGap(
        {"*": 0.02, "group a": 0.05}
    )


@pytest.mark.parametrize(
    ("tolerance", "message"),
    [
        ({"a": 0.1}, "has no tolerance for 'b': name every group, or give"),
        ({"x": 0.1, "*": 0.1}, "a tolerance for 'x', which is no group: the groups are a, b, c"),
        ((0.1, 0.2), "has 2 tolerances for 3 groups"),
    ],
)
def test_tolerances_for_other_groups(tolerance, message):
    with pytest.raises(ValueError, match=message):
        ExcessAccuracyGap(tolerance).bound_to(NAMES, ("0", "1"))


@pytest.mark.parametrize("tolerance", [{"a": -0.1}, (0.1, float("nan"))])
def test_bad_tolerances_by_group(tolerance):
    with pytest.raises(ValueError, match="must be at least 0"):
        ExcessAccuracyGap(tolerance)


def test_a_groups_tolerance_as_written():
    with pytest.raises(ValueError, match="written GROUP=TOLERANCE after a comma, got '5%'"):
        fairness.parse_constraint("accuracy-gap=2%,5%")


# ---------------------------------------------------------------- the user's own


def wrong(logits, y):
    return logits.argmax(-1) != y


def improbable(logits, y):
    return 1 - jnp.take_along_axis(jax.nn.softmax(logits), y[:, None], 1)[:, 0]


def own_errors(bound, tolerance=0.02, **options):
    return Custom(
        name="errors",
        true=wrong,
        smooth=improbable,
        bound=bound,
        tolerance=tolerance,
        unit="points",
        **options,
    )


def test_errors_as_ones_own_quantity_are_the_accuracy_gap():
    """Written by a user, error rates give the built-in constraints' violations and weights."""
    own, built_in = own_errors("range", steepness=1.0), AccuracyGap(0.02)
    logits, y, group, share = some_rows(3)
    outcomes = Outcomes(*([~wrong(logits, y)] * 4), own={"errors": own.quantity(wrong, logits, y)})
    stats = group_statistics(outcomes, group, share.sum(1), jnp.ones(3, bool))
    np.testing.assert_allclose(own.violations(stats), built_in.violations(stats), atol=1e-6)
    multipliers = jnp.linspace(0.1, 0.5, 6)
    weights = [
        fairness.row_weights([c], (multipliers,), share.sum(1), stats) for c in (own, built_in)
    ]
    np.testing.assert_allclose(weights[0].harm[0], weights[1].harm[0], rtol=1e-5)
    terms = [
        c.term(w.harm[0], logits, fairness.margin(logits, y), y, group)
        for c, w in zip((own, built_in), weights, strict=True)
    ]
    np.testing.assert_allclose(terms[0], terms[1], atol=1e-5)


def test_levels_and_excesses_of_ones_own_quantity():
    share = jnp.array([0.5, 0.3, 0.2])
    stats = some_stats(share[:, None])._replace(own={"errors": jnp.array([0.1, 0.3, 0.2])})
    level, excess = own_errors("level"), own_errors("excess")
    np.testing.assert_allclose(level.violations(stats), [0.08, 0.28, 0.18], atol=1e-6)
    np.testing.assert_allclose(excess.violations(stats), [-0.1, 0.1, 0.0], atol=1e-6)
    # Of unknown steepness: what is subtracted could climb any loss, so nothing is.
    weights = fairness.row_weights([excess], (jnp.array([0.0, 1.0, 0.0]),), share, stats)
    assert bool(weights.bound)
    np.testing.assert_allclose(weights.harm[0], [0, 1 / 0.3 - 1, 0], rtol=1e-5)


def test_bad_constraints_of_ones_own():
    with pytest.raises(ValueError, match="unknown bound 'mean': choose from level, excess, range"):
        own_errors("mean")
    with pytest.raises(ValueError, match="steepness of errors must be positive"):
        own_errors("level", steepness=0.0)
    with pytest.raises(ValueError, match="errors brings its own surrogate"):
        own_errors("level", surrogate="hinge")
    with pytest.raises(ValueError, match=r"errors must give one number a row, got shape \[\]"):
        own_errors("level").quantity(lambda logits, y: 0.0, jnp.ones((4, 2)), jnp.zeros(4, int))


def test_one_constraint_twice(tiny_problem):
    with pytest.raises(ValueError, match="each constraint can be given once"):
        tiny_problem(ExcessAccuracyGap(0.1), ExcessAccuracyGap(0.2))


# ---------------------------------------------------------------- in the solver

QUICK = {"steps": 120, "batch_size": 16, "buffer_size": 4}


def test_all_of_them_at_once_and_in_the_result(tiny_problem, tmp_path):
    constraints = [
        WorstGroupAccuracy(0.9), DemographicParity(0.01), EqualOpportunity(0.01),
        EqualizedOdds(0.01), ExcessAccuracyGap({"few": 0.05, "*": 0.0}), own_errors("range"),
    ]  # fmt: skip
    problem = tiny_problem(*constraints)
    solution = fb.solve(
        problem, sparsity=0.6, dense_steps=60, multiplier_rule="nupi:proportional=0.5", **QUICK
    )
    for constraint in problem.constraints:
        values = solution.multipliers[constraint.name]
        assert list(values) == constraint.labels(problem.groups)
        assert min(values.values()) >= 0
        assert max(values.values()) > 0, constraint.name
    fb.save_run(solution, tmp_path / "run")
    result = fb.records.read_result(tmp_path / "run")
    by_name = {c.name: c for c in result.constraints}
    assert set(by_name) == {c.name for c in constraints}
    floor = by_name["worst-group-accuracy"]
    assert floor.floor is True
    seen = result.pruned["test"]
    measured = seen.constraints
    assert floor.title == measured["worst-group-accuracy"].title == "Accuracy of the worst group"
    worst = seen.worst_group_accuracy
    assert measured["worst-group-accuracy"].value == pytest.approx(worst, abs=1e-12)
    assert measured["worst-group-accuracy"].violation == pytest.approx(0.9 - worst, abs=1e-12)
    assert measured["errors"].value == pytest.approx(seen.gaps.accuracy.largest, abs=1e-12)
    assert (by_name["errors"].title, by_name["errors"].unit) == ("Errors", "points")
    tolerances = by_name["excess-accuracy-gap"]
    assert tolerances.tolerance is None
    assert tolerances.group_tolerance == {"many": 0.0, "some": 0.0, "few": 0.05}
    psi = {name: group.excess for name, group in seen.groups.items()}
    assert measured["excess-accuracy-gap"].violation == pytest.approx(
        max(psi["many"], psi["some"], psi["few"] - 0.05), abs=1e-12
    )
    # What is reported of rates is fairlearn's on the same predictions.
    from fairlearn.metrics import demographic_parity_difference

    rows = problem.roles["test"]
    answer = solution.problem.logits(solution.network, problem.inputs[rows]).argmax(-1)
    expected = max(
        demographic_parity_difference(
            problem.y[rows] == c, answer == c, sensitive_features=problem.group[rows]
        )
        for c in range(3)
    )
    assert measured["demographic-parity"].value == pytest.approx(expected, abs=1e-12)


def unequal_base_rates():
    """Two groups of rows whose labels follow the first column, which says the group too: the
    second group has more positive rows."""
    rng = np.random.default_rng(0)
    group = np.arange(1600) % 2
    score = rng.normal(np.where(group == 1, 0.8, -0.8), 1.0)
    y = (score + rng.normal(0, 0.5, 1600) > 0).astype(int)
    x = np.stack([score, group + rng.normal(0, 0.1, 1600), rng.normal(size=1600)], 1)
    return fb.data.from_arrays(
        x.astype(np.float32), y, group, classes=("no", "yes"), groups=("first", "second")
    )


def test_demographic_parity_is_brought_about():
    data = unequal_base_rates()
    gaps = {}
    for tolerance in (0.99, 0.05):
        problem = fb.FairPruningProblem(
            "mlp", data, width=12, constraints=[DemographicParity(tolerance)]
        )
        solution = fb.solve(
            problem, sparsity=0.3, steps=600, dense_steps=100, batch_size=64, dual_step=0.2
        )
        gaps[tolerance] = solution.evaluate("test").constraints["demographic-parity"].value
    assert gaps[0.99] > 0.4
    assert gaps[0.05] < 0.2


def test_a_thousand_groups():
    """Every constraint measures and weighs a thousand groups of two labels."""
    groups, rng = 1000, np.random.default_rng(0)
    names = [str(g) for g in range(groups)]
    constraints = [
        c.bound_to(names, ("no", "yes"))
        for c in (*(k(0.02) for k in fairness.CONSTRAINTS.values()), own_errors("range"))
    ]
    y = np.tile([0, 1], 4 * groups).astype(np.int32)
    group = np.repeat(np.arange(groups), 8).astype(np.int32)
    answer = rng.integers(0, 2, len(y)).astype(np.int32)
    right, dense = answer == y, rng.uniform(size=len(y)) < 0.9
    loss = rng.uniform(size=len(y))
    own = {"errors": ~right}
    outcomes = Outcomes(right, dense, loss, loss, y, answer, own)
    measured = fairness.measure(constraints, outcomes, group, names, classes=2)
    rate = answer.reshape(groups, 8).mean(1)
    by_name = {c.name: m for c, m in zip(constraints, measured, strict=True)}
    assert by_name["demographic-parity"].value == pytest.approx(np.ptp(rate), abs=1e-12)
    accuracy = right.reshape(groups, 8).mean(1)
    assert by_name["accuracy-gap"].value == pytest.approx(np.ptp(accuracy), abs=1e-12)
    assert by_name["worst-group-accuracy"].value == pytest.approx(accuracy.min(), abs=1e-12)
    share = jnp.full((groups, 2), 1 / (2 * groups))
    stats = group_statistics(
        outcomes._replace(loss=jnp.asarray(loss), dense_loss=jnp.asarray(loss)),
        jnp.asarray(group), share.sum(1), jnp.ones(groups, bool), share,
    )  # fmt: skip
    multipliers = tuple(jnp.maximum(c.violations(stats), 0) for c in constraints)
    weights = fairness.row_weights(constraints, multipliers, share.sum(1), stats, share)
    assert all(np.isfinite(w).all() for w in weights.harm)
