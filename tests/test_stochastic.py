"""Batches instead of whole sums: the run as a whole still finds the outer problem's minimum."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fairbilevel as fb
from fairbilevel.hypergrad import ConjugateGradient, FirstOrder, Neumann, SingleLoop

INNER, OUTER, SAMPLES, BATCH = 100, 10, 1024, 64
MU, L = 0.1, 1.0
STEPS = 50_000


class FiniteSum:
    """Least squares on both levels; the mean inner Hessian has eigenvalues from MU to L."""

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        features = rng.normal(size=(SAMPLES, INNER))
        # Whitened, then given the spectrum wanted: mean of a a' is exact, single rows are not.
        features = np.linalg.svd(features, full_matrices=False)[0] * np.sqrt(SAMPLES)
        basis = np.linalg.qr(rng.normal(size=(INNER, INNER)))[0]
        features = features @ np.diag(np.sqrt(np.linspace(MU, L, INNER))) @ basis.T
        shift = rng.normal(size=(OUTER, INNER)) / np.sqrt(INNER)
        noise = 0.3 * rng.normal(size=SAMPLES)
        self.inner_data = _arrays(features, noise)
        self.shift = jnp.asarray(shift, jnp.float32)
        upper = rng.normal(size=(SAMPLES, INNER))
        wanted = upper @ (rng.normal(size=OUTER) @ shift)
        self.outer_data = _arrays(upper, wanted + 0.3 * rng.normal(size=SAMPLES))
        hessian = features.T @ features / SAMPLES
        values = np.linalg.eigvalsh(hessian)
        np.testing.assert_allclose([values[0], values[-1]], [MU, L], rtol=1e-6)
        # y*(x) = x @ shift + least squares of the noise; F(x) = f(x, y*(x)).
        offset = np.linalg.solve(hessian, features.T @ noise / SAMPLES)
        target = np.asarray(self.outer_data[1])

        def gradient(x: np.ndarray) -> np.ndarray:
            miss = upper @ (x @ shift + offset) - target
            return shift @ (upper.T @ miss) / SAMPLES + 0.1 * x

        self.gradient = gradient

    def inner(self, x: Any, y: Any, batch: Any) -> Any:
        a, t = batch
        return 0.5 * jnp.mean((a @ (y - x @ self.shift) - t) ** 2)

    def outer(self, x: Any, y: Any, batch: Any) -> Any:
        a, t = batch
        return 0.5 * jnp.mean((a @ y - t) ** 2) + 0.05 * jnp.sum(x**2)


def _arrays(*arrays: np.ndarray) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


def fading(peak: float, power: float = 0.6, scale: float = 500.0) -> optax.Schedule:
    """``peak / (1 + k / scale)^power``: large at first, and its noise dies out."""
    return lambda k: peak / (1 + k / scale) ** power


RATE = fading(0.3)
RUNS = {
    "single loop": SingleLoop(optimizer=optax.sgd(RATE)),
    # The inverse of a batch's Hessian is biased: the former solution has to be held on to.
    "implicit": ConjugateGradient(3, warm_start=True, proximal=100.0),
    "first order": FirstOrder(lambda k: 30 * (1 + k / 500) ** 0.5, optimizer=optax.sgd(RATE)),
}


@pytest.mark.parametrize("name", RUNS)
def test_batches_reach_the_minimum_of_the_value_function(name):
    method, problem, outer_rate = RUNS[name], FiniteSum(), fading(0.05)

    def step(carry, k):
        x, y, state, key, mean = carry
        key, *keys = jax.random.split(key, 3)
        # Different rows on the two levels.
        batches = [
            tuple(leaf[jax.random.randint(of, (BATCH,), 0, SAMPLES)] for leaf in data)
            for of, data in zip(keys, (problem.inner_data, problem.outer_data), strict=True)
        ]
        gradient, info = fb.hypergradient(
            problem.outer,
            problem.inner,
            x,
            y,
            method=method,
            inner_args=(batches[0],),
            outer_args=(batches[1],),
            state=state,
        )
        x, y = x - outer_rate(k) * gradient, y - RATE(k) * info.inner_grad
        # Polyak's average of the second half.
        seen = k - STEPS // 2
        mean = jnp.where(seen < 0, x, mean + (x - mean) / (seen + 1))
        return (x, y, info.state, key, mean), None

    zero = jnp.zeros(OUTER), jnp.zeros(INNER)
    start = (*zero, method.init(*zero), jax.random.key(1), zero[0])
    (*_, mean), _ = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(STEPS)))(start)
    before = np.sum(problem.gradient(np.zeros(OUTER)) ** 2)
    after = np.sum(problem.gradient(np.asarray(mean, float)) ** 2)
    assert before > 1
    assert after < 1e-4


def test_a_batchs_inverse_is_biased_and_holding_on_is_not():
    """Averaged over batches, at a point held still, against the whole sum's hypergradient."""
    problem = FiniteSum()
    x, y = jnp.ones(OUTER), jnp.ones(INNER)
    whole = {"inner_args": (problem.inner_data,), "outer_args": (problem.outer_data,)}
    levels = (problem.outer, problem.inner, x, y)
    exact, _ = fb.hypergradient(*levels, method=ConjugateGradient(200), **whole)

    def error(method):
        def step(carry, key):
            state, total = carry
            rows = jax.random.randint(key, (BATCH,), 0, SAMPLES)
            gradient, info = fb.hypergradient(
                *levels,
                method=method,
                inner_args=(tuple(leaf[rows] for leaf in problem.inner_data),),
                outer_args=(problem.outer_data,),
                state=state,
            )
            return (info.state, total + gradient), None

        def after(state, keys):
            return jax.lax.scan(step, (state, jnp.zeros(OUTER)), keys)[0]

        keys = jax.random.split(jax.random.key(0), 5000)
        state, _ = jax.jit(after)(method.init(x, y), keys)
        _, total = jax.jit(after)(state, jax.random.split(jax.random.key(1), 5000))
        return float(jnp.linalg.norm(total / 5000 - exact) / jnp.linalg.norm(exact))

    assert error(ConjugateGradient(10)) > 0.04
    assert error(Neumann(30)) > 0.2
    assert error(ConjugateGradient(3, warm_start=True, proximal=100.0)) < 0.01
