"""The training loop: streams of rows, weight and dual steps, divergence, costs, early stopping."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

import fairbilevel as fb
from fairbilevel import fairness, masks, train
from fairbilevel._trees import flatten_named, map_named
from fairbilevel.problem import _problem
from fairbilevel.train import (
    FORWARD_COST,
    Best,
    Costs,
    DivergenceError,
    Feed,
    Noise,
    Rules,
    TuneRecord,
    _report,
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
    feed, other = Feed(problem, None, 3), Feed(problem, None, 3)
    parts = [feed.take(rows, 0, 2, 8), feed.take(rows, 1, 1, 8), feed.take(rows, 0, 3, 8)]
    whole = other.take(rows, 0, 5, 8)
    np.testing.assert_array_equal(jnp.concatenate([parts[0].x, parts[2].x]), whole.x)
    assert whole.x.shape == (5, 8, 6)
    assert whole.y.shape == (5, 8)
    assert not whole.dense_logits.any()


def test_what_fills_a_program_up_takes_nothing_from_the_stream(tiny_problem):
    problem = tiny_problem()
    rows = problem.roles["fit"]
    feed, other = Feed(problem, None, 3), Feed(problem, None, 3)
    filled = feed.take(rows, 0, 2, 8, length=6)
    assert filled.x.shape == (6, 8, 6)
    whole = other.take(rows, 0, 5, 8)
    np.testing.assert_array_equal(filled.x[:2], whole.x[:2])
    np.testing.assert_array_equal(feed.take(rows, 0, 3, 8).x, whole.x[2:])


# ---------------------------------------------------------------- the weight step

CONSTRAINTS = (
    fairness.ExcessAccuracyGap(0.02),
    fairness.AccuracyGap(0.05),
    fairness.EqualizedLoss(0.1, surrogate="squared-hinge"),
)


class Rig:
    """Steps of a problem with the numbers that they take, and a first state."""

    def __init__(self, problem, optimizer, dual_rule=None, buffer_size=4, joint=False):
        rule = optax.sgd(0.1) if dual_rule is None else dual_rule
        self.problem = problem
        self.rules = Rules(problem.constraints, optimizer, rule, buffer_size, joint)
        self.steps = self.rules.steps(problem)
        self.numbers = problem.placement.place(problem.numbers(temperature=TEMPERATURE))

    def duals(self):
        return self.steps.duals(self.rules.duals, self.rules.buffer_size)

    def init(self, params, model_state, key):
        optimizer = self.rules.optimizer.init(params)
        zero = jnp.zeros((), jnp.int32)
        return train.WeightState(params, model_state, optimizer, self.duals(), key, zero)

    def step(self, state, factors, batch, rate=1.0):
        return self.steps.weight_step(state, factors, self.numbers, batch, rate)


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
    outcomes = steps.steps.outcomes(state.params, state.model_state, batch, steps.numbers)
    duals = state.duals._replace(buffers=fairness.write(state.duals.buffers, outcomes, batch.group))
    return state._replace(duals=duals)


def forward_by_hand(params, x):
    """The MLP in double precision."""
    p = {n: np.asarray(v, np.float64) for n, v in flatten_named(params).items()}
    for i in range(2):
        x = np.maximum(x @ p[f"hidden/{i}/kernel"] + p[f"hidden/{i}/bias"], 0)
    return x @ p["classifier/kernel"] + p["classifier/bias"]


TEMPERATURE = 2.0
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
    dense, own = (
        log_softmax(np.asarray(a, np.float64) / TEMPERATURE, 1)
        for a in (batch.dense_logits, logits)
    )
    soft = TEMPERATURE**2 * np.sum(np.exp(dense) * (dense - own), 1)
    total = total + np.asarray(batch.distill, np.float64) * (soft - total)
    for constraint, weight in zip(problem.constraints, weights.harm, strict=True):
        total = total + np.asarray(weight, np.float64)[group] * HARMS[constraint.surrogate](v)
    return np.mean(np.asarray(batch.weight) * total)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_weight_steps_follow_the_gradient_of_the_constrained_objective(tiny_problem, soft):
    problem = tiny_problem(*CONSTRAINTS)
    reference = any_reference(problem)
    steps = Rig(problem, optax.sgd(1.0))
    params, model_state = problem.model.init(jax.random.key(0))
    noise = np.random.default_rng(1)  # off the kinks, where biases of zero would leave dead neurons
    params = jax.tree.map(lambda p: p + noise.normal(0, 0.1, p.shape).astype(np.float32), params)
    _, factors = half_masks(problem, params, soft)
    state = with_multipliers(steps.init(params, model_state, jax.random.key(1)))
    state = fed_buffers(steps, state, problem, reference)
    batch = train.gather(problem, reference, problem.roles["fit"][:64])
    batch = batch._replace(weight=jnp.linspace(0.5, 1.5, 64), distill=jnp.linspace(0, 1, 64))
    weights = steps.steps.weigh(state.duals, steps.numbers, batch)
    assert any(np.any(w != 0) for w in weights.harm)
    moved, log = jax.jit(steps.step)(state, factors, batch)

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
    alone = batch._replace(distill=jnp.zeros(64))
    plain = objective_by_hand(tiny_problem(), params, factors, alone, weights._replace(harm=()))
    assert float(log.loss) == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("rule", ["default", "adamw"])
def test_removed_weights_neither_move_nor_decay(tiny_problem, rule):
    problem = tiny_problem()
    optimizer = (
        train.sgd(weight_decay=0.1) if rule == "default" else optax.adamw(0.05, weight_decay=0.1)
    )
    steps = Rig(problem, optimizer)
    params, model_state = problem.model.init(jax.random.key(0))
    hard, factors = half_masks(problem, params)
    state = steps.init(params, model_state, jax.random.key(1))
    step = jax.jit(steps.step)
    for i in range(4):
        batch = train.gather(problem, None, problem.roles["fit"][32 * i : 32 * i + 32])
        state, _ = step(state, factors, batch, 0.1 if rule == "default" else 1.0)
    before, after = flatten_named(params), flatten_named(state.params)
    for layer in problem.layers:
        gone = np.asarray(hard[layer.name]) == 0
        moved = np.asarray(after[layer.kernel]) != np.asarray(before[layer.kernel])
        assert not moved[gone].any()
        assert moved[~gone].any()


def test_kept_weights_decay_even_without_a_gradient(tiny_problem):
    """A row weight of zero leaves only the decay."""
    problem = tiny_problem()
    steps = Rig(problem, optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0)))
    params, model_state = problem.model.init(jax.random.key(0))
    hard, factors = half_masks(problem, params)
    state = steps.init(params, model_state, jax.random.key(1))
    batch = train.gather(problem, None, problem.roles["fit"][:8])._replace(weight=jnp.zeros(8))
    moved, _ = steps.step(state, factors, batch)
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


def outer_call(run, state, rows, reference, *, count=1):
    """One compiled call of the solver on rows by hand: fit, select, those of the multipliers."""
    problem, method = run.problem, run.method
    parts = [train.gather(problem, reference, np.stack([r] * count)) for r in rows]
    own = fb.solver._step.OuterStretch(
        np.full(count, method.score_step, np.float32),
        np.zeros(count, np.float32),
        np.arange(count, dtype=np.int32),
        masks.as_counts(run.budget.keep(0.3)),
    )
    every = np.arange(count, dtype=np.int32)
    told = train.Stretch(np.int32(count), np.full(count, 0.05, np.float32), every, np.float32(1))
    state = jax.tree.map(jnp.copy, state)
    return fb.solver.outer_stretch(run.outer_step, state, run.numbers, told, own, *parts)[0]


def test_only_the_fit_pass_moves_statistics(tiny_problem):
    """One call of the solver with another select batch and other multipliers' rows: the same
    statistics to the bit; with another fit batch: others."""
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02), model=normalized())
    reference = any_reference(problem)
    solver = fb.BilevelSolver(
        sparsity=0.3, steps=150, batch_size=16, buffer_size=2, split_batch=False
    )
    run = solver.start(problem, reference)
    start = run.init()
    rows = {name: problem.roles[name][:16] for name in ("fit", "tune")}
    rows["select"], rows["other"] = problem.select_outer[:16], problem.select_outer[16:32]

    def statistics(*names):
        return outer_call(run, start, [rows[n] for n in names], reference).weights.model_state

    base = statistics("fit", "select", "tune")
    for select, duals in (("other", "tune"), ("select", "other")):
        jax.tree.map(np.testing.assert_array_equal, statistics("fit", select, duals), base)
    other = statistics("tune", "select", "tune")
    assert any(
        np.any(a != b) for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(base), strict=True)
    )


def test_every_step_of_an_unrolled_method_moves_the_statistics(tiny_problem):
    """Their running mean after K inner steps is that of K passes, one after the other: at a rate of
    zero the weights stay, so that each pass can be made by hand."""
    problem = tiny_problem(model=normalized())
    reference = any_reference(problem)
    run = fb.BilevelSolver(
        sparsity=0.3, steps=150, batch_size=16, split_batch=False, learning_rate=0.0,
        hypergradient=fb.hypergrad.Unrolled(3),
    ).start(problem, reference)  # fmt: skip
    state = run.init()
    rows = problem.roles["fit"][:48].reshape(1, 3, 16)
    fit = train.gather(problem, reference, rows)
    other = train.gather(problem, reference, problem.select_outer[:16][None])
    own = fb.solver._step.OuterStretch(
        np.zeros(1, np.float32), np.zeros(1, np.float32), np.zeros(1, np.int32),
        masks.as_counts(run.budget.keep(0.3)),
    )  # fmt: skip
    told = train.Stretch(np.int32(1), np.zeros(1, np.float32), np.full(1, -1), np.float32(1))
    kept = run.selected(state.scores, run.everything(), 0.3)
    z = masks.apply(kept, state.weights.params, problem.layers, "weight")
    expected = state.weights.model_state
    for i in range(3):
        x = problem.normalize(jnp.asarray(problem.inputs[rows[0, i]]))
        _, expected = problem.model.apply(z, expected, x, True, jax.random.key(0))
    before = jax.tree.map(jnp.copy, state)
    after, _, _ = fb.solver.outer_stretch(
        run.outer_step, before, run.numbers, told, own, fit, other, other
    )
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6),
        after.weights.model_state["norm"],
        expected["norm"],
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
    rig = Rig(problem, optax.identity(), optax.sgd(0.5), buffer_size=2)
    steps, state = rig.steps, rig.init(*problem.model.init(jax.random.key(0)), jax.random.key(0))
    # Whatever the encoder standardizes with, undo it: these are the network's logits over ten.
    wanted = np.zeros((5, 6), np.float32)
    wanted[np.arange(5), [0, 1, 2, 1, 0]] = 1
    mean, std = np.asarray(problem.encoder.mean), np.asarray(problem.encoder.std)
    batch = train.Batch(
        jnp.asarray(wanted * std + mean, jnp.float32),
        jnp.array([0, 2, 2, 1, 0]),  # the second row is wrong
        jnp.array([0, 0, 1, 1, 2]),
        jnp.ones(5),
        50 * jax.nn.one_hot(jnp.array([0, 2, 2, 1, 0]), 3),  # the dense model is right and sure
        jnp.zeros(5),
    )
    duals = steps.dual_step(state.duals, state.params, state.model_state, batch, rig.numbers)
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
    # Empty buffers say nothing.
    assert not steps.statistics(rig.duals(), rig.numbers).present.any()
    # A scale shortens the move and nothing else.
    half = steps.dual_step(state.duals, state.params, state.model_state, batch, rig.numbers, 0.5)
    np.testing.assert_allclose(half.multipliers[1], 0.5 * duals.multipliers[1], rtol=1e-6)


def seen_by(run):
    """How many rows the multipliers have seen after each stage of a run."""
    state, seen = run.init(), []
    while run.done < run.stages:
        last = run.done == run.stages - 1
        state = run.step(state)
        seen.append(int(state.weights.duals.buffers.written.sum()))
        if last:
            break
    return seen


@pytest.mark.parametrize("every", [1, 3, 7])
def test_violations_are_measured_every_so_many_steps(tiny_problem, every):
    """Whatever the stages' lengths: with stages of one step too."""
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02), model=picker(), prune_classifier=True)
    solver = fb.BilevelSolver(
        sparsity=0.5,
        steps=30,
        batch_size=8,
        buffer_size=2,
        violation_every=every,
        bilevel_share=0.5,
        fine_tune_on="fit+select",
        match_dense=False,
    )
    run = solver.start(problem, any_reference(problem))
    assert set(run.plan.phases[0].stages) == {1}
    seen, steps = seen_by(run), 0
    for phase in run.plan.phases:
        np.testing.assert_array_equal(phase.measures, np.arange(phase.steps) % every == 0)
    planned = [(p, n, p.before(i)) for p in run.plan.phases for i, n in enumerate(p.stages)]
    for (phase, count, before), total in zip(planned, seen, strict=True):
        steps += 8 * int(phase.measures[before : before + count].sum())
        assert total == steps, phase.name


