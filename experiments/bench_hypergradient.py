"""What each hypergradient costs, in gradients of the same model and batch.

    python -m experiments.bench_hypergradient                  # ResNet-10, 32x32, two CPU cores
    python -m experiments.bench_hypergradient --suite mlp
    python -m experiments.bench_hypergradient --suite accelerator --dtype bfloat16
    python -m experiments.bench_hypergradient --suite accelerator --step

Every program is compiled once and run in turn with all others, several rounds; a ratio is the
median over rounds of its time over that of the plain gradient in the same round. Iterations and
products are fixed, tolerances off, both levels have batches of the same size and different rows.
Beside each ratio stands the count of passes that the method must make.

``--step`` takes the bilinear outer step alone, and four networks side by side: operations a second,
and their share of the chip's peak. Writes ``results/bench_hypergradient_NAME.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _write
from experiments._outer_steps import (
    SPARSITY,
    Problem,
    Program,
    Suite,
    gradient_program,
    hypergradient_program,
    measure,
    side_by_side,
    step_program,
)
from fairbilevel import _numbers, devices, fairness, hypergrad, masks
from fairbilevel.run import machine

PRODUCTS = 10
INNER_STEPS = 10
# Enough for the Hessian of a network at its start, so that all iterations are done; under the soft
# mask of the rival's row the weights are smaller, and with them normalization makes it larger.
DAMPING, SOFT_DAMPING = 1.0, 3.0
# A product with a linearized gradient measured beside a gradient (DESIGN: fact 4).
PRODUCT = (1.6, 2.0)

SUITES = {
    "resnet10": Suite("resnet10", 32, 16, 128, 128, True),
    "mlp": Suite("mlp", 28, 256, 128, 128, False, 15),
    "accelerator": Suite("resnet18", 64, 64, 512, 64, False, 10),
}


NETWORKS = 4
# Dense matrix products, in TFLOP/s, from the makers' data sheets: float32 on tensor cores (TF32)
# and bfloat16.
PEAKS = {
    "H200": (494.7, 989.4), "H100": (494.7, 989.4), "A100": (156.0, 312.0), "L4": (60.0, 121.0),
}  # fmt: skip


def step_programs(problem: Problem) -> dict[str, Program]:
    """The bilinear outer step, and several side by side."""
    return {
        "gradient": gradient_program(problem),
        "bilinear outer step": step_program(problem, hypergrad.Bilinear(), "2 + mask", None),
        f"{NETWORKS} of them vmapped": side_by_side(problem, hypergrad.Bilinear(), NETWORKS),
    }


def speeds_of(problem: Problem, programs: dict[str, Program]) -> list[dict[str, Any]]:
    """Operations a second of each, by the model's multiply-adds: forward, and twice that backward.
    Compilers count what they call from libraries in different ways; norms and updates are left
    out."""
    x = problem.fit[0]
    cost = masks.cost(problem.model.apply, problem.params, problem.state, x[:1])
    of_batch = 2.0 * 3.0 * len(x) * cost.dense_multiply_adds / 1e12
    kind = jax.devices()[0].device_kind
    peak = next((p for name, p in PEAKS.items() if name in kind), None)
    rows = []
    for row, program in zip(rows_of(programs), programs.values(), strict=True):
        speed = program.batches * of_batch / float(np.median(program.seconds))
        row["TFLOP/s"] = round(speed, 3)
        if peak is not None:
            row["share of peak"] = _numbers.percent(speed / peak[problem.dtype == jnp.bfloat16])
        rows.append(row)
    return rows


def method_programs(problem: Problem, bars: bool) -> dict[str, Program]:
    """The methods' rows."""
    low, high = PRODUCT
    implicit = f"2 + {PRODUCTS + 1} h = {2 + (PRODUCTS + 1) * low:.1f} to {2 + 11 * high:.0f}"
    unroll = f"1 + {INNER_STEPS} (1 + h)"
    momentum = optax.sgd(0.05, 0.9)

    def bar(value: float) -> float | None:
        return value if bars else None

    step, hyper = partial(step_program, problem), partial(hypergradient_program, problem)
    return {
        "gradient": gradient_program(problem),
        "bilinear outer step": step(hypergrad.Bilinear(), "2 + mask", bar(2.1)),
        "bilinear outer step with violations": step(
            hypergrad.Bilinear(), "2 1/3 + 2 masks", bar(2.45), violations=True
        ),
        "conjugate gradient 10": hyper(
            hypergrad.ConjugateGradient(PRODUCTS, DAMPING), implicit, bar(22)
        ),
        "Neumann 10": hyper(hypergrad.Neumann(PRODUCTS, DAMPING), implicit, bar(22)),
        "single-loop outer step": step(hypergrad.SingleLoop(), "1 + joint JVP (3)", bar(4.2)),
        "first-order outer step, fused": step(
            hypergrad.FirstOrder(optimizer=momentum), "3", bar(3.4)
        ),
        "first-order, sequential, T = 2": hyper(
            hypergrad.FirstOrder(inner_steps=2, optimizer=momentum), "3 (T + 1) = 9", bar(9.9)
        ),
        "unrolled K = 10, all kept": hyper(
            hypergrad.Unrolled(INNER_STEPS, momentum), f"{unroll}, h = 2 to 2.8", bar(40)
        ),
        "unrolled K = 10, sqrt(K) kept": hyper(
            hypergrad.Unrolled(INNER_STEPS, momentum, keep="sqrt"), f"{unroll} + 10", bar(50)
        ),
    }


