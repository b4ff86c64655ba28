"""What each hypergradient buys: error against cost, and truncation against its proven rate.

    python -m experiments.hypergradient_error

Left: a quadratic of condition 25, where truncated methods have proven rates. Right: one real
bilevel problem, softmax regression on the digits under a soft mask of its weights, where every
method applies. Errors are relative to the exact hypergradient (dense Hessians in float64); costs
count gradients by arithmetic (a product with a linearized gradient is 2). Needs matplotlib
(``pip install 'fairbilevel[notebooks]'``). Writes ``results/hypergradient_error.csv`` and ``.png``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fairbilevel as fb
from experiments import _write
from experiments._write import look, picture
from fairbilevel import hypergrad

RIDGE = 0.01
COUNTS = (1, 2, 3, 5, 8, 13, 21, 34, 55)


def relative(got: Any, exact: Any) -> float:
    """Relative error in the Euclidean norm."""
    return float(jnp.linalg.norm(got - exact) / jnp.linalg.norm(exact))


def quadratic() -> Iterator[dict[str, Any]]:
    """``inner = y'Hy / 2 - x'y``, ``outer = g'y``: the hypergradient is ``H^-1 g``."""
    rng = np.random.default_rng(0)
    size, condition = 100, 25.0
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    h = jnp.asarray(basis @ np.diag(np.geomspace(1 / condition, 1, size)) @ basis.T)
    g = jnp.asarray(rng.normal(size=size))
    exact = jnp.linalg.solve(h, g)
    energy = lambda v: float(jnp.sqrt(v @ h @ v))  # noqa: E731

    def inner(x: Any, y: Any) -> Any:
        return 0.5 * y @ h @ y - x @ y

    def outer(x: Any, y: Any) -> Any:
        return g @ y

    root, slow = np.sqrt(condition), 1 - 1 / condition
    zero = jnp.zeros(size)
    for k in COUNTS:
        for name, method, bound in (
            (
                "conjugate gradient",
                hypergrad.ConjugateGradient(k),
                2 * ((root - 1) / (root + 1)) ** k,
            ),
            ("Neumann", hypergrad.Neumann(k, scale=1.0), slow ** (k + 1)),
            ("unrolled", hypergrad.Unrolled(k, optax.sgd(1.0)), slow**k),
        ):
            v, _ = fb.hypergradient(outer, inner, zero, zero, method=method)
            in_energy = name == "conjugate gradient"
            error = energy(v - exact) / energy(exact) if in_energy else relative(v, exact)
            yield {"problem": "quadratic", "method": name, "count": k, "cost": "", "error": error,
                   "bound": bound}  # fmt: skip


class Digits:
    """Weights of a softmax regression fitted under a soft mask; the mask's scores are outer."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        rows = np.random.default_rng(0).permutation(len(x))
        self.batches = [(jnp.asarray(x[r][:, 1::4] / 16), jnp.asarray(y[r]))
                        for r in (rows[:800], rows[800:])]  # fmt: skip
        self.shape = (self.batches[0][0].shape[1], 10)
        self.level = hypergrad.MaskedLoss(self.loss, jax.nn.sigmoid)  # of sigmoid(scores) * theta
        self.scores = jnp.asarray(np.random.default_rng(1).normal(size=self.shape))
        self.theta = self.solve()
        self.exact = self._dense_formula()

    def loss(self, z: Any, batch: Any) -> Any:
        """Cross-entropy in nats; ``z`` holds the masked weights."""
        x, y = batch
        return optax.softmax_cross_entropy_with_integer_labels(x @ z, y).mean()

    def inner(self, scores: Any, theta: Any, batch: Any) -> Any:
        """With its ridge, as every method but the closed form takes it."""
        return self.loss(jax.nn.sigmoid(scores) * theta, batch) + RIDGE / 2 * jnp.sum(theta**2)

    def flat(self, s: Any, t: Any) -> Any:
        """``inner`` on fit, of flat scores and weights."""
        return self.inner(s.reshape(self.shape), t.reshape(self.shape), self.batches[0])

    def solve(self) -> Any:
        """Newton's method."""
        s, t = self.scores.ravel(), jnp.zeros(self.scores.size)
        gradient, hessian = jax.grad(self.flat, 1), jax.hessian(self.flat, 1)
        step = jax.jit(lambda t: t - jnp.linalg.solve(hessian(s, t), gradient(s, t)))
        for _ in range(15):
            t = step(t)
        return t.reshape(self.shape)

    def _dense_formula(self) -> Any:
        point = self.scores.ravel(), self.theta.ravel()
        hessian = jax.hessian(self.flat, 1)(*point)
        self.step = 1 / float(jnp.linalg.eigvalsh(hessian)[-1])
        cross = jax.jacobian(jax.grad(self.flat, 1))(*point)
        direct, of_theta = jax.grad(self.level, (0, 1))(self.scores, self.theta, self.batches[1])
        through = cross.T @ jnp.linalg.solve(hessian, of_theta.ravel())
        return direct - through.reshape(self.shape)

    def error(self, method: Any, calls: int) -> float:
        """Of a method's last call; the weights stand at their optimum."""
        fit, select = self.batches
        inner = self.level if isinstance(method, hypergrad.Bilinear) else self.inner

        def call(state: Any, _: Any) -> Any:
            gradient, info = fb.hypergradient(
                self.level, inner, self.scores, self.theta, method=method,
                outer_args=(select,), inner_args=(fit,), state=state,
            )  # fmt: skip
            return info.state, gradient

        state = method.init(self.scores, self.theta)
        _, gradients = jax.jit(lambda s: jax.lax.scan(call, s, None, calls))(state)
        return relative(gradients[-1], self.exact)