def test_the_dual_step_scales_with_the_measurements_it_waits_for(tiny_problem):
    """One violation that stays moves multipliers as far whether it is looked at often or not."""
    problem = tiny_problem(fairness.SignedEqualizedLoss(0.0), model=picker(), prune_classifier=True)
    reference = any_reference(problem)
    ends = []
    for every in (1, 4):
        method = fb.BilevelSolver(sparsity=0.5, violation_every=every, dual_step=0.1)
        rig = Rig(problem, optax.identity(), method.rules(problem).duals, buffer_size=8)
        state = rig.init(*problem.model.init(jax.random.key(0)), jax.random.key(0))
        batch = train.gather(problem, reference, problem.select_duals)
        duals = state.duals
        for _ in range(12 // every):
            duals = rig.steps.dual_step(duals, state.params, {}, batch, rig.numbers)
        ends.append(np.asarray(duals.multipliers[0]))
    assert np.abs(ends[0]).max() > 0
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-5)


def test_steps_in_row_weight_leave_the_rarest_group_no_louder_than_the_others(tiny_problem):
    """Violated alike, groups gain the same weight a row; in steps of the multipliers themselves a
    group's rows gain as much more as they are fewer."""
    problem = tiny_problem(fairness.WorstGroupAccuracy(1.0))
    share, gained = problem.share["select"], {}
    for unit in ("multiplier", "row-weight"):
        method = fb.BilevelSolver(dual_unit=unit, dual_step=0.1, buffer_size=512)
        run = method.start(problem, any_reference(problem))
        numbers = run.numbers
        batch = train.gather(problem, run.reference, problem.select_duals)
        wrong = jax.tree.map(jnp.zeros_like, run.steps.outcomes(
            run.reference.network.params, run.reference.network.state, batch, numbers
        ))  # fmt: skip
        duals = run.steps._ascended(run.fresh(), wrong, batch.group, numbers, 1.0)
        gained[unit] = np.asarray(run.steps.weigh(duals, numbers, batch, "select").harm[0])
        assert np.asarray(duals.buffers.written).tolist() == np.bincount(batch.group).tolist()
    np.testing.assert_allclose(gained["row-weight"], 0.1 * 4, rtol=1e-5)
    np.testing.assert_allclose(gained["multiplier"], 0.1 * 4 / share, rtol=1e-5)


