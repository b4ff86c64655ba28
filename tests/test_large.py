"""Large on one device: bfloat16 passes, micro-batches, rematerialization, memory, many groups."""

from __future__ import annotations

import cProfile
import re
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

import fairbilevel as fb
from fairbilevel import _xla, fairness, hypergrad, models
from fairbilevel.cli import main
from fairbilevel.hypergrad import MaskedLoss
from fairbilevel.problem import Numbers
from fairbilevel.solver import outer_stretch
from fairbilevel.train import Batch, Rules, WeightState, gather, weight_stretch

KEY = jax.random.key(0)
RATE = 0.1


def rules_of(problem) -> Rules:
    rule = fairness.multiplier_rule("gradient-ascent", 0.1)
    return Rules(problem.constraints, duals=rule, buffer_size=4)


def start_of(problem, params, state) -> WeightState:
    rules = rules_of(problem)
    duals = rules.steps(problem).duals(rules.duals, rules.buffer_size)
    optimizer = rules.optimizer.init(params)
    return WeightState(params, state, optimizer, duals, KEY, jnp.zeros((), jnp.int32))


def numbers_of(problem) -> Numbers:
    return problem.placement.place(problem.numbers())


def rows_of(problem, count=48) -> Batch:
    return gather(problem, None, problem.roles["fit"][:count])


def gap(one, other):
    """Largest difference beside the largest entry."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    worst = max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)
    return worst / max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(other))


def likeness(one, other):
    """Cosine of two pytrees."""
    a, b = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (one, other))
    return float(a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b)))


def hypergradient_of(problem, method, params):
    """Of the solver's two levels, with respect to a mask of ones, and the weight gradient."""
    steps, batch, numbers = rules_of(problem).steps(problem), rows_of(problem), numbers_of(problem)
    _, state = problem.model.init(KEY)
    weights = steps.weigh(start_of(problem, params, state).duals, numbers, batch)

    def level(z, rows, key):
        return steps.objective(z, state, rows, weights, numbers, key)

    loss = MaskedLoss(level, lambda m: m)
    repeated = isinstance(method, hypergrad.Unrolled)
    fit = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), batch) if repeated else batch
    keys = jax.random.split(KEY, 2) if repeated else KEY

    @jax.jit
    def run(mask, params):
        return fb.hypergradient(
            loss, loss, mask, params, method=method, has_aux=True,
            outer_args=(batch, KEY), inner_args=(fit, keys),
        )  # fmt: skip

    gradient, info = run(jax.tree.map(jnp.ones_like, params), params)
    return gradient, info.inner_grad


# ---------------------------------------------------------------- bfloat16


def product_outputs(jaxpr):
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("conv_general_dilated", "dot_general"):
            found += eqn.outvars
        for inner in eqn.params.values():
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found += product_outputs(inner)
    return found


def test_bfloat16_rounds_what_enters_and_keeps_masters_statistics_and_logits():
    model = models.build("cnn", (8, 8, 3), 4, width=4)
    low = models.in_precision(model, "bfloat16")
    assert models.in_precision(model, "float32") is model
    params, state = low.init(KEY)
    x = jax.random.normal(KEY, (16, 8, 8, 3))

    def loss(p, apply):
        logits, moved = apply(p, state, x, True, KEY)
        return jnp.mean(logits**2), (logits, moved)

    low_jaxpr = jax.make_jaxpr(partial(loss, apply=low.apply))(params)
    products = [v.aval.dtype for v in product_outputs(low_jaxpr.jaxpr)]
    assert products == [jnp.dtype("bfloat16")] * 4  # three convolutions and the classifier
    grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    low_grad, (logits, moved) = grad(params, low.apply)
    high_grad, (exact, moved_exact) = grad(params, model.apply)
    assert {leaf.dtype for leaf in jax.tree.leaves((low_grad, logits, moved))} == {
        jnp.float32.dtype
    }
    assert 1e-5 < gap(logits, exact) < 0.05
    # Means and variances of rounded activations, taken in float32.
    assert gap(moved, moved_exact) < 0.02
    assert likeness(low_grad, high_grad) > 0.995


