"""HYDRA: scores learned on frozen dense weights (Sehwag et al., NeurIPS 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fairbilevel import _xla, masks
from fairbilevel.fairness import RowWeights
from fairbilevel.masks import Masks
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.pruners._moment import Moment
from fairbilevel.pruners._pruner import Pruner
from fairbilevel.pruners._run import PrunerRun, PrunerState
from fairbilevel.records import Checkpoints
from fairbilevel.train import (
    STREAM_FIT,
    Batch,
    Callback,
    Compiled,
    StepLog,
    check_finite,
    check_judged,
    hard_masks,
    score_descent,
    smaller,
    tune_record,
)


@dataclass(frozen=True)
class Hydra(Pruner):
    """Learn which of the dense weights to keep, the weights frozen, then fine-tune.

    The loss is that of the network under the exact top-k mask of the scores, at the final sparsity
    from the start; its gradient with respect to the mask goes straight through to the scores, which
    begin as scaled magnitudes. Their step is relative to their spread (``fb.train.score_descent``),
    as in the bilevel solver: HYDRA is its outer problem without an inner one.

    Attributes:
        score_step: of the scores, in units of their spread.

    Raises:
        ValueError: a step that is not a finite number of at least 0, or constraints to enforce
            while scores are learned.
    """

    rounds: int = 20
    score_step: float = 0.1

    name: ClassVar[str] = "hydra"
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.score_step < np.inf:
            raise ValueError("score_step must be a finite number of at least 0")
        if self.enforce and "prune" in self.enforce_in:
            raise ValueError("hydra learns its scores without constraints: enforce them elsewhere")

    def scores(self, at: Moment) -> Masks:
        """Where scores begin."""
        return masks.start_scores("magnitude", at.network, at.layers, at.granularity, at.key)

    def start(
        self,
        problem: FairPruningProblem,
        reference: Reference,
        *,
        callback: Callback = lambda record: None,
        checkpoints: Checkpoints | None = None,
    ) -> PrunerRun:
        """The same run stage by stage."""
        return HydraRun(self, problem, reference, callback, checkpoints)


class HydraRun(PrunerRun):
    """A run whose stages move scores and not weights."""

    def init(self) -> PrunerState:
        """The state at the dense weights, scores at their start."""
        state = super().init()
        scores = self.score(state, 0)
        self._keep = masks.as_counts(self.budget.keep(self.options.sparsity))
        self._rule = score_descent(
            "adam",
            self.options.score_step,
            max(float(masks.spread(scores)), 0.1),
            self.prune_steps,
            self.options.budget_share,
        )
        self._whole_rule = self._rule
        self._segment = Compiled(self._many, self.costs, placement=self.problem.placement)
        return state._replace(scores=scores, memory=self._rule.init(scores))

    def _many(self, moving: Any, params: Any, batches: Batch) -> tuple[Any, StepLog]:
        """Score steps, one a batch: of ``(scores, rule's state, statistics, key)``."""
        layers, granularity = self.problem.layers, self.options.granularity
        none = RowWeights((), jnp.zeros((), bool))

        def body(carry: Any, batch: Batch) -> tuple[Any, StepLog]:
            scores, memory, model_state, key = carry
            key, dropout = jax.random.split(key)
            hard = self.budget.top_k(scores, self._keep)
            z = masks.apply(hard, params, layers, granularity)
            q, aux = jax.grad(self.prune_rules.objective, has_aux=True)(
                z, model_state, batch, none, dropout
            )
            entries = jax.tree.map(jnp.multiply, params, q)
            gradient = masks.collect(entries, layers, granularity)
            updates, memory = self._rule.update(gradient, memory, scores)
            scores = optax.apply_updates(scores, updates)
            return (scores, memory, aux.model_state, key), StepLog(
                aux.loss, aux.accuracy, jnp.zeros((), bool)
            )

        return _xla.scan(body, moving, batches)

    def like(self, state: PrunerState, about: dict[str, Any]) -> PrunerState:
        """The first state: its scores and memory have their structure already."""
        return state

    def use_smaller_steps(self) -> None:
        """Of the scores."""
        self._rule = smaller(self._whole_rule, self.retreats.scale)
        self._segment = Compiled(self._many, self.costs, placement=self.problem.placement)

    def _prune(self, state: PrunerState, round_: int) -> PrunerState:
        def network(state: PrunerState) -> Network:
            weights, options = state.weights, self.options
            z = masks.apply(state.kept, weights.params, self.problem.layers, options.granularity)
            return Network(z, weights.model_state)

        return self.retrying(state, self._stage, network, self._done)

    def _stage(self, state: PrunerState) -> PrunerState:
        options, problem, weights = self.options, self.problem, state.weights
        count, first = self.stage_steps, self._done
        batches = self.feed.take(self.rows, STREAM_FIT, count)
        self.costs.gradient_evaluations += count
        moving = (state.scores, state.memory, weights.model_state, weights.key)
        (scores, memory, model_state, key), log = self._segment(moving, weights.params, batches)
        check_finite(log, (scores, model_state), "prune", first, classes=len(problem.data.classes))
        kept = hard_masks(self.budget, scores, options.sparsity)
        z = masks.apply(kept, weights.params, problem.layers, options.granularity)
        record = tune_record(problem, Network(z, model_state), self.reference)
        check_judged(record, "prune", first + count, len(problem.data.classes))
        self._done += count
        weights = weights._replace(model_state=model_state, key=key)
        self.report.write(
            "prune",
            self._done,
            self._all_steps,
            log,
            record,
            self.prune_rules,
            weights.duals,
            options.sparsity,
        )
        return PrunerState(weights, kept, scores, memory)
