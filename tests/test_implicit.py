"""Every hypergradient method against closed forms, proven rates and finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fairbilevel as fb
from fairbilevel.hypergrad import (
    GMRES,
    BiCGStab,
    Bilinear,
    CompositeLoss,
    ConjugateGradient,
    Diagonal,
    FirstOrder,
    MaskedLoss,
    Neumann,
    Nystrom,
    SingleLoop,
    Status,
    Unrolled,
)

N, P = 12, 4  # entries of the inner and of the outer variable


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def spectrum(values, seed=0):
    """A symmetric matrix with these eigenvalues."""
    n = len(values)
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    return jnp.asarray(basis @ np.diag(values) @ basis.T)


class Quadratic:
    """``inner = y'Hy / 2 + y'(B x + c)``: solution and hypergradient are known."""

    def __init__(self, values=None, seed=0):
        rng = np.random.default_rng(seed)
        self.h = spectrum(np.linspace(0.1, 1, N) if values is None else values, seed)
        self.b, self.c = jnp.asarray(rng.normal(size=(N, P))), jnp.asarray(rng.normal(size=N))
        self.target = jnp.asarray(rng.normal(size=(N, N)))
        self.x = jnp.asarray(rng.normal(size=P))

    def inner(self, x, y):
        return 0.5 * y @ self.h @ y + y @ (self.b @ x + self.c)

    def outer(self, x, y):
        return 0.5 * jnp.sum((self.target @ y - 1) ** 2) + jnp.sum(jnp.sin(x) ** 2)

    def solution(self, x):
        return -jnp.linalg.solve(self.h, self.b @ x + self.c)

    @property
    def exact(self):
        return jax.grad(lambda x: self.outer(x, self.solution(x)))(self.x)

    def ours(self, method, y=None, **options):
        y = self.solution(self.x) if y is None else y
        call = jax.jit(
            lambda x, y: fb.hypergradient(self.outer, self.inner, x, y, method=method, **options)
        )
        return call(self.x, y)


def relative(got, exact):
    return float(jnp.linalg.norm(got - exact) / jnp.linalg.norm(exact))


@pytest.mark.parametrize(
    "method",
    [
        ConjugateGradient(N),
        ConjugateGradient(3 * N, preconditioner=Diagonal(4)),
        ConjugateGradient(2 * N, preconditioner=Nystrom(5)),
        ConjugateGradient(3 * N, tolerance=1e-12, warm_start=True),
        ConjugateGradient(N, warm_start=True, proximal=1e-9),
        Neumann(400),
        Neumann(400, scale=1.0),
        GMRES(N),
        BiCGStab(2 * N),
        Unrolled(300, optax.sgd(1.0)),
        Unrolled(300, optax.sgd(1.0), keep="sqrt"),
        Unrolled(200, optax.sgd(1.0, momentum=0.4)),
        Unrolled(300, optax.sgd(1.0), mode="forward"),
    ],
    ids=lambda m: type(m).__name__,
)
def test_exact_on_quadratics(method):
    for seed in range(2):
        problem = Quadratic(seed=seed)
        start = jnp.zeros(N) if isinstance(method, Unrolled) else None
        gradient, info = problem.ours(method, start)
        assert relative(gradient, problem.exact) < 1e-8
        assert info.status == Status.DONE
        expected = jax.grad(problem.inner, 1)(problem.x, problem.solution(problem.x))
        np.testing.assert_allclose(info.inner_grad, expected, atol=1e-8)


def test_bilevel_problem_of_pytrees_with_both_auxiliaries():
    """The same quadratic, its variables cut into trees, with arguments, frozen parts and aux."""
    flat = Quadratic()

    def join(y):
        return jnp.concatenate([y["a"].ravel(), y["b"][0]])

    def inner(x, y, frozen, scale):
        value = scale * flat.inner(x["x"][0], join(y)) + 0 * frozen["state"].sum()
        return value, {"inner": join(y)}

    def outer(x, y, frozen):
        return flat.outer(x["x"][0], join(y)), {"outer": frozen["state"]}

    frozen = {"state": jnp.arange(3)}
    solution = flat.solution(flat.x)
    y = {"a": solution[:6].reshape(2, 3), "b": (solution[6:],)}
    gradient, info = jax.jit(
        lambda x, y: fb.hypergradient(
            outer,
            inner,
            x,
            y,
            method=ConjugateGradient(N),
            outer_args=(frozen,),
            inner_args=(frozen, 2.0),
            has_aux=True,
        )
    )({"x": (flat.x,)}, y)
    assert relative(gradient["x"][0], flat.exact) < 1e-8
    np.testing.assert_allclose(info.inner_aux["inner"], solution)
    np.testing.assert_array_equal(info.outer_aux["outer"], jnp.arange(3))
    np.testing.assert_allclose(info.outer_value, flat.outer(flat.x, solution))
    assert jax.tree.structure(info.inner_grad) == jax.tree.structure(y)


# --- truncated methods shrink the error at their proven rates ---


def identity_coupling(h, g):
    """``inner = y'Hy / 2 - x'y``, ``outer = g'y``: the hypergradient is ``v = H^-1 g`` itself."""
    inner = lambda x, y: 0.5 * y @ h @ y - x @ y  # noqa: E731
    outer = lambda x, y: g @ y  # noqa: E731
    return lambda method, y: jax.jit(
        lambda y: fb.hypergradient(outer, inner, jnp.zeros_like(y), y, method=method)[0]
    )(y)


