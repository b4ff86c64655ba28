"""One run of a pruner: fair training before pruning (if asked), rounds, fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from fairbilevel import masks
from fairbilevel.devices import Program
from fairbilevel.masks import Masks
from fairbilevel.problem import FairPruningProblem, Structure
from fairbilevel.pruners._moment import Moment
from fairbilevel.train import STREAM_SCORES, Batch, MethodRun, RunState, Solution

if TYPE_CHECKING:
    from fairbilevel.pruners._pruner import Pruner


def _score(
    structure: tuple[Any, Structure, str],
    params: Any,
    model_state: Any,
    kept: Masks,
    batches: Batch | None,
    moments: Any,
    seed: Array,
    round_: Array,
) -> Any:
    pruner, problem, granularity = structure
    key = jax.random.fold_in(jax.random.key(seed), round_)
    network = masks.apply(kept, params, problem.layers, granularity)
    return pruner.scores(
        Moment(problem, network, model_state, kept, granularity, batches, key, moments)
    )


_SCORED = Program(_score)


def training_rows(problem: FairPruningProblem) -> Int[np.ndarray, " n"]:
    """Fit and select together: methods without an outer problem see the same data."""
    return np.sort(np.concatenate([problem.roles["fit"], problem.roles["select"]]))


class PrunerRun(MethodRun):
    """One run of a pruner: see ``MethodRun``."""

    method: Pruner

    def set_up(self) -> None:
        """The rows that are looked at, and how the steps are shared out."""
        method, problem, reference = self.method, self.problem, self.reference
        rows = training_rows(problem)
        self.parts = method.parts(problem, reference, rows) if method.passes else []
        self.feed.problem = method.view(problem, rows)
        self.split = method.split(problem, reference)
        self.removed = 0  # rounds behind it

    @property
    def dual_rows(self) -> Int[np.ndarray, " n"]:
        """The training rows."""
        return training_rows(self.problem)

    def acts(self, phase: str) -> bool:
        """Whether constraints act in a phase."""
        return self.method.acts(self.problem, phase)

    def init(self) -> RunState:
        """The state at the dense weights, nothing removed."""
        place, network = self.problem.placement.place, self.reference.network
        kept = self.everything()
        scores = place({name: np.zeros(m.shape, m.dtype) for name, m in kept.items()})
        return RunState(self.begun(network, self.fresh()), kept, scores)

    def prepare(self, state: RunState) -> RunState:
        """Units removed: one round before each stage of pruning, what is left of them before
        fine-tuning."""
        if self.phase.name == "prune":
            return self._pruned(state, self.stage + 1)
        if self.phase.name == "finetune" and self.stage == 0:
            return self._pruned(state, self.split.rounds)
        return state

    def _pruned(self, state: RunState, rounds: int) -> RunState:
        """The state after so many rounds."""
        method = self.method
        while self.removed < rounds:
            scores = self.score(state)
            self.removed += 1
            kept = method.select(self, scores, state.kept, self.sparsity)
            weights = method.rewound(state.weights, self)
            state = state._replace(kept=kept, scores=method.ranking(scores), weights=weights)
        return state

    def score(self, state: RunState) -> Any:
        """The method's scores of the network as it is, booked."""
        batches, weights = self._sample(), state.weights
        self.costs.gradient_evaluations += self.split.scoring
        place = self.problem.placement
        numbers = place.place(
            (self.problem.encoder.moments, np.uint32(self.method.seed), np.uint32(self.removed))
        )
        with self.costs.timed():
            return _SCORED(
                (self.method.own, self.problem.structure, self.method.granularity),
                weights.params,
                weights.model_state,
                state.kept,
                batches,
                *numbers,
                placement=place,
                costs=self.costs,
            )

    def _sample(self) -> Batch | None:
        if not self.parts:
            return None
        each = [
            self.feed.take(rows, STREAM_SCORES + i, self.split.batches, self.batch_size)
            for i, rows in enumerate(self.parts)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    @property
    def sparsity(self) -> float:
        """After the rounds so far."""
        return self.method.sparsity_at(self.removed / self.split.rounds) if self.removed else 0.0

    def finish(self, state: RunState) -> Solution:
        """The best network of fine-tuning, recalibrated."""
        return super().finish(self._pruned(state, self.split.rounds))

    def _about(self) -> dict[str, Any]:
        return {**super()._about(), "removed": self.removed}

    def _restore(self, tree: Any, about: dict[str, Any]) -> RunState:
        self.removed = about["removed"]
        return super()._restore(tree, about)