def test_buffers_that_hold_all_rows_hold_each_once(tiny_problem):
    """However often the rows came round: their order is one for the whole run."""
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02))
    run = fb.BilevelSolver(sparsity=0.5, steps=200, batch_size=16, buffer_size=512).start(
        problem, any_reference(problem)
    )
    rows, size = problem.select_duals, len(problem.select_duals)
    names = train.stream_rows(rows, 0, train.STREAM_DUALS, 0, 5 * size)
    for part in names.reshape(5, size)[1:]:
        np.testing.assert_array_equal(part, names[:size])
    state = run.init()
    state = run.step(state)
    capacity = np.asarray(state.weights.duals.buffers.capacity)
    np.testing.assert_array_equal(capacity, np.bincount(problem.group[rows]))


def test_multipliers_that_start_with_the_run_are_alive_at_short_budgets(tiny_problem):
    """Buffers are not emptied when the budget moves, so that once they are full every later step
    has its violations."""
    problem = tiny_problem(fairness.SignedEqualizedLoss(0.0))
    solver = fb.BilevelSolver(sparsity=0.5, steps=200, batch_size=32, buffer_size=16)
    solution = solver.run(problem, any_reference(problem))
    search = [r for r in solution.history if r["phase"] == "bilevel"]
    alive = [
        any(v != 0 for v in r["multipliers"]["equalized-loss-signed"].values()) for r in search
    ]
    assert len(search) == 20
    assert sum(alive) >= 15
    assert alive == sorted(alive)  # once alive, for good


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


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("split", [False, True])
def test_costs_of_outer_steps(tiny_problem, every, split):
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02))
    solver = fb.BilevelSolver(
        sparsity=0.5, steps=240, batch_size=8, buffer_size=2, violation_every=every,
        split_batch=split,
    )  # fmt: skip
    run = solver.start(problem, any_reference(problem))
    state = run.init()
    assert run.costs.gradient_evaluations == 0
    run.step(state)
    steps = run.plan.phases[0].stages[0]
    assert steps >= 2
    # Two gradients, of a batch each or of one between them.
    assert run.costs.gradient_evaluations == pytest.approx(
        (1 if split else 2) * steps + -(-steps // every) * FORWARD_COST
    )
    assert 0 <= run.costs.compile_seconds <= run.costs.seconds


def test_the_extra_pass_of_joint_steps_in_micro_batches_is_booked(tiny_problem):
    """With micro-batches no row's weight is known before all logits are: a forward pass more a
    step, where constraints act and only there."""
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02), accumulate=2)
    reference = any_reference(problem)
    method = fb.pruners.CEAG(steps=40, batch_size=8, buffer_size=2, rounds=4, sparsity=0.5)
    solution = method.run(problem, reference)
    each = {}
    before = 0.0
    for record in solution.history:
        each.setdefault(record["phase"], []).append(record["gradient_evaluations"] - before)
        before = record["gradient_evaluations"]
    steps = {p.name: p.stages for p in method.plan(problem).phases}
    assert each["prune"] == pytest.approx(list(steps["prune"]), abs=0.011)
    fine = [(1 + FORWARD_COST) * n for n in steps["finetune"]]
    assert each["finetune"] == pytest.approx(fine, abs=0.011)
    assert 39 - FORWARD_COST < solution.costs.gradient_evaluations <= 40
    # Whole batches cost nothing more, and more steps are left.
    whole = method.plan(tiny_problem(fairness.ExcessAccuracyGap(0.02)))
    assert whole.weight_updates == 40 > sum(map(sum, steps.values()))


