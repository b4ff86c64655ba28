"""Programs to time: a gradient, a hypergradient, an outer step of a masked network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fairbilevel as fb
from fairbilevel import _xla, masks
from fairbilevel.hypergrad import MaskedLoss
from fairbilevel.masks import Budget

SPARSITY = 0.9


@dataclass(frozen=True)
class Suite:
    """One model, and the bars it is held to."""

    model: str
    size: int
    width: int
    batch: int
    rival_batch: int
    bars: bool
    rounds: int = 5


@dataclass
class Program:
    """One row of the table: something to call with ``arguments``, and what it may cost."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    passes: str = ""
    bar: float | None = None
    iterations: int = 0
    batches: int = 0  # that are gone through forward and backward, where these are all it does
    seconds: list[float] = field(default_factory=list)
    compile_seconds: float = 0.0
    memory: int = 0
    call: Callable[..., Any] | None = None

    def compile(self) -> None:
        """And see what memory it takes beside its arguments."""
        begin = time.perf_counter()
        compiled = jax.jit(self.function).lower(*self.arguments).compile()
        self.compile_seconds = time.perf_counter() - begin
        analysis = compiled.memory_analysis()
        self.memory = 0 if analysis is None else analysis.temp_size_in_bytes
        self.call = compiled

    def run(self) -> Any:
        """Once, to its end; the time is written down."""
        assert self.call is not None
        begin = time.perf_counter()
        out = jax.block_until_ready(self.call(*self.arguments))
        self.seconds.append(time.perf_counter() - begin)
        return out


def measure(programs: dict[str, Program], rounds: int) -> None:
    """Compile all, then time them in turn."""
    for name, program in programs.items():
        program.compile()
        out = program.run()
        if program.iterations and int(out[-1]) != program.iterations:
            raise RuntimeError(f"{name}: {int(out[-1])} iterations of {program.iterations}")
        program.seconds.clear()
        print(f"compiled {name} in {program.compile_seconds:.1f} s", flush=True)
    for _ in range(rounds):
        for program in programs.values():
            program.run()


class Problem:
    """A masked problem on random images: what a step costs does not depend on what they show."""

    def __init__(self, suite: Suite, dtype: Any, batch: int):
        shape = (suite.size, suite.size, 3) if suite.model != "mlp" else (suite.size**2,)
        self.model = fb.models.build(suite.model, shape, 2, width=suite.width)
        self.dtype = dtype
        self.params, self.state = self.model.init(jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), 4)
        self.fit, self.select = (
            (
                jax.random.normal(of_x, (batch, *shape), dtype),
                jax.random.randint(of_y, (batch,), 0, 2),
            )
            for of_x, of_y in (keys[:2], keys[2:])
        )
        sample = jnp.asarray(self.fit[0][:2], jnp.float32)
        self.layers = masks.select_layers(
            masks.find_layers(self.model.apply, self.params, self.state, sample),
            prune_classifier=False,
        )
        self.budget = Budget.of(self.layers, "weight", "global")
        self.keep = masks.as_counts(self.budget.keep(SPARSITY))
        self.scores = masks.start_scores(
            "magnitude", self.params, self.layers, "weight", jax.random.key(2)
        )

    def logits(self, z: Any, x: Any, train: bool) -> Any:
        """Float32 logits of a network computed in ``dtype``."""
        low = jax.tree.map(lambda p: p.astype(self.dtype), z)
        out, _ = self.model.apply(low, self.state, x, train, jax.random.key(0))
        return out.astype(jnp.float32)

    def loss(self, z: Any, batch: Any) -> Any:
        """Cross-entropy of float32 masters, computed in ``dtype``."""
        x, y = batch
        return optax.softmax_cross_entropy_with_integer_labels(self.logits(z, x, True), y).mean()

    def factors(self, scores: Any) -> Any:
        """Hard masks, for every parameter."""
        hard = self.budget.top_k(scores, self.keep)
        return masks.expand(hard, self.params, self.layers, "weight")

    def vjp(self, scores: Any) -> Any:
        """With the straight-through derivative."""
        return self.factors(scores), lambda entries: masks.collect(entries, self.layers, "weight")

    def masked_loss(self, soft: bool = False) -> MaskedLoss:
        """Both levels: a hard mask with its straight-through derivative, or a smooth one."""
        if not soft:
            return MaskedLoss(self.loss, self.factors, self.vjp)

        def smooth(scores: Any) -> Any:
            relaxed = {name: jax.nn.sigmoid(score) for name, score in scores.items()}
            return masks.expand(relaxed, self.params, self.layers, "weight")

        return MaskedLoss(self.loss, smooth)

    def violation_forward(self, z: Any, batch: Any) -> Any:
        """What a true violation is measured from."""
        x, y = batch
        return jnp.mean(self.logits(z, x, False).argmax(-1) == y)


