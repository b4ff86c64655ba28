"""The analysis of disparate impact, against dense Hessians, closed forms and other libraries."""

import csv
import dataclasses
import errno
import itertools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from scipy import stats

import fairbilevel as fb
from fairbilevel.analysis import Lanczos, _curvature, _loss
from fairbilevel.cli import main
from fairbilevel.records._folder import seal
from fairbilevel.run import solution_line, solution_plane, write_analysis
from fairbilevel.run._analyze import choose_rows
from fairbilevel.run._folder import claim

GROUPS = ("many", "some", "few")


@pytest.fixture
def wide():
    """Double precision, for comparisons to many digits."""
    with jax.enable_x64():
        yield


def mlp(params, x):
    hidden = jnp.tanh(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def network(seed, features=4, hidden=5, classes=3):
    rng = np.random.default_rng(seed)
    shapes = {
        "w1": (features, hidden), "b1": (hidden,), "w2": (hidden, classes), "b2": (classes,),
    }  # fmt: skip
    return {name: jnp.asarray(0.8 * rng.normal(size=shape)) for name, shape in shapes.items()}


def sample(seed=0, sizes=(23, 14, 6)):
    """Rows of three groups in no order, and row weights."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    x = rng.normal(size=(len(group), 4)) + 0.4 * group[:, None]
    return x, rng.integers(0, 3, len(group)), group, rng.uniform(0.5, 2, len(group))


@jax.jit
def dense_pieces(params, x, y, weight):
    """Loss, gradient and Hessian of a weighted mean by jax.hessian."""
    flat, unravel = ravel_pytree(params)

    def mean(vector):
        logits = mlp(unravel(vector), x)
        picked = jax.nn.log_softmax(logits)[jnp.arange(len(y)), y]
        return -jnp.sum(weight * picked) / jnp.sum(weight)

    return mean(flat), jax.grad(mean)(flat), jax.hessian(mean)(flat)


# ---------------------------------------------------------------- gradients and curvature


@pytest.mark.parametrize(("batch_size", "weighted"), [(1, True), (5, False), (64, True)])
def test_gradient_norms_and_eigenvalues_are_those_of_dense_hessians(wide, batch_size, weighted):
    params, (x, y, group, weight) = network(1), sample()
    found = fb.analysis.sensitivity(
        mlp, params, x, y, group,
        weight=weight if weighted else None, batch_size=batch_size, lanczos=Lanczos(43),
    )  # fmt: skip
    assert found.size.tolist() == [23, 14, 6]
    for g in range(3):
        rows = group == g
        own = rows * (weight if weighted else 1.0)
        loss, gradient, hessian = dense_pieces(params, x, y, own)
        assert found.loss[g] == pytest.approx(float(loss), rel=1e-12)
        assert found.gradient_norm[g] == pytest.approx(np.linalg.norm(gradient), rel=1e-10)
        assert found.lambda_max[g] == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-8)
        right = mlp(params, x).argmax(-1) == y
        assert found.accuracy[g] == pytest.approx(np.average(right, weights=own))


def test_single_precision_is_enough():
    params, (x, y, group, _) = network(1), sample()
    found = fb.analysis.sensitivity(mlp, params, x.astype("float32"), y, group)
    with jax.enable_x64():
        for g in range(3):
            _, _, hessian = dense_pieces(network(1), x, y, 1.0 * (group == g))
            value = np.linalg.eigvalsh(hessian)[-1]
            assert found.lambda_max[g] == pytest.approx(value, rel=1e-4)


def test_few_products_come_with_how_far_they_are_off(wide):
    params, (x, y, group, _) = network(2), sample()
    for products in (2, 8):
        found = fb.analysis.sensitivity(mlp, params, x, y, group, lanczos=Lanczos(products))
        for g in range(3):
            _, _, hessian = dense_pieces(params, x, y, 1.0 * (group == g))
            values = np.linalg.eigvalsh(hessian)
            assert found.lambda_max[g] <= values[-1] + 1e-9
            nearest = np.abs(values - found.lambda_max[g]).min()
            assert nearest <= found.lambda_error[g] + 1e-9
    assert (found.lambda_error < 0.1 * found.lambda_max).all()


def test_lanczos_stops_where_it_has_seen_everything(wide):
    # Rank two in twelve dimensions: the vectors span an invariant space after three products.
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(12, 2)))[0]
    matrix = jnp.asarray(basis @ np.diag([3.0, 1.0]) @ basis.T)
    for products in (1, 3, 30):
        lanczos = Lanczos(products)
        parts = jax.device_get(lanczos.decompose(lambda v: matrix @ v, jnp.zeros(12)))
        value, error = lanczos.largest(*parts)
        assert np.isfinite([value, error]).all()
        assert value <= 3 + 1e-9
        if products >= 3:
            assert value == pytest.approx(3, rel=1e-8)
            assert error < 1e-6
    # No curvature at all, and only negative curvature.
    for matrix, expected in ((jnp.zeros((4, 4)), 0.0), (-jnp.diag(jnp.arange(1.0, 5)), -1.0)):
        parts = jax.device_get(Lanczos().decompose(lambda v, m=matrix: m @ v, jnp.zeros(4)))
        assert Lanczos.largest(*parts)[0] == pytest.approx(expected, abs=1e-9)


def test_convolutions_in_the_loop_keep_their_values():
    # The stream rewrites convolutions for speed: same products as without it, group by group.
    rng = np.random.default_rng(0)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(3, 3, 1, 3)), "float32"),
        "head": jnp.asarray(rng.normal(size=(3, 3)), "float32"),
    }
    x = jnp.asarray(rng.normal(size=(14, 8, 8, 1)), "float32")
    y, group = jnp.asarray(rng.integers(0, 3, 14)), np.repeat([0, 1], [9, 5])

    def apply(params, x):
        form = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(
            x, params["kernel"], (2, 2), "SAME", dimension_numbers=form
        )
        return jax.nn.relu(out).mean((1, 2)) @ params["head"]

    found = fb.analysis.sensitivity(apply, params, x, y, group, batch_size=4, lanczos=Lanczos(36))
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def pieces(vector, weight):
        def mean(vector):
            return (
                weight
                @ fb.analysis._loss.cross_entropy(apply(unravel(vector), x), y)
                / weight.sum()
            )

        return jax.grad(mean)(vector), jax.hessian(mean)(vector)

    for g in range(2):
        gradient, hessian = pieces(flat, jnp.asarray(group == g, "float32"))
        assert found.gradient_norm[g] == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
        assert found.lambda_max[g] == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-3)


def test_memory_does_not_grow_with_the_rows():
    params = network(0)

    def temporary(rows):
        x = np.zeros((rows, 4), "float32")
        grouped = _loss.GroupedRows.of(x, np.zeros(rows, int), np.zeros(rows, int), batch_size=32)
        compiled = _curvature._tridiagonal.lower(
            fb.analysis._loss.portable(mlp), params, grouped.span(0),
            loss=fb.analysis._loss.cross_entropy, batch_size=32, lanczos=Lanczos(3),
        ).compile()  # fmt: skip
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary(64), temporary(64_000)
    assert 0 < many <= 1.05 * few
    # The inputs alone would be 1 MB.
    assert many < 200_000


# ---------------------------------------------------------------- the Taylor bound


def quadratic(outputs, y):
    """A loss that is quadratic in the weights, as the outputs are linear in them."""
    return jnp.sum((outputs - y) ** 2, -1)


def linear(params, x):
    return x @ params["w"] + params["b"]


def test_the_expansion_is_exact_on_a_quadratic_loss_and_the_bound_holds(wide):
    rng = np.random.default_rng(3)
    x, _, group, weight = sample(3)
    y = rng.normal(size=(len(x), 2))
    dense = {"w": jnp.asarray(rng.normal(size=(4, 2))), "b": jnp.asarray(rng.normal(size=2))}
    pruned = {"w": dense["w"] * (jnp.abs(dense["w"]) > 0.8), "b": dense["b"]}
    found = fb.analysis.disparate_impact(
        linear, dense, pruned, x, y, group,
        loss=quadratic, groups=GROUPS, weight=weight, batch_size=5,
    )  # fmt: skip
    removed = np.asarray(dense["w"])[np.abs(dense["w"]) <= 0.8]
    assert found.distance == pytest.approx(np.linalg.norm(removed))
    for g in range(3):
        rows = group == g
        before, after = (
            np.average(((x[rows] @ np.asarray(p["w"]) + np.asarray(p["b"]) - y[rows]) ** 2).sum(1),
                       weights=weight[rows])
            for p in (dense, pruned)
        )  # fmt: skip
        assert found.excess_loss[g] == pytest.approx(after - before, rel=1e-10)
        assert found.expansion[g] == pytest.approx(after - before, rel=1e-9)
        # Hessian of one output: twice the second moments of (x, 1).
        design = np.column_stack([x[rows], np.ones(rows.sum())])
        moments = 2 * design.T @ (design * weight[rows, None]) / weight[rows].sum()
        assert found.sensitivity.lambda_max[g] == pytest.approx(np.linalg.eigvalsh(moments)[-1])
        assert found.bound[g] >= found.excess_loss[g]
    # There are no classes to be right about.
    assert np.isnan(found.sensitivity.accuracy).all()
    assert np.isnan(found.sensitivity.closeness).all()
    assert found.violation == pytest.approx(np.ptp(found.excess_loss))


def test_the_bound_is_reached_along_the_steepest_direction(wide):
    # One weight: gradient and Hessian have one direction, so the bound is the excess loss itself.
    x, y = np.array([[1.0], [1.0], [2.0]]), np.zeros((3, 1))
    found = fb.analysis.disparate_impact(
        lambda p, x: x * p, jnp.array([1.0]), jnp.array([1.5]), x, y, np.array([0, 0, 1]),
        loss=quadratic,
    )  # fmt: skip
    np.testing.assert_allclose(found.excess_loss, [1.25, 5.0])
    np.testing.assert_allclose(found.sensitivity.gradient_norm, [2, 8])
    np.testing.assert_allclose(found.sensitivity.lambda_max, [2, 8])
    np.testing.assert_allclose(found.bound, [1.25, 5.0])


def test_the_expansion_is_of_third_order_on_a_network(wide):
    params, (x, y, group, _) = network(4), sample(4)
    direction = network(5)
    errors = []
    for scale in (0.02, 0.01):
        moved = jax.tree.map(lambda p, d, s=scale: p + s * d, params, direction)
        found = fb.analysis.disparate_impact(mlp, params, moved, x, y, group, lanczos=Lanczos(43))
        errors.append(np.abs(found.excess_loss - found.expansion))
        assert (found.bound >= found.expansion).all()
    np.testing.assert_allclose(errors[0] / errors[1], 8, rtol=0.25)


def test_own_statistics_are_reported_beside_the_dense_ones(wide):
    params, (x, y, group, _) = network(6), sample(6)

    def shifted(shift, params, x):
        return mlp(params, x - shift)

    apply, own = (jax.tree_util.Partial(shifted, jnp.asarray(s)) for s in (0.0, 0.5))
    pruned = {**params, "w1": params["w1"] * (jnp.abs(params["w1"]) > 0.5)}
    found = fb.analysis.disparate_impact(apply, params, pruned, x, y, group, own_apply=own)
    for values, shift in ((found.pruned_loss, 0.0), (found.own_pruned_loss, 0.5)):
        for g in range(3):
            loss, *_ = dense_pieces(pruned, x - shift, y, 1.0 * (group == g))
            assert values[g] == pytest.approx(float(loss))
    own_excess = found.own_pruned_loss - found.sensitivity.loss
    assert found.own_violation == pytest.approx(
        max(abs(a - b) for a, b in itertools.combinations(own_excess, 2))
    )
    right = shifted(0.5, pruned, x).argmax(-1) == y
    for g in range(3):
        assert found.pruned_accuracy[g] == pytest.approx(np.mean(right[group == g]))
    # Correlations speak of what the pruned network really does.
    expected = stats.pearsonr(found.sensitivity.gradient_norm, own_excess).statistic
    assert found.correlations[0].pearson == pytest.approx(expected)


def test_what_is_known_of_the_dense_network_is_used_again(wide):
    params, (x, y, group, _) = network(7), sample(7)
    pruned = jax.tree.map(lambda p: p * (jnp.abs(p) > 0.3), params)
    known = fb.analysis.sensitivity(mlp, params, x, y, group)
    whole = fb.analysis.disparate_impact(mlp, params, pruned, x, y, group)
    again = fb.analysis.disparate_impact(mlp, params, pruned, x, y, group, known=known)
    assert again.to_json() == whole.to_json()
    assert again.sensitivity is known
    with pytest.raises(ValueError, match="other groups or other rows"):
        fb.analysis.disparate_impact(mlp, params, pruned, x[1:], y[1:], group[1:], known=known)


# ---------------------------------------------------------------- boundary, correlations


def test_boundary_closeness_by_hand(wide):
    logits = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1], [1.0, 1e-300]]))
    p = np.array([0.5, 0.9, 1.0])
    np.testing.assert_allclose(
        fb.analysis._loss.boundary_closeness(logits), 2 * p * (1 - p), atol=1e-12
    )
    many = jnp.log(jnp.array([[0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]]))
    np.testing.assert_allclose(fb.analysis._loss.boundary_closeness(many), [0.62, 2 / 3])
    # As a group's mean.
    found = fb.analysis.sensitivity(
        lambda p, x: x + p, jnp.zeros(2), logits, np.zeros(3, int), np.array([0, 0, 1])
    )
    np.testing.assert_allclose(found.closeness, [(0.5 + 0.18) / 2, 0], atol=1e-12)


def test_correlations_are_those_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=12), rng.normal(size=12)
    a[3], b[5] = np.nan, np.inf
    found = fb.analysis.correlate("Gradient norm", a, "excess loss", b)
    both = np.isfinite(a) & np.isfinite(b)
    assert found.groups == 10
    pearson, spearman = stats.pearsonr(a[both], b[both]), stats.spearmanr(a[both], b[both])
    assert (found.pearson, found.pearson_p) == pytest.approx(tuple(pearson))
    assert (found.spearman, found.spearman_p) == pytest.approx(tuple(spearman))


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([1.0, 2.0, 3.0], [2.0, 4.0, 6.5], "strong correlation, excess loss is larger where grad"),
        ([1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 1.5, 0.5], "excess loss is smaller"),
        ([1.0, 2.0], [1.0, 2.0], "fewer than three groups"),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "does not vary"),
        ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], "does not vary"),
    ],
)
def test_correlations_in_words(a, b, words):
    found = fb.analysis.correlate("Gradient norm", np.array(a), "excess loss", np.array(b))
    assert words in found.sentence
    if found.pearson is not None:
        assert f"over {len(a)} groups; so few groups" in found.sentence
    json.dumps(found.to_json(), allow_nan=False)


# ---------------------------------------------------------------- tables


def test_tables_leave_out_what_does_not_exist(wide):
    params, (x, y, group, _) = network(8), sample(8)
    pruned = jax.tree.map(lambda p: 0.5 * p, params)
    found = fb.analysis.disparate_impact(
        mlp, params, pruned, x, y, group, groups=(*GROUPS, "nobody")
    )
    lines = found.table()
    assert [line.group for line in lines] == [*GROUPS, "nobody"]
    nobody = dataclasses.asdict(lines[3])
    assert nobody.pop("group") == "nobody"
    assert nobody.pop("rows") == 0
    assert set(nobody.values()) == {None}
    assert lines[0].excess_loss == pytest.approx(lines[0].pruned_loss - lines[0].dense_loss)
    assert all(c.groups == 3 for c in found.correlations)
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["violation"] == found.violation
    assert written["groups"][1]["lambda_max"] == found.sensitivity.lambda_max[1]
    # Over all rows: each group by its share.
    expected = float(dense_pieces(pruned, x, y, np.ones(len(x)))[0])
    assert written["pruned_loss"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((3, 4))}, "speak of the same rows"),
        ({"x": np.zeros((0, 4)), "y": np.zeros(0, int), "group": np.zeros(0, int)}, "no rows"),
        ({"group": np.full(43, 5), "groups": GROUPS}, "group 5 does not exist"),
        ({"group": np.full(43, -1)}, "group -1 does not exist"),
        ({"group": np.full(43, 0.5)}, "number of each row's group"),
        ({"weight": np.full(43, -1.0)}, "at least 0"),
        ({"weight": np.zeros(43)}, "all have weight 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"pruned": network(0, hidden=6)}, "different structure or shape"),
        ({"dense": jax.tree.map(lambda p: p * np.nan, network(0))}, "not finite"),
    ],
)
def test_bad_arguments(change, message):
    x, y, group, _ = sample()
    values = {"apply": mlp, "dense": network(0), "pruned": network(1), "x": x, "y": y}
    with pytest.raises(ValueError, match=message):
        fb.analysis.disparate_impact(**{**values, "group": group, **change})


def test_lanczos_needs_a_product():
    with pytest.raises(ValueError, match="at least 1 product"):
        Lanczos(0)


# ---------------------------------------------------------------- lines and planes


def test_a_line_through_two_networks(wide):
    a, b = network(1), network(2)
    x, y, group, weight = sample()
    t = np.array([-0.5, 0.0, 0.25, 1.0])
    found = fb.analysis.loss_line(
        mlp, a, b, x, y, group, t=t, weight=weight, groups=GROUPS, batch_size=7
    )
    for i, s in enumerate(t):
        between = jax.tree.map(lambda p, q, s=s: (1 - s) * p + s * q, a, b)
        assert found.loss[i] == pytest.approx(float(dense_pieces(between, x, y, weight)[0]))
        for g in range(3):
            expected, *_ = dense_pieces(between, x, y, weight * (group == g))
            assert found.group_loss[i, g] == pytest.approx(float(expected))
    gap = ravel_pytree(b)[0] - ravel_pytree(a)[0]
    assert found.distance == pytest.approx(float(jnp.linalg.norm(gap)))
    line = 0.75 * found.loss[1] + 0.25 * found.loss[3]
    assert found.barrier == pytest.approx(max(0, found.loss[2] - line))
    json.dumps(found.to_json(), allow_nan=False)


def test_a_plane_through_three_networks(wide):
    # A quadratic bowl around zero: its value at a point is known from the coordinates alone.
    nets = [jnp.array(p) for p in ([3.0, 0, 0, 1.0], [0, 2.0, 0, 1.0], [1.0, 1, 1, 1])]

    def bowl(params, x):
        return x * params

    x, y = np.ones((2, 4)), np.zeros((2, 4))
    found = fb.analysis.loss_plane(
        bowl, *nets, x, y, np.array([0, 1]), loss=quadratic, points=5, margin=0.5
    )
    a, b, c = (np.asarray(n) for n in nets)
    # Coordinates are true distances.
    for i, j in itertools.combinations(range(3), 2):
        true = np.linalg.norm((a, b, c)[i] - (a, b, c)[j])
        assert np.linalg.norm(found.solutions[i] - found.solutions[j]) == pytest.approx(true)
    basis = np.linalg.solve(found.solutions[1:], np.stack([b - a, c - a]))
    for (i, v), (j, u) in itertools.product(enumerate(found.v), enumerate(found.u)):
        point = a + u * basis[0] + v * basis[1]
        assert found.loss[i, j] == pytest.approx(np.sum(point**2))
    assert found.u[0] < found.solutions[:, 0].min() < found.solutions[:, 0].max() < found.u[-1]
    assert found.v[0] < 0 < found.solutions[2, 1] < found.v[-1]
    json.dumps(found.to_json(), allow_nan=False)


def test_what_spans_no_plane():
    a, b = jnp.zeros(3), jnp.ones(3)
    rows = (np.ones((2, 3)), np.zeros((2, 3)), np.array([0, 1]))
    for c in (0.5 * b, b, a):
        with pytest.raises(ValueError, match="lie on one line"):
            fb.analysis.loss_plane(lambda p, x: p * x, a, b, c, *rows, loss=quadratic)
    with pytest.raises(ValueError, match="at least 2 points"):
        fb.analysis.loss_plane(lambda p, x: p * x, a, b, b, *rows, loss=quadratic, points=1)


def test_counters_are_not_interpolated():
    def apply(network, x):
        weights, state = network
        return x * weights + 0 * state["seen"]

    a = (jnp.zeros(2), {"seen": jnp.asarray(3)})
    b = (jnp.ones(2), {"seen": jnp.asarray(8)})
    rows = (np.ones((2, 2), "float32"), np.zeros((2, 2), "float32"), np.array([0, 1]))
    found = fb.analysis.loss_line(apply, a, b, *rows, t=[0.0, 0.5], loss=quadratic)
    np.testing.assert_allclose(found.loss, [0, 0.5])
    assert found.distance == pytest.approx(np.sqrt(2))


# ---------------------------------------------------------------- solutions and runs


def solved(problem, dense, pruned):
    """A solution made of two given networks."""
    reference, even = problem.refer(dense), fb.BilevelSolver(sparsity=0.5).allocation(problem)
    return fb.Solution(
        "given", problem, reference, pruned, {}, {}, {}, "weight", even, 0.5, fb.train.Costs(), []
    )  # fmt: skip


def thinned(network, threshold=0.2):
    params = jax.tree.map(lambda p: p * (jnp.abs(p) > threshold), network.params)
    return fb.Network(params, network.state)


@pytest.fixture(scope="module")
def solution(tiny_problem):
    problem = tiny_problem()
    return solved(problem, problem.initial_network(1), thinned(problem.initial_network(1)))


def test_a_solution_is_analyzed_on_its_own_rows(solution):
    problem = solution.problem
    rows = problem.roles["test"]
    found = fb.analyze(solution)
    group, dense = problem.group[rows], solution.reference.loss[rows]
    loss = problem.judge(solution.network, rows)[1]
    for g in range(3):
        assert found.sensitivity.loss[g] == pytest.approx(dense[group == g].mean(), rel=1e-4)
        assert found.pruned_loss[g] == pytest.approx(loss[group == g].mean(), rel=1e-4)
    assert found.sensitivity.groups == problem.groups
    # An MLP keeps no statistics: there is one way to evaluate it.
    assert found.own_pruned_loss is None
    assert found.dense_overall == pytest.approx(dense.mean(), rel=1e-4)
    with pytest.raises(ValueError, match="kept for certificates"):
        fb.analyze(solution, "certify")
    with pytest.raises(ValueError, match="unknown role 'train'"):
        fb.analyze(solution, "train")


def test_folds_share_the_programs_though_their_moments_differ():
    """A residual network's take minutes to compile."""
    rng = np.random.default_rng(0)
    y = np.arange(160) % 2
    x = rng.integers(0, 200, (160, 3, 3, 1), np.uint8)
    data = fb.data.from_arrays(x, y, y)
    moments, programs = [], []
    for fold in (0, 1):
        roles = fb.data.fold_roles(data, fold, 2)
        problem = fb.FairPruningProblem("mlp", data, roles=roles, width=4)
        network = problem.initial_network(fold)
        fb.analyze(solved(problem, network, thinned(network)), max_rows=30, batch_size=30)
        moments.append(problem.encoder.moments[0])
        programs.append(_curvature._tridiagonal._cache_size())
    assert moments[0] != moments[1]
    assert programs[0] == programs[1]


def test_normalization_statistics_are_held_fixed(tiny_problem):
    class Normed(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(6, 5, rngs=rngs)
            self.norm = nnx.BatchNorm(5, rngs=rngs)
            self.head = nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.norm(self.hidden(x))))

    problem = tiny_problem(model=fb.models.from_nnx(Normed))
    dense, pruned = problem.initial_network(0), thinned(problem.initial_network(1))
    state = jax.tree.map(lambda leaf: leaf + 0.5, pruned.state)
    pruned = fb.Network(pruned.params, state)
    solution = solved(problem, dense, pruned)
    found = fb.analyze(solution, "tune", lanczos=Lanczos(2))
    rows = problem.roles["tune"]
    mixed = fb.Network(pruned.params, dense.state)
    for network, values in (
        (dense, found.sensitivity.loss),
        (mixed, found.pruned_loss),
        (pruned, found.own_pruned_loss),
    ):
        loss = problem.judge(network, rows)[1]
        for g in range(3):
            expected = loss[problem.group[rows] == g].mean()
            assert values[g] == pytest.approx(expected, rel=1e-4)
    assert found.own_violation != pytest.approx(found.violation)