@pytest.mark.parametrize("name", ["bilevel", "gradual-magnitude", "ceag", "hydra"])
def test_distillation_brings_any_method_nearer_to_the_dense_outputs(tiny_problem, name):
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02))
    problem.roles["tune"] = np.array([], int)  # the teacher is never known to be reached
    reference = train.train_dense(problem, steps=100, batch_size=32, learning_rate=0.05, seed=0)
    rows = problem.roles["fit"]
    dense = log_softmax(reference.logits[rows], 1)

    def apart(**options):
        """Mean divergence of the pruned network from the dense one, in nats."""
        common = {"sparsity": 0.5, "steps": 80, "batch_size": 32, "distill": 0.0, **options}
        network = fb.methods.by_name(name, **common).run(problem, reference).network
        own = log_softmax(problem.logits(network, problem.inputs[rows]), 1)
        return np.mean(np.sum(np.exp(dense) * (dense - own), 1))

    labels, dense_alone = apart(), apart(distill=1.0)
    assert dense_alone < 0.7 * labels
    assert apart(distill=1.0, distill_temperature=3.0) not in (labels, dense_alone)
    assert apart(distill_temperature=3.0) == labels  # without a share it is not felt


def test_distillation_ends_where_the_teacher_is_reached(tiny_problem):
    """Its share falls within a standard error of the dense accuracy on tune, and every row of the
    stage is given it."""
    problem = tiny_problem()
    reference = train.train_dense(problem, steps=100, batch_size=32, learning_rate=0.05, seed=0)
    method = fb.pruners.GradualMagnitude(sparsity=0.5, steps=60, batch_size=16, distill=0.6)
    run, taken = method.start(problem, reference), []
    teacher = reference.correct[problem.roles["tune"]].mean()
    take = run.feed.take

    def watched(*args, **options):
        batch = take(*args, **options)
        taken.append((run.done, np.unique(batch.distill)))
        return batch

    run.feed.take = watched
    state = run.init()
    while run.done < run.stages:
        last = run.done == run.stages - 1
        state = run.step(state)
        if last:
            break
    assert len(run.report.history) > 10
    assert taken[0][1] == pytest.approx(0.6)
    shares = {done: share for done, share in taken}
    for done, record in enumerate(run.report.history[:-1], 1):
        behind = (teacher - record["tune"]["accuracy"]) / run.noise.accuracy
        assert shares[done] == pytest.approx(0.6 * np.clip(behind, 0, 1), abs=1e-6)
    assert len({float(share[0]) for share in shares.values()}) > 2