def gradient_program(problem: Problem) -> Program:
    """The unit: one gradient of the weights on one batch."""

    def plain(params: Any, batch: Any) -> Any:
        return _xla.canonical_convolutions(jax.value_and_grad(problem.loss))(params, batch)

    return Program(plain, (problem.params, problem.fit), "1", batches=1)


def both_levels(
    level: MaskedLoss, method: Any, scores: Any, params: Any, fit: Any, select: Any, state: Any
) -> Any:
    """The same masked loss on either level, on different rows."""
    return fb.hypergradient(
        level,
        level,
        scores,
        params,
        method=method,
        state=state,
        inner_args=(fit,),
        outer_args=(select,),
    )


def hypergradient_program(
    problem: Problem, method: Any, passes: str, bar: float | None, *, soft: bool = False
) -> Program:
    """The hypergradient of the scores, and what comes with it."""
    level = problem.masked_loss(soft)
    state = method.init(problem.scores, problem.params)

    def call(scores: Any, params: Any, fit: Any, select: Any, state: Any) -> Any:
        gradient, info = both_levels(level, method, scores, params, fit, select, state)
        return gradient, info.inner_grad, info.inner_var, info.state, info.iterations

    arguments = (problem.scores, problem.params, problem.fit, problem.select, state)
    return Program(call, arguments, passes, bar, getattr(method, "iterations", 0))


def step_program(
    problem: Problem, method: Any, passes: str, bar: float | None, *, violations: bool = False
) -> Program:
    """A whole outer step: hypergradient, weights by momentum, scores by momentum."""
    level = problem.masked_loss()
    inner_rule, outer_rule = optax.sgd(0.05, 0.9), optax.sgd(0.01, 0.9)
    start = (
        problem.scores,
        problem.params,
        outer_rule.init(problem.scores),
        inner_rule.init(problem.params),
        method.init(problem.scores, problem.params),
    )

    def call(carry: Any, fit: Any, select: Any) -> Any:
        scores, params, outer_state, inner_state, state = carry
        gradient, info = both_levels(level, method, scores, params, fit, select, state)
        updates, inner_state = inner_rule.update(info.inner_grad, inner_state, params)
        params = optax.apply_updates(params, updates)
        updates, outer_state = outer_rule.update(gradient, outer_state, scores)
        scores = optax.apply_updates(scores, updates)
        extra = ()
        if violations:
            z = jax.tree.map(jnp.multiply, problem.factors(scores), params)
            extra = _xla.canonical_convolutions(problem.violation_forward)(z, select)
        return (scores, params, outer_state, inner_state, info.state), extra

    return Program(call, (start, problem.fit, problem.select), passes, bar, batches=2)


def side_by_side(problem: Problem, method: Any, networks: int) -> Program:
    """Outer steps of several networks on the same batches, by ``vmap``."""
    one = step_program(problem, method, f"{networks} (2 + mask)", None)
    carry, *batches = one.arguments
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * networks), carry)
    vmapped = jax.vmap(one.function, (0, None, None))
    return Program(vmapped, (stacked, *batches), one.passes, batches=2 * networks)
