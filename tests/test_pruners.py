"""Every method by name: exact sparsity, budgets, seeds; and each pruner's scores by hand."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from by_group import group_statistics

import fairbilevel as fb
from fairbilevel import _trees, fairness, masks, methods, pruners
from fairbilevel._trees import flatten_named
from fairbilevel.masks import CubicSchedule, Layer
from fairbilevel.pruners import Moment
from fairbilevel.pruners._group_scores import keep_shares
from fairbilevel.pruners._run import training_rows
from fairbilevel.run import Config
from fairbilevel.train import STREAM_DUALS, STREAM_FIT, Feed, Rules, WeightState, gather

QUICK = {"sparsity": 0.7, "steps": 40, "batch_size": 16, "round_channels": 1}


@pytest.fixture(scope="module")
def digits():
    """The bundled digits under a constraint: a tiny MLP and a tiny CNN, each with a dense model."""
    data = fb.data.load("digits")
    gap = fairness.ExcessAccuracyGap(0.02)
    problems = {
        model: fb.FairPruningProblem(model, data, width=width, constraints=[gap])
        for model, width in (("mlp", 24), ("cnn", 2))
    }
    return {
        model: (problem, problem.refer(problem.initial_network(1)))
        for model, problem in problems.items()
    }


@pytest.fixture(scope="module")
def tiny(tiny_problem):
    return tiny_problem(fairness.ExcessAccuracyGap(0.02))


@pytest.fixture(scope="module")
def dense(tiny):
    return fb.train.train_dense(tiny, steps=60, batch_size=QUICK["batch_size"])


def bits(solution):
    values = {n: np.asarray(v).tobytes() for n, v in flatten_named(solution.network.params).items()}
    return values | {f"mask {n}": np.asarray(m).tobytes() for n, m in solution.masks.items()}


# All by weights; by filters those whose scores differ; with normalization and convolutions a few.
FILTERS = ("magnitude", "random", "snip", "grasp", "synflow", "fairgrape", "fairprune", "hydra")
CASES = [(m.name, "mlp", m.granularities[0]) for m in methods.METHODS.values()]
CASES += [(name, "mlp", "filter") for name in FILTERS]
CASES += [("snip", "cnn", "filter"), ("fpgm", "cnn", "filter"), ("synflow", "cnn", "weight")]


@pytest.mark.parametrize(("name", "model", "granularity"), CASES)
def test_every_method_runs_on_digits(name, model, granularity, digits):
    """Exact sparsity, removed units that are zero, and the gradient evaluations that were asked."""
    problem, reference = digits[model]
    method = methods.by_name(name, granularity=granularity, **{**QUICK, "sparsity": 0.5})
    solution = method.run(problem, reference)
    budget = solution.budget
    kept = budget.keep(0.5)
    ones = {n: int(np.sum(np.asarray(m) == 1)) for n, m in solution.masks.items()}
    zeros = {n: int(np.sum(np.asarray(m) == 0)) for n, m in solution.masks.items()}
    assert {n: ones[n] + zeros[n] for n in ones} == dict(budget.units)
    assert (sum(ones.values()) == kept["all"]) if budget.kind == "global" else (ones == kept)
    factors = masks.expand(solution.masks, solution.network.params, problem.layers, granularity)
    for factor, leaf in zip(
        jax.tree.leaves(factors), jax.tree.leaves(solution.network.params), strict=True
    ):
        assert not np.any(np.where(factor == 0, leaf, 0))
    spent = solution.costs.gradient_evaluations
    assert QUICK["steps"] - 1 < spent <= QUICK["steps"] + 1e-6
    assert spent == pytest.approx(method.plan(problem, reference).evaluations)
    assert solution.method == name
    assert solution.history[-1]["step"] == solution.history[-1]["steps"]
    # What is measured is the problem's, whatever the method enforces.
    assert solution.problem is problem
    assert len(solution.evaluate("test").constraints) == 1


# ---------------------------------------------------------------- budgets

BUDGETS = (100, 200, 300, 600, 1000, 3000)


@pytest.mark.parametrize("steps", BUDGETS)
def test_every_method_plans_what_was_asked(steps, digits):
    """To within one gradient evaluation, statistics of the final network included: to the last
    unit, nothing floored to tens, nothing set aside for what does not happen."""
    problem, _ = digits["cnn"]
    for entry in methods.METHODS.values():
        method = methods.by_name(entry.name, steps=steps, granularity=entry.granularities[-1])
        plan = method.plan(problem)
        assert steps - 1 < plan.evaluations <= steps + 1e-6, entry.name
        assert plan.recalibration == pytest.approx(20 / 3), entry.name
        rest = sum(p.evaluations for p in plan.phases)
        assert rest + plan.recalibration + plan.matching == pytest.approx(plan.evaluations)


@pytest.mark.parametrize("steps", BUDGETS)
def test_the_solver_takes_nearly_as_many_weight_steps_as_its_rival(steps, digits):
    """On a network with statistics and under a constraint: 110 against 190 at 200 it once was."""
    problem, _ = digits["cnn"]
    solver = methods.by_name("bilevel", steps=steps).plan(problem)
    rival = methods.by_name("gradual-magnitude", steps=steps).plan(problem)
    assert rival.weight_updates == int(steps - rival.recalibration)
    assert solver.weight_updates >= 0.75 * rival.weight_updates


@pytest.mark.parametrize(
    ("name", "model", "steps"),
    [
        ("bilevel", "cnn", 100),
        ("bilevel", "cnn", 200),
        ("bilevel", "cnn", 600),
        ("lottery", "cnn", 600),
        ("fairgrape", "cnn", 200),
        ("snip", "cnn", 100),
        ("bip", "mlp", 200),
        ("ceag", "mlp", 200),
        ("hydra", "mlp", 100),
    ],
)
def test_what_is_planned_is_spent(name, model, steps, digits):
    problem, reference = digits[model]
    method = methods.by_name(name, steps=steps, batch_size=16, sparsity=0.5)
    plan = method.plan(problem, reference)
    run = method.start(problem, reference)
    weights = run.init()
    for _ in range(run.stages):
        weights = run.step(weights)
    solution = run.finish(weights)
    assert solution.costs.gradient_evaluations == pytest.approx(plan.evaluations)
    assert abs(solution.costs.gradient_evaluations - steps) < 1
    # What was booked is what was done: each step drew a key.
    assert int(weights.weights.drawn) == sum(p.steps for p in plan.phases)
    scores_alone = sum(p.steps for p in plan.phases if name == "hydra" and p.name == "prune")
    assert plan.weight_updates == int(weights.weights.drawn) - scores_alone
    assert solution.history[-1]["gradient_evaluations"] == pytest.approx(
        plan.evaluations - plan.recalibration - plan.matching, abs=0.01
    )


@pytest.mark.parametrize("name", ["random", "snip"])
def test_the_same_seed_gives_the_same_network(name, tiny, dense):
    def run(seed):
        return bits(methods.by_name(name, seed=seed, **QUICK).run(tiny, dense))

    first = run(0)
    assert run(0) == first
    assert run(1) != first


# ---------------------------------------------------------------- scores by hand


def moment(problem, network, *parts, granularity="weight", count=1, key=0):
    """A moment at a network with nothing removed, each part's rows in ``count`` equal batches."""
    batches = None
    if parts:
        each = [gather(problem, None, np.tile(rows, (count, 1))) for rows in parts]
        batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    kept = masks.start_scores(
        "constant", network.params, problem.layers, granularity, jax.random.key(0)
    )
    return Moment(
        problem.structure, network.params, network.state, kept, granularity, batches,
        jax.random.key(key), jax.device_put(problem.encoder.moments),
    )  # fmt: skip


