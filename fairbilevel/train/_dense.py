"""The dense model that everything pruned is judged against: trained on fit alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.records import Checkpoints
from fairbilevel.train._compiled import Costs
from fairbilevel.train._expected import data_expected
from fairbilevel.train._feed import Feed
from fairbilevel.train._loop import WeightLoop, run_weights
from fairbilevel.train._optimizers import sgd
from fairbilevel.train._report import Best, Callback, Report
from fairbilevel.train._steps import Steps


def dense_steps(problem: FairPruningProblem, batch_size: int) -> int:
    """Steps that train a dense model by default: 30 epochs of fit, 500 to 3,000 steps."""
    epoch = max(1, len(problem.roles["fit"]) // batch_size)
    return min(max(30 * epoch, 500), 3000)


def train_dense(
    problem: FairPruningProblem,
    *,
    steps: int | None = None,
    batch_size: int = 128,
    optimizer: optax.GradientTransformation | None = None,
    learning_rate: float = 0.1,
    seed: int = 0,
    callback: Callback = lambda record: None,
    costs: Costs | None = None,
    checkpoints: Checkpoints | None = None,
) -> Reference:
    """Train the dense model on fit, stopped early on tune, and record its outcome on every row.

    Args:
        problem: what to train on.
        steps: gradient steps; ``dense_steps`` by default.
        batch_size: rows a step.
        optimizer: any optax rule; SGD with a cosine to zero by default.
        learning_rate: of the default rule.
        seed: of the initial weights and the order of rows.
        callback: receives a record every twentieth of the steps.
        costs: where time and gradient evaluations are booked.
        checkpoints: where checkpoints go, and where training goes on from if there are any.

    Raises:
        DivergenceError: the loss is not finite or exploded, with smaller steps too.
        Interrupted: a stop was asked, and a checkpoint written.
    """
    steps = dense_steps(problem, batch_size) if steps is None else steps
    segments = min(20, steps)
    costs = Costs() if costs is None else costs
    total = -(-steps // segments) * segments
    rule = sgd(learning_rate, total, decay_to_zero=True) if optimizer is None else optimizer
    pure = Steps(problem, rule, optax.identity(), (), 1, jnp.asarray(problem.share["fit"]))
    init_key, key = jax.random.split(jax.random.key(seed))
    params, model_state = problem.start(init_key)
    before = costs.gradient_evaluations
    best, report = Best(), Report(callback, costs)
    activity = None
    if checkpoints is not None:
        asked: dict[str, float] = {"steps": steps, "batch_size": batch_size, "seed": seed}
        if optimizer is None:
            asked["learning_rate"] = learning_rate
        activity = checkpoints.activity("dense", {**data_expected(problem), **asked})
    run_weights(
        WeightLoop(pure, costs),
        Feed(problem, None, seed, batch_size),
        pure.init(params, model_state, key),
        lambda segment, state: jax.tree.map(lambda p: jnp.ones((), p.dtype), state.params),
        phase="dense",
        rows=problem.roles["fit"],
        dual_rows=None,
        steps=steps,
        segments=segments,
        report=report,
        best=best,
        sparsity_at=lambda segment: 0.0,
        activity=activity,
    )
    assert best.network is not None
    reference = problem.refer(best.network, costs.gradient_evaluations - before)
    return dataclasses.replace(reference, seed=seed, rollbacks=tuple(report.rollbacks))


def dense_start(problem: FairPruningProblem, reference: Reference) -> Network | None:
    """The initial network of a dense model that was trained here, ``None`` of one that was given.

    It is drawn again from the seed, so that no second copy of the weights has to be kept.
    """
    if reference.seed is None:
        return None
    init_key, _ = jax.random.split(jax.random.key(reference.seed))
    return Network(*problem.start(init_key))