@pytest.mark.parametrize("name", ["resnet10", "mobilenetv2", "vgg19", "vit"])
def test_every_product_of_a_built_in_model_is_bfloat16(name):
    model = models.in_precision(models.build(name, (32, 32, 3), 2, width=12), "bfloat16")
    params, state = jax.eval_shape(model.init, KEY)
    x = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    for train in (True, False):
        jaxpr = jax.make_jaxpr(lambda p, s, x, train=train: model.apply(p, s, x, train, KEY))(
            params, state, x
        )
        products = product_outputs(jaxpr.jaxpr)
        assert len(products) > 8
        assert {v.aval.dtype for v in products} == {jnp.dtype("bfloat16")}


def test_bad_calls_with_an_unknown_precision(tiny_problem, capsys):
    with pytest.raises(ValueError, match="precision is float32 or bfloat16, got 'float16'"):
        tiny_problem(precision="float16")
    assert main(["plan", "--precision", "bf16"]) == 2
    assert "choose from float32, bfloat16" in capsys.readouterr().err


# Damped, as the solver uses them: a batch's Hessian is indefinite.
METHODS = {
    "bilinear": hypergrad.Bilinear(),
    "cg": hypergrad.ConjugateGradient(3, damping=1.0),
    "single-loop": hypergrad.SingleLoop(damping=1.0),
    "unrolled": hypergrad.Unrolled(2, args_per_step=True),
    "first-order": hypergrad.FirstOrder(),
}


@pytest.mark.parametrize("name", ["bilinear", "cg"])
def test_hypergradients_in_bfloat16_are_close(name, tiny_problem):
    gap_constraint = fairness.ExcessAccuracyGap(0.02)
    high, low = (tiny_problem(gap_constraint, precision=p) for p in models._precision.PRECISIONS)
    params, _ = high.model.init(KEY)
    exact = hypergradient_of(high, METHODS[name], params)
    rounded = hypergradient_of(low, METHODS[name], params)
    for one, other in zip(rounded, exact, strict=True):
        assert likeness(one, other) > 0.99
        assert gap(one, other) > 1e-6  # it was rounded


# ---------------------------------------------------------------- micro-batches


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_give_every_hypergradient_of_the_whole_batch(name, tiny_problem):
    gap_constraint = fairness.ExcessAccuracyGap(0.02)
    with jax.enable_x64(True):
        found = []
        for parts in (1, 4):
            problem = tiny_problem(gap_constraint, accumulate=parts)
            params, _ = problem.model.init(KEY)
            wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
            found.append(hypergradient_of(problem, METHODS[name], wide))
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float64")}
        assert gap(found[1], found[0]) < 1e-12


def test_micro_batches_move_weights_and_multipliers_alike(tiny_problem):
    gap_constraint = fairness.ExcessAccuracyGap(0.0)
    with jax.enable_x64(True):
        ends = []
        for parts in (1, 3):
            problem = tiny_problem(gap_constraint, accumulate=parts)
            steps, numbers = rules_of(problem).steps(problem), numbers_of(problem)
            params, model_state = problem.model.init(KEY)
            wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
            state = start_of(problem, wide, model_state)
            ones = jax.tree.map(jnp.ones_like, wide)
            batch = rows_of(problem)
            joint, one, measure = map(
                jax.jit, (steps.joint_step, steps.weight_step, steps.outcomes)
            )
            state, log = joint(state, ones, numbers, batch, RATE)
            state, _ = one(state, ones, numbers, batch, RATE)
            seen = measure(state.params, model_state, batch, numbers)
            ends.append((state.params, state.duals, log, seen))
        for a, b in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(ends[1]), strict=True):
            # Accuracies are means in float32.
            np.testing.assert_allclose(a, b, rtol=1e-6 if a.dtype == jnp.float32 else 1e-11)
        assert float(jnp.abs(ends[0][1].multipliers[0]).max()) > 0