def scores_of(pruner, at):
    """Its scores at a moment, compiled as a run compiles them."""

    def scores(network, batches):
        return pruner.scores(dataclasses.replace(at, network=network, batches=batches))

    return jax.jit(scores)(at.network, at.batches)


def loss_by_hand(params, x, y):
    """The MLP's mean cross-entropy in double precision."""
    p = {n: np.asarray(v, np.float64) for n, v in params.items()}
    for i in range(2):
        x = np.maximum(x @ p[f"hidden/{i}/kernel"] + p[f"hidden/{i}/bias"], 0)
    logits = x @ p["classifier/kernel"] + p["classifier/bias"]
    return np.mean(np.logaddexp.reduce(logits, 1) - logits[np.arange(len(y)), y])


@pytest.mark.parametrize("granularity", ["weight", "filter"])
def test_snip_by_finite_differences(granularity, tiny, dense):
    """The derivative with respect to a mask, of a weight or of a neuron with its bias."""
    rows = tiny.roles["fit"][:40]
    at = moment(tiny, dense.network, rows, granularity=granularity)
    scores = scores_of(pruners.SNIP(granularity=granularity), at)
    x = np.asarray(tiny.normalize(jnp.asarray(tiny.inputs[rows])), np.float64)
    named = {n: np.asarray(v, np.float64) for n, v in flatten_named(dense.network.params).items()}
    kernel, bias = named["hidden/0/kernel"], named["hidden/0/bias"]
    units = [(0, 1), (3, 7), (5, 2)] if granularity == "weight" else [0, 4, 11]
    for unit in units:

        def at_mask(m, unit=unit):
            k, b = kernel.copy(), bias.copy()
            if granularity == "weight":
                k[unit] *= m
            else:
                k[:, unit] *= m
                b[unit] *= m
            changed = {**named, "hidden/0/kernel": k, "hidden/0/bias": b}
            return loss_by_hand(changed, x, tiny.y[rows])

        slope = (at_mask(1 + 1e-5) - at_mask(1 - 1e-5)) / 2e-5
        np.testing.assert_allclose(scores["hidden/0"][unit], abs(slope), rtol=1e-3, atol=1e-6)