def digits() -> Iterator[dict[str, Any]]:
    """Every method on one problem, more and more of it."""
    problem = Digits()
    rate = optax.sgd(problem.step)
    sweeps: dict[str, Callable[[int], Any]] = {
        "conjugate gradient": hypergrad.ConjugateGradient,
        "conjugate gradient, Nystrom 20": lambda k: hypergrad.ConjugateGradient(
            k, preconditioner=hypergrad.Nystrom(20)
        ),
        "Neumann": hypergrad.Neumann,
        "GMRES": hypergrad.GMRES,
        "BiCGStab": hypergrad.BiCGStab,
        "unrolled": lambda k: hypergrad.Unrolled(k, rate),
        "first-order": lambda k: hypergrad.FirstOrder(300.0, k, rate),
    }
    single = hypergrad.SingleLoop(problem.step)
    for name, count, method, calls in (
        ("no implicit term", 0, hypergrad.Bilinear(float("inf")), 1),
        ("bilinear, gamma = ridge", 0, hypergrad.Bilinear(RIDGE), 1),
        ("bilinear, gamma = 1", 0, hypergrad.Bilinear(1.0), 1),
        *((name, k, make(k), 1) for name, make in sweeps.items() for k in COUNTS),
        # Tracked: the cost of all calls so far. The outer variable stands still here.
        *(("single loop, k calls", k, single, k) for k in (*COUNTS, 100, 200)),
    ):
        cost, error = calls * method.gradient_evaluations, problem.error(method, calls)
        yield {"problem": "digits", "method": name, "count": count, "cost": cost, "error": error,
               "bound": ""}  # fmt: skip


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Two panels."""
    with picture(path, 1, 2, (12, 4.6)) as (_, axes):
        left, right = axes[0]
        for i, name in enumerate(_names(rows, "quadratic")):
            mine = [r for r in rows if r["problem"] == "quadratic" and r["method"] == name]
            style, count = look(i, line=False), _column(mine, "count")
            if name == "unrolled":  # it is the series: show both
                style |= {"fillstyle": "none", "markersize": 9}
            left.plot(count, _column(mine, "error"), label=name, **style)
            left.plot(count, _column(mine, "bound"), "--", lw=1, color=style["color"],
                      label=f"{name}: proven bound")  # fmt: skip
        left.set(yscale="log", xlabel="products or steps", ylabel="relative error",
                 title="A quadratic of condition 25", ylim=(1e-3, 3))  # fmt: skip
        for i, name in enumerate(_names(rows, "digits")):
            mine = [r for r in rows if r["problem"] == "digits" and r["method"] == name]
            right.plot(_column(mine, "cost"), _column(mine, "error"), label=name,
                       **look(i, line=len(mine) > 1))  # fmt: skip
        right.set(xscale="log", yscale="log", xlabel="cost in gradients", ylabel="relative error",
                  title="Softmax regression, soft mask (digits)", ylim=(1e-6, 1))  # fmt: skip
        left.legend(loc="upper right")
        right.legend(loc="lower left")


def _names(rows: list[dict[str, Any]], problem: str) -> list[str]:
    return list(dict.fromkeys(r["method"] for r in rows if r["problem"] == problem))


def _column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [float(r[name]) for r in rows]


def main() -> None:
    options = _write.parser(__doc__).parse_args()
    with jax.enable_x64(True):
        rows = [*quadratic(), *digits()]
    _write.write_csv(options.out / "hypergradient_error.csv", rows, digits=4)
    draw(rows, options.out / "hypergradient_error.png")
    for row in rows:
        if row["problem"] == "digits":
            print(f"{row['method']:32} {row['count']:4} {row['cost']:7.0f} {row['error']:.2e}")


if __name__ == "__main__":
    main()