def ratio(program: Program, unit: Program) -> float:
    """Median over rounds of the time beside the unit's."""
    return float(np.median(np.divide(program.seconds, unit.seconds)))


def rows_of(programs: dict[str, Program]) -> list[dict[str, Any]]:
    """The table's rows; the first program is the unit."""
    unit = next(iter(programs.values()))
    rows = []
    for name, program in programs.items():
        value = ratio(program, unit)
        bar = program.bar
        rows.append(
            {
                "method": name,
                "passes": program.passes,
                "gradients": round(value, 2),
                "at most": "" if bar is None else bar,
                "met": "" if bar is None else "yes" if value <= bar else "NO",
                "ms": round(1e3 * float(np.median(program.seconds)), 2),
                "compile s": round(program.compile_seconds, 1),
                "temporary MB": round(program.memory / 2**20, 1),
            }
        )
    return rows


def unrolled_memory(problem: Problem) -> dict[str, Any]:
    """Temporary memory of sqrt(K) checkpoints at K = 16 and 64, from the compiler."""
    sizes = {}
    for steps in (16, 64):
        method = hypergrad.Unrolled(steps, optax.sgd(0.05, 0.9), keep="sqrt")
        program = hypergradient_program(problem, method, "", None)
        program.compile()
        sizes[steps] = program.memory
    value = sizes[64] / sizes[16]
    return _claim("unrolled, sqrt(K) kept: memory at K = 64 over K = 16", value, 2.2)


