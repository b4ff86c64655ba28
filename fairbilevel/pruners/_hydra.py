"""HYDRA: scores learned on frozen dense weights (Sehwag et al., NeurIPS 2020)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fairbilevel import _options, masks
from fairbilevel.devices import Program
from fairbilevel.fairness import RowWeights
from fairbilevel.masks import Budget, Masks
from fairbilevel.problem import FairPruningProblem, Numbers, Reference
from fairbilevel.pruners._pruner import Pruner
from fairbilevel.pruners._run import Moment, PrunerRun
from fairbilevel.train import (
    SCORE_RULES,
    STREAM_FIT,
    Batch,
    Plan,
    RunState,
    StepLog,
    Steps,
    Stretch,
    StretchLog,
    all_finite,
    at,
    held_then_falling,
    repeated,
    stretch,
)


class HydraRun(PrunerRun):
    """A run whose stages of pruning move scores and not weights."""

    method: Hydra

    def init(self) -> RunState:
        """The state at the dense weights, scores at their start."""
        state = super().init()
        scores = self.score(state)
        keep = self.counts(scores, self.method.sparsity)
        kept, outer = _BEGUN(self.budget, scores, keep, placement=self.problem.placement)
        self.removed = self.split.rounds
        return state._replace(scores=scores, kept=kept, outer=outer)

    def stretch(
        self, state: RunState, part: slice, factors: Any
    ) -> tuple[RunState, Any, StretchLog]:
        """Score steps while pruning, else weight steps."""
        phase, place = self.phase, self.problem.placement.place
        if phase.name != "prune":
            return super().stretch(state, part, factors)
        count = part.stop - part.start
        self.costs.gradient_evaluations += phase.cost(part)
        held = held_then_falling(phase.steps, self.method.budget_share)[part]
        rates = self.method.score_step * self.retreats.scale * held
        batches = self.feed.take(phase.rows, STREAM_FIT, count, self.batch_size, length=self.length)
        return _MOVED(
            (self.steps, self.budget, self.method.granularity),
            state,
            self.numbers,
            place(stretch(rates, phase.measures[part], self.length, 1.0)),
            place(self.counts(state.scores, self.method.sparsity)),
            batches,
            placement=self.problem.placement,
            costs=self.costs,
        )


@dataclass(frozen=True)
class Hydra(Pruner):
    """Learn which of the dense weights to keep, the weights frozen, then fine-tune.

    The loss is that of the network under the exact top-k mask of the scores, at the final sparsity
    from the start; its gradient with respect to the mask goes straight through to the scores, which
    begin as scaled magnitudes. Their step is relative to their spread (``fb.train.SCORE_RULES``),
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
    runs: ClassVar[Any] = HydraRun
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _options.finite(self, "score_step")
        if self.enforce and "prune" in self.enforce_in:
            raise ValueError("hydra learns its scores without constraints: enforce them elsewhere")

    def plan(self, problem: FairPruningProblem, reference: Reference | None = None) -> Plan:
        """As of every pruner; the steps of pruning move scores alone."""
        plan = super().plan(problem, reference)
        phases = (dataclasses.replace(p, trains=p.name != "prune") for p in plan.phases)
        return dataclasses.replace(plan, phases=tuple(phases))

    def scores(self, at: Moment) -> Masks:
        """Where scores begin."""
        kind = masks.usual_start(at.granularity)
        return masks.start_scores(kind, at.network, at.layers, at.granularity, at.key)


def _begin(budget: Budget, scores: Masks, keep: Any) -> tuple[Masks, Any]:
    memory = SCORE_RULES["adam"].init(scores)
    return budget.top_k(scores, keep), (memory, jnp.maximum(masks.spread(scores), 0.1))


_BEGUN = Program(_begin)


def _score_stretch(
    structure: tuple[Steps, Budget, str],
    state: RunState,
    numbers: Numbers,
    run: Stretch,
    keep: Any,
    batches: Batch,
) -> tuple[RunState, Any, StretchLog]:
    """Score steps, one a batch."""
    steps, budget, granularity = structure
    layers, params, rule = steps.structure.layers, state.weights.params, SCORE_RULES["adam"]
    plain = Steps(steps.structure, (), steps.optimizer, steps.dual_rule)
    none = RowWeights((), jnp.zeros((), bool))
    spread: Float[Array, ""] = state.outer[1]

    def step(state: RunState, index: Array) -> tuple[RunState, StepLog]:
        hard = budget.top_k(state.scores, keep)
        z = masks.apply(hard, params, layers, granularity)
        q, aux = jax.grad(plain.objective, has_aux=True)(
            z, state.weights.model_state, at(batches, index), none, numbers, state.weights.draw
        )
        gradient = masks.collect(jax.tree.map(jnp.multiply, params, q), layers, granularity)
        updates, memory = rule.update(gradient, state.outer[0], state.scores)
        rate = run.rates[index] * spread
        scores = optax.apply_updates(state.scores, jax.tree.map(lambda u: rate * u, updates))
        weights = state.weights._replace(model_state=aux.model_state, drawn=state.weights.drawn + 1)
        state = state._replace(weights=weights, scores=scores, outer=(memory, spread))
        return state, StepLog(aux.loss, aux.accuracy, jnp.zeros((), bool))

    state, log = repeated(step, state, run.count, run.rates.shape[0])
    state = state._replace(kept=budget.top_k(state.scores, keep))
    z = masks.apply(state.kept, params, layers, granularity)
    finite = all_finite((state.scores, state.weights.model_state))
    violations = steps.violations(state.weights.duals, numbers)
    return state, z, StretchLog(log, finite, violations)


_MOVED = Program(
    _score_stretch, donate=True, steers=lambda state, numbers, run, *rest: (run.count, run.measures)
)
