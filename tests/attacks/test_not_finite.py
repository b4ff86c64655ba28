"""A hypergradient of losses that are not finite is NaN, never a number that looks like one."""

import jax
import jax.numpy as jnp
import pytest

import fairbilevel as fb
from fairbilevel.hypergrad import (
    GMRES,
    BiCGStab,
    ConjugateGradient,
    FirstOrder,
    Neumann,
    SingleLoop,
    Status,
    Unrolled,
)

METHODS = {
    "cg": ConjugateGradient(3),
    "warm cg": ConjugateGradient(3, warm_start=True),
    "neumann": Neumann(3),
    "gmres": GMRES(3),
    "bicgstab": BiCGStab(3),
    "single loop": SingleLoop(),
    "unrolled": Unrolled(3),
    "fused": FirstOrder(),
    "sequential": FirstOrder(inner_steps=2),
}


# The outer loss says nothing of x itself: without its implicit term the gradient would be zero.
@pytest.mark.parametrize("level", ["outer", "inner"])
@pytest.mark.parametrize("method", METHODS)
def test_losses_that_are_not_finite_have_no_gradient(method, level):
    def outer(x, y, scale):
        return jnp.sum(y**2) * scale

    def inner(x, y, scale):
        return jnp.sum((y - x) ** 2) * scale

    x, y = jnp.ones(3), jnp.full(3, 2.0)
    scales = {"outer": 1.0, "inner": 1.0} | {level: jnp.nan}
    gradient, info = jax.jit(
        lambda a, b: fb.hypergradient(
            outer, inner, x, y, method=METHODS[method], outer_args=(a,), inner_args=(b,)
        )
    )(scales["outer"], scales["inner"])
    assert info.status == Status.NOT_FINITE
    assert not jnp.isfinite(gradient).any()
    if hasattr(METHODS[method], "damping"):
        assert not jnp.isfinite(info.residual)  # and not a system that was solved exactly


def test_an_implicit_term_that_alone_is_not_finite_is_left_out():
    """Both losses have gradients at zero, the inner one no curvature."""
    x = y = jnp.zeros(3)
    gradient, info = fb.hypergradient(
        lambda x, y: jnp.sum(2 * x + y),
        lambda x, y: jnp.sum(jnp.abs(y - x) ** 1.5),
        x,
        y,
        method=ConjugateGradient(3),
    )
    assert info.status == Status.NOT_FINITE
    assert jnp.isnan(info.residual)
    assert jnp.array_equal(gradient, jnp.full(3, 2.0))
