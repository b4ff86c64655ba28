"""The bilevel solver and gradual magnitude pruning, end to end on a tiny problem."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fairbilevel as fb
from fairbilevel import fairness, masks, report, train
from fairbilevel._trees import flatten_named
from fairbilevel.masks import CutNetworkError, removed
from fairbilevel.masks._budget import uniform_removed

QUICK = {"steps": 120, "batch_size": 16, "buffer_size": 4}


@pytest.fixture(scope="module")
def dense(tiny_problem):
    """One dense network for all problems on the tiny data."""
    return fb.train.train_dense(tiny_problem(), steps=60, batch_size=32).network


@pytest.fixture(scope="module")
def base(tiny_problem, dense):
    """The default way to solve, shared by the tests that compare with it."""
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02))
    return fb.solve(problem, dense=dense, sparsity=0.6, **QUICK)


def assert_exact(solution, sparsity, granularity, budget):
    """Counts, zeros and finiteness of a solution."""
    problem = solution.problem
    units = {u.name: int(np.prod(u.shape)) for u in problem.layers.units(granularity)}
    kept = {name: int(np.count_nonzero(np.asarray(m))) for name, m in solution.masks.items()}
    assert {float(v) for m in solution.masks.values() for v in np.unique(m)} <= {0.0, 1.0}
    if budget == "global":
        total = sum(units.values())
        assert sum(kept.values()) == total - removed(sparsity, total)
    else:
        gone = uniform_removed(sparsity, units)
        assert kept == {name: units[name] - gone[name] for name in units}
    values = flatten_named(solution.network.params)
    for unit in problem.layers.units(granularity):
        mask = np.asarray(solution.masks[unit.name])
        if granularity == "weight":
            np.testing.assert_array_equal(np.asarray(values[unit.kernel]) != 0, mask != 0)
            continue
        for member in unit.members:
            leaf = np.moveaxis(np.asarray(values[member.leaf]), member.axis, -1)
            assert not leaf[..., mask == 0].any()
            if member.leaf in unit.kernels:
                assert leaf[..., mask == 1].any()
    for name, leaf in values.items():
        assert np.isfinite(leaf).all(), name
    assert solution.sparsity == sparsity
    json.dumps(solution.history, allow_nan=False)


# Every granularity with every budget, every relaxation, start and constraint, at least once.
CASES = {
    "weight global": (
        {},
        [fairness.ExcessAccuracyGap(0.02)],
    ),
    "weight uniform": (
        {"budget": "uniform", "relaxation": "sigmoid", "score_start": "random"},
        [fairness.AccuracyGap(0.02)],
    ),
    "filter global": (
        {"granularity": "filter", "relaxation": "capped-simplex"},
        [fairness.DegradationGap(0.02)],
    ),
    "filter uniform": (
        {
            "granularity": "filter",
            "budget": "uniform",
            "round_channels": 1,
            "score_start": "constant",
        },
        [fairness.EqualizedLoss(0.02)],
    ),
    "several constraints": (
        {"relaxation": "capped-simplex", "score_start": "constant", "violation_every": 2},
        [
            fairness.SignedEqualizedLoss(0.02),
            fairness.ExcessAccuracyGap(0.02, surrogate="hinge"),
            fairness.AccuracyGap(0.05),
        ],
    ),
    "no constraint": (
        {
            "granularity": "filter",
            "relaxation": "sigmoid",
            "hypergradient": fb.hypergrad.Bilinear(1e4),
        },
        [],
    ),
    "multipliers from the pruned network": (
        {"multipliers_from": "pruned", "relaxation": masks.Sigmoid(1.0, 0.1)},
        [fairness.ExcessAccuracyGap(0.02)],
    ),
    "any optimizer": (
        {
            "inner_optimizer": optax.adam(1e-3),
            "outer_optimizer": optax.adam(1e-2),
            "dual_optimizer": optax.adam(1e-2),
        },
        [fairness.ExcessAccuracyGap(0.02)],
    ),
    **{
        name: ({"hypergradient": fb.hypergrad.by_name(name)}, [fairness.ExcessAccuracyGap(0.02)])
        for name in ("cg", "single-loop", "unrolled", "first-order")
    },
}


@pytest.mark.parametrize("case", CASES)
def test_every_way_to_solve(case, tiny_problem, dense, base):
    options, constraints = CASES[case]
    problem = tiny_problem(*constraints)
    solution = (
        base
        if case == "weight global"
        else fb.solve(problem, dense=dense, sparsity=0.6, **QUICK, **options)
    )
    assert_exact(
        solution, 0.6, options.get("granularity", "weight"), options.get("budget", "global")
    )
    assert QUICK["steps"] - 1 < solution.costs.gradient_evaluations < QUICK["steps"] + 1e-6
    assert set(solution.multipliers) == {c.name for c in constraints}
    assert (solution.feasibility is None) == (not constraints)
    for constraint in constraints:
        values = solution.multipliers[constraint.name]
        assert list(values) == constraint.labels(problem.groups)
        assert constraint.signed or min(values.values()) >= 0
    if case == "multipliers from the pruned network":
        early = [r for r in solution.history if r["phase"] == "bilevel"]
        assert not any(any(r["multipliers"]["excess-accuracy-gap"].values()) for r in early)
    for record in solution.history:
        if record["phase"] == "bilevel":
            assert record["hypergradient"]["residual"] >= 0
            assert "not_finite" not in record["hypergradient"]
    # The dense reference is what was given, to the bit.
    jax.tree.map(np.testing.assert_array_equal, solution.reference.network.params, dense.params)
    seen = solution.evaluate("test")
    assert 0 <= seen.accuracy <= 1
    assert len(seen.constraints) == len(constraints)
    phases = [r["phase"] for r in solution.history]
    # Dear outer steps make fewer stages: of the 14 gradients of conjugate gradients 13 are taken on
    # three quarters of a batch and one on a quarter, and three quarters of 120 evaluations pay.
    stages = {"cg": 8, "unrolled": 9}.get(case, 20)
    assert phases.count("bilevel") == stages
    assert "finetune" in phases


class Normalized(nnx.Module):
    """With running statistics, which are settled at the end."""

    def __init__(self, *, rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.8, rngs=rngs)
        self.second = nnx.Linear(8, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.second(nnx.relu(self.norm(self.first(x))))))


def test_a_users_module_with_statistics(tiny_problem):
    module = Normalized(rngs=nnx.Rngs(0))
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02), model=module)
    solution = fb.solve(
        problem, dense=problem.initial_network(), granularity="filter", sparsity=0.5, **QUICK
    )
    assert_exact(solution, 0.5, "filter", "global")
    assert QUICK["steps"] - 1 < solution.costs.gradient_evaluations < QUICK["steps"] + 1e-6
    # The last statistics are those of the sparse network, not of the module.
    mean = np.asarray(solution.network.state["norm"]["mean"])
    assert np.isfinite(mean).all()
    assert np.any(mean != 0)
    removed_channels = np.asarray(solution.masks["first"]) == 0
    np.testing.assert_allclose(mean[removed_channels], 0, atol=1e-6)


def test_the_baseline(tiny_problem, dense):
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02))
    pruner = fb.pruners.GradualMagnitude(sparsity=0.6, steps=80, batch_size=16)
    solution = pruner.run(problem, problem.refer(dense))
    assert_exact(solution, 0.6, "weight", "global")
    assert solution.costs.gradient_evaluations == 80


def bits(solution):
    values = {n: np.asarray(v).tobytes() for n, v in flatten_named(solution.network.params).items()}
    return values | {f"mask {n}": np.asarray(m).tobytes() for n, m in solution.masks.items()}


def test_seeds_and_unseen_rows(tiny_problem, dense, base):
    """The same seed gives the same bits, whatever stands in the rows of test and certify (NaN: one
    look at them would spread); another seed gives others."""
    poisoned = tiny_problem(fairness.ExcessAccuracyGap(0.02))
    poisoned.inputs = poisoned.inputs.copy()
    poisoned.inputs[poisoned.roles["certify"]] = np.nan
    poisoned.inputs[poisoned.roles["test"]] = 0
    blind = fb.solve(poisoned, dense=dense, sparsity=0.6, **QUICK)
    assert bits(blind) == bits(base)
    assert np.isfinite(blind.reference.loss).all()
    other = fb.solve(base.problem, dense=dense, sparsity=0.6, seed=1, **QUICK)
    assert bits(other) != bits(base)


def test_labels_as_groups_and_certify_rows_that_nobody_looks_at(tiny_data, monkeypatch, tmp_path):
    data = fb.data.from_arrays(
        tiny_data.inputs, tiny_data.y, tiny_data.y, classes=("x", "y", "z"), groups=("x", "y", "z")
    )
    problem = fb.FairPruningProblem(
        "mlp", data, width=12, constraints=[fairness.EqualizedLoss(0.1), fairness.AccuracyGap(0.1)]
    )
    forbidden = set(problem.roles["certify"].tolist())
    hidden = {problem.inputs[row].tobytes() for row in forbidden}
    assert len(hidden) == len(forbidden)
    predict, stream = fb.problem.predict, fb.train.stream_rows
    seen = {"predicted": 0, "streamed": 0}

    def watch_predict(model, encoder, network, inputs, *placement):
        seen["predicted"] += 1
        assert not any(row.tobytes() in hidden for row in inputs)
        return predict(model, encoder, network, inputs, *placement)

    def watch_stream(rows, *args):
        seen["streamed"] += 1
        assert not forbidden & set(np.asarray(rows).tolist())
        return stream(rows, *args)

    # Whatever asks for logits, by whichever way.
    monkeypatch.setattr("fairbilevel.problem._problem.predict", watch_predict)
    monkeypatch.setattr("fairbilevel.train._batches.stream_rows", watch_stream)
    # From the dense model to the report: nothing may look.
    solution = fb.solve(problem, sparsity=0.6, dense_steps=20, **QUICK)
    assert_exact(solution, 0.6, "weight", "global")
    pruner = fb.pruners.GradualMagnitude(sparsity=0.6, steps=40, batch_size=16)
    fb.save_run(solution, tmp_path / "run", baseline=pruner.run(problem, solution.reference))
    assert min(seen.values()) > 10


def test_select_halves_are_kept_apart(tiny_problem):
    """Rows that move multipliers are seen by no gradient."""
    problem = tiny_problem()
    outer, duals = set(problem.select_outer.tolist()), set(problem.select_duals.tolist())
    assert not outer & duals
    assert outer | duals == set(problem.roles["select"].tolist())


@pytest.mark.parametrize("constrain_weights", [True, False])
def test_all_rows_join_once_the_multipliers_stand_still(
    constrain_weights, tiny_problem, dense, monkeypatch
):
    """For the last third of fine-tuning, and not a step earlier."""
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02))
    solver = fb.BilevelSolver(
        sparsity=0.6, fine_tune_on="all", constrain_weights=constrain_weights, buffer_size=4,
        steps=120, batch_size=16,
    )  # fmt: skip
    run, streams = solver.start(problem, problem.refer(dense)), []
    stream = fb.train.stream_rows

    def watched(rows, seed, number, *where):
        streams.append((run.phase.name, number))
        chosen = stream(rows, seed, number, *where)
        if run.phase.name != "settle" and constrain_weights and number != train.STREAM_DUALS:
            assert not set(problem.select_duals) & set(np.asarray(chosen).tolist())
        return chosen

    monkeypatch.setattr("fairbilevel.train._batches.stream_rows", watched)
    phases = {p.name: p for p in run.plan.phases}
    everything = set(problem.roles["fit"]) | set(problem.roles["select"])
    last = phases["settle" if constrain_weights else "finetune"]
    assert set(last.rows) == everything
    assert last.chooses
    assert last.dual_rows is None
    state, seen = run.init(), []
    while run.done < run.stages:
        name = run.phase.name
        state = run.step(state)
        seen.append((name, np.asarray(state.weights.duals.multipliers[0])))
    if constrain_weights:
        assert phases["settle"].steps == pytest.approx(phases["finetune"].steps / 2, abs=4)
        rates = np.concatenate([phases["finetune"].rates, phases["settle"].rates])
        assert (np.diff(rates[5:]) <= 0).all()  # one schedule over both
        settled = [m for name, m in seen if name == "settle"]
        tuned = [m for name, m in seen if name == "finetune"]
        assert np.any(tuned[-1])
        for multipliers in settled:
            np.testing.assert_array_equal(multipliers, tuned[-1])
        assert ("settle", train.STREAM_DUALS) not in streams
    solution = run.finish(state)
    assert_exact(solution, 0.6, "weight", "global")
    assert solution.costs.gradient_evaluations == pytest.approx(run.plan.evaluations)
    assert 119 < run.plan.evaluations <= 120
    # How far the constraint got is told by rows that were still held out.
    assert (solution.feasibility is not None) == constrain_weights


@pytest.mark.parametrize("name", ["bilinear", "none", "cg", "single-loop"])
def test_weights_take_the_outer_gradient_for_its_part_of_the_batch(name, tiny_problem, dense):
    """One outer step by plain descent: along the gradient of one batch of fit and select rows."""
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.02))
    reference = problem.refer(dense)
    moved = {}
    for rows in ("fit", "fit+select"):
        run = fb.BilevelSolver(
            hypergradient=fb.hypergrad.by_name(name), weights_on=rows, distill=0.0, batch_size=32,
            inner_optimizer=optax.sgd(1.0), sparsity=0.5, steps=120,
        ).start(problem, reference)  # fmt: skip
        state, (fit, select) = run.init(), run.sizes
        parts = train.Feed(problem, reference, 0), train.Feed(problem, reference, 0)
        batch = [
            jax.tree.map(lambda leaf: leaf[0], feed.take(chosen, i, 1, size))
            for i, (feed, chosen, size) in enumerate(
                zip(parts, (problem.roles["fit"], run.select_rows), (fit, select), strict=True)
            )
        ]
        keep = run.counts(None, 0.5)
        after, _, _ = run.outer_step(
            state, run.numbers, *batch, keep, jnp.zeros(()), jnp.asarray(0.1), jnp.asarray(0.0)
        )
        start = run.init().weights.params
        moved[rows] = jax.tree.map(lambda a, b: (b - a) / 0.1, after.weights.params, start)
        factors = run.expanded(run.outer_step.budget.top_k(dict(run.init().scores), keep), state)

    def loss(z, rows):
        logits, _ = problem.model.apply(z, {}, problem.normalize(rows.x), True, jax.random.key(0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows.y).mean()

    z = train.masked(factors, start)
    of_fit, of_select = (train.masked(factors, jax.grad(loss)(z, rows)) for rows in batch)
    share = select / (fit + select)
    assert share == 1 / 4
    both = jax.tree.map(lambda a, b: (1 - share) * a + share * b, of_fit, of_select)
    for expected, rows in ((of_fit, "fit"), (both, "fit+select")):
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(moved[rows]), strict=True):
            np.testing.assert_allclose(b, a, atol=2e-5)


def test_weights_take_both_levels_unless_something_else_moves_them(tiny_problem):
    problem = tiny_problem()

    def share(**options):
        return fb.BilevelSolver(batch_size=32, **options).of_select(problem)

    assert share() == share(weights_on="fit+select") == 1 / 4
    assert share(split_batch=False) == 1 / 2
    assert share(weights_on="fit") == 0
    for moves in (fb.hypergrad.Unrolled(), fb.hypergrad.FirstOrder()):
        assert share(hypergradient=moves) == 0
    assert fb.solver.BiFP(batch_size=32).of_select(problem) == 0


@pytest.mark.parametrize(("steps", "plain"), [(60, 0), (600, 0), (600, 3), (5000, 0)])
def test_scores_come_as_far_in_a_long_search_as_in_a_short_one(steps, plain):
    solver = fb.BilevelSolver(plain_steps=plain)
    outer = -(-steps // (1 + plain))
    assert solver.score_rate(steps) == pytest.approx(min(5 / outer, 0.1))
    assert fb.BilevelSolver(score_step=0.3).score_rate(steps) == 0.3


def test_the_multipliers_answer_to_violations(tiny_problem, dense, base):
    """A tolerance that nothing violates leaves them at zero; a tight one moves them."""
    loose = fb.solve(
        tiny_problem(fairness.ExcessAccuracyGap(0.99)), dense=dense, sparsity=0.6, **QUICK
    )
    assert not any(loose.multipliers["excess-accuracy-gap"].values())
    assert any(base.multipliers["excess-accuracy-gap"].values())
    assert bits(base) != bits(loose)


@pytest.mark.parametrize("start", [None, *masks.MAGNITUDES])
@pytest.mark.parametrize("granularity", ["weight", "filter"])
def test_scores_that_follow_their_weights_alone_are_magnitudes(
    granularity, start, tiny_problem, dense
):
    """At a score step of zero nothing but the weights moves them."""
    problem = tiny_problem()
    solver = fb.BilevelSolver(
        sparsity=0.6, granularity=granularity, score_step=0.0, score_start=start, **QUICK
    )
    assert solver.starts == start or start is None
    run = solver.start(problem, problem.refer(dense))
    state = run.init()
    start = flatten_named(dense.params)
    for _ in range(3):
        state = run.step(state)
    now = flatten_named(state.weights.params)
    key = jax.random.key(0)
    begun = masks.start_scores(solver.starts, dense.params, problem.layers, granularity, key)
    for layer in problem.layers:
        axes = tuple(a for a in range(2) if a != layer.out_axis)

        def size(kernel, axes=axes):
            kernel = np.asarray(kernel, np.float64)
            return np.abs(kernel) if granularity == "weight" else np.sqrt((kernel**2).mean(axes))

        first = np.asarray(begun[layer.name], np.float64)
        unit = size(start[layer.kernel]).ravel()[0] / first.ravel()[0]
        np.testing.assert_allclose(
            state.scores[layer.name], size(now[layer.kernel]) / unit, atol=1e-4
        )
        assert np.any(np.asarray(now[layer.kernel]) != np.asarray(start[layer.kernel]))


def test_a_sparsity_of_zero_keeps_everything(tiny_problem, dense):
    solution = fb.solve(tiny_problem(), dense=dense, sparsity=0.0, **QUICK)
    assert_exact(solution, 0.0, "weight", "global")


def test_pruning_the_classifier_too(tiny_problem, dense):
    problem = tiny_problem(prune_classifier=True)
    # Few weights are left: steps that are too large would leave them without a path between them.
    solution = fb.solve(problem, dense=dense, sparsity=0.95, learning_rate=0.1, **QUICK)
    assert_exact(solution, 0.95, "weight", "global")
    assert all(np.asarray(m).any() for m in solution.masks.values())  # reserved


def test_sparsities_that_cut_the_network(tiny_problem, dense):
    problem = tiny_problem()
    with pytest.raises(CutNetworkError, match="empty"):
        fb.solve(problem, dense=dense, sparsity=0.995, budget="uniform", **QUICK)
    with pytest.raises(ValueError, match="fewer than the 2 layers"):
        fb.solve(problem, dense=dense, sparsity=0.995, **QUICK)
    # Two weights are left, one a layer, and no path leads through both.
    params = jax.tree.map(lambda p: 1e-3 * p, dense.params)
    params["hidden"][0]["kernel"] = params["hidden"][0]["kernel"].at[0, 0].set(5.0)
    params["hidden"][1]["kernel"] = params["hidden"][1]["kernel"].at[5, 0].set(5.0)
    with pytest.raises(CutNetworkError, match=r"sparsity 0\.99") as caught:
        fb.solve(
            problem, dense=fb.Network(params, {}), sparsity=0.99, score_step=0.0,
            learning_rate=0.0, **QUICK,
        )  # fmt: skip
    assert "\n" not in str(caught.value)


def test_a_network_of_constant_answers_is_called_that(tiny_problem, dense, tmp_path):
    """Its logits depend on the input, so the masks did not cut it; its answer does not."""
    problem = tiny_problem(fairness.ExcessAccuracyGap(0.5))
    params = jax.tree.map(lambda p: 1e-2 * p, dense.params)
    params["classifier"]["bias"] = jnp.array([0.0, 5.0, 0.0])
    network = fb.Network(params, {})
    solution = fb.solve(
        problem, "magnitude", dense=network, sparsity=0.2, learning_rate=0.0, steps=20,
        batch_size=16,
    )  # fmt: skip
    assert solution.constant_answer == "y"
    assert "answers 'y' whatever it is shown" in solution.warnings[0]
    fb.save_run(solution, tmp_path / "run")
    result = fb.records.read_result(tmp_path / "run")
    assert result.constant_answer == "y"
    words = report.verdict(result)
    assert words.startswith("The pruned model answers “y” for every row")
    assert "limit is met" not in words
    page = (tmp_path / "run" / "report.html").read_text()
    assert "answers “y” for every row" in page
    assert fb.solve(problem, "magnitude", dense=dense, steps=20).constant_answer is None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sparsity": -0.1}, "sparsity must lie in"),
        ({"sparsity": 1.0}, "sparsity must lie in"),
        ({"sparsity": float("nan")}, "sparsity must lie in"),
        ({"granularity": "channel"}, "unknown granularity 'channel'"),
        ({"budget": "local"}, "unknown budget 'local'"),
        ({"relaxation": "gumbel"}, "unknown relaxation 'gumbel'"),
        ({"score_start": "snip"}, "unknown score start 'snip'"),
        ({"fine_tune_on": "test"}, "unknown fine tune on 'test': choose from fit, fit\\+select"),
        ({"multipliers_from": "end"}, "unknown multipliers from 'end': choose from start, pruned"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"buffer_size": 0}, "buffer_size must be at least 1"),
        ({"violation_every": 0}, "violation_every must be at least 1"),
        ({"bilevel_share": 0.0}, "bilevel_share must lie in"),
        ({"budget_share": 1.5}, "budget_share must lie in"),
        ({"distill": 1.5}, "distill must lie in"),
        ({"dual_unit": "row"}, "unknown dual unit 'row'"),
        ({"weights_on": "select"}, "unknown weights on 'select'"),
        (
            {"weights_on": "fit+select", "hypergradient": fb.hypergrad.Unrolled()},
            "Unrolled moves the weights itself",
        ),
        ({"shrink_violations": True, "buffer_size": 0}, "buffer_size must be at least 1"),
        ({"distill_temperature": 0.0}, "distill_temperature must be above 0"),
        ({"learning_rate": -1.0}, "learning_rate must be a finite number"),
        ({"score_step": float("nan")}, "score_step must be a finite number"),
        ({"dual_step": float("inf")}, "dual_step must be a finite number"),
    ],
)
def test_bad_options(tiny_problem, dense, option, message):
    with pytest.raises(ValueError, match=message):
        fb.solve(tiny_problem(), dense=dense, **{"steps": 20, **option})


def test_bad_problems(tiny_data):
    x, y, group = tiny_data.inputs, tiny_data.y, tiny_data.group
    with pytest.raises(ValueError, match="arrays need x, y and group"):
        fb.FairPruningProblem("mlp", x)
    with pytest.raises(ValueError, match="gives 3 logits a row, the data has 2 classes"):
        fb.FairPruningProblem(
            fb.models.from_function(lambda p, x: x @ p["w"], {"w": jnp.ones((6, 3))}),
            x, (y > 0).astype(int), group,
        )  # fmt: skip
    with pytest.raises(ValueError, match="does not take rows of shape") as caught:
        fb.FairPruningProblem(
            fb.models.from_function(lambda p, x: x @ p["w"], {"w": jnp.ones((5, 3))}), x, y, group
        )
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="y has shape"):
        fb.FairPruningProblem("mlp", x, y[:-1], group)