@pytest.mark.parametrize("condition", [10.0, 100.0])
def test_rates_of_truncation(condition):
    mu, size = 1 / condition, 30
    h = spectrum(np.geomspace(mu, 1, size))
    g = jnp.asarray(np.random.default_rng(1).normal(size=size))
    exact = jnp.linalg.solve(h, g)
    v = identity_coupling(h, g)
    at = jnp.zeros(size)

    def energy(error):
        return float(jnp.sqrt(error @ h @ error))

    root = np.sqrt(condition)
    for k in (1, 4, 12):
        bound = 2 * ((root - 1) / (root + 1)) ** k
        cg = v(ConjugateGradient(k), at)
        assert energy(cg - exact) <= bound * energy(exact) * (1 + 1e-9)
        neumann = v(Neumann(k, scale=1.0), at)
        assert relative(neumann, exact) <= (1 - mu) ** (k + 1) * (1 + 1e-9)
        unrolled = v(Unrolled(k, optax.sgd(1.0)), at)
        assert relative(unrolled, exact) <= (1 - mu) ** k * (1 + 1e-9)
        # Gradient descent from anywhere, differentiated k times, is the Neumann series.
        np.testing.assert_allclose(unrolled, v(Neumann(k - 1, scale=1.0), at) if k > 1 else g)
        truncated = v(Unrolled(k + 7, optax.sgd(1.0), truncate=k), at + 1)
        np.testing.assert_allclose(truncated, unrolled, rtol=1e-10)
    # Preconditioned by the operator's own low-rank sketch, fewer iterations do.
    sharp = spectrum(np.concatenate([np.full(size - 5, 0.5), [100, 200, 300, 400, 500]]))
    solved = identity_coupling(sharp, g)
    exact = jnp.linalg.solve(sharp, g)
    plain = relative(solved(ConjugateGradient(3), at), exact)
    assert relative(solved(ConjugateGradient(3, preconditioner=Nystrom(8)), at), exact) < plain / 50
    tilted = jnp.diag(jnp.geomspace(1.0, 1e4, size))
    solved, exact = identity_coupling(tilted, g), jnp.linalg.solve(tilted, g)
    assert relative(solved(ConjugateGradient(2, preconditioner=Diagonal()), at), exact) < 1e-10


def test_bias_of_first_order_is_one_over_the_penalty():
    problem = Quadratic()
    errors = []
    for penalty in (1e3, 1e4, 1e5):
        gradient, info = problem.ours(FirstOrder(penalty, 2000, optax.sgd(0.9)))
        errors.append(relative(gradient, problem.exact))
        np.testing.assert_allclose(info.inner_var, problem.solution(problem.x), atol=1e-8)
    assert errors[0] < 0.1
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 10, rtol=0.3)


def test_single_loop_converges_to_the_exact_hypergradient():
    """With the outer variable held still the tracked system is solved by gradient descent."""
    problem = Quadratic()
    y = problem.solution(problem.x)
    for method in (SingleLoop(1.0), SingleLoop(50.0), SingleLoop(optimizer=optax.sgd(0.5, 0.8))):

        def body(state, _, method=method):
            gradient, info = fb.hypergradient(
                problem.outer, problem.inner, problem.x, y, method=method, state=state
            )
            return info.state, (gradient, info.residual)

        start = method.init(problem.x, y)
        _, (gradients, residuals) = jax.jit(
            lambda start, body=body: jax.lax.scan(body, start, None, 600)
        )(start)
        direct = jax.grad(problem.outer)(problem.x, y)
        np.testing.assert_allclose(gradients[0], direct)
        assert relative(gradients[-1], problem.exact) < 1e-8
        assert abs(residuals[0] - 1) < 1e-12
        assert residuals[-1] < 1e-8