def test_grasp_equals_the_dense_hessian(tiny, dense):
    rows = tiny.roles["fit"][:40]
    at = moment(tiny, dense.network, rows)
    batch = jax.tree.map(lambda leaf: leaf[0, 0], at.batches)
    flat, unravel = jax.flatten_util.ravel_pytree(dense.network.params)

    def loss(v):
        return at.loss(unravel(v), batch, 5.0)

    expected = at.units(
        unravel(flat * jax.jit(lambda v: jax.hessian(loss)(v) @ jax.grad(loss)(v))(flat))
    )
    scores = scores_of(pruners.GraSP(temperature=5.0), at)
    for name, score in scores.items():
        scale = float(jnp.abs(expected[name]).max())
        np.testing.assert_allclose(score, expected[name], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(
    "pruner",
    [
        pruners.SNIP(),
        pruners.SNIP(granularity="filter"),
        pruners.GraSP(temperature=5.0),
        pruners.FairGRAPE(),
    ],
    ids=lambda pruner: f"{pruner.name}-{pruner.granularity}",
)
def test_scores_by_micro_batches_are_the_same(pruner, tiny, dense):
    rows = tiny.roles["fit"]
    parts = [rows[:16], rows[16:32]] if pruner.name == "fairgrape" else [rows[:16]]
    at = moment(tiny, dense.network, *parts, granularity=pruner.granularity, count=2)
    whole = scores_of(pruner, at)
    small = dataclasses.replace(at.structure, accumulate=4)
    summed = scores_of(pruner, dataclasses.replace(at, structure=small))
    for name, score in whole.items():
        scale = float(np.abs(score).max())
        np.testing.assert_allclose(summed[name], score, rtol=1e-4, atol=1e-5 * scale)


def test_curvature_by_micro_batches_is_as_large(tiny, dense):
    """Its signs are other ones, its mean over many batches is not."""
    rows = tiny.roles["fit"]
    at = moment(tiny, dense.network, rows[:16], rows[16:32], count=600)
    pruner = pruners.FairPrune(beta=0.0)
    whole = scores_of(pruner, at)
    small = dataclasses.replace(at.structure, accumulate=4)
    summed = scores_of(pruner, dataclasses.replace(at, structure=small))
    for name, score in whole.items():
        assert not np.array_equal(summed[name], score)
        ratio = float(np.sum(summed[name]) / np.sum(score))
        assert ratio == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("method", [pruners.SNIP(), pruners.FairPrune()], ids=lambda m: m.name)
def test_scores_are_computed_in_the_precision_of_training(method, tiny, dense):
    rows = tiny.roles["fit"]
    at = moment(tiny, dense.network, rows[:16], rows[16:32])
    low = dataclasses.replace(at, structure=dataclasses.replace(at.structure, precision="bfloat16"))
    text = str(jax.make_jaxpr(lambda: method.scores(low))())
    assert "bf16" in text
    assert "bf16" not in str(jax.make_jaxpr(lambda: method.scores(at))())


def test_synflow_by_hand_and_without_data(tiny, dense):
    blind = tiny.weighing(tiny.weight)
    blind.inputs = np.full_like(tiny.inputs, np.nan)
    scores = scores_of(pruners.SynFlow(), moment(blind, dense.network))
    named = {
        n: np.abs(np.asarray(v, np.float64)) for n, v in flatten_named(dense.network.params).items()
    }
    a, b, c = (named[f"{n}/kernel"] for n in ("hidden/0", "hidden/1", "classifier"))
    into, onward = np.ones(6) @ a, c.sum(1)
    np.testing.assert_allclose(scores["hidden/0"], a * (b @ onward), rtol=1e-3)
    np.testing.assert_allclose(scores["hidden/1"], into[:, None] * b * onward, rtol=1e-3)


def test_synflow_conserves_flow(digits):
    """Through every channel, normalization and all: what comes in goes out."""
    problem, reference = digits["cnn"]
    params, rng = reference.network.params, np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 2, leaf.shape), leaf.dtype),
        reference.network.state,
    )
    scores = scores_of(pruners.SynFlow(), moment(problem, fb.Network(params, state)))
    first, second, third = (np.asarray(scores[f"convolutions/{i}"]) for i in range(3))
    np.testing.assert_allclose(first.sum((0, 1, 2)), second.sum((0, 1, 3)), rtol=2e-3)
    np.testing.assert_allclose(second.sum((0, 1, 2)), third.sum((0, 1, 3)), rtol=2e-3)
    np.testing.assert_allclose(first.sum(), third.sum(), rtol=2e-3)


