"""What a pruner sees of a network when it scores it, and one run of it: fair training before
pruning (if asked), rounds, fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from fairbilevel import _xla, fairness, masks, models
from fairbilevel.devices import Program
from fairbilevel.masks import Layers, Masks
from fairbilevel.problem import FairPruningProblem, Structure
from fairbilevel.train import STREAM_SCORES, Batch, MethodRun, RunState, Solution, accumulated


@dataclass(frozen=True, eq=False)
class Moment:
    """A network under its present masks, and rows to judge its weights by.

    Everything is traced: scores are computed in one compiled call. The network is taken in
    evaluation mode, where rows do not influence each other and nothing is dropped.

    Attributes:
        structure: of the problem that is pruned: model, layers, shape of a row.
        network: ``z = m * theta``, the parameters as the network computes with them.
        model_state: normalization statistics.
        kept: the masks so far, one where a unit is still there.
        granularity: ``"weight"`` or ``"filter"``.
        batches: rows to look at, leaves ``[parts, batches, batch size, ...]``; ``None`` where the
            method looks at none.
        key: random key of this scoring.
        moments: what inputs are standardized by.
    """

    structure: Structure
    network: Any
    model_state: Any
    kept: Masks
    granularity: str
    batches: Batch | None
    key: Array
    moments: tuple[Array, ...] = ()

    @property
    def layers(self) -> Layers:
        """What can be pruned."""
        return self.structure.layers

    def logits(self, params: Any, batch: Batch) -> Float[Array, "rows classes"]:
        """Logits of a batch, in the precision of training."""
        model = models.in_precision(self.structure.model, self.structure.precision)
        given = dataclasses.replace(self.structure, model=model)
        return given.forward(params, self.model_state, batch.x, self.moments, False, self.key)[0]

    def loss(self, params: Any, batch: Batch, temperature: float = 1.0) -> Float[Array, ""]:
        """Mean cross-entropy of a batch in nats, rows weighted, logits divided by a temperature."""

        def part(params: Any, batch: Batch, key: Array) -> Float[Array, ""]:
            v = fairness.margin(self.logits(params, batch) / temperature, batch.y)
            return jnp.mean(batch.weight * fairness.cross_entropy(v))

        return self.over_rows(part, params, batch, self.key)

    def over_rows(
        self, part: Callable[[Any, Batch, Array], Float[Array, ""]],
        params: Any, batch: Batch, key: Array,
    ) -> Float[Array, ""]:  # fmt: skip
        """``part(params, batch, key)``, a mean over rows; where the problem accumulates that of its
        micro-batches, one after the other, so that a gradient takes the memory of one of them."""
        count = self.structure.accumulate
        if count == 1:
            return part(params, batch, key)
        return accumulated(lambda *piece: (part(*piece), ()), params, batch, key, count)[0]

    def by_part(self, function: Callable[[Batch, Array], Any]) -> Any:
        """The mean of ``function(batch, key)`` over the batches of each part: ``[parts, ...]``."""
        batches = self.batches
        if batches is None:
            raise ValueError("this pruner looks at no rows: give its class a number of passes")
        parts, count = batches.y.shape[:2]
        keys = jax.random.split(self.key, (parts, count))

        def part(_: None, xs: tuple[Batch, Array]) -> tuple[None, Any]:
            first = jax.tree.map(lambda leaf: leaf[0], xs)
            zero = optax.tree.zeros_like(jax.eval_shape(function, *first))

            def add(total: Any, one: tuple[Batch, Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, function(*one)), None

            total, _ = jax.lax.scan(add, zero, xs)
            return None, jax.tree.map(lambda leaf: leaf / count, total)

        _, means = _xla.scan(part, None, (batches, keys))
        return means

    def mean(self, function: Callable[[Batch, Array], Any]) -> Any:
        """The mean of ``function(batch, key)`` over all batches."""
        return jax.tree.map(lambda leaf: leaf.mean(0), self.by_part(function))

    def units(self, entries: Any) -> Masks:
        """Sums over the parameters that share a mask's entry: what entry by entry is ``z * dF/dz``,
        like the parameters, becomes the derivative ``dF/dm`` of a unit's mask at one."""
        return masks.collect(entries, self.layers, self.granularity)


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