def test_statistics_after_micro_batches_are_their_mean(tiny_data):
    """A model that remembers the mean and the number of its rows."""

    def function(params, state, x, train, key):
        moved = {"mean": x.mean(0), "seen": state["seen"] + 1}
        return x @ params["w"], moved if train else state

    start = {"mean": jnp.zeros(6), "seen": jnp.zeros((), jnp.int32)}
    model = models.from_function(function, {"w": jnp.ones((6, 3))}, start)
    problem = fb.FairPruningProblem(model, tiny_data, accumulate=4, prune_classifier=True)
    steps, batch, numbers = rules_of(problem).steps(problem), rows_of(problem), numbers_of(problem)
    params = {"w": jnp.ones((6, 3))}
    weights = steps.weigh(start_of(problem, params, start).duals, numbers, batch)
    _, aux = steps.objective(params, start, batch, weights, numbers, KEY)
    np.testing.assert_allclose(
        aux.model_state["mean"], problem.normalize(batch.x).mean(0), atol=1e-6
    )
    assert int(aux.model_state["seen"]) == 1


def test_rows_that_do_not_divide_are_one_sentence(tiny_problem, capsys):
    problem = tiny_problem(accumulate=5)
    steps, start = rules_of(problem).steps(problem), start_of(problem, *problem.model.init(KEY))
    ones = jax.tree.map(jnp.ones_like, start.params)
    with pytest.raises(ValueError, match="a batch of 48 rows does not fall into 5 equal"):
        steps.weight_step(start, ones, numbers_of(problem), rows_of(problem), RATE)
    with pytest.raises(ValueError, match="at least 1 micro-batch, got 0"):
        tiny_problem(accumulate=0)
    assert main(["plan", "--accumulate", "3", "--batch-size", "128"]) == 2
    assert "--accumulate must divide --batch-size" in capsys.readouterr().err


