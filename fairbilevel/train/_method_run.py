"""One run of a method, stage by stage."""

from __future__ import annotations

import functools
from abc import abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from fairbilevel import masks
from fairbilevel.devices import Program
from fairbilevel.masks import Budget, Masks
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.records import Activity, Checkpoints
from fairbilevel.train._batches import STREAM_REFRESH
from fairbilevel.train._expected import data_expected, digest, settings
from fairbilevel.train._feasibility import Feasibility, Watch
from fairbilevel.train._finished import answers, matched, recalibrated
from fairbilevel.train._method import Method
from fairbilevel.train._plan import RECALIBRATION_BATCHES
from fairbilevel.train._report import Callback
from fairbilevel.train._run import RunState, StagedRun
from fairbilevel.train._solution import Solution


def _expand(structure: tuple[masks.Layers, str], kept: Masks, params: Any) -> Any:
    layers, granularity = structure
    factors = masks.expand(kept, params, layers, granularity)
    return jax.tree.map(lambda m, p: jnp.broadcast_to(m, p.shape).astype(p.dtype), factors, params)


def _select(budget: Budget, scores: Masks, kept: Masks, keep: dict[str, Array]) -> Masks:
    left = {name: jnp.where(kept[name] > 0, s, -jnp.inf) for name, s in scores.items()}
    return budget.top_k(left, keep)


_EXPANDED = Program(_expand)
_SELECTED = Program(_select)