@pytest.mark.parametrize("relaxation", masks.RELAXATIONS)
def test_score_steps_go_by_the_spread_of_the_scores_they_move(tiny_problem, relaxation):
    """The capped simplex projects its scores at the start: their spread is then another one."""
    problem = tiny_problem()
    reference = any_reference(problem)
    run = fb.BilevelSolver(sparsity=0.8, relaxation=relaxation, steps=60, batch_size=16).start(
        problem, reference
    )
    state = run.init()
    begun = masks.start_scores(
        "magnitude", reference.network.params, problem.layers, "weight", jax.random.key(0)
    )
    assert float(state.outer.spread) == pytest.approx(float(masks.spread(state.scores)), rel=1e-5)
    moved = float(state.outer.spread) / float(masks.spread(begun))
    assert (moved == pytest.approx(1, rel=1e-5)) == (relaxation != "capped-simplex")


def test_costs_of_the_final_statistics(tiny_problem):
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02), model=normalized())
    run = fb.pruners.Magnitude(steps=20, batch_size=8).start(problem, any_reference(problem))
    state = run.run_stages()
    before, spent = run.best.network.state["norm"]["mean"], run.costs.gradient_evaluations
    solution = run.finish(state)
    assert run.costs.gradient_evaluations - spent == pytest.approx(20 * FORWARD_COST)
    assert np.any(np.asarray(solution.network.state["norm"]["mean"]) != np.asarray(before))
    assert 19 <= run.costs.gradient_evaluations <= 20


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

    rates = 0.03 * 0.5 * train.held_then_falling(20, 0.8)

    def trajectory(scale):
        rule = train.SCORE_RULES["adam"]
        scores = {"a": jnp.zeros(5), "b": jnp.zeros(2)}
        state, points = rule.init(scores), []
        for gradient, rate in zip(gradients, rates, strict=False):
            scaled = jax.tree.map(lambda g: scale * g, gradient)
            updates, state = rule.update(scaled, state, scores)
            scores = optax.apply_updates(scores, jax.tree.map(lambda u, r=rate: r * u, updates))
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
    rule = train.SCORE_RULES["adam"]
    scores = {"a": jnp.ones(3)}
    updates, _ = rule.update({"a": jnp.zeros(3)}, rule.init(scores), scores)
    np.testing.assert_array_equal(updates["a"], 0)