def test_warm_start_goes_on_where_the_last_call_ended():
    problem = Quadratic()
    for method in (
        ConjugateGradient(3, warm_start=True),
        GMRES(3, warm_start=True),
        BiCGStab(2, warm_start=True),
    ):
        y = problem.solution(problem.x)

        def body(state, _, method=method, y=y):
            _, info = fb.hypergradient(
                problem.outer, problem.inner, problem.x, y, method=method, state=state
            )
            return info.state, info.residual

        start = method.init(problem.x, y)
        _, residuals = jax.jit(lambda s, b=body: jax.lax.scan(b, s, None, 15))(start)
        assert residuals[-1] < 1e-6 * residuals[0]


# --- real problems ---


@pytest.fixture(scope="module")
def logistic():
    """l2-regularized softmax regression on the digits, one log ridge for each pixel."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = x[:, x.std(0) > 1][:, ::4] / 16  # a dense Hessian of 130 squared is quick
    rows = np.random.default_rng(0).permutation(len(x))
    train, valid = rows[:300], rows[300:600]
    with jax.enable_x64(True):
        data = [(jnp.asarray(x[r]), jnp.asarray(y[r])) for r in (train, valid)]

    def loss(w, batch):
        logits = batch[0] @ w
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def inner(ridge, w):
        return loss(w, data[0]) + 0.5 * jnp.sum(jnp.exp(ridge)[:, None] * w**2)

    def outer(ridge, w):
        return loss(w, data[1])

    shape = (x.shape[1], 10)

    @jax.jit
    def solve(ridge):
        def newton(_, w):
            gradient = jax.grad(inner, 1)(ridge, w).ravel()
            hessian = jax.hessian(lambda w: inner(ridge, w.reshape(shape)))(w.ravel())
            return w - jnp.linalg.solve(hessian, gradient).reshape(shape)

        return jax.lax.fori_loop(0, 12, newton, jnp.zeros(shape))

    with jax.enable_x64(True):
        ridge = jnp.asarray(np.random.default_rng(1).uniform(-4, -1, shape[0]))
        return inner, outer, solve, ridge


def dense_formula(inner, outer, x, y):
    """``grad_x f - J' H^-1 grad_y f`` with everything written out."""
    shape = y.shape
    flat = lambda x, y: inner(x, y.reshape(shape))  # noqa: E731
    hessian = jax.hessian(flat, 1)(x, y.ravel())
    cross = jax.jacobian(jax.grad(flat, 1))(x, y.ravel())
    direct, of_y = jax.grad(outer, (0, 1))(x, y)
    return direct - cross.T @ jnp.linalg.solve(hessian, of_y.ravel())


def test_logistic_regression_against_the_dense_formula_and_finite_differences(logistic):
    inner, outer, solve, ridge = logistic
    w = solve(ridge)
    assert float(jnp.abs(jax.grad(inner, 1)(ridge, w)).max()) < 1e-12
    exact = dense_formula(inner, outer, ridge, w)
    for method, tolerance in (
        (ConjugateGradient(300, tolerance=1e-12), 1e-9),
        (GMRES(130), 1e-8),
        (BiCGStab(300, tolerance=1e-12), 1e-8),
        (Neumann(4000), 1e-6),
    ):
        gradient, info = jax.jit(
            lambda r, w, m=method: fb.hypergradient(outer, inner, r, w, method=m)
        )(ridge, w)
        assert relative(gradient, exact) < tolerance, info.describe()
    step, numeric = 1e-4, []
    for i in range(len(ridge)):
        up, down = (ridge.at[i].add(s * step) for s in (1, -1))
        numeric.append((outer(up, solve(up)) - outer(down, solve(down))) / (2 * step))
    assert relative(jnp.stack(numeric), exact) < 1e-6