class MethodRun(StagedRun):
    """One run of a method: ``init``, ``step`` for each of ``stages``, ``finish``; or ``run``.

    Arguments and errors are those of ``Method.start``.
    """

    reference: Reference

    def __init__(
        self,
        method: Method,
        problem: FairPruningProblem,
        reference: Reference,
        callback: Callback,
        checkpoints: Checkpoints | None = None,
    ):
        super().__init__(
            problem,
            reference,
            method.rules(problem),
            seed=method.seed,
            batch_size=method.batch_size,
            callback=callback,
        )
        self.method, self.checkpoints = method, checkpoints
        self.allocation = method.allocation(problem)
        self.budget = self.allocation.budget
        self.enforced = method.enforced(problem)
        self.plan = method.plan(problem, reference)
        self.watch = Watch(problem.under(self.enforced), reference)
        self.set_up()

    def set_up(self) -> None:
        """What a run of a subclass needs beside that."""

    def acts(self, phase: str) -> bool:
        """Whether constraints act on the weights in a phase."""
        return False

    def masks(self, state: RunState) -> Masks:
        """Hard masks of a state."""
        return dict(state.kept)

    def run(self) -> Solution:
        """All stages and the end, from the newest checkpoint on; errors as of ``Method.run``, and
        ``CheckpointError`` for checkpoints of another run or one that cannot be written."""
        return self.finish(self.run_stages())

    @functools.cached_property
    def activity(self) -> Activity | None:
        """The run's checkpoints, if there are to be any."""
        if self.checkpoints is None:
            return None
        expected = {
            **data_expected(self.problem),
            "dense model": digest(self.reference.network),
            "method": self.method.label,
            **settings(self.method),
        }
        return self.checkpoints.activity("method", expected)

    @property
    def enforces(self) -> bool:
        """Whether constraints act in the phase."""
        return self.acts(self.phase.name)

    @property
    def watched(self) -> bool:
        """While a final mask is fine-tuned, and the multipliers' rows are nobody else's."""
        return self.phase.name == "finetune" and self.enforces and self.phase.dual_rows is not None

    def fresh(self) -> Any:
        """Multipliers at zero, buffers empty."""
        problem, rows = self.problem, self.dual_rows
        shape = (len(problem.groups), len(problem.data.classes))
        cell = problem.group[rows] * shape[1] + problem.y[rows]
        count = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
        return self.steps.duals(self.rules.duals, self.rules.buffer_size, count)

    @property
    @abstractmethod
    def dual_rows(self) -> Int[np.ndarray, " n"]:
        """Rows that move the multipliers."""

    def enter(self, state: RunState) -> RunState:
        """The optimizer afresh; multipliers go on where constraints go on acting on one network."""
        phases = self.plan.phases
        if not self.phase_index:
            return state
        before = phases[self.phase_index - 1].name
        goes_on = self.enforces and self.acts(before) and before != "before"
        weights = state.weights
        network = Network(weights.params, weights.model_state)
        duals = weights.duals if goes_on else self.fresh()
        return state._replace(weights=self.begun(network, duals, weights.drawn))

    def everything(self) -> Masks:
        """Masks that keep all units."""
        units = self.problem.layers.units(self.method.granularity)
        kind = jax.tree.leaves(self.problem.shapes.params)[0].dtype
        return self.problem.placement.place({u.name: np.ones(u.shape, kind) for u in units})

    def selected(self, scores: Masks, kept: Masks, sparsity: float) -> Masks:
        """Masks of exactly the budget: the best scores among the units that are still there."""
        place = self.problem.placement
        keep = place.place(masks.as_counts(self.counted(scores, kept, sparsity)))
        return _SELECTED(self.budget, scores, kept, keep, placement=place, costs=self.costs)

    def counted(self, scores: Any, kept: Masks | None, sparsity: float) -> dict[str, int]:
        """What the budget keeps at a sparsity, of scores among the units that are still there."""
        if not self.budget.by_layer:
            return self.allocation.keep(sparsity)
        scores, kept = self.problem.placement.readable((scores, kept or {}))
        left = {
            name: np.where(np.asarray(kept[name]) > 0, s, -np.inf) if name in kept else s
            for name, s in jax.tree.map(np.asarray, scores).items()
        }
        return self.allocation.keep(sparsity, left)

    def counts(self, scores: Any, sparsity: float) -> dict[str, Array]:
        """The same of all units, as device scalars."""
        return masks.as_counts(self.counted(scores, None, sparsity))

    def expanded(self, kept: Masks, state: RunState) -> Any:
        """The multiplier of every parameter under these masks."""
        structure = (self.problem.layers, self.method.granularity)
        place, params = self.problem.placement, state.weights.params
        return _EXPANDED(structure, kept, params, placement=place, costs=self.costs)

    def factors(self, state: RunState) -> Any:
        """Of the masks that the state holds."""
        return self.expanded(dict(state.kept), state)

    def finish(self, state: RunState) -> Solution:
        """The best network of the last phase, recalibrated, and its masks.

        Raises:
            CutNetworkError: the masks cut the network: its logits are the same for every row.
        """
        method, problem = self.method, self.problem
        best = self.best.network if self.plan.phases and self.phase.chooses else None
        network = self.network(state) if best is None else best
        rows = self.plan.phases[-1].rows if self.plan.phases else problem.roles["fit"]
        if jax.tree.leaves(network.state):
            with self.costs.timed():
                size = self.batch_size
                batches = self.feed.take(rows, STREAM_REFRESH, RECALIBRATION_BATCHES, size)
                self.costs.gradient_evaluations += self.plan.recalibration
                network = recalibrated(problem, network, batches)
        warnings = (*self.reference.warnings, *self.report.warnings())
        if len(biased := method.matching_rows(problem)):
            with self.costs.timed():
                self.costs.gradient_evaluations += self.plan.matching
                network, why = matched(problem, network, self.reference, biased)
            warnings = (*warnings, *why)
        constant = answers(problem, network, rows, method.sparsity)
        if constant is not None:
            warnings = (
                f"the network answers {constant!r} whatever it is shown: nothing is left of it but "
                "the commonest answer; ask for less sparsity or more steps",
                *warnings,
            )
        return Solution(
            method=method.label,
            problem=problem,
            reference=self.reference,
            network=network,
            masks=self.masks(state),
            scores=dict(state.scores),
            multipliers=next(
                (r["multipliers"] for r in reversed(self.report.history) if "multipliers" in r), {}
            ),
            granularity=method.granularity,
            allocation=self.allocation,
            sparsity=method.sparsity,
            costs=self.costs,
            history=self.report.history,
            warnings=warnings,
            feasibility=self._feasibility(network),
            rollbacks=tuple(self.report.rollbacks),
            constant_answer=constant,
        )

    def _feasibility(self, network: Network) -> Feasibility | None:
        """Of the final network; where the rows that tell joined the weights, of the last one before
        they did."""
        if self.watch is None or not self.watch.looks:
            return None
        return self.watch.assess(network if self.watched else None)
