"""The closed form is exact where its assumption holds: a loss linear in ``z``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fairbilevel as fb
from fairbilevel import hypergrad, masks
from fairbilevel.hypergrad import Bilinear, MaskedLoss
from fairbilevel.masks import Channels, Layer, Layers, Slice

GAMMA = 0.7


def outer(z):
    """Any smooth function of ``z``; the outer loss need not be linear."""
    return jnp.sum(jnp.sin(z) * z) + jnp.prod(1 + 0.1 * z)


def solve_inner(c, m, gamma):
    """``argmin_theta  c . (m * theta) + gamma / 2 |theta|^2``, by Newton's method, which ends here.

    Written with autodiff, so that nothing of the closed form is restated.
    """

    def inner(theta):
        return jnp.sum(c * (m * theta)) + gamma / 2 * jnp.sum(theta**2)

    start = jnp.zeros_like(c)
    return start - jnp.linalg.solve(jax.hessian(inner)(start), jax.grad(inner)(start))


def bilinear(c, m, theta, gamma):
    return of_masked(outer, lambda z: jnp.sum(c * z), lambda m: m, m, theta, Bilinear(gamma))[0]


def of_masked(upper, lower, mask, scores, weights, method, vjp=None):
    """``fb.hypergradient`` of two losses of ``z``."""
    levels = MaskedLoss(upper, mask, vjp), MaskedLoss(lower, mask, vjp)
    return fb.hypergradient(*levels, scores, weights, method=method)


@pytest.mark.parametrize("gamma", [0.05, 1.0, 20.0])
def test_exact_where_the_inner_loss_is_linear(gamma):
    def reduced(m, c):
        return outer(m * solve_inner(c, m, gamma))

    both = jax.jit(
        lambda c, m: (jax.grad(reduced)(m, c), bilinear(c, m, solve_inner(c, m, gamma), gamma))
    )
    with jax.enable_x64(True):
        for seed in range(10):
            rng = np.random.default_rng(seed)
            exact, ours = both(jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.uniform(size=5)))
            tolerance = 1e-6 * float(jnp.abs(exact).max())
            np.testing.assert_allclose(ours, exact, rtol=1e-6, atol=tolerance)


def test_finite_differences_of_the_re_solved_problem():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        c, m = jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.uniform(0, 1, 5))

        def reduced(m):
            return float(outer(m * solve_inner(c, m, GAMMA)))

        step = 1e-6
        numeric = [
            (reduced(m.at[i].add(step)) - reduced(m.at[i].add(-step))) / (2 * step)
            for i in range(5)
        ]
        ours = bilinear(c, m, solve_inner(c, m, GAMMA), GAMMA)
        np.testing.assert_allclose(ours, numeric, atol=1e-6)


def test_infinite_gamma_leaves_the_implicit_term_out():
    rng = np.random.default_rng(1)
    theta, m, up, low = ({"w": jnp.asarray(rng.normal(size=(3, 2)))} for _ in range(4))

    def at(gamma):
        losses = (lambda z, q=q: jnp.sum(z["w"] * q["w"]) for q in (up, low))
        return of_masked(*losses, lambda m: m, m, theta, Bilinear(gamma))[0]["w"]

    np.testing.assert_allclose(at(float("inf")), theta["w"] * up["w"], rtol=1e-6)
    assert hypergrad.by_name("none") == Bilinear(float("inf"))
    # It is the limit of large gammas.
    np.testing.assert_allclose(at(1e9), at(float("inf")), atol=1e-6)


def test_nan_of_an_unused_inner_gradient_does_not_leak_without_the_implicit_term():
    one = jnp.ones(2)
    for gamma, status in ((float("inf"), fb.hypergrad.Status.DONE), (1.0, 4)):
        gradient, info = of_masked(
            jnp.sum, lambda z: jnp.sum(z * jnp.nan), lambda m: m, one, one, Bilinear(gamma)
        )
        assert bool(jnp.isfinite(gradient).all()) == (status == 0)
        assert info.status == status


def test_closed_form_refuses_what_it_is_not_made_for():
    one = jnp.ones(2)

    def plain(scores, weights):
        return jnp.sum(scores * weights)

    with pytest.raises(TypeError, match="closed form of a masked problem"):
        fb.hypergradient(plain, plain, one, one, method=Bilinear())
    levels = MaskedLoss(jnp.sum, lambda m: m), MaskedLoss(jnp.sum, lambda m: 2 * m)
    with pytest.raises(TypeError, match="same mask"):
        fb.hypergradient(*levels, one, one, method=Bilinear())


def test_both_gradients_and_auxiliaries_come_with_the_closed_form():
    """``info.inner_grad`` is the gradient of the inner loss with respect to the weights."""
    rng = np.random.default_rng(4)
    m, theta, data = (jnp.asarray(rng.uniform(size=3)) for _ in range(3))

    def loss(z, data, scale):
        return jnp.sum((z - data) ** 2) * scale, {"z": z}

    mask = jax.nn.sigmoid
    level = MaskedLoss(loss, mask)
    gradient, info = jax.jit(
        lambda m, theta: fb.hypergradient(
            level, level, m, theta, method=Bilinear(2.0), has_aux=True,
            outer_args=(data, 3.0), inner_args=(data, 1.0),
        )
    )(m, theta)  # fmt: skip
    inner = jax.grad(lambda theta: loss(mask(m) * theta, data, 1.0)[0])(theta)
    np.testing.assert_allclose(info.inner_grad, inner, rtol=1e-5)
    np.testing.assert_allclose(info.outer_value, 3 * info.inner_value, rtol=1e-6)
    np.testing.assert_allclose(info.outer_aux["z"], mask(m) * theta, rtol=1e-6)
    up, low = (2 * (mask(m) * theta - data) * s for s in (3.0, 1.0))
    entries = theta * up - low * mask(m) * up / 2
    np.testing.assert_allclose(gradient, entries * mask(m) * (1 - mask(m)), rtol=1e-5)


def test_shared_units_of_a_filter():
    """Kernel, bias and norm of one filter hang on one mask entry: their derivatives add up."""
    members = (Slice("conv/kernel", 3), Slice("conv/bias", 0), Slice("norm/scale", 0))
    layers = Layers(
        (Layer("conv", "conv/kernel", 3, (2, 1, 2, 3)),),
        (Channels("conv", 3, ("conv/kernel",), members),),
    )
    shapes = {"conv": {"kernel": (2, 1, 2, 3), "bias": (3,)}, "norm": {"scale": (3,)}, "free": (2,)}
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)

        def draw():
            return jax.tree.map(
                lambda s: jnp.asarray(rng.normal(size=s)),
                shapes,
                is_leaf=lambda s: isinstance(s, tuple),
            )

        c, a = draw(), draw()
        m = {"conv": jnp.asarray(rng.uniform(0, 1, 3))}

        def factors_of(m):
            return masks.expand(m, c, layers, "filter")

        def best(m):
            # argmin of c . (m theta) + gamma / 2 |theta|^2, leaf by leaf
            return jax.tree.map(lambda f, c: -f * c / GAMMA, factors_of(m), c)

        def outer_of(z):
            return sum(
                jnp.sum(jnp.sin(z) * a)
                for z, a in zip(jax.tree.leaves(z), jax.tree.leaves(a), strict=True)
            )

        def reduced(m):
            return outer_of(jax.tree.map(lambda f, t: f * t, factors_of(m), best(m)))

        exact = jax.grad(reduced)(m)

        def inner_of(z):
            return sum(
                jnp.sum(z * c) for z, c in zip(jax.tree.leaves(z), jax.tree.leaves(c), strict=True)
            )

        def vjp(m):
            return factors_of(m), lambda entries: masks.collect(entries, layers, "filter")

        for given in (vjp, None):  # the library's transpose of expand, and autodiff's
            ours, _ = of_masked(outer_of, inner_of, factors_of, m, best(m), Bilinear(GAMMA), given)
            np.testing.assert_allclose(ours["conv"], exact["conv"], rtol=1e-6)


def test_both_levels_of_bip_with_different_batches():
    """Two linear losses on two batches: the inner solution moves with the mask, dense computation
    through the inner Hessian (Lorraine et al. 2020) agrees."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        m = jnp.asarray(rng.uniform(0.1, 1, 4))
        c_fit, c_select = jnp.asarray(rng.normal(size=4)), jnp.asarray(rng.normal(size=4))

        def inner(theta, m):
            return jnp.sum(c_fit * m * theta) + GAMMA / 2 * jnp.sum(theta**2)

        def upper(theta, m):
            return jnp.sum(jnp.tanh(c_select * m * theta))

        theta = -m * c_fit / GAMMA
        hessian = jax.hessian(inner)(theta, m)
        cross = jax.jacobian(jax.grad(inner), argnums=1)(theta, m)
        implicit = -cross.T @ jnp.linalg.solve(hessian, jax.grad(upper)(theta, m))
        exact = jax.grad(upper, argnums=1)(theta, m) + implicit
        ours, _ = of_masked(
            lambda z: jnp.sum(jnp.tanh(c_select * z)),
            lambda z: jnp.sum(c_fit * z),
            lambda m: m,
            m,
            theta,
            Bilinear(GAMMA),
        )
        np.testing.assert_allclose(ours, exact, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0, -1, float("nan")])