def rival(problem: Problem, rounds: int, least: float | None) -> dict[str, Any]:
    """jaxopt's root derivative by ``solve_cg`` and ours, ten iterations each, the same problem."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from jaxopt import implicit_diff, linear_solve

    # A soft mask: jaxopt differentiates the mask in the inner gradient, where a straight-through
    # one has no derivative, and the compiler would drop its whole solve.
    level = problem.masked_loss(soft=True)
    solve = partial(linear_solve.solve_cg, maxiter=PRODUCTS, tol=0.0)

    def theirs(scores: Any, params: Any, fit: Any, select: Any, _: Any) -> Any:
        direct, of_params = jax.grad(level, (0, 1))(scores, params, select)
        root = jax.grad(level, 1)

        def optimality(params: Any, scores: Any) -> Any:
            return root(scores, params, fit)

        # Its system has the sign of the root's Jacobian, so ours and its damping agree.
        damped = partial(solve, ridge=SOFT_DAMPING)
        (through,) = implicit_diff.root_vjp(optimality, params, (scores,), of_params, damped)
        return jax.tree.map(jnp.add, direct, through)

    method = hypergrad.ConjugateGradient(PRODUCTS, SOFT_DAMPING)
    ours = hypergradient_program(problem, method, "", None, soft=True)
    jaxopts = Program(theirs, ours.arguments)
    measure({"ours, beside jaxopt": ours, "jaxopt": jaxopts}, rounds)
    value = ratio(jaxopts, ours)
    apart = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(a).max()), ours.run()[0], jaxopts.run()
    )
    if (error := max(jax.tree.leaves(apart))) > 1e-2:
        raise RuntimeError(f"jaxopt and fairbilevel disagree by {error:.1%}")
    name = f"jaxopt's root_vjp by solve_cg over ours, batch {problem.fit[1].shape[0]}"
    return _claim(name, value, least, at_least=True)


def dual_step(rounds: int = 200) -> dict[str, Any]:
    """Ring buffers and a dual step: 1,000 groups, 64 rows each, a batch of 128."""
    groups, rows, batch = 1000, 64, 128
    constraints = (fairness.ExcessAccuracyGap(0.02),)
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.random((4, batch)), jnp.float32)
    outcomes = fairness.Outcomes(values[0], values[1], values[2], values[3])
    group = jnp.asarray(rng.integers(0, groups, batch), jnp.int32)
    share = jnp.full(groups, 1 / groups, jnp.float32)
    counted = jnp.ones(groups, bool)
    rule = optax.sgd(0.01)

    def step(carry: Any, outcomes: Any, group: Any) -> Any:
        buffers, multipliers, state = carry
        buffers = fairness.write(buffers, outcomes, group)
        stats = fairness.buffer_statistics(buffers, share, counted)
        violations = tuple(c.violations(stats) for c in constraints)
        multipliers, state = fairness.ascend(constraints, multipliers, violations, rule, state)
        return buffers, multipliers, state

    multipliers = fairness.initial_multipliers(constraints, groups)
    carry = (fairness.empty_buffers(groups, rows), multipliers, rule.init(multipliers))
    compiled = jax.jit(step, donate_argnums=0)

    def call() -> None:
        nonlocal carry
        carry = jax.block_until_ready(compiled(carry, outcomes, group))

    value = devices.timed({"step": call}, rounds=rounds)["step"].median
    return _claim("ring buffers and dual step, 1,000 groups, k = 64, batch 128 (ms)", value, 0.5)


def compile_time() -> dict[str, Any]:
    """Of a conjugate-gradient step of ResNet-18."""
    suite = Suite("resnet18", 32, 64, 128, 0, False)
    problem = Problem(suite, jnp.float32, suite.batch)
    program = hypergradient_program(
        problem, hypergrad.ConjugateGradient(PRODUCTS, DAMPING), "", None
    )
    program.compile()
    return _claim("compile a ResNet-18 CG step (s)", program.compile_seconds, 30)


def _claim(name: str, value: float, bar: float | None, *, at_least: bool = False) -> dict[str, Any]:
    met = "" if bar is None else "yes" if (value >= bar if at_least else value <= bar) else "NO"
    text = "" if bar is None else f"at {'least' if at_least else 'most'} {bar:g}"
    return {"what": name, "measured": float(f"{value:.3g}"), "bar": text, "met": met}


def parser() -> argparse.ArgumentParser:
    """Of the command line; width, rounds and the like come in the place of the suite's."""
    given: dict[str, Any] = {"model": str, "size": int, "width": int, "batch": int, "rounds": int}
    made = _write.parser(__doc__, **given, step=False)
    made.add_argument("--suite", choices=SUITES, default="resnet10")
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    made.add_argument("--no-rival", action="store_true", help="leave jaxopt out")
    return made


def main() -> None:
    options = parser().parse_args()
    names = ("model", "size", "width", "batch", "rounds")
    asked = {n: v for n in names if (v := getattr(options, n)) is not None}
    suite = dataclasses.replace(SUITES[options.suite], **asked)
    problem = Problem(suite, jnp.dtype(options.dtype), suite.batch)
    claims: list[dict[str, Any]] = []
    if options.step:
        programs = step_programs(problem)
        measure(programs, suite.rounds)
        rows = speeds_of(problem, programs)
    else:
        programs = method_programs(problem, suite.bars)
        measure(programs, suite.rounds)
        rows = rows_of(programs)
        claims.append(unrolled_memory(problem))
        if not options.no_rival:
            least = 30 if suite.bars else 0.95 if suite.model == "mlp" else None
            small = Problem(suite, jnp.dtype(options.dtype), suite.rival_batch)
            claims.append(rival(small, 1 if suite.bars else suite.rounds, least))
        if suite.bars:
            claims += [dual_step(), compile_time()]
    parameters = sum(math.prod(layer.shape) for layer in problem.layers)
    name = f"bench_hypergradient_{options.model or options.suite}" + "_step" * options.step
    name += f"_width{options.width}" if options.width else ""
    name += f"_{options.dtype}" if options.dtype != "float32" else ""
    if claims:
        _write.write_csv(options.out / f"{name}_claims.csv", claims)
    _write.publish(
        options.out / name,
        rows,
        f"# Hypergradients in gradients: {suite.model}, width {suite.width}, {suite.size} pixels, "
        f"batch {suite.batch}, {options.dtype}",
        f"{parameters:,} scores, {_numbers.share(SPARSITY)} of the weights removed, on "
        f"{machine()['device']}, {machine()['cores']} cores. Medians over {suite.rounds} "
        "interleaved rounds; h is a product with the linearized gradient.",
        _write.table(rows),
        _write.table(claims),
    )


if __name__ == "__main__":
    main()