def test_fpgm_removes_the_filter_nearest_the_geometric_median():
    # Three corners and a point between them, which is not the smallest.
    filters = np.array([[0.0, 0.1], [4.0, 0.0], [0.0, 4.0], [1.2, 1.2]])
    channels = masks.Channels("w", 4, ("w",), (masks.Slice("w", 1),))
    layers = masks.Layers((Layer("w", "w", 1, (2, 4)),), (channels,))
    scores = np.asarray(masks.median_distance({"w": jnp.asarray(filters.T)}, layers)["w"])
    apart = np.linalg.norm(filters[:, None] - filters[None], axis=-1).mean(1) / np.sqrt(2)
    np.testing.assert_allclose(scores, apart, rtol=1e-5)
    assert scores.argmin() == 3
    with pytest.raises(ValueError, match="fpgm prunes at granularity filter only, got 'weight'"):
        pruners.FPGM(granularity="weight")


def test_importance_and_curvature_by_hand(tiny, dense):
    """FairGRAPE's ``(w dL_g/dw)^2`` and FairPrune's formula with the dense Gauss-Newton matrix."""
    z = dense.network.params
    parts = [tiny.roles["fit"][tiny.group[tiny.roles["fit"]] == g][:6] for g in range(2)]
    at = moment(tiny, dense.network, *parts)
    batches = [jax.tree.map(lambda leaf, g=g: leaf[g, 0], at.batches) for g in range(2)]
    scores = scores_of(pruners.FairGRAPE(), at)
    gradient = jax.jit(jax.grad(at.loss))
    for g, batch in enumerate(batches):
        entries = jax.tree.map(lambda w, q: (w * q) ** 2, z, gradient(z, batch))
        expected = at.units(entries)["hidden/1"]
        np.testing.assert_allclose(scores["hidden/1"][g], expected, rtol=1e-3, atol=1e-9)

    @jax.jit
    def curvature(batch):
        jacobian = jax.jacobian(lambda p: at.logits(p, batch))(z)
        p = jax.nn.softmax(at.logits(z, batch))
        h = (jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None]) / len(p)
        return jax.tree.map(lambda j: jnp.einsum("ia...,iab,ib...->...", j, h, j), jacobian)

    h0, h1 = (curvature(batch) for batch in batches)
    half = jax.tree.map(lambda w, a: 0.5 * w**2 * a, z, h0)
    other = jax.tree.map(lambda w, b: 0.5 * w**2 * b, z, h1)
    probes = 1000
    many = moment(tiny, dense.network, *parts, count=probes)
    found = scores_of(pruners.FairPrune(beta=0.5), many)
    for name in found:
        a, b = (np.asarray(at.units(t)[name]) for t in (half, other))
        # A square of random signs' sum has at most twice its mean squared for variance.
        noise = np.sqrt(2 / probes) * np.sqrt(a**2 + (0.5 * b) ** 2)
        assert np.all(np.abs(found[name] - (a - 0.5 * b)) <= 6 * noise + 1e-9)