def test_the_default_rule_clips_and_warms_up():
    rule = train.sgd(weight_decay=0.0)
    params = {"w": jnp.ones(4)}
    state = rule.init(params)
    huge = {"w": jnp.full(4, 1e6)}
    sizes = []
    for rate in train.learning_rates(0.1, 100, to_zero=True):
        updates, state = rule.update(huge, state, params)
        sizes.append(float(rate * jnp.linalg.norm(updates["w"])))
    # Clipped to norm 2; Nesterov's first step is 1.9 times the rate.
    assert sizes[0] == pytest.approx(0.1 / 5 * 2 * 1.9, rel=1e-4)
    assert max(sizes) < 0.1 * 2 * 10
    assert sizes[-1] < 1e-2


@pytest.mark.parametrize("steps", [1, 7, 100, 3000])
@pytest.mark.parametrize("to_zero", [False, True])
def test_learning_rates_are_those_of_optax(steps, to_zero):
    warm = max(1, min(steps // 20, 50))
    after = optax.cosine_decay_schedule(0.1, max(steps - warm, 1))
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.1 / warm, 0.1, warm),
            after if to_zero else optax.constant_schedule(0.1),
        ],
        [warm],
    )
    expected = [float(schedule(i)) for i in range(steps)]
    rates = train.learning_rates(0.1, steps, to_zero=to_zero)
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-8)


