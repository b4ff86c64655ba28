"""The training loop: streams of rows, weight and dual steps, divergence, costs, early stopping."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import fairbilevel as fb
from fairbilevel import fairness, masks, train
from fairbilevel._trees import flatten_named, map_named
from fairbilevel.train import (
    FORWARD_COST,
    Best,
    Costs,
    DivergenceError,
    Feed,
    Steps,
    TuneRecord,
    WeightLoop,
)

# ---------------------------------------------------------------- streams of rows


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(0, 9),
    st.integers(0, 3),
    st.integers(0, 150),
    st.integers(1, 90),
)
def test_streams_are_permutations_that_can_be_read_again(size, seed, stream, start, count):
    rows = np.arange(size) * 3 + 7
    whole = train.stream_rows(rows, seed, stream, 0, start + count)
    window = train.stream_rows(rows, seed, stream, start, count)
    np.testing.assert_array_equal(window, whole[start : start + count])
    for first in range(0, len(whole) - size + 1, size):
        np.testing.assert_array_equal(np.sort(whole[first : first + size]), rows)


def test_streams_and_seeds_differ():
    rows = np.arange(100)
    orders = {
        tuple(train.stream_rows(rows, seed, stream, 0, 200))
        for seed in (0, 1)
        for stream in (0, 1, 2)
    }
    assert len(orders) == 6
    one = train.stream_rows(rows, 0, 0, 0, 200)
    assert (one[:100] != one[100:]).any()  # shuffled anew each epoch


def test_the_feed_goes_on_where_it_stopped(tiny_problem):
    problem = tiny_problem()
    rows = problem.roles["fit"]
    feed, other = Feed(problem, None, 3, 8), Feed(problem, None, 3, 8)
    parts = [feed.take(rows, 0, 2), feed.take(rows, 1, 1), feed.take(rows, 0, 3)]
    whole = other.take(rows, 0, 5)
    np.testing.assert_array_equal(jnp.concatenate([parts[0].x, parts[2].x]), whole.x)
    assert whole.x.shape == (5, 8, 6)
    assert whole.y.shape == (5, 8)
    assert not whole.dense_correct.any()


# ---------------------------------------------------------------- the weight step

CONSTRAINTS = (
    fairness.ExcessAccuracyGap(0.02),
    fairness.AccuracyGap(0.05),
    fairness.EqualizedLoss(0.1, surrogate="squared-hinge"),
)


def make_steps(problem, optimizer, dual_rule=None, buffer_size=4):
    rule = optax.sgd(0.1) if dual_rule is None else dual_rule
    share = jnp.asarray(problem.share["fit"])
    return Steps(problem, optimizer, rule, problem.constraints, buffer_size, share)


def any_reference(problem, seed=3):
    return problem.refer(problem.initial_network(seed))


def half_masks(problem, params, soft=False):
    """Hard masks of half of every layer, or soft ones with some exact zeros."""
    rng = np.random.default_rng(5)
    found = {}
    for layer in problem.layers:
        mask = rng.uniform(size=layer.shape) if soft else np.ones(layer.shape)
        found[layer.name] = jnp.asarray(mask * (rng.uniform(size=layer.shape) < 0.5), jnp.float32)
    return found, masks.expand(found, params, problem.layers, "weight")


def with_multipliers(state):
    multipliers = tuple(0.1 + 0.05 * jnp.arange(m.size) for m in state.duals.multipliers)
    return state._replace(duals=state.duals._replace(multipliers=multipliers))


def fed_buffers(steps, state, problem, reference):
    """Duals whose buffers are full, so that signs of constraints are measured."""
    batch = train.gather(problem, reference, problem.select_duals)
    outcomes = steps.outcomes(state.params, state.model_state, batch)
    duals = state.duals._replace(buffers=fairness.write(state.duals.buffers, outcomes, batch.group))
    return state._replace(duals=duals)


def forward_by_hand(params, x):
    """The MLP in double precision."""
    p = {n: np.asarray(v, np.float64) for n, v in flatten_named(params).items()}
    for i in range(2):
        x = np.maximum(x @ p[f"hidden/{i}/kernel"] + p[f"hidden/{i}/bias"], 0)
    return x @ p["classifier/kernel"] + p["classifier/bias"]


HARMS = {
    "loss": lambda v: np.logaddexp(0, -v),
    "sigmoid": lambda v: 1 / (1 + np.exp(v)),
    "squared-hinge": lambda v: np.maximum(0, 1 - v) ** 2,
}


def objective_by_hand(problem, params, factors, batch, weights):
    z = jax.tree.map(lambda m, p: np.asarray(m, np.float64) * np.asarray(p), factors, params)
    logits = forward_by_hand(z, np.asarray(problem.normalize(batch.x), np.float64))
    y, group = np.asarray(batch.y), np.asarray(batch.group)
    others = np.where(np.arange(3) == y[:, None], -np.inf, logits)
    v = logits[np.arange(len(y)), y] - np.logaddexp.reduce(others, axis=1)
    total = np.logaddexp(0, -v)
    for constraint, weight in zip(problem.constraints, weights.harm, strict=True):
        total = total + np.asarray(weight, np.float64)[group] * HARMS[constraint.surrogate](v)
    return np.mean(np.asarray(batch.weight) * total)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_weight_steps_follow_the_gradient_of_the_constrained_objective(tiny_problem, soft):
    problem = tiny_problem(*CONSTRAINTS)
    reference = any_reference(problem)
    steps = make_steps(problem, optax.sgd(1.0))
    params, model_state = problem.model.init(jax.random.key(0))
    noise = np.random.default_rng(1)  # off the kinks, where biases of zero would leave dead neurons
    params = jax.tree.map(lambda p: p + noise.normal(0, 0.1, p.shape).astype(np.float32), params)
    _, factors = half_masks(problem, params, soft)
    state = with_multipliers(steps.init(params, model_state, jax.random.key(1)))
    state = fed_buffers(steps, state, problem, reference)
    batch = train.gather(problem, reference, problem.roles["fit"][:64])
    batch = batch._replace(weight=jnp.linspace(0.5, 1.5, 64))
    weights = steps.weigh(state.duals, steps.share)
    assert any(np.any(w != 0) for w in weights.harm)
    moved, log = jax.jit(steps.weight_step)(state, factors, batch)

    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape), params)

    def along(t):
        point = jax.tree.map(lambda p, d: np.asarray(p, np.float64) + t * d, params, direction)
        return objective_by_hand(problem, point, factors, batch, weights)

    numeric = (along(1e-6) - along(-1e-6)) / 2e-6
    taken = jax.tree.map(
        lambda a, b: np.asarray(a, np.float64) - np.asarray(b), params, moved.params
    )
    ours = sum(
        np.sum(t * d)
        for t, d in zip(jax.tree.leaves(taken), jax.tree.leaves(direction), strict=True)
    )
    assert ours == pytest.approx(numeric, rel=2e-3, abs=1e-5)
    # What is logged is the loss alone.
    plain = objective_by_hand(tiny_problem(), params, factors, batch, weights._replace(harm=()))
    assert float(log.loss) == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("rule", ["default", "adamw"])
def test_removed_weights_neither_move_nor_decay(tiny_problem, rule):
    problem = tiny_problem()
    optimizer = (
        train.sgd(0.1, 100, decay_to_zero=False, weight_decay=0.1)
        if rule == "default"
        else optax.adamw(0.05, weight_decay=0.1)
    )
    steps = make_steps(problem, optimizer)
    params, model_state = problem.model.init(jax.random.key(0))
    hard, factors = half_masks(problem, params)
    state = steps.init(params, model_state, jax.random.key(1))
    step = jax.jit(steps.weight_step)
    for i in range(4):
        batch = train.gather(problem, None, problem.roles["fit"][32 * i : 32 * i + 32])
        state, _ = step(state, factors, batch)
    before, after = flatten_named(params), flatten_named(state.params)
    for layer in problem.layers:
        gone = np.asarray(hard[layer.name]) == 0
        moved = np.asarray(after[layer.kernel]) != np.asarray(before[layer.kernel])
        assert not moved[gone].any()
        assert moved[~gone].any()


def test_kept_weights_decay_even_without_a_gradient(tiny_problem):
    """A row weight of zero leaves only the decay."""
    problem = tiny_problem()
    steps = make_steps(problem, optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0)))
    params, model_state = problem.model.init(jax.random.key(0))
    hard, factors = half_masks(problem, params)
    state = steps.init(params, model_state, jax.random.key(1))
    batch = train.gather(problem, None, problem.roles["fit"][:8])._replace(weight=jnp.zeros(8))
    moved, _ = steps.weight_step(state, factors, batch)
    for layer in problem.layers:
        start = np.asarray(flatten_named(params)[layer.kernel])
        expected = np.where(np.asarray(hard[layer.name]) == 0, start, 0.5 * start)
        got = flatten_named(moved.params)[layer.kernel]
        np.testing.assert_allclose(got, expected, rtol=1e-6)


class Normalized(nnx.Module):
    """A net with running statistics and dropout."""

    def __init__(self, *, rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.first(x)))))


def normalized():
    return fb.models.from_nnx(lambda rngs: Normalized(rngs=rngs), name="normalized")


def test_only_the_fit_pass_moves_statistics(tiny_problem):
    """One stage of the solver with another select batch and other multipliers' rows: the same
    statistics to the bit; with another fit batch: others."""
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02), model=normalized())
    reference = any_reference(problem)
    solver = fb.BilevelSolver(sparsity=0.3, steps=150, batch_size=16, buffer_size=2)
    run = solver.start(problem, reference)
    start = run.init()
    keep = masks.as_counts(run.budget.keep(0.3))
    step = jax.jit(run.outer_step.many)
    rows = {name: problem.roles[name][:16][None] for name in ("fit", "tune")}
    rows["select"], rows["other"] = (
        problem.select_outer[:16][None],
        problem.select_outer[16:32][None],
    )

    def statistics(fit, select, duals):
        parts = [train.gather(problem, reference, rows[n]) for n in (fit, select, duals)]
        state, _ = step(start, *parts, keep, jnp.zeros(1))
        return state.weights.model_state

    base = statistics("fit", "select", "tune")
    for select, duals in (("other", "tune"), ("select", "other")):
        jax.tree.map(np.testing.assert_array_equal, statistics("fit", select, duals), base)
    other = statistics("tune", "select", "tune")
    assert any(
        np.any(a != b) for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(base), strict=True)
    )


# ---------------------------------------------------------------- the dual step


def picker():
    """Logits are the first three inputs: a network whose answers are written down by hand."""
    return fb.models.from_function(
        lambda p, x: x[:, :3] @ p["w"], {"w": 10 * jnp.eye(3)}, name="picker"
    )


def test_the_dual_step_on_an_example_by_hand(tiny_problem):
    """Two full buffers of two, one group not full. Dense is right on all rows; pruned loses one of
    the two rows of group 0. With shares s: psi_0 = 1/2 - s_0 / (s_0 + s_1) / 2."""
    problem = tiny_problem(
        fairness.ExcessAccuracyGap(0.1),
        fairness.SignedEqualizedLoss(0.0),
        model=picker(),
        prune_classifier=True,
    )
    steps = make_steps(problem, optax.identity(), optax.sgd(0.5), buffer_size=2)
    state = steps.init(*problem.model.init(jax.random.key(0)), jax.random.key(0))
    # Whatever the encoder standardizes with, undo it: these are the network's logits over ten.
    wanted = np.zeros((5, 6), np.float32)
    wanted[np.arange(5), [0, 1, 2, 1, 0]] = 1
    mean, std = np.asarray(problem.encoder.mean), np.asarray(problem.encoder.std)
    batch = train.Batch(
        jnp.asarray(wanted * std + mean, jnp.float32),
        jnp.array([0, 2, 2, 1, 0]),  # the second row is wrong
        jnp.array([0, 0, 1, 1, 2]),
        jnp.ones(5),
        jnp.ones(5),
        jnp.zeros(5),
    )
    duals = steps.dual_step(state.duals, state.params, state.model_state, batch)
    share = problem.share["select"][:2] / problem.share["select"][:2].sum()
    psi = np.array([0.5 - 0.5 * share[0], -0.5 * share[0]])
    expected = np.maximum(0.5 * (psi - 0.1), 0)
    np.testing.assert_allclose(duals.multipliers[0], [*expected, 0], atol=1e-6)
    # Losses: 10 on the wrong row (log(1 + e^-10 ...)), next to nothing elsewhere.
    right = np.log(1 + 2 * np.exp(-10))
    wrong = 10 + right
    loss = np.array([(right + wrong) / 2, right])
    np.testing.assert_allclose(duals.multipliers[1], [*(0.5 * (loss - share @ loss)), 0], rtol=1e-4)
    np.testing.assert_array_equal(duals.buffers.written, [2, 2, 1])
    # Emptied buffers say nothing; the multipliers stay.
    emptied = steps.emptied(duals)
    assert not steps.statistics(emptied).present.any()
    np.testing.assert_array_equal(emptied.multipliers[0], duals.multipliers[0])


@pytest.mark.parametrize("every", [1, 3])
def test_violations_are_measured_every_so_many_steps(tiny_problem, every):
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02), model=picker(), prune_classifier=True)
    reference = any_reference(problem)
    steps = make_steps(problem, optax.identity())
    state = steps.init(*problem.model.init(jax.random.key(0)), jax.random.key(0))
    count = 7
    batches = Feed(problem, reference, 0, 4).take(
        problem.select_duals, 0, train.dual_batches(count, every)
    )
    duals, seen = state.duals, []
    step = jax.jit(
        lambda i, d: train.maybe_dual_step(steps, every, i, d, state.params, {}, batches)
    )
    for i in range(count):
        duals = step(jnp.asarray(i), duals)
        seen.append(int(duals.buffers.written.sum()))
    assert seen == [4 * (i // every + 1) for i in range(count)]
    # Every batch was used once, in order.
    groups = np.bincount(np.asarray(batches.group).reshape(-1), minlength=3)
    np.testing.assert_array_equal(duals.buffers.written, groups)


# ---------------------------------------------------------------- divergence


def assert_finite(network):
    for name, leaf in flatten_named((network.params, network.state)).items():
        assert np.isfinite(np.asarray(leaf, np.float64)).all(), name


def test_dense_training_that_diverges(tiny_problem):
    problem = tiny_problem()
    with pytest.raises(
        DivergenceError, match="of the dense phase: lower the learning rate"
    ) as caught:
        fb.train.train_dense(problem, steps=100, batch_size=32, optimizer=optax.sgd(1e6))
    assert caught.value.phase == "dense"
    assert 1 < caught.value.step <= 100
    assert f"step {caught.value.step} " in str(caught.value)
    assert_finite(caught.value.last_good)


def poisoned(at):
    """An update rule that blows up at one step."""
    return optax.chain(
        optax.scale_by_schedule(lambda count: jnp.where(count == at, jnp.inf, 0.01)),
        optax.scale(-1.0),
    )


@pytest.mark.parametrize("at", [0, 1, 3, 4, 5, 9, 14])
def test_the_step_that_diverges_is_named_and_the_last_good_network_is_finite(tiny_problem, at):
    """Twenty segments of five steps; step ``at`` (from 0) ruins the weights, so the loss of the
    next one, numbered ``at + 2`` from 1, is the first that is not finite."""
    problem = tiny_problem()
    with pytest.raises(DivergenceError) as caught:
        fb.train.train_dense(problem, steps=100, batch_size=16, optimizer=poisoned(at))
    assert caught.value.step == at + 2
    assert_finite(caught.value.last_good)


def test_divergence_at_the_very_last_step(tiny_problem):
    """No later loss would show it."""
    problem = tiny_problem()
    with pytest.raises(DivergenceError) as caught:
        fb.train.train_dense(problem, steps=20, batch_size=16, optimizer=poisoned(19))
    assert_finite(caught.value.last_good)


def test_bilevel_divergence(tiny_problem):
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02))
    reference = any_reference(problem)
    solver = fb.BilevelSolver(
        sparsity=0.5, steps=200, batch_size=16, buffer_size=2, inner_optimizer=optax.sgd(1e6)
    )
    with pytest.raises(DivergenceError, match="bilevel phase") as caught:
        solver.run(problem, reference)
    assert caught.value.phase == "bilevel"
    assert caught.value.step >= 1
    assert_finite(caught.value.last_good)


def test_a_poisoned_reference_is_refused(tiny_problem):
    problem = tiny_problem()
    network = problem.initial_network(0)
    bad = map_named(lambda n, p: p * jnp.nan if n == "classifier/bias" else p, network.params)
    with pytest.raises(ValueError, match=r"finite"):
        fb.solve(problem, dense=fb.Network(bad, network.state), sparsity=0.5, steps=150)


# ---------------------------------------------------------------- costs


def test_costs_of_weight_segments(tiny_problem):
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02), model=normalized())
    reference = any_reference(problem)
    steps, costs = make_steps(problem, optax.sgd(0.01)), Costs()
    loop = WeightLoop(steps, costs, violation_every=2)
    feed = Feed(problem, reference, 0, 8)
    network = problem.initial_network(0)
    state = steps.init(network.params, network.state, jax.random.key(0))
    ones = jax.tree.map(lambda p: jnp.ones(()), state.params)
    fit = problem.roles["fit"]
    duals = feed.take(problem.select_duals, 2, train.dual_batches(5, 2))
    state, log = loop.segment(state, ones, feed.take(fit, 0, 5), duals)
    before = np.asarray(state.model_state["norm"]["mean"])
    assert costs.gradient_evaluations == pytest.approx(5 + 3 * FORWARD_COST)
    assert log.loss.shape == (5,)
    moved = loop.refresh(state.model_state, state.params, feed.take(fit, 3, 4))
    assert costs.gradient_evaluations == pytest.approx(5 + 7 * FORWARD_COST)
    assert np.any(moved["norm"]["mean"] != before)
    assert 0 < costs.compile_seconds <= costs.seconds


@pytest.mark.parametrize("every", [1, 2])
def test_costs_of_outer_steps(tiny_problem, every):
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02))
    solver = fb.BilevelSolver(
        sparsity=0.5, steps=240, batch_size=8, buffer_size=2, violation_every=every
    )
    run = solver.start(problem, any_reference(problem))
    state = run.init()
    assert run.costs.gradient_evaluations == 0
    run.step(state)
    measured = -(-run.stage_steps // every)
    assert run.stage_steps >= 2
    # The MLP has no statistics to refresh.
    assert run.costs.gradient_evaluations == pytest.approx(
        2 * run.stage_steps + measured * FORWARD_COST
    )


def test_dense_training_costs_its_steps(tiny_problem):
    problem = tiny_problem()
    costs = Costs()
    reference = fb.train.train_dense(problem, steps=40, batch_size=16, costs=costs)
    assert reference.gradient_evaluations == costs.gradient_evaluations == 40
    assert not reference.correct[problem.roles["certify"]].any()
    assert not reference.loss[problem.roles["certify"]].any()
    correct, loss = problem.judge(reference.network, problem.roles["test"])
    np.testing.assert_array_equal(reference.correct[problem.roles["test"]], correct)
    np.testing.assert_array_equal(reference.loss[problem.roles["test"]], loss)
    assert fb.train.dense_steps(problem, 128) == 500
    assert fb.train.dense_steps(problem, 1) == 3000


# ---------------------------------------------------------------- update rules


def test_score_steps_do_not_depend_on_the_scale_of_the_loss():
    rng = np.random.default_rng(0)
    gradients = [
        {"a": jnp.asarray(rng.normal(size=5)), "b": jnp.asarray(rng.normal(size=2))}
        for _ in range(8)
    ]

    def trajectory(scale):
        rule = train.score_descent("adam", 0.03, 0.5, 20)
        scores = {"a": jnp.zeros(5), "b": jnp.zeros(2)}
        state, points = rule.init(scores), []
        for gradient in gradients:
            scaled = jax.tree.map(lambda g: scale * g, gradient)
            updates, state = rule.update(scaled, state, scores)
            scores = optax.apply_updates(scores, updates)
            points.append(np.concatenate([scores["a"], scores["b"]]))
        return np.stack(points)

    base = trajectory(1.0)
    np.testing.assert_allclose(trajectory(1000.0), base, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(trajectory(1e-6), base, rtol=1e-4, atol=1e-7)
    # Adam's first move is the whole step, 0.03 spreads, downhill, shortened by epsilon: a
    # thousandth of the gradients' root mean square.
    first = np.concatenate([gradients[0]["a"], gradients[0]["b"]])
    relative = first / np.sqrt(np.mean(first**2))
    expected = -0.03 * 0.5 * relative / (np.abs(relative) + 1e-3)
    np.testing.assert_allclose(base[0], expected, rtol=1e-4)


def test_scores_without_a_gradient_stay():
    rule = train.score_descent("adam", 0.03, 0.5, 20)
    scores = {"a": jnp.ones(3)}
    updates, _ = rule.update({"a": jnp.zeros(3)}, rule.init(scores), scores)
    np.testing.assert_array_equal(updates["a"], 0)


def test_the_default_rule_clips_and_warms_up():
    rule = train.sgd(0.1, 100, decay_to_zero=True, weight_decay=0.0)
    params = {"w": jnp.ones(4)}
    state = rule.init(params)
    huge = {"w": jnp.full(4, 1e6)}
    sizes = []
    for _ in range(101):
        updates, state = rule.update(huge, state, params)
        sizes.append(float(jnp.linalg.norm(updates["w"])))
    # Clipped to norm 2; Nesterov's first step is 1.9 times the rate.
    assert sizes[0] == pytest.approx(0.1 / 5 * 2 * 1.9, rel=1e-4)
    assert max(sizes) < 0.1 * 2 * 10
    assert sizes[-1] < 1e-6


# ---------------------------------------------------------------- early stopping


def network(value):
    return fb.Network({"w": jnp.full(2, value)}, {})


def test_best_picks_accuracy_less_violations():
    best = Best()
    offers = [  # accuracy, violations, expected winner so far
        (0.80, (0.05,), 0),
        (0.78, (-0.50,), 1),  # met with room to spare: no bonus for the room
        (0.84, (0.05, 0.02), 1),  # 0.77
        (0.80, (0.02, -1.0), 3),  # 0.78 again: of equals the later one
        (0.90, (0.13,), 3),
    ]
    for i, (accuracy, violations, expected) in enumerate(offers):
        best.offer(TuneRecord(accuracy, violations, 0.0, {}), network(float(i)))
        assert float(best.network.params["w"][0]) == expected
    # 0.95 less what exceeds the noise of 0.03: 0.83 wins although the violation is the largest.
    best.offer(TuneRecord(0.95, (0.15,), 0.03, {}), network(5.0))
    assert float(best.network.params["w"][0]) == 5
    # What was kept is a copy: later donation does not take it along.
    mine = network(9.0)
    best.offer(TuneRecord(1.0, (), 0.0, {}), mine)
    jax.jit(lambda p: p, donate_argnums=0)(mine.params)
    assert float(best.network.params["w"][0]) == 9


def test_early_stopping_keeps_the_best_of_dense_training(tiny_problem):
    """A rule that first learns and then forgets."""
    problem = tiny_problem()
    rule = optax.sgd(lambda count: jnp.where(count < 40, 0.3, -0.2))
    records = []
    reference = fb.train.train_dense(
        problem, steps=60, batch_size=32, optimizer=rule, callback=records.append
    )
    tuned = [r["tune"]["accuracy"] for r in records]
    assert tuned[-1] < max(tuned)
    kept = reference.correct[problem.roles["tune"]].mean()
    assert kept == pytest.approx(max(tuned))
    assert [r["step"] for r in records] == list(range(3, 61, 3))