@pytest.mark.parametrize(
    ("limit", "sizes"), [(None, [50, 7, 0, 20]), (77, [50, 7, 0, 20]), (40, [16, 7, 0, 16]),
                         (12, [4, 4, 0, 4]), (3, [1, 1, 0, 1])]
)  # fmt: skip
def test_chosen_rows_are_even_over_groups(limit, sizes):
    group = np.repeat([0, 1, 3], [50, 7, 20])
    rows = choose_rows(group, 4, limit)
    assert np.bincount(group[rows], minlength=4).tolist() == sizes
    assert len(set(rows)) == len(rows)


def test_lines_and_planes_between_solutions(solution):
    problem = solution.problem
    others = [
        dataclasses.replace(solution, network=problem.initial_network(seed)) for seed in (2, 3)
    ]
    rows = problem.roles["tune"]
    line = solution_line(solution, others[0], "tune", t=[0.0, 0.5, 1.0])
    for end, s in ((0, solution), (2, others[0])):
        assert line.loss[end] == pytest.approx(problem.judge(s.network, rows)[1].mean(), rel=1e-4)
    assert line.groups == problem.groups
    plane = solution_plane(solution, *others, "tune", points=3)
    assert plane.group_loss.shape == (3, 3, 3)
    assert np.isfinite(plane.loss).all()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on small images."""
    place = tmp_path_factory.mktemp("analysis")
    rng = np.random.default_rng(0)
    y = np.arange(480) % 2
    x = (rng.integers(0, 160, (480, 3, 3, 1)) + 80 * y[:, None, None, None]).astype(np.uint8)
    group = np.array(["a[b]", "b", "c"])[rng.choice(3, 480, p=[0.5, 0.3, 0.2])]
    np.savez(place / "mine.npz", x=x, y=y, group=group)
    words = ["--model", "mlp", "--width", "4", "--steps", "40", "--dense-steps", "30"]
    words += ["--data", str(place / "mine.npz"), "--no-baseline", "--sparsity", "0.5"]
    assert main(["solve", *words, "--batch-size", "32", "--out", str(place / "run")]) == 0
    return place


def test_analyze_from_the_command_line(finished, capsys):
    run = finished / "run"
    before = {p.name for p in run.iterdir()}
    capsys.readouterr()
    assert main(["analyze", str(run), "--products", "6"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert {p.name for p in run.iterdir()} - before == {"analysis.json", "analysis.csv"}
    content = json.loads((run / "analysis.json").read_text())
    assert (content["schema_version"], content["role"]) == (2, "test")
    with (run / "analysis.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [line["group"] for line in table] == ["a[b]", "b", "c"]
    loaded = fb.load_run(run)
    data = fb.data.load(str(finished / "mine.npz"))
    rows = fb.data.split_roles(data, seed=0)["test"]
    for dense, name in ((True, "dense_loss"), (False, "pruned_loss")):
        logits = loaded.logits(data.inputs[rows], dense=dense)
        loss = fb.fairness.judge(logits, data.y[rows])[1]
        for g, line in enumerate(table):
            assert int(line["rows"]) == (data.group[rows] == g).sum()
            expected = loss[data.group[rows] == g].mean()
            assert float(line[name]) == pytest.approx(expected, rel=1e-3)
            assert content["groups"][g][name] == float(line[name])
    for words in ("a[b]", "Taylor", "Fairness violation", "over 3 groups; so few groups"):
        assert words in shown
    # As JSON, and a second time over the first.
    assert main(["analyze", str(run), "--products", "2", "--role", "tune", "--max-rows", "9",
                 "--json"]) == 0  # fmt: skip
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((run / "analysis.json").read_text())
    assert (printed["role"], printed["max_rows"]) == ("tune", 9)
    assert [line["rows"] for line in printed["groups"]] == [3, 3, 3]
    # Few rows of each group stand for all of it.
    rows = fb.data.split_roles(data, seed=0)["tune"]
    share = np.bincount(data.group[rows]) / len(rows)
    expected = share @ [line["dense_loss"] for line in printed["groups"]]
    assert printed["dense_loss"] == pytest.approx(expected)


def _nowhere(run):
    run.rename(run.parent / "elsewhere")


def _changed(run):
    path = run.parent / "run" / "config.json"
    config = json.loads(path.read_text())
    other = run.parent / "other.npz"
    arrays = dict(np.load(config["data"]))
    arrays["x"] = arrays["x"][::-1]
    np.savez(other, **arrays)
    path.write_text(json.dumps({**config, "data": str(other)}))
    seal(path.parent, (path.parent / "result.json").read_text())


def _from_python(run):
    path = run / "config.json"
    config = json.loads(path.read_text())
    del config["data"]
    path.write_text(json.dumps(config))
    seal(run, (run / "result.json").read_text())


@pytest.mark.parametrize(
    ("words", "damage", "message"),
    [
        (["--role", "certify"], None, "kept for certificates"),
        (["--role", "train"], None, "unknown role 'train'"),
        (["--max-rows", "0"], None, "--max-rows must be at least 1"),
        (["--max-rows", "2"], None, "cannot show 3 groups"),
        (["--products", "0"], None, "--products must be at least 1"),
        (["--batch-size", "0"], None, "--batch-size must be at least 1"),
        (["--rows", "3"], None, "--max-rows"),
        ([], _nowhere, "there is no run folder"),
        ([], lambda run: (run / "result.json").unlink(), "did not finish"),
        ([], lambda run: (run / "model" / "dense.npz").write_text("x"), "dense.npz"),
        ([], _changed, "has changed since the run"),
        ([], _from_python, "saved from Python"),
    ],
)
def test_what_cannot_be_analyzed(finished, words, damage, message, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    for name in ("analysis.json", "analysis.csv"):
        (run / name).unlink(missing_ok=True)
    if damage is not None:
        damage(run)
    capsys.readouterr()
    assert main(["analyze", str(run), *words]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err
    assert not list(tmp_path.rglob("analysis.*"))


def test_a_full_disk_leaves_no_half_analysis(tmp_path, monkeypatch):
    params, (x, y, group, _) = network(0), sample()
    impact = fb.analysis.disparate_impact(mlp, params, params, x, y, group)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_analysis(tmp_path, impact, role="test")
    assert not list(tmp_path.iterdir())


def test_a_new_run_takes_the_old_analysis_away(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    (run / "analysis.json").write_text("{}")
    (run / "analysis.csv").write_text("")
    claim(run, {}, overwrite=True).close()
    assert not list(run.glob("analysis.*"))