# ---------------------------------------------------------------- plans


@settings(max_examples=200, deadline=None)
@given(
    st.floats(0, 500),
    st.lists(st.floats(0.5, 20), min_size=1, max_size=4),
    st.integers(0, 6),
)
def test_as_many_steps_as_the_budget_pays_for(budget, cycle, interval):
    steps = train.affordable(budget, cycle, interval)
    spent = train.costs(steps, cycle, interval).sum()
    assert spent <= budget + 1e-6
    assert train.costs(steps + 1, cycle, interval).sum() > budget


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 400), st.integers(1, 40))
def test_stages_are_even_and_leave_nothing_out(steps, parts):
    lengths = train.stages(steps, parts)
    assert sum(lengths) == steps
    assert len(lengths) == min(parts, steps)
    assert not lengths or max(lengths) - min(lengths) <= 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=90), st.integers(1, 33), st.integers(1, 9))
def test_calls_take_every_step_once(measures, length, duals):
    from fairbilevel.train._stretch import pieces

    found = pieces(np.asarray(measures, bool), length, duals)
    taken = [i for first, count in found for i in range(first, first + count)]
    assert taken == list(range(len(measures)))
    for first, count in found:
        assert 0 < count <= length
        assert sum(measures[first : first + count]) <= duals


# ---------------------------------------------------------------- early stopping


def network(value):
    return fb.Network({"w": jnp.full(2, value)}, {})


def offered(noise, offers, enforces=True):
    """The index of the network that is kept of offers of accuracy and violations."""
    best = Best(noise, enforces)
    for i, (accuracy, violations) in enumerate(offers):
        best.offer(TuneRecord(accuracy, violations, {}), network(float(i)))
    return int(best.network.params["w"][0])


