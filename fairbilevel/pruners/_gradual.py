"""Gradual magnitude pruning with fine-tuning (Zhu and Gupta 2018), constrained if asked.

With ``enforce`` the problem's constraints act from the moment pruning ends, with multipliers moved
by the rows that the weights train on: with an excess accuracy gap this is CEAG, with the signed
equalized loss the EL baseline beside it (Hashemizadeh et al. 2024, Tran et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fairbilevel import _trees, masks
from fairbilevel.masks import Budget, CubicSchedule
from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.train import (
    Callback,
    Costs,
    Feed,
    Report,
    Solution,
    Steps,
    WeightLoop,
    WeightState,
    fine_tune,
    hard_masks,
    multiplier_record,
    recalibration_cost,
    run_weights,
    sgd,
)

STAGES = 20


@dataclass(frozen=True)
class GradualMagnitude:
    """Remove the smallest weights along a cubic schedule while training, then fine-tune.

    It has no outer problem, so it trains on fit and select together: all methods see the same
    data.

    Attributes:
        sparsity: share of units to remove, in [0, 1).
        granularity: ``"weight"`` or ``"filter"``.
        budget: ``"global"`` or ``"uniform"``.
        steps: gradient evaluations to spend, dense training apart.
        pruning_share: part of them spent while the budget moves, the rest fine-tunes.
        budget_share: part of the pruning phase after which the final sparsity is reached.
        batch_size: rows a batch.
        learning_rate: of the default optimizer.
        enforce: whether the problem's constraints act on the fine-tuning; else they are only
            measured.
        dual_step: of the multipliers' gradient ascent.
        buffer_size: rows a group in the replay buffers.
        optimizer: any optax rule, restarted for fine-tuning.
        seed: of batches and dropout.
    """

    sparsity: float = 0.9
    granularity: str = "weight"
    budget: str = "global"
    steps: int = 1000
    pruning_share: float = 0.5
    budget_share: float = 0.8
    batch_size: int = 128
    learning_rate: float = 0.05
    enforce: bool = False
    dual_step: float = 0.01
    buffer_size: int = 32
    optimizer: optax.GradientTransformation | None = None
    seed: int = 0

    def run(
        self,
        problem: FairPruningProblem,
        reference: Reference,
        *,
        callback: Callback = lambda record: None,
    ) -> Solution:
        """Prune a problem's dense reference.

        Args:
            problem: what to prune.
            reference: the dense model.
            callback: receives one record per compiled call.

        Raises:
            DivergenceError: the loss is not finite.
            ValueError: the sparsity leaves a layer empty where that cuts the network.
        """
        budget = Budget.of(problem.layers, self.granularity, self.budget)
        budget.keep(self.sparsity)
        schedule = CubicSchedule(self.sparsity, self.budget_share)
        costs = Costs()
        report = Report(callback, costs)
        rows = np.sort(np.concatenate([problem.roles["fit"], problem.roles["select"]]))
        feed = Feed(problem, reference, self.seed, self.batch_size)
        pruning = int(self.pruning_share * self.steps) // STAGES * STAGES
        pruning = max(pruning, STAGES)
        fine = max(int(self.steps - pruning - recalibration_cost(reference.network)), 0) // 10 * 10

        def pure(phase_steps: int, final: bool) -> Steps:
            rule = self.optimizer or sgd(self.learning_rate, phase_steps, decay_to_zero=final)
            share = jnp.asarray(problem.share["fit"])
            if not (final and self.enforce):
                return Steps(problem, rule, optax.identity(), (), 1, share)
            ascent = optax.sgd(self.dual_step)
            return Steps(problem, rule, ascent, problem.constraints, self.buffer_size, share)

        kept: dict[str, Any] = {}

        def factors_at(stage: int, state: WeightState) -> Any:
            scores = masks.magnitude(state.params, problem.layers, self.granularity)
            if kept:  # removed weights stay where they were; they must not win again
                scores = {name: s * kept[name] for name, s in scores.items()}
            kept.update(hard_masks(budget, scores, schedule((stage + 1) / STAGES)))
            return masks.expand(kept, state.params, problem.layers, self.granularity)

        steps = pure(pruning, final=False)
        dense = reference.network
        state = run_weights(
            WeightLoop(steps, costs),
            feed,
            steps.init(
                _trees.copy(dense.params), _trees.copy(dense.state), jax.random.key(self.seed)
            ),
            factors_at,
            phase="baseline",
            rows=rows,
            dual_rows=None,
            steps=pruning,
            segments=STAGES,
            report=report,
            best=None,
            sparsity_at=lambda stage: schedule((stage + 1) / STAGES),
            steps_after=fine,
        )
        steps = pure(fine, final=True)
        hard = dict(kept)
        network, state = fine_tune(
            WeightLoop(steps, costs),
            feed,
            steps.init(state.params, state.model_state, state.key),
            hard,
            granularity=self.granularity,
            phase="baseline",
            rows=rows,
            # The true violations need no pass of their own in this method: the steps are planned
            # as if they came from the training batch, and the forwards booked on top.
            dual_rows=rows if self.enforce and problem.constraints else None,
            steps=fine,
            report=report,
            sparsity=self.sparsity,
            steps_before=pruning,
        )
        return Solution(
            "gradual-magnitude-constrained" if self.enforce else "gradual-magnitude",
            problem,
            reference,
            network,
            hard,
            masks.magnitude(state.params, problem.layers, self.granularity),
            multiplier_record(steps.constraints, state.duals, problem.groups),
            self.granularity,
            budget,
            self.sparsity,
            costs,
            report.history,
        )