def test_bilinear_is_implicit_differentiation_where_the_inner_loss_is_linear():
    rng = np.random.default_rng(5)
    gamma = 0.3
    c, scores = jnp.asarray(rng.normal(size=9)), jnp.asarray(rng.normal(size=9))
    mask = jax.nn.sigmoid
    upper = MaskedLoss(lambda z: jnp.sum(jnp.sin(z)) + jnp.prod(1 + z), mask)
    lower = MaskedLoss(lambda z: jnp.sum(c * z), mask)

    def ridged(scores, theta):
        return lower(scores, theta) + gamma / 2 * jnp.sum(theta**2)

    theta = -mask(scores) * c / gamma
    closed, _ = fb.hypergradient(upper, lower, scores, theta, method=Bilinear(gamma))
    implicit, _ = fb.hypergradient(upper, ridged, scores, theta, method=ConjugateGradient(9))
    assert relative(closed, implicit) < 1e-6
    assert relative(closed, dense_formula(ridged, upper, scores, theta)) < 1e-6


def test_rivals_agree():
    """jaxopt's root derivative and unrolling, optimistix's implicit adjoint."""
    import jaxopt
    import optimistix

    problem = Quadratic()
    x, zero = problem.x, jnp.zeros(N)
    inner = lambda y, x: problem.inner(x, y)  # noqa: E731

    def through(solve):
        return jax.grad(lambda x: problem.outer(x, solve(x)))(x)

    descent = {"stepsize": 1.0, "acceleration": False, "jit": True}
    implicit = jaxopt.GradientDescent(
        inner, maxiter=2000, tol=1e-14, implicit_diff_solve=_tight_cg(jaxopt), **descent
    )
    unrolled = jaxopt.GradientDescent(
        inner, maxiter=20, tol=0, implicit_diff=False, unroll=True, **descent
    )
    # Exact derivatives of the same solution, and derivatives of the same 20 steps.
    exact, _ = problem.ours(ConjugateGradient(N))
    assert relative(through(lambda x: implicit.run(zero, x).params), exact) < 1e-8
    steps, info = problem.ours(Unrolled(20, optax.sgd(1.0)), zero)
    np.testing.assert_allclose(info.inner_var, unrolled.run(zero, x).params, rtol=1e-10)
    assert relative(through(lambda x: unrolled.run(zero, x).params), steps) < 1e-8

    solver = optimistix.BFGS(rtol=1e-12, atol=1e-12)

    def minimum(x):
        return optimistix.minimise(
            inner, solver, zero, args=x, max_steps=500, adjoint=optimistix.ImplicitAdjoint()
        ).value

    assert relative(through(minimum), exact) < 1e-8


def _tight_cg(jaxopt):
    return lambda matvec, b, init=None, **kw: jaxopt.linear_solve.solve_cg(
        matvec, b, init=init, maxiter=200, tol=1e-14, **kw
    )


# --- unrolling ---

RULES = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.05, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.05),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.3)),
    "scheduled": optax.sgd(optax.cosine_decay_schedule(0.1, 7)),
}


def rosenbrock(x, y, shift):
    return jnp.sum((y[1:] - y[:-1] ** 2) ** 2) + jnp.sum((x @ y - shift) ** 2) / 10