def test_best_never_keeps_the_most_damaged_network():
    """With the excess gap the overall accuracy cancels (accuracy less violation is the worst
    group's), and an allowance for noise that grows with the damage then preferred the worst."""
    noise = Noise(0.01, 0.05)
    assert offered(noise, [(0.914, (0.10,)), (0.481, (0.02,))]) == 0
    assert offered(noise, [(0.481, (-0.02,)), (0.914, (0.30,))]) == 1
    # What enforces nothing is not stopped by violations at all.
    assert offered(noise, [(0.90, (0.30,)), (0.88, (0.0,))], enforces=False) == 0


def test_best_picks_the_least_violation_among_the_most_accurate():
    noise = Noise(0.01, 0.02)
    # Within noise of the highest accuracy: the smaller violation beyond noise, then accuracy.
    assert offered(noise, [(0.90, (0.08,)), (0.895, (0.05,)), (0.893, (0.06,))]) == 1
    assert offered(noise, [(0.90, (0.01,)), (0.895, (0.0,))]) == 0
    # Below that only where it pays: more violation saved than accuracy lost, beyond noise.
    assert offered(noise, [(0.90, (0.20,)), (0.86, (0.03,))]) == 1
    assert offered(noise, [(0.90, (0.06,)), (0.86, (0.03,))]) == 0
    assert offered(noise, [(0.90, (0.035,)), (0.889, (0.02,))]) == 0
    # Of equals the later; several violations add up; room to spare earns nothing.
    assert offered(noise, [(0.90, (0.05,)), (0.90, (0.05,))]) == 1
    assert offered(noise, [(0.90, (0.05, 0.05)), (0.90, (0.07, -0.5))]) == 1


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(5)), st.integers(0, 1000))
@example([0, 2, 3, 1, 4], 939)  # two that pay equally
def test_what_is_kept_does_not_depend_on_the_order_of_offers(order, seed):
    rng = np.random.default_rng(seed)
    offers = [(round(float(a), 2), (round(float(v), 2),)) for a, v in rng.uniform(0, 1, (5, 2))]
    noise = Noise(0.05, 0.1)

    def kept(offers):
        accuracy, (violation,) = offers[offered(noise, offers)]
        return accuracy, max(violation - noise.violation, 0)  # equal in both, they are equals

    assert kept([offers[i] for i in order]) == kept(offers)


def test_what_was_kept_is_a_copy():
    """Later donation does not take it along."""
    best, mine = Best(), network(9.0)
    best.offer(TuneRecord(1.0, (), {}), mine)
    jax.jit(lambda p: p, donate_argnums=0)(mine.params)
    assert float(best.network.params["w"][0]) == 9


def test_noise_is_that_of_the_dense_model_for_every_network(tiny_problem):
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02))
    reference = any_reference(problem)
    rows = problem.roles["tune"]
    right = reference.correct[rows].mean()
    smallest = min(np.bincount(problem.group[rows]))
    noise = Noise.of(problem, reference)
    assert noise.accuracy == pytest.approx(np.sqrt(right * (1 - right) / len(rows)))
    assert noise.violation == pytest.approx(np.sqrt(right * (1 - right) / smallest))


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


def test_of_many_tune_rows_a_draw_is_watched(tiny_problem, monkeypatch):
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02))
    assert problem.watched is problem.roles["tune"]
    monkeypatch.setattr(_problem, "WATCHED_ROWS", 20)
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02))
    reference = any_reference(problem)
    assert len(problem.watched) == 20
    assert set(problem.watched) < set(problem.roles["tune"])
    found = _report.tune_record(problem, reference.network, reference)
    right = reference.correct[problem.watched]
    assert found.log["accuracy"] == pytest.approx(right.mean())
    assert _report.Noise.of(problem, reference).accuracy == pytest.approx(
        right.std() / np.sqrt(20), rel=0.2
    )