def test_bad_gamma(gamma):
    with pytest.raises(ValueError, match="gamma must be positive"):
        Bilinear(gamma)


def test_names_with_options():
    assert hypergrad.by_name("bilinear:gamma=3") == Bilinear(3)
    cg = hypergrad.by_name("cg:iterations=7,damping=0.5,warm_start=true")
    assert (cg.iterations, cg.damping, cg.warm_start) == (7, 0.5, True)
    assert hypergrad.by_name("unrolled:keep=sqrt").keep == "sqrt"
    for name in hypergrad._hypergradient.METHODS:
        assert hypergrad.by_name(name).gradient_evaluations >= 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bilnear", "did you mean 'bilinear'"),
        ("cg:iteration=7", "did you mean 'iterations'"),
        ("cg:iterations=many", "must be a whole number"),
        ("cg:iterations=0.5", "whole number"),
        ("cg:iterations=0", "at least 1"),
        ("cg:warm_start=1", "true or false"),
        ("cg:damping=-1", "damping must be"),
        ("none:gamma=1", "it has none"),
        ("unrolled:keep=some", "keep is"),
        ("first-order:penalty=0", "penalty must be"),
    ],
)
def test_bad_names(text, message):
    with pytest.raises(ValueError, match=message):
        hypergrad.by_name(text)
