"""One run of the bilevel solver, stage by stage: the budget moves, then one compiled call."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from fairbilevel import _trees, fairness, masks
from fairbilevel.fairness import Constraint
from fairbilevel.hypergrad import Status
from fairbilevel.masks import CubicSchedule, Masks
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.records import Checkpoints
from fairbilevel.solver._step import BilevelState, OuterLog, OuterStep, inner_steps
from fairbilevel.train import (
    FORWARD_COST,
    REFRESH_BATCHES,
    STREAM_DUALS,
    STREAM_FIT,
    STREAM_REFRESH,
    STREAM_SELECT,
    Callback,
    Compiled,
    Feed,
    Solution,
    StagedRun,
    Steps,
    Watch,
    WeightLoop,
    check_finite,
    check_judged,
    dual_batches,
    fine_tune,
    hard_masks,
    multiplier_record,
    recalibration_cost,
    score_descent,
    sgd,
    smaller,
    tune_record,
)

STAGES = 20  # compiled calls of the bilevel phase at most; the budget moves between them


class BilevelRun(StagedRun):
    """One run of the solver: ``init``, then ``step`` for each of ``stages``, then ``finish``.

    Args:
        options: a ``BilevelSolver``.
        problem: what to solve.
        reference: the dense model.
        callback: receives one record per compiled call.
        checkpoints: where checkpoints go; ``None`` writes none.

    Raises:
        ValueError: the sparsity leaves a layer empty where that cuts the network.
    """

    def __init__(
        self,
        options: Any,
        problem: FairPruningProblem,
        reference: Reference,
        callback: Callback,
        checkpoints: Checkpoints | None = None,
    ):
        super().__init__(options, problem, reference, callback, checkpoints)
        self.feed = Feed(problem, reference, options.seed, options.batch_size)
        self.constraints = self._enforced()
        self.measures = bool(self.constraints)
        self.measures_late = self.measures and options.constrain_weights
        # Without constraints there are no multipliers to keep rows for.
        self.select_rows = problem.select_outer if self.measures else problem.roles["select"]
        self.measures_early = self.measures and options.multipliers_from == "start"
        self.dual_rule = options.dual_optimizer or fairness.multiplier_rule(
            options.dual_rule, options.dual_step
        )
        self.schedule = CubicSchedule(options.sparsity, options.budget_share)
        self._plan()
        self._kept: dict[str, int] | None = None

    def _enforced(self) -> tuple[Constraint, ...]:
        options, problem = self.options, self.problem
        if not (options.constrain_masks or options.constrain_weights):
            return ()
        if options.constraints is None:
            return options.bounds(problem)
        return problem.bound(options.constraints)

    def _plan(self) -> None:
        """Outer and fine-tuning steps that the gradient evaluations pay for."""
        options = self.options
        dual_cost = FORWARD_COST / options.violation_every
        self._settle_cost = recalibration_cost(self.reference.network)
        # Statistics after the budget moved.
        self._moved_cost = FORWARD_COST * REFRESH_BATCHES if self._settle_cost else 0.0
        early = dual_cost * self.measures_early
        self._outer_cost = options.hypergradient.gradient_evaluations + early
        self._fine_cost = 1 + dual_cost * self.measures_late
        share = options.bilevel_share * options.steps
        stage_cost = self._outer_cost + self._moved_cost
        self.stages = min(STAGES, max(1, int(share / stage_cost + 1e-9)))
        refresh = self._moved_cost * self.stages
        self.stage_steps = max(1, int((share - refresh) / self._outer_cost / self.stages + 1e-9))
        self.outer_steps = self.stages * self.stage_steps
        left = options.steps - refresh - self._settle_cost - self.outer_steps * self._outer_cost
        self.fine_steps = int(max(left, 0) / self._fine_cost + 1e-9) // 10 * 10

    def _steps(self, phase_steps: int, *, final: bool) -> Steps:
        options = self.options
        rule = options.inner_optimizer or sgd(
            options.learning_rate, phase_steps, decay_to_zero=final
        )
        return Steps(
            self.problem,
            rule,
            self.dual_rule,
            () if final and not self.measures_late else self.constraints,
            options.buffer_size,
            jnp.asarray(self.problem.share["fit"]),
        )

    def init(self) -> BilevelState:
        """The state at the dense weights and the scores' start; compiles nothing yet."""
        options, problem = self.options, self.problem
        key, score_key = jax.random.split(jax.random.key(options.seed))
        dense = self.reference.network
        scores = masks.start_scores(
            options.score_start, dense.params, problem.layers, options.granularity, score_key
        )
        steps = self._steps(self.outer_steps, final=False)
        scale = max(float(masks.spread(scores)), 0.1)  # constant starts have no spread of their own
        outer = options.outer_optimizer or score_descent(
            options.score_rule, options.score_step, scale, self.outer_steps, options.budget_share
        )
        relaxation = (
            masks.RELAXATIONS[options.relaxation]
            if isinstance(options.relaxation, str)
            else options.relaxation
        )
        self.outer_step = OuterStep(
            steps,
            options.hypergradient,
            outer,
            relaxation,
            self.budget,
            options.granularity,
            options.violation_every,
            self._magnitude_scale(dense.params),
            options.constrain_masks,
            options.constrain_weights,
        )
        self._whole_step = self.outer_step
        self._segment = Compiled(self.outer_step.many, self.costs, placement=problem.placement)
        self._network = jax.jit(self.outer_step.network)
        self._loop = WeightLoop(steps, self.costs, options.violation_every)
        self.stage, self._kept, self.retreats.made = 0, None, 0
        keep = masks.as_counts(self.budget.keep(self.sparsity))
        scores = relaxation.start(scores, self.budget, keep)
        weights = steps.init(_trees.copy(dense.params), _trees.copy(dense.state), key)
        return self.outer_step.init(weights, scores)

    def final_steps(self) -> Steps:
        """The pure steps of the fine-tuning."""
        return self._steps(self.fine_steps, final=True)

    def fine_tune_rows(self) -> Int[np.ndarray, " n"]:
        """Rows that the kept weights are fitted to once the mask is final."""
        fit = self.problem.roles["fit"]
        if self.options.fine_tune_on == "fit":
            return fit
        return np.sort(np.concatenate([fit, self.select_rows]))

    def planned_evaluations(self, moves: int) -> float:
        """Gradient evaluations of the whole run, the budget moving at ``moves`` of its stages."""
        outer, fine = self.outer_steps * self._outer_cost, self.fine_steps * self._fine_cost
        return self._moved_cost * moves + outer + fine + self._settle_cost

    def _magnitude_scale(self, params: Any) -> float | None:
        options = self.options
        if not options.follow_weights or options.score_start != "magnitude":
            return None
        magnitudes = masks.magnitude(params, self.problem.layers, options.granularity)
        return float(masks.magnitude_scale(magnitudes))

    @property
    def sparsity(self) -> float:
        """Sparsity of the stage to come."""
        return self.schedule(min(self.stage + 1, self.stages) / self.stages)

    def masks(self, state: BilevelState) -> Masks:
        """Hard masks of the current scores at the current sparsity."""
        done = self.schedule(max(self.stage, 1) / self.stages)
        return hard_masks(self.budget, state.scores, done)

    def place(self) -> dict[str, Any]:
        """What the run has changed beside the state, plain JSON."""
        return {**super().place(), "kept": self._kept}

    def go_to(self, place: dict[str, Any]) -> None:
        """Be where ``place`` was told."""
        super().go_to(place)
        self._kept = place["kept"]

    def use_smaller_steps(self) -> None:
        """Of scores, weights and multipliers."""
        scale, whole = self.retreats.scale, self._whole_step
        steps = dataclasses.replace(
            whole.steps,
            optimizer=smaller(whole.steps.optimizer, scale),
            dual_rule=smaller(whole.steps.dual_rule, scale),
        )
        outer = smaller(whole.outer, scale)
        self.outer_step = dataclasses.replace(whole, steps=steps, outer=outer)
        placement = self.problem.placement
        self._segment = Compiled(self.outer_step.many, self.costs, placement=placement)

    def step(self, state: BilevelState) -> BilevelState:
        """One stage: move the budget, refresh statistics, run one compiled call.

        ``state`` is donated: use the one that comes back.

        Raises:
            DivergenceError: the loss is not finite or exploded, with smaller steps too.
        """

        def network(state: BilevelState) -> Network:
            now = jnp.asarray(self.stage * self.stage_steps / self.outer_steps, jnp.float32)
            keep = masks.as_counts(self.budget.keep(self.sparsity))
            z = self._network(state.scores, state.weights.params, keep, now)
            return Network(z, state.weights.model_state)

        return self.retrying(state, self._stage, network, self.stage * self.stage_steps)

    def _stage(self, state: BilevelState) -> BilevelState:
        options, problem, feed = self.options, self.problem, self.feed
        sparsity, count = self.sparsity, self.stage_steps
        kept = self.budget.keep(sparsity)
        keep = masks.as_counts(kept)
        first = self.stage * count
        progress = jnp.arange(first, first + count, dtype=jnp.float32) / self.outer_steps
        weights = state.weights
        z = self._network(state.scores, weights.params, keep, progress[0])
        if kept != self._kept:
            batches = feed.take(problem.roles["fit"], STREAM_REFRESH, REFRESH_BATCHES)
            weights = weights._replace(
                model_state=self._loop.refresh(weights.model_state, z, batches),
                duals=self.outer_step.steps.emptied(weights.duals),
            )
            self._kept = kept
        each = inner_steps(options.hypergradient)
        fit = feed.take(problem.roles["fit"], STREAM_FIT, count * each)
        select = feed.take(self.select_rows, STREAM_SELECT, count)
        duals = None
        if self.measures_early:
            measured = dual_batches(count, options.violation_every)
            duals = feed.take(problem.select_duals, STREAM_DUALS, measured)
            self.costs.gradient_evaluations += FORWARD_COST * measured
        self.costs.gradient_evaluations += options.hypergradient.gradient_evaluations * count
        state, log = self._segment(
            state._replace(weights=weights), fit, select, duals, keep, progress
        )
        left = (state.weights.params, state.weights.model_state, state.scores)
        check_finite(log.weights, left, "bilevel", first, classes=len(problem.data.classes))
        z = self._network(state.scores, state.weights.params, keep, progress[-1])
        record = tune_record(problem, Network(z, state.weights.model_state), self.reference)
        check_judged(record, "bilevel", first + count, len(problem.data.classes))
        self.stage += 1
        self.report.write(
            "bilevel",
            first + count,
            self.outer_steps,
            log.weights,
            record,
            self.outer_step.steps,
            state.weights.duals,
            sparsity,
            hypergradient=_diagnosis(log),
        )
        return state

    def finish(self, state: BilevelState) -> Solution:
        """Exact masks, fine-tuning under the same constraints, recalibration.

        Raises:
            DivergenceError: the loss is not finite.
            ValueError: the masks cut the network.
        """
        options, problem = self.options, self.problem
        hard = hard_masks(self.budget, state.scores, options.sparsity)
        steps = self.final_steps()
        weights = steps.init(state.weights.params, state.weights.model_state, state.weights.key)
        if self.measures_late:
            # The multipliers go on from where the bilevel phase left them, their buffers afresh.
            weights = weights._replace(duals=steps.emptied(state.weights.duals))
        watch = Watch(problem.under(self.constraints), self.reference)
        network, weights = fine_tune(
            WeightLoop(steps, self.costs, options.violation_every),
            self.feed,
            weights,
            hard,
            granularity=options.granularity,
            phase="finetune",
            rows=self.fine_tune_rows(),
            dual_rows=problem.select_duals if self.measures_late else None,
            steps=self.fine_steps,
            report=self.report,
            sparsity=options.sparsity,
            watch=watch if self.measures_late else None,
            activity=self.activity("finetune"),
        )
        last = weights if self.measures_late else state.weights
        return Solution(
            options.label,
            problem,
            self.reference,
            network,
            hard,
            state.scores,
            multiplier_record(self.constraints, last.duals, problem.groups),
            options.granularity,
            self.budget,
            options.sparsity,
            self.costs,
            self.report.history,
            self.report.warnings(),
            watch.assess(network) if self.measures_late else None,
            tuple(self.report.rollbacks),
        )


def _diagnosis(log: OuterLog) -> dict[str, Any]:
    """Mean residual of a stage's linear systems, and the share of steps by status."""
    status = np.asarray(log.status)
    shares = {s.name.lower(): float(np.mean(status == s)) for s in Status if s != Status.DONE}
    return {
        "residual": float(np.mean(log.residual)),
        **{name: share for name, share in shares.items() if share},
    }