def test_fairgrape_keeps_the_groups_shares():
    rng = np.random.default_rng(0)
    importance = rng.uniform(0, 1, (2, 200))
    importance[0, :100] += 10  # what the first group needs
    importance[1, 100:] += 8
    target = importance.sum(1) / importance.sum()

    def share(chosen):
        return importance[:, chosen].sum(1) / importance[:, chosen].sum()

    plain = np.zeros(200, bool)
    plain[np.argsort(-importance.sum(0))[:20]] = True
    kept = keep_shares(importance, np.ones(200, bool), 20, np.array([150]))
    assert kept.sum() == 20
    assert kept[150]
    assert np.abs(share(kept) - target).max() < 0.03
    assert np.abs(share(plain) - target).max() > 0.3
    # Removed units do not come back.
    alive = np.arange(200) % 2 == 0
    assert not np.any(keep_shares(importance, alive, 50, np.array([], int)) & ~alive)


def test_fairprune_knows_the_unprivileged(tiny, dense):
    rows = np.arange(len(tiny.y))
    named = pruners.FairPrune(unprivileged="some").parts(tiny, dense, rows)
    assert set(tiny.group[named[0]]) == {1}
    assert set(tiny.group[named[1]]) == {0, 2}
    correct = np.ones_like(dense.correct)
    correct[tiny.group == 2] = False
    worse = tiny.refer(dense.network)
    object.__setattr__(worse, "correct", correct)
    assert set(tiny.group[pruners.FairPrune().parts(tiny, worse, rows)[0]]) == {2}
    with pytest.raises(ValueError, match="unprivileged must be a group, got 'none'"):
        pruners.FairPrune(unprivileged="none").parts(tiny, dense, rows)


def test_magnitude_keeps_the_largest(tiny, dense):
    run = pruners.Magnitude(**QUICK).start(tiny, dense)
    state = run.step(run.init())
    named = flatten_named(dense.network.params)
    size = np.concatenate([np.abs(np.asarray(named[la.kernel])).ravel() for la in tiny.layers])
    kept = np.concatenate([np.asarray(state.kept[la.name]).ravel() for la in tiny.layers]) > 0
    assert size[kept].min() >= size[~kept].max()
    assert kept.sum() == run.budget.keep(QUICK["sparsity"])["all"]