def test_micro_batches_keep_convolutions_fast_in_loops():
    """In a loop on CPU any other layout than the canonical one is tens of times slower: forward,
    gradient of the weights and of the input, all of them in the loop of micro-batches."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (200, 16, 16, 3), np.uint8)
    y, group = np.arange(200) % 2, np.arange(200) // 2 % 2
    problem = fb.FairPruningProblem("cnn", x, y, group, width=4, accumulate=4)
    steps, start = rules_of(problem).steps(problem), start_of(problem, *problem.model.init(KEY))
    batch = gather(problem, None, np.resize(problem.roles["fit"], 64))
    ones = jax.tree.map(jnp.ones_like, start.params)

    def step(state, _):
        return steps.weight_step(state, ones, numbers_of(problem), batch, RATE)

    text = jax.jit(lambda s: _xla.scan(step, s, None, 2)).lower(start).compile().as_text()
    layouts = re.findall(r" convolution\(.*dim_labels=([\w>-]+)", text)
    assert len(layouts) >= 3 * 3 - 1  # nothing asks for the gradient of the input itself
    assert set(layouts) == {"b01f_01io->b01f"}


# ---------------------------------------------------------------- rematerialization

SHAPES = {
    "resnet10": ((32, 32, 3), 4),
    "resnet50": ((32, 32, 3), 16),
    "cifar-resnet56": ((16, 16, 3), 27),
    "mobilenetv2": ((32, 32, 3), 17),
    "vgg19": ((32, 32, 3), 5),
    "vit": ((16, 16, 3), 12),
}


@pytest.mark.parametrize("name", ["resnet10", "mobilenetv2", "vgg19", "vit"])
def test_blocks_are_computed_again(name):
    shape, blocks = SHAPES[name]
    width = 6 if name == "vit" else 4
    counts = []
    for remat in (False, True):
        model = models.build(name, shape, 2, width=width, remat=remat)
        params, state = jax.eval_shape(model.init, KEY)
        x = jax.ShapeDtypeStruct((4, *shape), jnp.float32)

        def loss(p, s, x, apply=model.apply):
            return apply(p, s, x, True, KEY)[0].sum()

        jaxpr = str(jax.make_jaxpr(jax.grad(loss))(params, state, x))
        counts.append(jaxpr.count("differentiated=True"))
    assert counts == [0, blocks]


def test_rematerialization_changes_no_number_and_saves_memory_in_compiled_loops():
    def build(remat):
        return models.from_nnx(
            lambda rngs: models.ResNet((2, 1), 3, 4, 8, True, False, remat, rngs=rngs)
        )

    x = jax.random.normal(KEY, (32, 32, 32, 3))
    params, state = build(False).init(KEY)
    ends, peaks = [], []
    for remat in (False, True):
        model = build(remat)

        def body(carry, _, model=model):
            def loss(p):
                logits, moved = model.apply(p, carry[1], x, True, KEY)
                return jnp.mean(logits**2), moved

            gradient, moved = jax.grad(loss, has_aux=True)(carry[0])
            return (jax.tree.map(lambda p, g: p - 0.1 * g, carry[0], gradient), moved), None

        run = jax.jit(lambda c, body=body: _xla.scan(body, c, None, 2)[0])
        compiled = run.lower((params, state)).compile()
        ends.append(compiled((params, state)))
        peaks.append(compiled.memory_analysis().temp_size_in_bytes)
    assert gap(ends[1], ends[0]) < 1e-6
    assert peaks[1] < 0.8 * peaks[0]


def test_rematerialization_hides_no_unit_and_is_for_built_in_models(tiny_data):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (60, 32, 32, 3), np.uint8)
    y, group = np.arange(60) % 2, np.arange(60) // 2 % 2
    layers = [
        fb.FairPruningProblem("resnet10", x, y, group, width=4, remat=remat).layers
        for remat in (False, True)
    ]
    for granularity in ("weight", "filter"):
        units = [[(u.name, u.shape) for u in found.units(granularity)] for found in layers]
        assert units[0] == units[1]
    with pytest.raises(ValueError, match="remat is for built-in models"):
        fb.FairPruningProblem(models.MLP(6, 3, rngs=nnx.Rngs(0)), tiny_data, remat=True)


# ---------------------------------------------------------------- memory


def normalized_net(ws, x):
    """Twelve dense layers with batch normalization: activations outweigh parameters."""
    for w in ws:
        x = x @ w
        mean = x.mean(0)
        x = jax.nn.relu((x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean(0) + 1e-5))
    return jnp.mean(x**2)


@pytest.mark.parametrize(("name", "most"), [("bilinear", 1.3), ("cg", 2.5)])
def test_an_outer_step_takes_little_more_memory_than_a_gradient(name, most):
    ws = [jax.ShapeDtypeStruct((32, 32), jnp.float32)] * 12
    x = jax.ShapeDtypeStruct((2048, 32), jnp.float32)
    loss = MaskedLoss(normalized_net, lambda m: m)

    def step(m, ws, a, b):
        gradient, info = fb.hypergradient(
            loss, loss, m, ws, method=METHODS[name], outer_args=(a,), inner_args=(b,)
        )
        return gradient, info.inner_grad

    plain = jax.jit(jax.grad(normalized_net)).lower(ws, x).compile().memory_analysis()
    ours = jax.jit(step).lower(ws, ws, x, x).compile().memory_analysis()
    assert ours.temp_size_in_bytes < most * plain.temp_size_in_bytes


def test_what_is_kept_changes_no_hypergradient(tiny_problem):
    problem = tiny_problem()
    params, _ = problem.model.init(KEY)
    found = [
        hypergradient_of(problem, hypergrad.ConjugateGradient(3, damping=1.0, keep=keep), params)
        for keep in ("nothing", "products", "all")
    ]
    assert max(gap(one, found[-1]) for one in found) < 1e-5
    with pytest.raises(ValueError, match="unknown keep 'none': choose from nothing, products, all"):
        hypergrad.ConjugateGradient(keep="none")


def test_after_is_the_function_and_holds_it_up():
    def second(x):
        return {"a": jnp.sin(x), "n": jnp.arange(3)}

    first = jnp.full(4, jnp.nan)  # what it holds does not matter
    out = jax.jit(lambda first, x: _xla.after(first, second, x))(first, jnp.ones(2))
    np.testing.assert_array_equal(out["a"], jnp.sin(jnp.ones(2)))
    np.testing.assert_array_equal(out["n"], np.arange(3))


# ---------------------------------------------------------------- thousands of groups


def largest(jaxpr) -> int:
    """Entries of the largest array anywhere in a program."""
    sizes = [1]
    for eqn in jaxpr.eqns:
        sizes += [int(np.prod(v.aval.shape)) for v in eqn.outvars if hasattr(v.aval, "shape")]
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                sizes.append(largest(inner))
    return max(sizes)


def crowd(groups):
    """So many groups of 20 rows."""
    rng, rows = np.random.default_rng(0), 20 * groups
    x = rng.normal(size=(rows, 4)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=rows) > 0).astype(int)
    names = {"classes": ("no", "yes"), "groups": tuple(f"group {i}" for i in range(groups))}
    return fb.data.from_arrays(x, y, np.arange(rows) % groups, **names)


ALL_KINDS = (
    fairness.ExcessAccuracyGap(0.05),
    fairness.AccuracyGap(0.1),
    fairness.EqualizedLoss(0.1),
    fairness.EqualizedOdds(0.1),
)


def calls(function, *arguments):
    """What a function returns, and how many of Python and C are called on the way: work that no
    clock measures. Types are not checked meanwhile, which would be most of them."""
    counter = cProfile.Profile()
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        found = counter.runcall(function, *arguments)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    return found, sum(entry.callcount for entry in counter.getstats())


class Called(Exception):
    """With what a program would have been called."""


def test_with_thousands_of_groups_no_array_is_groups_times_rows(monkeypatch):
    problem = fb.FairPruningProblem("mlp", crowd(5_000), constraints=ALL_KINDS, width=8)
    rows, groups, kept = 256, 5_000, 4
    solver = fb.BilevelSolver(sparsity=0.5, steps=20, batch_size=rows, buffer_size=kept)
    run = solver.start(problem, problem.refer(problem.initial_network()))

    def call(*arguments, **more):
        raise Called(*arguments)

    monkeypatch.setattr("fairbilevel.solver._run.outer_stretch", call)
    with pytest.raises(Called) as called:
        run.step(run.init())
    structure, *arguments = called.value.args
    jaxpr = jax.make_jaxpr(partial(outer_stretch.function, structure))(*arguments)
    # Buffers of four numbers a row, cells of two classes, two sides of a range.
    assert groups * kept * 4 <= largest(jaxpr.jaxpr) <= groups * kept * 4 * 2 < groups * rows / 4


def test_with_thousands_of_groups_a_run_ends_in_a_report_and_work_grows_no_faster(tmp_path):
    """Four times the groups are at most four times the work: of a stage, the tables and the report
    on the host, of the compiled steps."""
    small, many = 500, 2_000

    def work(groups):
        problem = fb.FairPruningProblem("mlp", crowd(groups), constraints=ALL_KINDS[:1], width=8)
        solver = fb.BilevelSolver(sparsity=0.5, steps=8, batch_size=256, buffer_size=4)
        run = solver.start(problem, problem.refer(problem.initial_network()))
        state = run.init()
        while run.done < run.stages - 1:
            state = run.step(state)
        state, of_stage = calls(run.step, state)
        solution = run.finish(state)
        found, of_tables = calls(solution.evaluate, "test")
        _, of_folder = calls(fb.save_run, solution, tmp_path / f"{groups}")
        assert len(found.groups) == groups
        costs = [p.newest().cost_analysis() for p in (outer_stretch, weight_stretch)]
        compiled = [cost[name] for cost in costs for name in ("flops", "bytes accessed")]
        return np.array([of_stage, of_tables, of_folder, *compiled])

    assert (work(many) <= many / small * work(small)).all()
    report = tmp_path / f"{many}" / "report.html"
    assert "1,960 groups between these are left out" in report.read_text()
    assert report.stat().st_size < 2**20
