"""The closed form is exact where its assumption holds: a loss linear in ``z``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairbilevel import hypergrad, masks
from fairbilevel.hypergrad import Bilinear
from fairbilevel.masks import Layer

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
    z = m * theta
    low = jax.grad(lambda z: jnp.sum(c * z))(z)
    return Bilinear(gamma)(theta, m, jax.grad(outer)(z), low, lambda entries: entries)


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
    theta, m, up, low = (jnp.asarray(rng.normal(size=(3, 2))) for _ in range(4))
    got = Bilinear(float("inf"))({"w": theta}, {"w": m}, {"w": up}, {"w": low}, lambda e: e)
    np.testing.assert_array_equal(got["w"], theta * up)
    assert hypergrad.by_name("none", 1.0) == Bilinear(float("inf"))
    # It is the limit of large gammas.
    near = Bilinear(1e9)({"w": theta}, {"w": m}, {"w": up}, {"w": low}, lambda e: e)
    np.testing.assert_allclose(near["w"], got["w"], atol=1e-6)


def test_nan_of_an_unused_inner_gradient_does_not_leak_without_the_implicit_term():
    one, bad = jnp.ones(2), jnp.full(2, jnp.nan)
    assert np.isfinite(Bilinear(float("inf"))(one, one, one, bad, lambda e: e)).all()


def test_shared_units_of_a_filter():
    """Kernel, bias and norm of one filter hang on one mask entry: their derivatives add up."""
    layer = Layer("conv", "conv/kernel", 3, (2, 1, 2, 3), ("conv/bias", "norm/scale"))
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
            return masks.expand(m, c, (layer,), "filter")

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
        theta, factors = best(m), factors_of(m)
        up = jax.grad(outer_of)(jax.tree.map(lambda f, t: f * t, factors, theta))
        ours = Bilinear(GAMMA)(
            theta, factors, up, c, lambda entries: masks.collect(entries, (layer,), "filter")
        )
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
        up = jax.grad(lambda z: jnp.sum(jnp.tanh(c_select * z)))(m * theta)
        ours = Bilinear(GAMMA)(theta, m, up, c_fit, lambda e: e)
        np.testing.assert_allclose(ours, exact, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0, -1, float("nan")])
def test_bad_gamma(gamma):
    with pytest.raises(ValueError, match="gamma must be positive"):
        Bilinear(gamma)


def test_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'bilinear'"):
        hypergrad.by_name("bilnear", 1.0)
