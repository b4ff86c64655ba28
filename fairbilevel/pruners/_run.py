"""One run of a pruner: ``init``, then ``step`` for each of ``stages``, then ``finish``."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from fairbilevel import _trees, fairness, masks
from fairbilevel.masks import Masks
from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.pruners._moment import Moment
from fairbilevel.records import Checkpoints
from fairbilevel.train import (
    STREAM_SCORES,
    Batch,
    Callback,
    Compiled,
    Feed,
    Solution,
    StagedRun,
    Steps,
    WeightLoop,
    WeightState,
    fine_tune,
    multiplier_record,
    recalibration_cost,
    run_weights,
    sgd,
)

SCORING_SHARE = 0.5  # of the steps: what scores may cost at most


class PrunerState(NamedTuple):
    """The whole state between two stages: one pytree.

    Attributes:
        weights: weights, statistics, optimizer, multipliers, key.
        kept: hard masks by layer.
        scores: the last scores, as the method gives them.
        memory: what else a method remembers.
    """

    weights: WeightState
    kept: Masks
    scores: Any
    memory: Any = ()


class PrunerRun(StagedRun):
    """One run: stages of fair training before pruning (one, if asked), then one a round.

    Args:
        options: a ``Pruner``.
        problem: what to prune.
        reference: the dense model.
        callback: receives one record per compiled call.
        checkpoints: where checkpoints go; ``None`` writes none.

    Raises:
        ValueError: the sparsity leaves a layer empty where that cuts the network, or the steps do
            not pay for one scoring.
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
        self.rows = np.sort(np.concatenate([problem.roles["fit"], problem.roles["select"]]))
        self.parts = options.parts(problem, reference, self.rows) if options.passes else []
        self.constraints = self._enforced()
        self.feed = Feed(
            options.view(problem, self.rows), reference, options.seed, options.batch_size
        )
        self._score = Compiled(self._scores, self.costs, donate=False, placement=problem.placement)
        self._plan()
        self._done = 0

    def _enforced(self) -> tuple[fairness.Constraint, ...]:
        options, problem = self.options, self.problem
        if not options.enforce:
            return ()
        if options.constraints is None:
            return options.bounds(problem)
        return problem.bound(options.constraints)

    def acts(self, phase: str) -> bool:
        """Whether constraints act in a phase."""
        return bool(self.constraints) and phase in self.options.enforce_in

    def scoring_cost(self, batches: int) -> float:
        """Gradient evaluations of one round's scores."""
        return self.options.passes * len(self.parts) * batches

    def _plan(self) -> None:
        """Rounds, batches and steps that the gradient evaluations pay for."""
        options = self.options
        settle = recalibration_cost(self.reference.network)
        share = options.before_share if self.acts("before") else 0.0
        self.before_steps = int(share * options.steps) // 10 * 10
        left = options.steps - self.before_steps
        self.rounds, self.batches = options.rounds, options.batches
        while self.scoring_cost(self.batches) * self.rounds > SCORING_SHARE * left:
            if self.batches > 1:
                self.batches //= 2
            elif self.rounds > 1:
                self.rounds //= 2
            else:
                raise ValueError(
                    f"{options.steps} steps do not pay for one scoring of {options.name}: half of "
                    f"them must reach {self.scoring_cost(1):g} gradient evaluations"
                )
        left -= self.scoring_cost(self.batches) * self.rounds
        trained, self.stage_steps = self._trained_rounds, 0
        if options.trains and trained:
            pruning = int(options.pruning_share * left)
            while pruning < trained > left:
                self.rounds -= 1
                trained -= 1
            self.stage_steps = max(1, pruning // trained)
        self.prune_steps = trained * self.stage_steps
        self.fine_steps = max(int(left - self.prune_steps - settle), 0) // 10 * 10
        self.stages = bool(self.before_steps) + self.rounds

    @property
    def _trained_rounds(self) -> int:
        """Rounds after which weights train before the next."""
        return self.rounds - self.options.rewinds if self.options.trains else 0

    @property
    def _all_steps(self) -> int:
        return self.before_steps + self.prune_steps + self.fine_steps

    def _steps(self, phase: str, steps: int) -> Steps:
        options = self.options
        rule = options.optimizer or sgd(
            options.learning_rate, steps, decay_to_zero=self._decays(phase)
        )
        share = jnp.asarray(self.problem.share["fit"])
        if not self.acts(phase):
            return Steps(self.problem, rule, optax.identity(), (), 1, share)
        dual = fairness.multiplier_rule(options.dual_rule, options.dual_step)
        return Steps(self.problem, rule, dual, self.constraints, options.buffer_size, share)

    def _decays(self, phase: str) -> bool:
        """Whether a phase ends where its weights stay: its step then falls to zero."""
        return phase != "prune" or self.options.rewinds

    def _loop(self, steps: Steps) -> WeightLoop:
        return WeightLoop(steps, self.costs, joint=bool(steps.constraints))

    def init(self) -> PrunerState:
        """The state at the dense weights, nothing removed; compiles nothing yet."""
        options, problem = self.options, self.problem
        self.stage = self._done = self.retreats.made = 0
        dense = self.reference.network
        length = self.stage_steps if options.rewinds else self.prune_steps
        self.prune_rules = self._steps("prune", max(length, 1))
        self.prune_loop = self._loop(self.prune_rules)
        key = jax.random.key(options.seed)
        weights = self.prune_rules.init(_trees.copy(dense.params), _trees.copy(dense.state), key)
        kept = masks.start_scores(
            "constant", dense.params, problem.layers, options.granularity, key
        )
        return PrunerState(weights, kept, kept)

    def like(self, state: PrunerState, about: dict[str, Any]) -> PrunerState:
        """The first state, once units were scored with the scores' own structure."""
        if about["place"]["stage"] <= bool(self.before_steps):
            return state
        position = self.feed.state()
        batches, weights = self._sample(), state.weights
        self.feed.restore(position)
        scores = jax.eval_shape(
            self._scores, weights.params, weights.model_state, state.kept, batches, weights.key
        )
        return state._replace(scores=jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), scores))

    def place(self) -> dict[str, Any]:
        """What the run has changed beside the state, plain JSON."""
        return {**super().place(), "done": self._done}

    def go_to(self, place: dict[str, Any]) -> None:
        """Be where ``place`` was told."""
        super().go_to(place)
        self._done = place["done"]

    def use_smaller_steps(self) -> None:
        """Nothing: weights that train within a stage go back by themselves (``run_weights``)."""

    def step(self, state: PrunerState) -> PrunerState:
        """One stage: score and remove, then train what is left; or the fair training before.

        ``state`` is donated: use the one that comes back.

        Raises:
            DivergenceError: the loss is not finite or exploded, with smaller steps too.
        """
        if self.stage == 0 and self.before_steps:
            state = self._before(state)
        else:
            state = self._prune(state, self.stage - bool(self.before_steps))
        self.stage += 1
        return state

    def _before(self, state: PrunerState) -> PrunerState:
        """The dense network under the constraints, its multipliers dropped afterwards."""
        steps = self._steps("before", self.before_steps)
        weights = steps.init(*_network_of(state.weights))
        weights = self._train(
            self._loop(steps), weights, state.kept, self.before_steps, 10, 0.0, "before"
        )
        return state._replace(weights=self.prune_rules.init(*_network_of(weights)))

    def _prune(self, state: PrunerState, round_: int) -> PrunerState:
        options = self.options
        sparsity = options.sparsity_at((round_ + 1) / self.rounds)
        scores = self.score(state, round_)
        kept = options.select(self.budget, scores, state.kept, sparsity)
        weights = options.rewound(state.weights, self)
        if self.acts("prune"):  # the network just changed
            weights = weights._replace(duals=self.prune_rules.emptied(weights.duals))
        if self.stage_steps and round_ < self._trained_rounds:
            weights = self._train(self.prune_loop, weights, kept, self.stage_steps, 1, sparsity)
        return PrunerState(weights, kept, scores)

    def score(self, state: PrunerState, round_: int) -> Any:
        """The method's scores of the network as it is, booked."""
        batches = self._sample()
        self.costs.gradient_evaluations += self.scoring_cost(self.batches)
        weights = state.weights
        key = jax.random.fold_in(jax.random.key(self.options.seed), round_)
        return self._score(weights.params, weights.model_state, state.kept, batches, key)

    def _sample(self) -> Batch | None:
        if not self.parts:
            return None
        each = [
            self.feed.take(rows, STREAM_SCORES + i, self.batches)
            for i, rows in enumerate(self.parts)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    def _scores(
        self, params: Any, model_state: Any, kept: Masks, batches: Batch | None, key: Array
    ) -> Any:
        problem, granularity = self.problem, self.options.granularity
        network = masks.apply(kept, params, problem.layers, granularity)
        at = Moment(problem, network, model_state, kept, granularity, batches, key)
        return self.options.scores(at)

    def _factors(self, kept: Masks, params: Any) -> Any:
        return masks.expand(kept, params, self.problem.layers, self.options.granularity)

    def _train(
        self,
        loop: WeightLoop,
        weights: WeightState,
        kept: Masks,
        steps: int,
        segments: int,
        sparsity: float,
        activity: str | None = None,
    ) -> WeightState:
        factors = self._factors(kept, weights.params)
        weights = run_weights(
            loop,
            self.feed,
            weights,
            lambda segment, current: factors,
            phase="prune",
            rows=self.rows,
            dual_rows=None,
            steps=steps,
            segments=segments,
            report=self.report,
            best=None,
            sparsity_at=lambda segment: sparsity,
            steps_before=self._done,
            steps_after=self._all_steps - self._done - steps,
            activity=None if activity is None else self.activity(activity),
        )
        self._done += steps
        return weights

    def finish(self, state: PrunerState) -> Solution:
        """Fine-tuning under the final masks, recalibration.

        Raises:
            DivergenceError: the loss is not finite or exploded, with smaller steps too.
            ValueError: the masks cut the network.
        """
        options, problem = self.options, self.problem
        steps = self._steps("fine-tune", self.fine_steps)
        weights = steps.init(*_network_of(state.weights))
        if self.acts("prune") and self.acts("fine-tune"):
            weights = weights._replace(duals=steps.emptied(state.weights.duals))
        network, weights = fine_tune(
            self._loop(steps),
            self.feed,
            weights,
            state.kept,
            granularity=options.granularity,
            phase="finetune",
            rows=self.rows,
            dual_rows=None,
            steps=self.fine_steps,
            report=self.report,
            sparsity=options.sparsity,
            steps_before=self._done,
            activity=self.activity("finetune"),
        )
        return Solution(
            options.label,
            problem,
            self.reference,
            network,
            state.kept,
            state.scores,
            multiplier_record(steps.constraints, weights.duals, problem.groups),
            options.granularity,
            self.budget,
            options.sparsity,
            self.costs,
            self.report.history,
            self.report.warnings(),
            rollbacks=tuple(self.report.rollbacks),
        )


def _network_of(weights: WeightState) -> tuple[Any, Any, Array]:
    return weights.params, weights.model_state, weights.key