def test_gradual_magnitude_as_one_loop(tiny, dense):
    """The masks and weights of the same method written out: a schedule inside one training run."""
    options = pruners.GradualMagnitude(**QUICK)
    run = options.start(tiny, dense)
    state = run.init()
    for _ in range(20):
        assert run.phase.name == "prune"
        state = run.step(state)
    schedule, budget, kept = CubicSchedule(QUICK["sparsity"]), run.budget, {}
    rules = Rules(tiny.constraints)
    steps, numbers = rules.steps(tiny), tiny.numbers(rules.constraints)
    params = _trees.copy(dense.network.params)
    now = WeightState(
        params, {}, rules.optimizer.init(params), steps.duals(rules.duals, 32),
        jax.random.key(0), jnp.int32(0),
    )  # fmt: skip
    feed, rows = Feed(tiny, dense, 0), training_rows(tiny)
    nothing = feed.take(rows, STREAM_DUALS, 1, 16, length=8)
    rates = fb.train.learning_rates(options.learning_rate, 20, to_zero=False)
    for i in range(20):
        scores = masks.magnitude(now.params, tiny.layers, "weight")
        if kept:
            scores = {name: jnp.where(kept[name] > 0, s, -1) for name, s in scores.items()}
        kept = budget.top_k(scores, masks.as_counts(budget.keep(schedule((i + 1) / 20))))
        factors = masks.expand(kept, now.params, tiny.layers, "weight")
        factors = jax.tree.map(lambda m, p: jnp.broadcast_to(m, p.shape), factors, now.params)
        batches = feed.take(rows, STREAM_FIT, 1, 16, length=32)
        one = fb.train.stretch(rates[i : i + 1], np.zeros(1, bool), 32, 1.0)
        now, _, _ = fb.train.weight_stretch(steps, now, factors, numbers, one, batches, nothing)
    for name in kept:
        np.testing.assert_array_equal(kept[name], state.kept[name])
    for a, b in zip(
        jax.tree.leaves(now.params), jax.tree.leaves(state.weights.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_lottery_rewinds_to_the_start(tiny, dense):
    for reference, expected in (
        (dense, tiny.initial_network(dense.seed).params),
        (tiny.refer(dense.network), dense.network.params),  # of unknown origin
    ):
        run = pruners.Lottery(rounds=3, **QUICK).start(tiny, reference)
        state, sizes = run.init(), []
        while len(sizes) < 3:
            state = run.prepare(state)  # a round before each stage of pruning, and the last one
            sizes.append(sum(float(m.sum()) for m in state.kept.values()) / run.budget.prunable)
            for a, b in zip(
                jax.tree.leaves(state.weights.params), jax.tree.leaves(expected), strict=True
            ):
                np.testing.assert_array_equal(a, b)
            phase, state = run.phase.name, run.step(state)
        np.testing.assert_allclose(sizes, 0.3 ** (np.arange(1, 4) / 3), atol=0.01)
        assert phase == "finetune"
        moved = jax.tree.leaves(state.weights.params)
        assert any(np.any(a != b) for a, b in zip(moved, jax.tree.leaves(expected), strict=True))


# ---------------------------------------------------------------- fairness in training


def test_reweighting_gives_every_group_the_same_weight(tiny):
    rows = np.sort(np.concatenate([tiny.roles["fit"], tiny.roles["select"]]))
    view = pruners.Reweighting().view(tiny, rows)
    total = np.bincount(tiny.group[rows], view.weight[rows], 3)
    np.testing.assert_allclose(total, len(rows) / 3, rtol=1e-4)
    assert tiny.weight.max() == 1  # the problem itself stays


def test_joint_steps_and_group_dro(tiny, dense):
    """A joint step is a dual step and then a weight step; group DRO's weights are exponentials of
    the losses that each batch showed."""
    losses = pruners.GroupDRO().bounds(tiny)
    rule = fairness.multiplier_rule("gradient-ascent", 0.5)
    rules = Rules(losses, optax.sgd(1.0), rule, buffer_size=0, joint=True)
    steps, params = rules.steps(tiny), dense.network.params
    numbers = jax.device_put(tiny.numbers(losses))
    state = WeightState(
        params, dense.network.state, rules.optimizer.init(params), steps.duals(rule, 0),
        jax.random.key(0), jnp.int32(0),
    )  # fmt: skip
    ones = jax.tree.map(jnp.ones_like, state.params)
    logarithm = np.zeros(3)
    joint, dual, weight = (
        jax.jit(steps.joint_step),
        jax.jit(steps.dual_step),
        jax.jit(steps.weight_step),
    )
    for i in range(3):
        rows = tiny.roles["fit"][40 * i :]
        rows = rows[tiny.group[rows] != i][:16]  # an absent group
        batch = gather(tiny, dense, rows)
        _, loss = tiny.judge(fb.Network(state.params, state.model_state), rows)
        for g in range(3):
            if np.any(tiny.group[rows] == g):
                logarithm[g] += 0.5 * loss[tiny.group[rows] == g].mean()
        duals = dual(state.duals, state.params, state.model_state, batch, numbers)
        expected, _ = weight(state._replace(duals=duals), ones, numbers, batch, 0.1)
        state, log = joint(state, ones, numbers, batch, 0.1)
        np.testing.assert_allclose(state.duals.multipliers[0], logarithm, rtol=1e-4, atol=1e-6)
        for a, b in zip(
            jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-5)
        assert not log.guard
    share = tiny.share["fit"]
    q = np.exp(logarithm) / np.exp(logarithm).sum()
    harm = steps.weigh(state.duals, numbers, batch).harm[0]
    np.testing.assert_allclose((1 + harm) * share, q, rtol=1e-4)


def test_without_buffers_only_the_batch_counts():
    outcomes = fairness.Outcomes(
        *(jnp.asarray(v) for v in np.random.default_rng(0).uniform(size=(4, 7)))
    )
    group = jnp.array([0, 0, 2, -1, 2, 2, 0])
    share, counted = jnp.array([0.5, 0.2, 0.3]), jnp.ones(3, bool)
    held = fairness.only(fairness.empty_buffers(3, 1), outcomes, group)
    stats = fairness.buffer_statistics(held, share, counted)
    expected = group_statistics(outcomes, group, share, counted)
    np.testing.assert_array_equal(stats.present, [True, False, True])
    for name in ("accuracy", "dense_accuracy", "loss", "dense_loss"):
        np.testing.assert_allclose(getattr(stats, name), getattr(expected, name), rtol=1e-5)


def test_a_fixed_penalty_weighs_what_is_violated():
    rule = fairness.multiplier_rule("penalty:weight=2", 0.0)
    constraints = (fairness.ExcessAccuracyGap(), fairness.SignedEqualizedLoss())
    now = (jnp.array([0.0, 2.0, 2.0]), jnp.array([0.0, 1.0, 5.0]))
    violations = (jnp.array([0.1, -0.1, 0.0]), jnp.array([-0.3, 0.2, 0.0]))
    seen = (jnp.array([True, True, False]), jnp.ones(3, bool))
    moved, _ = fairness.ascend(constraints, now, violations, rule, rule.init(now), seen)
    np.testing.assert_allclose(moved[0], [2, 0, 2])
    np.testing.assert_allclose(moved[1], [-2, 2, 0])


def test_methods_enforce_what_they_bring(tiny, tiny_problem):
    """The problem's own constraint of that kind, with its tolerance, else the method's default."""
    assert pruners.CEAG().bounds(tiny) == (fairness.ExcessAccuracyGap(0.02),)
    other = tiny_problem(fairness.AccuracyGap(0.1))
    assert pruners.CEAG().bounds(other) == (fairness.ExcessAccuracyGap(),)
    assert pruners.PruneThenFair().bounds(other) == other.constraints
    assert fb.solver.BiFP().bounds(tiny) == (fairness.AccuracyGap(),)
    assert pruners.EqualizedLoss(form="signed").bounds(other)[0].name == "equalized-loss-signed"
    with pytest.raises(ValueError, match="penalty needs a constraint"):
        pruners.Penalty().bounds(tiny_problem())


def test_bifp_ablations_switch_one_level_off(tiny, dense):
    """One outer step under multipliers: each level moves as if the other did not matter."""
    moved = {}
    for levels in ((True, True), (False, True), (True, False)):
        options = fb.solver.BiFP(
            constrain_masks=levels[0], constrain_weights=levels[1], buffer_size=4, **QUICK
        )
        run = options.start(tiny, dense)
        state = run.init()
        duals = state.weights.duals._replace(multipliers=(jnp.array([0.3, 0, 0, 0, 0, 0.2]),))
        state = state._replace(weights=state.weights._replace(duals=duals))
        batch = gather(tiny, dense, tiny.roles["fit"][:32])
        keep = masks.as_counts(run.budget.keep(0.5))
        after, _, _ = jax.jit(run.outer_step)(
            state, run.numbers, batch, batch, keep, jnp.zeros(()), 0.05, 0.1
        )
        moved[levels] = (
            np.asarray(after.weights.params["hidden"][0]["kernel"]),
            np.asarray(after.scores["hidden/0"]),
        )
    both, weights_only, masks_only = moved.values()
    np.testing.assert_allclose(weights_only[0], both[0], atol=1e-6)
    assert np.abs(masks_only[0] - both[0]).max() > 1e-6
    assert np.abs(weights_only[1] - both[1]).max() > 1e-5


# ---------------------------------------------------------------- names


def test_names():
    assert set(methods.NAMES) == set(methods.METHODS)
    with pytest.raises(ValueError, match="unknown method 'snp': did you mean 'snip'"):
        methods.by_name("snp")
    assert methods.by_name("snip:batches=4", sparsity=0.5) == pruners.SNIP(batches=4, sparsity=0.5)
    with pytest.raises(ValueError, match="method 'snip' has no option 'batch': did you mean"):
        methods.by_name("snip:batch=4")
    with pytest.raises(ValueError, match="method 'snip': batches must be a whole number"):
        methods.by_name("snip:batches=many")
    with pytest.raises(ValueError, match="has no option 'buffer_size'"):
        methods.by_name("equalized-loss-after-no-buffer:buffer_size=3")
    with pytest.raises(ValueError, match="has no option 'rounds'"):
        methods.by_name("bip", rounds=3)
    assert methods.by_name("bifp:multiplier_rule=nupi").multiplier_rule == "nupi"
    for entry in methods.METHODS.values():
        assert methods.by_name(entry.name, granularity="filter").label == entry.name


def test_configurations_of_methods():
    """What is given reaches the method; what is not stays as the method has it."""
    method = Config(method="group-dro", steps=70).build()
    assert (method.steps, method.buffer_size, method.enforce) == (70, 0, True)
    assert Config(method="group-dro", buffer_size=32).build().buffer_size == 32
    assert Config(method="bifp", score_step=0.3).build().score_step == 0.3
    assert Config(method="bifp").build().multiplier_rule == "penalty"
    with pytest.raises(ValueError, match="fpgm prunes at granularity filter only, got 'weight'"):
        Config(method="fpgm").build()
    with pytest.raises(ValueError, match=r"--score-step is no option of .*snip"):
        Config(method="snip", score_step=0.3).refuse_unused("snip")
    with pytest.raises(ValueError, match="did you mean 'synflow'"):
        Config(method="synflo").build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity must lie in"),
        ({"granularity": "channel"}, "unknown granularity 'channel'"),
        ({"budget": "local"}, "unknown budget 'local'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"buffer_size": -1}, "buffer_size must be at least 0"),
        ({"pruning_share": 0.0}, "pruning_share must lie in"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"enforce_in": ("later",)}, "enforce_in holds"),
        ({"multiplier_rule": "nopi"}, "did you mean 'nupi'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        pruners.SNIP(**options)


def test_scores_stay_within_half_of_the_steps(tiny, dense):
    run = pruners.FairGRAPE(sparsity=0.5, steps=40, batches=8, rounds=10).start(tiny, dense)
    assert run.split.scoring * run.split.rounds <= 20
    with pytest.raises(ValueError, match="4 steps do not pay for one scoring of grasp"):
        pruners.GraSP(steps=4).start(tiny, dense)


def test_the_command_line_runs_any_method(tmp_path, capsys):
    from fairbilevel.cli import main

    out = tmp_path / "run"
    words = "--model mlp --width 24 --steps 40 --dense-steps 20 --batch-size 16 --no-baseline"
    assert main(["solve", "--method", "ceag", *words.split(), "--out", str(out)]) == 0
    run = fb.load_run(out)
    assert run.result.method == "ceag"
    assert next(r["phase"] for r in run.metrics if r["phase"] != "dense") == "prune"
    page = (out / "report.html").read_text()
    assert "ceag" in page
    assert "the solver" not in page.lower()
    capsys.readouterr()
    assert main(["methods"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in methods.NAMES)
    assert main(["solve", "--method", "cegg"]) == 2
    assert "did you mean 'ceag'" in capsys.readouterr().err


def test_the_example_of_a_pruner_runs(tiny, dense):
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
    section = text.split("## Add a pruner")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {"__name__": __name__}
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    solution = names["Fisher"](**QUICK).run(tiny, dense)
    assert solution.method == "fisher"
    assert solution.costs.gradient_evaluations <= QUICK["steps"]


def test_a_hypergradient_is_an_option_by_its_name():
    solver = methods.by_name("bilevel:score_step=0.3,hypergradient=cg:iterations=5")
    assert solver.hypergradient == fb.hypergrad.by_name("cg:iterations=5")
    assert solver.hypergradient.iterations == 5
    assert solver.score_step == 0.3
    with pytest.raises(ValueError, match="did you mean 'bilinear'"):
        methods.by_name("bilevel:hypergradient=bilinea")
    with pytest.raises(ValueError, match="has no option 'hypergradient'"):
        methods.by_name("snip:hypergradient=cg")
