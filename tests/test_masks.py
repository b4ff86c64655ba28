"""Masks are exact: thresholds, budgets, projections, relaxations, and the layers they act on."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fairbilevel import masks, models
from fairbilevel._trees import flatten_named
from fairbilevel.masks import (
    Allocation,
    Budget,
    CappedSimplex,
    Channels,
    CubicSchedule,
    Layer,
    Relaxation,
    Sigmoid,
    Slice,
    TopK,
    removed,
)
from fairbilevel.masks._budget import uniform_removed

# ---------------------------------------------------------------- exact top-k

NAMES = ("a", "b", "c")
SHAPES = {"a": (2, 3), "b": (5,), "c": (1, 2, 2)}
TOTAL = 15
top_k = jax.jit(masks._threshold.top_k_masks, static_argnums=2)


def split(flat):
    parts = np.split(np.asarray(flat), np.cumsum([np.prod(SHAPES[n]) for n in NAMES])[:-1])
    return {n: jnp.asarray(p.reshape(SHAPES[n])) for n, p in zip(NAMES, parts, strict=True)}


def join(arrays):
    return np.concatenate([np.asarray(arrays[n]).reshape(-1) for n in NAMES])


def sorted_reference(flat, keep):
    """The ``keep`` largest by a stable sort: of equals the first ones."""
    order = np.argsort(-np.asarray(flat, np.float64), kind="stable")
    mask = np.zeros(len(flat))
    mask[order[:keep]] = 1
    return mask


floats32 = st.floats(width=32, allow_nan=False, allow_infinity=True)
few_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), 1e-45, -1e-45])


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, TOTAL, elements=floats32 | few_values), st.integers(0, TOTAL))
def test_top_k_is_a_stable_sort(flat, keep):
    flat = np.where(np.abs(flat) < np.finfo(np.float32).tiny, 0, flat)  # XLA flushes denormals
    np.testing.assert_array_equal(join(top_k(split(flat), keep, ())), sorted_reference(flat, keep))


def test_top_k_of_a_traced_count_equals_that_of_a_fixed_one():
    flat = np.random.default_rng(0).integers(0, 4, TOTAL).astype(np.float32)
    for keep in range(TOTAL + 1):
        plain = masks._threshold.top_k_masks(split(flat), keep) if keep in (0, 7, TOTAL) else None
        traced = top_k(split(flat), jnp.asarray(keep), ())
        np.testing.assert_array_equal(join(traced), sorted_reference(flat, keep))
        if plain is not None:
            np.testing.assert_array_equal(join(plain), join(traced))
    assert top_k._cache_size() <= 4  # one program a dtype of the count, not one a count


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
def test_top_k_of_every_float(dtype):
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        # Values that only the full precision of the type can tell apart, ties, and both zeros.
        tiny = float(jnp.finfo(dtype).eps)
        flat = 1 + tiny * rng.integers(-3, 4, TOTAL)
        flat[:4] = [0.0, -0.0, np.inf, -np.inf]
        scores = {n: a.astype(dtype) for n, a in split(flat).items()}
        for keep in (0, 1, 5, 9, 13, 14, TOTAL):
            got = masks._threshold.top_k_masks(scores, keep)
            assert all(g.dtype == dtype for g in got.values())
            exact = np.asarray(jnp.asarray(flat).astype(dtype).astype(jnp.float64))
            np.testing.assert_array_equal(
                join({n: g.astype(jnp.float32) for n, g in got.items()}),
                sorted_reference(exact, keep),
            )


def test_negative_zero_ties_with_zero():
    scores = {"a": jnp.array([-0.0, 0.0, -0.0]), "b": jnp.array([0.0])}
    got = masks._threshold.top_k_masks(scores, 2)
    assert got["a"].tolist() == [1, 1, 0]
    assert got["b"].tolist() == [0]


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, TOTAL, elements=st.integers(-3, 3) | st.just(np.float32(np.inf))),
    st.integers(2, TOTAL),
    st.sampled_from([("b",), ("a", "c"), ("c",)]),
)
def test_reserved_layers_keep_their_best(flat, keep, reserved):
    scores = split(flat)
    got = top_k(scores, keep, reserved)
    assert join(got).sum() == keep
    for name in reserved:
        best = np.flatnonzero(
            np.asarray(scores[name]).reshape(-1) == np.asarray(scores[name]).max()
        )
        assert np.asarray(got[name]).reshape(-1)[best[0]] == 1
    # The rest is filled up as if the reserved entries were out of the competition.
    taken = np.zeros(TOTAL, bool)
    starts = dict(zip(NAMES, np.cumsum([0, 6, 5]), strict=True))
    for name in reserved:
        taken[starts[name] + int(np.argmax(np.asarray(scores[name])))] = True
    others = np.flatnonzero(~taken)
    expected = taken.astype(float)
    expected[others] = sorted_reference(flat[others], keep - taken.sum())
    np.testing.assert_array_equal(join(got), expected)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, TOTAL, elements=st.floats(-100, 100, width=32)), st.integers(1, TOTAL)
)
def test_kth_largest(flat, keep):
    flat = np.where(np.abs(flat) < 1e-30, 0, flat).astype(np.float32)
    assert float(kth(split(flat), keep)) == np.sort(flat)[::-1][keep - 1]


kth = jax.jit(masks._threshold.kth_largest)


def test_kth_largest_of_half_precision_and_infinities():
    scores = {"a": jnp.array([jnp.inf, -1.5, 2.0], jnp.bfloat16)}
    assert [float(masks._threshold.kth_largest(scores, k)) for k in (1, 2, 3)] == [
        np.inf,
        2.0,
        -1.5,
    ]


# ---------------------------------------------------------------- budgets


def test_removed_is_exact_where_floating_point_is_not():
    # 0.98 * 50 is 49.000000000000004 or 48.99999..., on paper 49.
    assert removed(0.98, 50) == 49
    assert removed(0.29, 100) == 29  # 28.999999999999996 in floating point
    assert removed(0.0, 10) == 0
    assert removed(0.999, 10) == 9
    for percent, units in itertools.product(range(100), (1, 7, 50, 100, 1000, 2560)):
        assert removed(percent / 100, units) == percent * units // 100


LAYER_SIZES = st.lists(st.integers(1, 2000), min_size=1, max_size=7)


@settings(max_examples=200, deadline=None)
@given(LAYER_SIZES, st.integers(0, 999))
def test_uniform_budgets_are_the_largest_remainder(sizes, thousandths):
    units = {f"layer{i}": n for i, n in enumerate(sizes)}
    got = uniform_removed(thousandths / 1000, units)
    # In whole numbers, where nothing is rounded.
    floor = [thousandths * n // 1000 for n in sizes]
    rest = [thousandths * n % 1000 for n in sizes]
    missing = thousandths * sum(sizes) // 1000 - sum(floor)
    order = sorted(range(len(sizes)), key=lambda i: (-rest[i], i))
    for i in order[:missing]:
        floor[i] += 1
    assert list(got.values()) == floor
    assert sum(got.values()) == removed(thousandths / 1000, sum(sizes))
    assert all(0 <= got[name] <= units[name] for name in units)


def test_ties_of_remainders_go_to_the_first_layer():
    assert uniform_removed(0.5, {"a": 3, "b": 3, "c": 3, "d": 3}) == {
        "a": 2,
        "b": 2,
        "c": 1,
        "d": 1,
    }


@pytest.mark.parametrize("kind", masks._budget.BUDGETS)
@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_sparsity_outside_its_range(kind, sparsity):
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\)"):
        Budget(kind, {"a": 10}).keep(sparsity)


def test_budgets_that_empty_an_essential_layer():
    units = {"wide": 900, "narrow": 4}
    # Uniform: the layer's own share empties it.
    with pytest.raises(ValueError, match=r"layer 'narrow' \(4 units\) empty"):
        Budget("uniform", units, ("narrow",)).keep(0.995)
    assert Budget("uniform", units).keep(0.995)["narrow"] == 0  # data can pass around it
    # Global: only too few units for all essential layers together.
    assert Budget("global", units, ("wide", "narrow")).keep(0.995) == {"all": 5}
    with pytest.raises(ValueError, match="fewer than the 2 layers"):
        Budget("global", {"a": 10, "b": 10}, ("a", "b")).keep(0.95)


def test_a_global_budget_reserves_essential_layers():
    scores = {"a": jnp.array([9.0, 8.0, 7.0]), "b": jnp.array([0.1, 0.2])}
    budget = Budget("global", {"a": 3, "b": 2}, ("b",))
    got = budget.top_k(scores, budget.keep(0.6))
    assert got["a"].tolist() == [1, 0, 0]
    assert got["b"].tolist() == [0, 1]
    told = Allocation.over(budget, 0.6).describe(got)
    assert told == {"prunable": 5, "kept": 2, "achieved": 0.6}


def test_unknown_budgets():
    with pytest.raises(ValueError, match="unknown budget"):
        Budget.of(LAYERS, "weight", "local")
    with pytest.raises(ValueError, match="unknown granularity"):
        Budget.of(LAYERS, "channel", "global")
    with pytest.raises(ValueError, match="no channel of this model can go"):
        Budget.of(masks.Layers(LAYERS.kernels), "filter", "global")


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 0.999), st.floats(0.05, 1), st.floats(0, 1), st.floats(0, 1))
def test_cubic_schedule(final, share, one, other):
    schedule = CubicSchedule(final, share)
    early, late = sorted((one, other))
    assert 0 <= schedule(early) <= schedule(late) + 1e-15 <= final + 2e-15
    assert schedule(0.0) == 0
    assert schedule(1.0) == final
    assert schedule(share) == pytest.approx(final, abs=1e-12)
    # Zhu and Gupta's formula, half way: 7/8 of the final sparsity.
    assert schedule(share / 2) == pytest.approx(final * 7 / 8, abs=1e-12)


# ---------------------------------------------------------------- the capped simplex


def projection_by_sorting(point, total):
    """The shift at which ``sum clip(p - s, 0, 1) = total``, found exactly between breakpoints."""
    breaks = np.unique(np.concatenate([point, point - 1]))
    values = np.array([np.clip(point - s, 0, 1).sum() for s in breaks])  # falls with s
    if total >= values[0]:
        return np.clip(point - breaks[0], 0, 1)
    i = int(np.flatnonzero(values >= total)[-1])
    if i == len(breaks) - 1 or values[i] == total:
        return np.clip(point - breaks[i], 0, 1)
    # The sum is linear between two neighbouring breakpoints.
    share = (values[i] - total) / (values[i] - values[i + 1])
    return np.clip(point - (breaks[i] + share * (breaks[i + 1] - breaks[i])), 0, 1)


project = jax.jit(masks._threshold.capped_simplex)
moderate = st.floats(-5, 5).map(lambda v: round(v, 6))


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float64, TOTAL, elements=moderate), st.integers(0, TOTAL))
def test_capped_simplex_is_the_projection(flat, total):
    with jax.enable_x64(True):
        got = join(project(split(flat), total))
    assert got.min() >= 0
    assert got.max() <= 1
    assert got.sum() == pytest.approx(total, abs=1e-9)
    np.testing.assert_allclose(got, projection_by_sorting(flat, total), atol=1e-9)
    # KKT: one shift for all entries inside; entries at a bound lie on the right side of it.
    inside = (got > 1e-9) & (got < 1 - 1e-9)
    if inside.any():
        shift = (flat - got)[inside]
        assert np.ptp(shift) < 1e-8
        assert (flat[got <= 1e-9] <= shift.mean() + 1e-8).all()
        assert (flat[got >= 1 - 1e-9] >= shift.mean() + 1 - 1e-8).all()


def test_capped_simplex_agrees_with_a_general_solver():
    from scipy.optimize import minimize

    rng = np.random.default_rng(3)
    flat = rng.normal(size=TOTAL)
    found = minimize(
        lambda m: 0.5 * np.sum((m - flat) ** 2),
        np.full(TOTAL, 6 / TOTAL),
        jac=lambda m: m - flat,
        bounds=[(0, 1)] * TOTAL,
        constraints={"type": "eq", "fun": lambda m: m.sum() - 6, "jac": lambda m: np.ones(TOTAL)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success
    got = join(project(split(flat.astype(np.float32)), 6))
    np.testing.assert_allclose(got, found.x, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(np.float32, TOTAL, elements=st.floats(-1000, 1000, width=32)),
    st.integers(0, TOTAL),
)
def test_capped_simplex_in_single_precision(flat, total):
    got = join(project(split(flat), total))
    assert ((got >= 0) & (got <= 1)).all()
    assert got.sum() == pytest.approx(total, abs=1e-3)


def test_a_point_of_the_simplex_stays():
    point = {"a": jnp.array([0.25, 0.75, 1.0]), "b": jnp.array([0.0])}
    got = masks._threshold.capped_simplex(point, 2)
    np.testing.assert_allclose(got["a"], point["a"], atol=1e-6)
    np.testing.assert_allclose(got["b"], point["b"], atol=1e-6)


# ---------------------------------------------------------------- relaxations

BUDGET = Budget("global", {n: int(np.prod(SHAPES[n])) for n in NAMES})
UNIFORM = Budget("uniform", BUDGET.units)


def random_scores(seed=0):
    return split(np.random.default_rng(seed).normal(size=TOTAL).astype(np.float32))


@pytest.mark.parametrize("budget", [BUDGET, UNIFORM], ids=["global", "uniform"])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_sigmoid_has_its_own_gradient(budget, progress):
    relaxation, scores = Sigmoid(0.5, 0.05), random_scores()
    keep = budget.keep(0.4)
    threshold = budget.thresholds(scores, keep)
    gradient = random_scores(1)
    temperature = 0.5 * 0.1**progress

    def loss(scores):
        # The threshold counts as a constant.
        mask = {n: jax.nn.sigmoid((s - threshold[n]) / temperature) for n, s in scores.items()}
        return sum(jnp.sum(gradient[n] * mask[n]) for n in NAMES)

    relaxed = relaxation.mask(scores, budget, keep, progress)
    ours = relaxation.vjp(scores, relaxed, gradient, progress)
    np.testing.assert_allclose(join(ours), join(jax.grad(loss)(scores)), atol=1e-5)
    # One half at the threshold, above it for what top-k keeps.
    kept = join(budget.top_k(scores, keep)) == 1
    values = join(relaxed)
    assert (values[kept] >= 0.5 - 1e-6).all()
    assert (values[~kept] < 0.5).all()


def test_sigmoid_hardens():
    relaxation, scores, keep = Sigmoid(), random_scores(), BUDGET.keep(0.4)
    soft, hard = (join(relaxation.mask(scores, BUDGET, keep, p)) for p in (0.0, 1.0))
    assert (np.abs(hard - 0.5) >= np.abs(soft - 0.5) - 1e-6).all()


@pytest.mark.parametrize("relaxation", [TopK(), CappedSimplex()], ids=["top-k", "capped simplex"])
def test_straight_through_gradients(relaxation):
    scores, keep, gradient = random_scores(), BUDGET.keep(0.4), random_scores(1)
    relaxed = relaxation.mask(scores, BUDGET, keep, 0.3)
    got = relaxation.vjp(scores, relaxed, gradient, 0.3)
    np.testing.assert_array_equal(join(got), join(gradient))  # removed entries feel it too
    assert join(relaxed).sum() == pytest.approx(9, abs=1e-5)


def test_top_k_masks_are_hard_and_its_scores_are_free():
    relaxation, scores, keep = TopK(), random_scores(), BUDGET.keep(0.4)
    assert set(join(relaxation.mask(scores, BUDGET, keep, 0.0))) == {0.0, 1.0}
    for moved in (relaxation.start(scores, BUDGET, keep), relaxation.project(scores, BUDGET, keep)):
        np.testing.assert_array_equal(join(moved), join(scores))


@pytest.mark.parametrize("budget", [BUDGET, UNIFORM], ids=["global", "uniform"])
def test_capped_simplex_scores_are_a_mask(budget):
    relaxation, keep = CappedSimplex(), budget.keep(0.4)
    scores = relaxation.project(random_scores(), budget, keep)
    again = relaxation.mask(scores, budget, keep, 0.5)
    np.testing.assert_allclose(join(again), join(scores), atol=1e-5)
    if budget is UNIFORM:
        for name, part in scores.items():
            assert float(part.sum()) == pytest.approx(keep[name], abs=1e-4)


def test_every_relaxation_keeps_the_protocol():
    assert all(isinstance(r, Relaxation) for r in masks.RELAXATIONS.values())


# ---------------------------------------------------------------- score starts

LAYERS = masks.Layers(
    (
        Layer("conv", "conv/kernel", 3, (2, 2, 3, 4)),
        Layer("dense", "dense/kernel", 1, (4, 5)),
    ),
    (
        Channels("conv", 4, ("conv/kernel",), (Slice("conv/kernel", 3), Slice("conv/bias", 0))),
        Channels("dense", 5, ("dense/kernel",), (Slice("dense/kernel", 1), Slice("dense/bias", 0))),
    ),
)


def layer_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "conv": {"kernel": rng.normal(size=(2, 2, 3, 4)), "bias": rng.normal(size=4)},
        "dense": {"kernel": rng.normal(size=(4, 5)), "bias": rng.normal(size=5)},
        "head": {"kernel": rng.normal(size=(5, 2))},
    }


def as_jax(tree, dtype=jnp.float32):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)


def magnitude_start(params, granularity):
    return masks.start_scores("magnitude", params, LAYERS, granularity, jax.random.key(0))


def test_magnitude_scores():
    params = as_jax(layer_params())
    weights = magnitude_start(params, "weight")
    every = join_any(weights)
    assert every.mean() == pytest.approx(1, rel=1e-5)
    raw = np.concatenate(
        [np.abs(layer_params()[n]["kernel"]).reshape(-1) for n in ("conv", "dense")]
    )
    np.testing.assert_array_equal(np.argsort(every), np.argsort(raw))  # global magnitude's order
    filters = magnitude_start(params, "filter")
    assert [s.shape for s in filters.values()] == [(4,), (5,)]
    norms = np.sqrt((layer_params()["conv"]["kernel"] ** 2).mean((0, 1, 2)))
    ratio = np.asarray(filters["conv"]) / norms
    assert np.ptp(ratio) < 1e-5
    # The network's scale does not matter.
    larger = magnitude_start(jax.tree.map(lambda p: 100 * p, params), "weight")
    np.testing.assert_allclose(larger["conv"], weights["conv"], rtol=1e-5)


def test_magnitude_of_a_network_of_zeros():
    zero = jax.tree.map(jnp.zeros_like, as_jax(layer_params()))
    assert not join_any(magnitude_start(zero, "weight")).any()


def join_any(arrays):
    return np.concatenate([np.asarray(a).reshape(-1) for a in arrays.values()])


@pytest.mark.parametrize("granularity", ["weight", "filter"])
def test_other_starts(granularity):
    params, key = as_jax(layer_params()), jax.random.key(0)
    constant = masks.start_scores("constant", params, LAYERS, granularity, key)
    assert (join_any(constant) == 1).all()
    one = masks.start_scores("random", params, LAYERS, granularity, key)
    same = masks.start_scores("random", params, LAYERS, granularity, key)
    other = masks.start_scores("random", params, LAYERS, granularity, jax.random.key(1))
    np.testing.assert_array_equal(join_any(one), join_any(same))
    assert (join_any(one) != join_any(other)).all()
    assert join_any(one).min() >= 0
    assert join_any(one).max() <= 2
    for unit in LAYERS.units(granularity):
        assert one[unit.name].shape == unit.shape


def test_unknown_start():
    with pytest.raises(ValueError, match="unknown score start 'snip'"):
        masks.start_scores("snip", {}, LAYERS, "weight", jax.random.key(0))


def test_spread_is_the_standard_deviation():
    scores = random_scores()
    assert float(masks.spread(scores)) == pytest.approx(join(scores).std(), rel=1e-5)


# ---------------------------------------------------------------- expand, apply, collect


@pytest.mark.parametrize("granularity", ["weight", "filter"])
def test_collect_is_the_transpose_of_expand(granularity):
    """``<expand(m) - expand(0), e> = <m, collect(e)>`` for all ``m`` and ``e``."""
    with jax.enable_x64(True):
        params = as_jax(layer_params(), jnp.float64)
        entries = as_jax(layer_params(5), jnp.float64)
        rng = np.random.default_rng(7)
        units = {unit.name: unit.shape for unit in LAYERS.units(granularity)}
        m = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in units.items()}
        zero = jax.tree.map(jnp.zeros_like, m)

        def whole(m):
            factors = masks.expand(m, params, LAYERS, granularity)
            return jax.tree.map(lambda f, p: jnp.broadcast_to(f, p.shape), factors, params)

        linear = jax.tree.map(lambda a, b: a - b, whole(m), whole(zero))
        left = sum(
            float(jnp.sum(a * b))
            for a, b in zip(jax.tree.leaves(linear), jax.tree.leaves(entries), strict=True)
        )
        back = masks.collect(entries, LAYERS, granularity)
        right = sum(float(jnp.sum(m[name] * back[name])) for name in m)
        assert left == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("granularity", ["weight", "filter"])
def test_collect_is_the_gradient_of_apply(granularity):
    params = as_jax(layer_params())
    units = {unit.name: unit.shape for unit in LAYERS.units(granularity)}
    m = {name: jnp.asarray(np.random.default_rng(2).uniform(size=s)) for name, s in units.items()}
    m = jax.tree.map(lambda a: a.astype(jnp.float32), m)

    def loss(z):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(z))

    exact = jax.grad(lambda m: loss(masks.apply(m, params, LAYERS, granularity)))(m)
    q = jax.grad(loss)(masks.apply(m, params, LAYERS, granularity))
    ours = masks.collect(jax.tree.map(lambda p, q: p * q, params, q), LAYERS, granularity)
    for name in m:
        np.testing.assert_allclose(ours[name], exact[name], rtol=1e-4, atol=1e-5)


def test_apply_leaves_unmasked_parameters_and_types_alone():
    params = as_jax(layer_params())
    params["head"]["kernel"] = params["head"]["kernel"].astype(jnp.bfloat16)
    ones = {la.name: jnp.zeros(la.shape) for la in LAYERS}
    z = masks.apply(ones, params, LAYERS, "weight")
    assert jax.tree.map(lambda a: (a.shape, a.dtype), z) == jax.tree.map(
        lambda a: (a.shape, a.dtype), params
    )
    np.testing.assert_array_equal(z["head"]["kernel"], params["head"]["kernel"])
    np.testing.assert_array_equal(z["conv"]["bias"], params["conv"]["bias"])
    assert not np.any(z["conv"]["kernel"])


# ---------------------------------------------------------------- finding layers


class LinenCNN(nn.Module):
    """Bias and batch normalization after every convolution."""

    @nn.compact
    def __call__(self, x, train=False):
        for i, width in enumerate((4, 6)):
            x = nn.Conv(width, (3, 3), name=f"conv{i}")(x)
            x = nn.BatchNorm(use_running_average=not train, name=f"norm{i}")(x)
            x = nn.relu(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(7, name="hidden")(x))
        return nn.Dense(3, name="head")(x)


def bare(params, x):
    x = jnp.tanh(x @ params["w1"] + params["b1"])
    x = jax.nn.relu(params["w2"] @ x.T + params["b2"][:, None]).T  # stored the other way round
    return x @ params["w3"]


def bare_params(key):
    k = jax.random.split(key, 5)
    return {
        "w1": jax.random.normal(k[0], (5, 6)),
        "b1": jax.random.normal(k[1], (6,)),
        "w2": jax.random.normal(k[2], (4, 6)),
        "b2": jax.random.normal(k[3], (4,)),
        "w3": jax.random.normal(k[4], (4, 3)),
    }


def found(model, shape):
    """Layers of a model with drawn parameters and statistics, and these."""
    rng = np.random.default_rng(0)
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), params)
    state = jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.5, 1.5, s.shape), s.dtype), state)
    x = jnp.asarray(rng.normal(size=(4, *shape)), jnp.float32)
    return masks.find_layers(model.apply, params, state, x), params, state, x


def by_name(layers):
    return {la.name: la for la in layers}


def companions(layers, name):
    """What is masked beside the kernels of a set of channels."""
    (channels,) = [c for c in layers.channels if c.name == name]
    return {m.leaf for m in channels.members} - set(channels.kernels)


def test_layers_of_the_mlp():
    layers, *_ = found(models.build("mlp", (5,), 3, width=6), (5,))
    assert [la.name for la in layers] == ["hidden/0", "hidden/1", "classifier"]
    assert [la.classifier for la in layers] == [False, False, True]
    assert all(la.out_axis == 1 and la.essential for la in layers)
    assert [c.name for c in layers.channels] == ["hidden/0", "hidden/1"]
    assert companions(layers, "hidden/0") == {"hidden/0/bias"}
    assert all(c.essential for c in layers.channels)
    assert layers[0].shape == (5, 6)


def test_layers_of_the_cnn():
    layers, _, _, _ = found(models.build("cnn", (8, 8, 2), 3, width=4), (8, 8, 2))
    assert [la.name for la in layers] == [f"convolutions/{i}" for i in range(3)] + ["classifier"]
    for i, layer in enumerate(layers[:3]):
        assert layer.out_axis == 3
        assert companions(layers, layer.name) == {f"norms/{i}/scale", f"norms/{i}/bias"}
        assert layer.essential


def test_layers_of_a_residual_network():
    layers, params, _, _ = found(models.build("resnet10", (8, 8, 3), 4, width=4), (8, 8, 3))
    named = by_name(layers)
    kernels = [n for n, leaf in flatten_named(params).items() if leaf.ndim >= 2]
    assert sorted(la.kernel for la in layers) == sorted(kernels)
    # Data can pass around the convolutions of a block, never around stem and classifier.
    assert named["stem"].essential
    assert named["classifier"].essential
    assert not named["blocks/0/conv1"].essential
    assert not named["blocks/1/shortcut"].essential
    assert [la.name for la in layers if la.classifier] == ["classifier"]


def test_layers_of_a_linen_network():
    model = models.from_linen(LinenCNN(), jnp.zeros((1, 8, 8, 2)))
    layers, _, _, _ = found(model, (8, 8, 2))
    named = by_name(layers)
    assert list(named) == ["conv0", "conv1", "hidden", "head"]
    for i in range(2):
        assert companions(layers, f"conv{i}") == {
            f"conv{i}/bias",
            f"norm{i}/scale",
            f"norm{i}/bias",
        }
    assert companions(layers, "hidden") == {"hidden/bias"}
    assert named["head"].classifier


def test_layers_of_a_bare_function():
    layers, _, _, _ = found(models.from_function(bare, bare_params), (5,))
    named = by_name(layers)
    assert list(named) == ["w1", "w2", "w3"]
    assert (named["w1"].out_axis, named["w2"].out_axis, named["w3"].out_axis) == (1, 0, 1)
    assert companions(layers, "w1") == {"b1"}
    assert companions(layers, "w2") == {"b2"}
    assert [la.classifier for la in layers] == [False, False, True]


def test_a_single_output_channel_is_no_companion_of_anything_else():
    """A learned temperature of one entry multiplies all channels and belongs to none."""

    def scaled(params, x):
        return (jax.nn.relu(x @ params["w1"]) * params["one"]) @ params["w2"]

    model = models.from_function(
        scaled,
        lambda key: {
            "w1": jax.random.normal(key, (5, 4)),
            "one": jnp.ones(1),
            "w2": jax.random.normal(key, (4, 3)),
        },
    )
    layers, *_ = found(model, (5,))
    assert [c.name for c in layers.channels] == ["w1"]
    assert not companions(layers, "w1")


def test_models_without_layers_and_linear_models():
    model = models.from_function(lambda p, x: x[:, :3] + p["shift"], {"shift": jnp.ones(3)})
    with pytest.raises(ValueError, match="no prunable layer found"):
        found(model, (5,))
    linear = models.from_function(
        lambda p, x: x @ p["w"], lambda key: {"w": jax.random.normal(key, (5, 3))}
    )
    layers, *_ = found(linear, (5,))
    with pytest.raises(ValueError, match="nothing to prune"):
        masks.select_layers(layers)
    assert len(masks.select_layers(layers, prune_classifier=True)) == 1
