"""The dense model that everything pruned is judged against: trained on fit alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Float

from fairbilevel.devices import saved_seconds
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.records import Activity, Checkpoints
from fairbilevel.train._expected import data_expected
from fairbilevel.train._plan import Costs, Phase, Plan, every, learning_rates, stages
from fairbilevel.train._report import Callback
from fairbilevel.train._rules import SGD, Rules
from fairbilevel.train._run import RunState, StagedRun

STAGES = 20


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
        ValueError: fewer than one step, or a batch that cannot be split over the devices.
    """
    steps = dense_steps(problem, batch_size) if steps is None else steps
    if steps < 1:
        raise ValueError(f"a dense model takes at least 1 step, got {steps}")
    rates = np.ones(steps) if optimizer else learning_rates(learning_rate, steps, to_zero=True)
    activity = None
    if checkpoints is not None:
        asked: dict[str, float] = {"steps": steps, "batch_size": batch_size, "seed": seed}
        if optimizer is None:
            asked["learning_rate"] = learning_rate
        activity = checkpoints.activity("dense", {**data_expected(problem), **asked})
    run = _DenseRun(problem, rates, optimizer, seed, batch_size, callback, costs, activity)
    before = run.costs.gradient_evaluations
    run.run_stages()
    assert run.best.network is not None
    reference = problem.refer(run.best.network, run.costs.gradient_evaluations - before)
    return dataclasses.replace(reference, seed=seed, rollbacks=tuple(run.report.rollbacks))


class _DenseRun(StagedRun):
    # The problem's constraints, with multipliers that stay zero: the program is then the one that
    # fine-tunes under them.
    def __init__(
        self,
        problem: FairPruningProblem,
        rates: Float[np.ndarray, " steps"],
        optimizer: optax.GradientTransformation | None,
        seed: int,
        batch_size: int,
        callback: Callback = lambda record: None,
        costs: Costs | None = None,
        checkpoints: Activity | None = None,
    ):
        rules = Rules(problem.constraints, optimizer or SGD)
        super().__init__(
            problem, None, rules, seed=seed, batch_size=batch_size, callback=callback, costs=costs
        )
        ones = jax.tree.map(lambda p: np.ones(p.shape, p.dtype), problem.shapes.params)
        self._ones = problem.placement.place(ones)
        steps, rows, self.checkpoints = len(rates), problem.roles["fit"], checkpoints
        parts = stages(steps, STAGES)
        self.plan = Plan((Phase("dense", parts, rates, every(steps, 0), rows, chooses=True),))

    @property
    def activity(self) -> Activity | None:
        return self.checkpoints

    def init(self) -> RunState:
        network = self.problem.initial_network(self.seed)
        duals = self.steps.duals(self.rules.duals, self.rules.buffer_size)
        return RunState(self.begun(network, duals), {}, {})

    def factors(self, state: RunState) -> Any:
        return self._ones


def time_step(problem: FairPruningProblem, batch_size: int) -> tuple[float, float]:
    """Seconds of a weight step, and of compiling what trains the dense model and fine-tunes: what
    it took when it was compiled, where it is found on disk."""
    spared = saved_seconds()
    run = _DenseRun(problem, np.zeros(2 * STAGES * 4), None, 0, batch_size)
    state, _, _ = run._stage(run.init())  # compiles
    compiling = run.costs.compile_seconds + max(saved_seconds() - spared, 0.0)
    before = run.costs.seconds
    run.stage += 1
    run._stage(state)
    return (run.costs.seconds - before) / run.phase.stages[1], compiling


def dense_start(problem: FairPruningProblem, reference: Reference) -> Network | None:
    """The initial network of a dense model that was trained here, ``None`` of one that was given.

    It is drawn again from the seed, so that no second copy of the weights has to be kept.
    """
    return None if reference.seed is None else problem.initial_network(reference.seed)