@pytest.mark.parametrize("rule", RULES)
def test_unrolled_is_plain_reverse_mode_through_the_steps(rule):
    rng = np.random.default_rng(6)
    x, y = jnp.asarray(rng.normal(size=(3, 4))), jnp.asarray(rng.normal(size=4))
    shifts = jnp.asarray(rng.normal(size=(7, 3)))
    outer = lambda x, y: jnp.sum(jnp.cos(x @ y))  # noqa: E731
    optimizer = RULES[rule]

    def plain(x, first):
        w, state = y, optimizer.init(y)
        for k in range(7):
            gradient = jax.grad(rosenbrock, 1)(x if k >= first else x0, w, shifts[k])
            updates, state = optimizer.update(gradient, state, w)
            w = optax.apply_updates(w, updates)
            if k == first - 1:
                w, state = jax.lax.stop_gradient((w, state))
        return outer(x, w), w

    x0 = x
    for options, first in (
        ({}, 0),
        ({"keep": "sqrt"}, 0),
        ({"mode": "forward"}, 0),
        ({"truncate": 5, "keep": "sqrt"}, 2),
        ({"truncate": 3, "mode": "forward"}, 4),
    ):
        exact, end = jax.grad(plain, has_aux=True)(x, first)
        method = Unrolled(7, optimizer, args_per_step=True, **options)
        gradient, info = jax.jit(
            lambda x, y, m=method: fb.hypergradient(
                outer, rosenbrock, x, y, method=m, inner_args=(shifts,)
            )
        )(x, y)
        np.testing.assert_allclose(gradient, exact, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(info.inner_var, end, rtol=1e-12)
        assert info.iterations == 7


def test_unrolled_goes_on_with_the_rules_state():
    problem = Quadratic()
    rule = optax.adam(0.05)
    whole = problem.ours(Unrolled(12, rule), jnp.zeros(N))[1]
    half = problem.ours(Unrolled(6, rule), jnp.zeros(N))[1]
    both = problem.ours(Unrolled(6, rule), half.inner_var, state=half.state)[1]
    np.testing.assert_allclose(both.inner_var, whole.inner_var, rtol=1e-12)
    again = problem.ours(Unrolled(6, rule, restart=True), half.inner_var, state=half.state)[1]
    assert not np.allclose(again.inner_var, whole.inner_var)


def test_memory_of_checkpoints_grows_with_the_root():
    size = 20_000

    def memory(steps, keep):
        inner = lambda x, y: jnp.sum((y - x) ** 2) + jnp.sum(jnp.cos(y))  # noqa: E731
        outer = lambda x, y: jnp.sum(y)  # noqa: E731
        method = Unrolled(steps, optax.sgd(0.1), keep=keep)
        call = jax.jit(lambda x, y: fb.hypergradient(outer, inner, x, y, method=method)[0])
        zero = jnp.zeros(size, jnp.float32)
        return call.lower(zero, zero).compile().memory_analysis().temp_size_in_bytes

    assert memory(64, "sqrt") < 2.2 * memory(16, "sqrt")
    assert memory(64, "all") > 2.5 * memory(16, "all")


# --- when it goes wrong it says so ---


def indefinite():
    return Quadratic(np.concatenate([[-0.5, -0.2], np.linspace(0.3, 1, N - 2)]), seed=2)


def test_indefinite_hessian_without_damping():
    problem = indefinite()
    stationary = problem.solution(problem.x)
    for method in (ConjugateGradient(N), ConjugateGradient(N, preconditioner=Nystrom(5))):
        gradient, info = problem.ours(method, stationary)
        assert info.status == Status.NEGATIVE_CURVATURE
        assert bool(jnp.isfinite(gradient).all())
        assert "NEGATIVE_CURVATURE" in info.describe()
    gradient, info = problem.ours(Neumann(60), stationary)
    assert info.status == Status.DIVERGED
    np.testing.assert_allclose(gradient, jax.grad(problem.outer)(problem.x, stationary))
    # Methods for indefinite systems solve the linear system all the same.
    for method in (GMRES(N), BiCGStab(4 * N)):
        gradient, info = problem.ours(method, stationary)
        assert info.status == Status.DONE
        assert relative(gradient, problem.exact) < 1e-8
    # And enough damping makes it definite.
    for method in (ConjugateGradient(N, damping=0.6), Neumann(300, damping=0.6)):
        gradient, info = problem.ours(method, stationary)
        assert info.status == Status.DONE
        damped = problem.h + 0.6 * jnp.eye(N)
        direct, of_y = jax.grad(problem.outer, (0, 1))(problem.x, stationary)
        exact = direct - problem.b.T @ jnp.linalg.solve(damped, of_y)
        assert relative(gradient, exact) < 1e-8


def test_singular_hessian():
    problem = Quadratic()
    problem.h = jnp.zeros((N, N))
    gradient, info = problem.ours(ConjugateGradient(5), jnp.ones(N))
    assert info.status == Status.NEGATIVE_CURVATURE
    assert bool(jnp.isfinite(gradient).all())


def test_too_few_iterations_are_named():
    problem = Quadratic(np.geomspace(1e-4, 1, N))
    for method in (
        ConjugateGradient(2, tolerance=1e-6),
        Neumann(5, tolerance=1e-6),
        GMRES(2, tolerance=1e-6),
    ):
        _, info = problem.ours(method)
        assert info.status == Status.NOT_CONVERGED
        assert info.residual > 1e-6
        assert "allow more iterations" in info.describe()
    _, info = problem.ours(ConjugateGradient(50, tolerance=1e-6))
    assert info.status == Status.DONE
    assert info.iterations < 50


@pytest.mark.parametrize(
    "method",
    [
        ConjugateGradient(3, warm_start=True),
        Neumann(3),
        GMRES(3),
        BiCGStab(3),
        SingleLoop(),
        Unrolled(3),
        FirstOrder(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_nan_is_diagnosed_and_forgotten(method):
    def inner(x, y, scale):
        return jnp.sum((y - x) ** 2) * scale

    outer = lambda x, y: jnp.sum(y**2 + x)  # noqa: E731
    call = jax.jit(
        lambda scale, state: fb.hypergradient(
            outer, inner, jnp.ones(3), jnp.ones(3), method=method, inner_args=(scale,), state=state
        )
    )
    state = method.init(jnp.ones(3), jnp.ones(3))
    _, info = call(jnp.nan, state)
    assert info.status == Status.NOT_FINITE
    if isinstance(method, Unrolled):
        return  # the weights themselves are spoiled: the caller's to roll back
    gradient, info = call(1.0, info.state)
    assert info.status == Status.DONE
    assert bool(jnp.isfinite(gradient).all())


def test_single_loop_survives_a_step_that_is_far_too_long():
    stiff = Quadratic(np.geomspace(1, 1e3, N))
    y, method = stiff.solution(stiff.x), SingleLoop(1.0)

    def body(state, _):
        gradient, info = fb.hypergradient(
            stiff.outer, stiff.inner, stiff.x, y, method=method, state=state
        )
        return info.state, gradient

    start = method.init(stiff.x, y)
    _, gradients = jax.jit(lambda s: jax.lax.scan(body, s, None, 20_000))(start)
    assert relative(gradients[-1], stiff.exact) < 1e-3


def test_bad_calls():
    problem = Quadratic()
    with pytest.raises(TypeError, match="method must be"):
        problem.ours("cg")
    with pytest.raises(ValueError, match="'w' of type int"):
        fb.hypergradient(jnp.sum, jnp.sum, problem.x, {"w": jnp.arange(3)}, method=Neumann())
    with pytest.raises(ValueError, match="state does not belong to SingleLoop"):
        problem.ours(SingleLoop(), state=())
    with pytest.raises(TypeError, match="CompositeLoss"):
        problem.ours(ConjugateGradient(3, curvature="gauss-newton"))
    with pytest.raises(ValueError, match="leading axis of 3"):
        fb.hypergradient(
            lambda x, y: jnp.sum(y),
            lambda x, y, b: jnp.sum(y * b),
            problem.x,
            jnp.ones(2),
            method=Unrolled(3, args_per_step=True),
            inner_args=(jnp.ones(2),),
        )
    straight = MaskedLoss(jnp.sum, jnp.round, lambda s: (jnp.round(s), lambda e: e))
    with pytest.raises(ValueError, match="mode='reverse'"):
        fb.hypergradient(
            straight, straight, problem.x, problem.x, method=Unrolled(2, mode="forward")
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConjugateGradient(0), "iterations"),
        (lambda: ConjugateGradient(damping=float("nan")), "damping"),
        (lambda: ConjugateGradient(curvature="fisher"), "curvature"),
        (lambda: Neumann(-1), "products"),
        (lambda: Neumann(scale=0.0), "scale"),
        (lambda: ConjugateGradient(proximal=1.0), "warm_start"),
        (lambda: ConjugateGradient(warm_start=True, proximal=-1.0), "proximal"),
        (lambda: GMRES(tolerance=-1.0), "tolerance"),
        (lambda: SingleLoop(0.0), "step"),
        (lambda: Unrolled(0), "steps"),
        (lambda: Unrolled(keep="none"), "keep"),
        (lambda: Unrolled(mode="both"), "mode"),
        (lambda: FirstOrder(0.0), "penalty"),
        (lambda: FirstOrder(inner_steps=-1), "inner_steps"),
        (lambda: Diagonal(0), "samples"),
        (lambda: Nystrom(0), "rank"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- Gauss-Newton ---


def test_gauss_newton_products():
    """Against the dense matrix, where the Hessian itself is indefinite."""
    rng = np.random.default_rng(7)
    a, t = jnp.asarray(rng.normal(size=(8, 5))), jnp.asarray(rng.normal(size=8))

    def outputs(x, y):
        return jnp.tanh(a @ y) * x

    def ridge(x, y):
        return 0.05 * jnp.sum(y**2)

    loss = lambda o: 0.5 * jnp.sum((o - t) ** 2)  # noqa: E731
    inner = CompositeLoss(outputs, loss, ridge)
    outer = lambda x, y: jnp.sum(jnp.sin(y))  # noqa: E731
    x, y = jnp.asarray(1.5), jnp.asarray(rng.normal(size=5))
    np.testing.assert_allclose(inner(x, y), loss(outputs(x, y)) + ridge(x, y))
    method = ConjugateGradient(5, curvature="gauss-newton")
    gradient, info = fb.hypergradient(outer, inner, x, y, method=method)
    jacobian = jax.jacobian(outputs, 1)(x, y)
    matrix = jacobian.T @ jacobian + 0.1 * jnp.eye(5)
    v = jnp.linalg.solve(matrix, jax.grad(outer, 1)(x, y))
    cross = jax.jacobian(jax.grad(inner, 1))(x, y)
    np.testing.assert_allclose(gradient, -cross @ v, rtol=1e-8)
    assert info.residual < 1e-10
    assert info.status == Status.DONE


# --- under transformations, in float32 and bfloat16 ---

ALL = [
    ConjugateGradient(4),
    Neumann(4),
    GMRES(4),
    BiCGStab(3),
    SingleLoop(),
    Unrolled(3),
    Unrolled(5, keep="sqrt"),
    FirstOrder(),
    FirstOrder(inner_steps=2),
]


@pytest.mark.parametrize("method", ALL, ids=lambda m: type(m).__name__)
def test_vmap_and_loops_give_what_single_calls_give(method):
    problem = Quadratic()
    xs = jnp.stack([problem.x, 2 * problem.x, -problem.x])
    ys = jnp.stack([jnp.ones(N), jnp.zeros(N), 0.3 * jnp.arange(N)])

    def call(x, y):
        gradient, info = fb.hypergradient(problem.outer, problem.inner, x, y, method=method)
        return gradient, info

    single = jax.jit(call)
    singles = [single(x, y) for x, y in zip(xs, ys, strict=True)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles)
    batched = jax.jit(jax.vmap(call))(xs, ys)
    _, looped = jax.jit(lambda: jax.lax.scan(lambda c, xy: (c, call(*xy)), 0, (xs, ys)))()
    for other in (batched, looped):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), stacked, other
        )


@pytest.mark.parametrize("method", ALL, ids=lambda m: type(m).__name__)
def test_bfloat16_compute_over_float32_masters(method):
    problem = Quadratic()
    problem.h, problem.b, problem.c, problem.target = (
        a.astype(jnp.bfloat16) for a in (problem.h, problem.b, problem.c, problem.target)
    )
    x, y = problem.x.astype(jnp.float32), jnp.ones(N, jnp.float32)

    def low(function):
        return lambda x, y: function(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)).astype(
            jnp.float32
        )

    gradient, info = jax.jit(
        lambda x, y: fb.hypergradient(low(problem.outer), low(problem.inner), x, y, method=method)
    )(x, y)
    assert gradient.dtype == jnp.float32
    assert info.inner_grad.dtype == jnp.float32
    single = Quadratic()
    expected = single.ours(method, jnp.ones(N))[0]
    assert relative(gradient, expected) < 0.1


def test_convolutions_are_canonical_wherever_a_method_puts_them():
    """Inside its loops and outside: the caller's own loop around them must be fast too."""
    kernel = jnp.ones((3, 3, 2, 2), jnp.float32) / 9
    image = jnp.ones((4, 8, 8, 2), jnp.float32)

    def inner(x, y):
        z = jnp.tanh(
            jax.lax.conv_general_dilated(
                image, y * x, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )
        return jnp.mean(z**2)

    def convolutions(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                yield eqn.params["dimension_numbers"]
            for value in jax.tree.leaves(
                list(eqn.params.values()),
                is_leaf=lambda v: hasattr(v, "jaxpr") or hasattr(v, "eqns"),
            ):
                inside = getattr(value, "jaxpr", value)
                if hasattr(inside, "eqns"):
                    yield from convolutions(inside)

    for method in (*ALL, Unrolled(4, truncate=2)):
        traced = jax.make_jaxpr(
            lambda x, y, m=method: fb.hypergradient(inner, inner, x, y, method=m)
        )(kernel, kernel)
        found = list(convolutions(traced.jaxpr))
        assert len(found) > 4
        for numbers in found:
            assert numbers.lhs_spec == (0, 3, 1, 2)
            assert numbers.rhs_spec == (3, 2, 0, 1)
            assert numbers.out_spec == (0, 3, 1, 2)
