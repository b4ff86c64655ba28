"""The bilevel fair pruning solver: scores on select, weights on fit, multipliers on unseen rows.

BiFP (Dai et al. 2023) with the closed-form hypergradient of BiP (Zhang et al. 2022), the proxy
constraints and replay buffers of CEAG (Hashemizadeh et al. 2024), a budget that follows a cubic
schedule, and multipliers moved by rows that no gradient uses (Cotter et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from fairbilevel import _trees, _xla, masks
from fairbilevel.hypergrad import Bilinear
from fairbilevel.masks import Budget, CubicSchedule, Masks, Relaxation
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.train import (
    FORWARD_COST,
    REFRESH_BATCHES,
    STREAM_DUALS,
    STREAM_FIT,
    STREAM_REFRESH,
    STREAM_SELECT,
    Batch,
    Callback,
    Compiled,
    Costs,
    Feed,
    Report,
    Solution,
    StepLog,
    Steps,
    WeightLoop,
    WeightState,
    check_finite,
    dual_batches,
    fine_tune,
    hard_masks,
    maybe_dual_step,
    multiplier_record,
    recalibration_cost,
    score_descent,
    sgd,
    tune_record,
)

STAGES = 20  # compiled calls of the bilevel phase; the budget moves between them


class BilevelState(NamedTuple):
    """The whole state of the bilevel phase: one pytree, donated to each compiled call.

    Attributes:
        weights: weights, statistics, inner optimizer, duals, key.
        scores: differentiable mask scores by layer.
        outer: state of the outer optimizer.
    """

    weights: WeightState
    scores: Masks
    outer: optax.OptState


@dataclass(frozen=True)
class BilevelSolver:
    """Finds mask and weights in one run.

    Attributes:
        sparsity: share of units to remove, in [0, 1).
        granularity: ``"weight"`` or ``"filter"``.
        budget: ``"global"`` or ``"uniform"``.
        relaxation: how scores become masks.
        score_start: ``"magnitude"``, ``"random"`` or ``"constant"``.
        hypergradient: the closed form; ``Bilinear(inf)`` leaves the implicit term out.
        steps: gradient evaluations to spend, dense training apart.
        bilevel_share: part of them spent on the bilevel phase, the rest fine-tunes.
        budget_share: part of the bilevel phase after which the final sparsity is reached.
        batch_size: rows a batch on either level.
        learning_rate: of the default inner optimizer.
        score_step: typical move of a score per outer step in units of the scores' spread.
        dual_step: multipliers' step.
        buffer_size: rows a group in the replay buffers.
        violation_every: outer steps between measurements of the true violations.
        multipliers_from: ``"start"`` of the run, or when the mask is final (``"pruned"``, CEAG).
        inner_optimizer: any optax rule for the weights, restarted for fine-tuning.
        outer_optimizer: any optax rule for the scores.
        dual_optimizer: any optax rule for the multipliers.
        seed: of batches, random scores and dropout.

    Raises:
        ValueError: an option outside its range.
    """

    sparsity: float = 0.9
    granularity: str = "weight"
    budget: str = "global"
    relaxation: str | Relaxation = "top-k"
    score_start: str = "magnitude"
    hypergradient: Bilinear = field(default_factory=Bilinear)
    steps: int = 1000
    bilevel_share: float = 0.5
    budget_share: float = 0.8
    batch_size: int = 128
    learning_rate: float = 0.05
    score_step: float = 0.1
    dual_step: float = 0.05
    buffer_size: int = 32
    violation_every: int = 1
    multipliers_from: str = "start"
    inner_optimizer: optax.GradientTransformation | None = None
    outer_optimizer: optax.GradientTransformation | None = None
    dual_optimizer: optax.GradientTransformation | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must lie in [0, 1), got {self.sparsity}")
        if isinstance(self.relaxation, str) and self.relaxation not in masks.RELAXATIONS:
            raise ValueError(
                f"unknown relaxation {self.relaxation!r}: choose from "
                f"{', '.join(masks.RELAXATIONS)}"
            )
        if self.score_start not in masks.STARTS:
            raise ValueError(
                f"unknown score start {self.score_start!r}: choose from {', '.join(masks.STARTS)}"
            )
        if self.multipliers_from not in ("start", "pruned"):
            raise ValueError(
                f"multipliers_from is 'start' or 'pruned', got {self.multipliers_from!r}"
            )
        for name in ("steps", "batch_size", "buffer_size", "violation_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("bilevel_share", "budget_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        for name in ("learning_rate", "score_step", "dual_step"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be a finite number of at least 0")

    def run(
        self,
        problem: FairPruningProblem,
        reference: Reference,
        *,
        callback: Callback = lambda record: None,
    ) -> Solution:
        """Solve a problem from its dense reference.

        Args:
            problem: what to solve.
            reference: the dense model (``fb.train.train_dense`` or ``problem.refer``).
            callback: receives one record per compiled call.

        Raises:
            DivergenceError: the loss is not finite.
            ValueError: the sparsity leaves a layer empty where that cuts the network.
        """
        return _Run(self, problem, reference, callback).solve()


class _Run:
    """One run of the solver: compiled programs and the plan they follow."""

    def __init__(
        self,
        options: BilevelSolver,
        problem: FairPruningProblem,
        reference: Reference,
        callback: Callback,
    ):
        self.options, self.problem, self.reference = options, problem, reference
        self.budget = Budget.of(problem.layers, options.granularity, options.budget)
        self.budget.keep(options.sparsity)  # refuses what cannot be reached, before any work
        self.relaxation = (
            masks.RELAXATIONS[options.relaxation]
            if isinstance(options.relaxation, str)
            else options.relaxation
        )
        self.costs = Costs()
        self.report = Report(callback, self.costs)
        self.feed = Feed(problem, reference, options.seed, options.batch_size)
        self.measures = bool(problem.constraints)
        dual_cost = FORWARD_COST / options.violation_every if self.measures else 0.0
        bilevel = options.bilevel_share * options.steps - STAGES * FORWARD_COST * REFRESH_BATCHES
        self.stage_steps = max(1, int(bilevel / (2 + dual_cost) / STAGES))
        self.outer_steps = STAGES * self.stage_steps
        left = (1 - options.bilevel_share) * options.steps - recalibration_cost(reference.network)
        self.fine_steps = int(max(left, 0) / (1 + dual_cost)) // 10 * 10
        self.dual_rule = options.dual_optimizer or optax.sgd(options.dual_step)
        self.schedule = CubicSchedule(options.sparsity, options.budget_share)

    def _steps(self, phase_steps: int, *, final: bool) -> Steps:
        options = self.options
        rule = options.inner_optimizer or sgd(
            options.learning_rate, phase_steps, decay_to_zero=final
        )
        return Steps(
            self.problem,
            rule,
            self.dual_rule,
            self.problem.constraints,
            options.buffer_size,
            jnp.asarray(self.problem.share["fit"]),
        )

    def solve(self) -> Solution:
        """Bilevel phase, exact masks, fine-tuning, recalibration."""
        options, problem = self.options, self.problem
        state = self._bilevel()
        hard = hard_masks(self.budget, state.scores, options.sparsity)
        steps = self._steps(self.fine_steps, final=True)
        weights = steps.init(state.weights.params, state.weights.model_state, state.weights.key)
        # The multipliers go on from where the bilevel phase left them; their buffers start afresh.
        weights = weights._replace(duals=steps.emptied(state.weights.duals))
        loop = WeightLoop(steps, self.costs, options.violation_every)
        network, weights = fine_tune(
            loop,
            self.feed,
            weights,
            hard,
            granularity=options.granularity,
            phase="finetune",
            rows=problem.roles["fit"],
            dual_rows=problem.select_duals if self.measures else None,
            steps=self.fine_steps,
            report=self.report,
            sparsity=options.sparsity,
        )
        warnings = []
        if self.report.guard_steps:
            share = self.report.guard_steps / self.report.steps
            warnings.append(
                "the guard against negative group weights was active in "
                f"{100 * share:.0f} % of the steps: the multipliers ask for more than can be "
                "taken from the better-off groups"
            )
        return Solution(
            "bilevel",
            problem,
            self.reference,
            network,
            hard,
            state.scores,
            multiplier_record(problem.constraints, weights.duals, problem.groups),
            options.granularity,
            self.budget,
            options.sparsity,
            self.costs,
            self.report.history,
            tuple(warnings),
        )

    def _bilevel(self) -> BilevelState:
        options, problem = self.options, self.problem
        key, score_key = jax.random.split(jax.random.key(options.seed))
        dense = self.reference.network
        scores = masks.start_scores(
            options.score_start, dense.params, problem.layers, options.granularity, score_key
        )
        steps = self._steps(self.outer_steps, final=False)
        scale = max(float(masks.spread(scores)), 0.1)  # constant starts have no spread of their own
        outer = options.outer_optimizer or score_descent(
            options.score_step, scale, self.outer_steps
        )
        keep = masks.as_counts(self.budget.keep(self.schedule(1 / STAGES)))
        scores = self.relaxation.start(scores, self.budget, keep)
        weights = steps.init(_trees.copy(dense.params), _trees.copy(dense.state), key)
        state = BilevelState(weights, scores, outer.init(scores))
        segment = Compiled(partial(self._segment, steps, outer), self.costs)
        loop = WeightLoop(steps, self.costs, options.violation_every)
        for stage in range(STAGES):
            sparsity = self.schedule((stage + 1) / STAGES)
            keep = masks.as_counts(self.budget.keep(sparsity))
            state = self._stage(stage, sparsity, keep, state, segment, loop)
        return state

    def _stage(
        self,
        stage: int,
        sparsity: float,
        keep: dict[str, Array],
        state: BilevelState,
        segment: Compiled,
        loop: WeightLoop,
    ) -> BilevelState:
        """Move the budget, refresh statistics, empty buffers, run one compiled call."""
        options, problem, feed = self.options, self.problem, self.feed
        count = self.stage_steps
        progress = ((stage * count + np.arange(count)) / self.outer_steps).astype(np.float32)
        z = self._network(state, keep, progress[0])
        refresh = feed.take(problem.roles["fit"], STREAM_REFRESH, REFRESH_BATCHES)
        model_state = loop.refresh(state.weights.model_state, z, refresh)
        last_good = Network(z, _trees.copy(model_state))
        weights = state.weights._replace(
            model_state=model_state, duals=loop.steps.emptied(state.weights.duals)
        )
        state = state._replace(weights=weights)
        fit = feed.take(problem.roles["fit"], STREAM_FIT, count)
        select = feed.take(problem.select_outer, STREAM_SELECT, count)
        duals = None
        if self.measures and options.multipliers_from == "start":
            batches = dual_batches(count, options.violation_every)
            duals = feed.take(problem.select_duals, STREAM_DUALS, batches)
            self.costs.gradient_evaluations += FORWARD_COST * batches
        self.costs.gradient_evaluations += 2 * count
        state, log = segment(state, fit, select, duals, keep, progress)
        check_finite(log, "bilevel", stage * count, last_good)
        network = Network(self._network(state, keep, progress[-1]), state.weights.model_state)
        record = tune_record(problem, network, self.reference)
        self.report.write(
            "bilevel",
            (stage + 1) * count,
            self.outer_steps,
            log,
            record,
            loop.steps,
            state.weights.duals,
            sparsity,
        )
        return state

    def _network(self, state: BilevelState, keep: dict[str, Array], progress: Any) -> Any:
        return self._apply_masks(state.scores, state.weights.params, keep, progress)

    @property
    def _apply_masks(self) -> Any:
        if not hasattr(self, "_applied"):

            def apply(scores: Masks, params: Any, keep: Any, progress: Any) -> Any:
                relaxed = self.relaxation.mask(scores, self.budget, keep, progress)
                return masks.apply(relaxed, params, self.problem.layers, self.options.granularity)

            self._applied = jax.jit(apply)
        return self._applied

    def _segment(
        self,
        steps: Steps,
        outer: optax.GradientTransformation,
        state: BilevelState,
        fit: Batch,
        select: Batch,
        dual_batch: Batch | None,
        keep: dict[str, Array],
        progress: Float[Array, " steps"],
    ) -> tuple[BilevelState, StepLog]:
        """Many outer steps in one compiled loop."""

        def body(carry: BilevelState, xs: Any) -> tuple[BilevelState, StepLog]:
            index, fit_batch, select_batch, now = xs
            carry, z, log = self._outer_step(
                steps, outer, carry, fit_batch, select_batch, keep, now
            )
            if dual_batch is not None:
                weights = carry.weights
                duals = maybe_dual_step(
                    steps,
                    self.options.violation_every,
                    index,
                    weights.duals,
                    z,
                    weights.model_state,
                    dual_batch,
                )
                carry = carry._replace(weights=weights._replace(duals=duals))
            return carry, log

        index = jnp.arange(progress.shape[0])
        return _xla.scan(body, state, (index, fit, select, progress))

    def _outer_step(
        self,
        steps: Steps,
        outer: optax.GradientTransformation,
        state: BilevelState,
        fit: Batch,
        select: Batch,
        keep: dict[str, Array],
        progress: Float[Array, ""],
    ) -> tuple[BilevelState, Any, StepLog]:
        """Weights, then scores: two gradient evaluations.

        Returns:
            The state, the network ``z`` after the weight step, the log.
        """
        problem, granularity = self.problem, self.options.granularity
        relaxed = self.relaxation.mask(state.scores, self.budget, keep, progress)
        factors = masks.expand(relaxed, state.weights.params, problem.layers, granularity)
        weights, inner_gradient, log = steps.weight_step(state.weights, factors, fit)
        key, dropout = jax.random.split(weights.key)
        z = jax.tree.map(lambda m, p: m * p, factors, weights.params)
        share = jnp.asarray(problem.share["select"])
        row_weights = steps.weigh(weights.duals, share)
        # Train mode on select, its statistics dropped: only fit moves the running ones.
        outer_gradient, _ = jax.grad(steps.objective, has_aux=True)(
            z, weights.model_state, select, row_weights, dropout
        )

        def pullback(entries: Any) -> Masks:
            of_masks = masks.collect(entries, problem.layers, granularity)
            return self.relaxation.vjp(state.scores, relaxed, of_masks, progress)

        gradient = self.options.hypergradient(
            weights.params, factors, outer_gradient, inner_gradient, pullback
        )
        updates, outer_state = outer.update(gradient, state.outer, state.scores)
        scores = self.relaxation.project(
            optax.apply_updates(state.scores, updates), self.budget, keep
        )
        moved = BilevelState(weights._replace(key=key), scores, outer_state)
        return moved, z, log


def solve(
    problem: FairPruningProblem,
    *,
    dense: Reference | Network | None = None,
    callback: Callback = lambda record: None,
    dense_steps: int | None = None,
    **options: Any,
) -> Solution:
    """Make a model sparse and fair: train it densely if need be, then run the bilevel solver.

    Args:
        problem: what to solve.
        dense: the dense model, if there is one: a ``Reference`` or a ``Network`` of parameters.
        callback: receives one record per compiled call.
        dense_steps: gradient steps of the dense model, where it is trained here.
        **options: fields of ``BilevelSolver``: ``sparsity``, ``inner_optimizer``, ...

    Raises:
        DivergenceError: the loss is not finite.
        ValueError: an option outside its range.
    """
    from fairbilevel.train import train_dense

    solver = BilevelSolver(**options)
    Budget.of(problem.layers, solver.granularity, solver.budget).keep(solver.sparsity)
    if dense is None:
        dense = train_dense(
            problem,
            steps=dense_steps,
            batch_size=solver.batch_size,
            seed=solver.seed,
            callback=callback,
        )
    elif isinstance(dense, Network):
        dense = problem.refer(dense)
    return solver.run(problem, dense, callback=callback)
