"""One run of the bilevel solver: stages that move the budget and search the mask, fine-tuning."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Int

from fairbilevel import masks
from fairbilevel.devices import Program
from fairbilevel.hypergrad import FirstOrder, Status, Unrolled
from fairbilevel.masks import CubicSchedule, Masks
from fairbilevel.problem import Network
from fairbilevel.solver._step import OuterStep, inner_steps, outer_stretch, own_numbers
from fairbilevel.train import (
    SCORE_RULES,
    STREAM_FIT,
    STREAM_SELECT,
    MethodRun,
    RunState,
    StretchLog,
    held_then_falling,
    masked,
    stretch,
)

if TYPE_CHECKING:
    from fairbilevel.solver._bilevel import BilevelSolver


def _begin(
    structure: tuple[OuterStep, str], params: Any, keep: dict[str, Any], seed: Array
) -> tuple[Masks, Any]:
    return structure[0].init(_starts(structure, params, seed), params, keep)


def _starts(structure: tuple[OuterStep, str], params: Any, seed: Array) -> Masks:
    outer, start = structure
    key = jax.random.split(jax.random.key(seed))[1]
    return masks.start_scores(start, params, outer.steps.structure.layers, outer.granularity, key)


_BEGUN, _STARTED = Program(_begin, once=True), Program(_starts, once=True)


class BilevelRun(MethodRun):
    """One run of the solver: see ``MethodRun``."""

    method: BilevelSolver

    def set_up(self) -> None:
        """The outer step, and the rows it takes."""
        method, problem = self.method, self.problem
        self.schedule = CubicSchedule(method.sparsity, method.budget_share)
        self.select_rows = method.select_rows(problem)
        self.sizes = method.sizes(problem)
        gradient = method.hypergradient
        if isinstance(gradient, (Unrolled, FirstOrder)):
            # They move the weights by the run's own rule.
            gradient = dataclasses.replace(gradient, optimizer=self.rules.optimizer)
        if isinstance(gradient, Unrolled):
            gradient = dataclasses.replace(gradient, args_per_step=True)
        self.outer_step = OuterStep(
            self.steps,
            gradient,
            method.outer_optimizer or SCORE_RULES[method.score_rule],
            method.relaxes,
            self.budget,
            method.granularity,
            self.sizes[0],
            method.starts if method.follow_weights and method.starts in masks.MAGNITUDES else "",
            method.constrain_masks,
            method.constrain_weights,
            method.of_select(self.problem),
            method.plain_steps > 0,
            method.outer_optimizer is None,
        )

    @property
    def dual_rows(self) -> Int[np.ndarray, " n"]:
        """Those that no gradient uses."""
        return self.problem.select_duals

    def acts(self, phase: str) -> bool:
        """Whether constraints act in a phase."""
        return bool(self.enforced) and (phase == "bilevel" or self.method.constrain_weights)

    def init(self) -> RunState:
        """The state at the dense weights and the scores' start."""
        method, place = self.method, self.problem.placement
        network, seed = self.reference.network, np.uint32(method.seed)
        weights = self.begun(network, self.fresh())
        structure = (self.outer_step, method.starts)
        with self.costs.timed():
            params, seed = place.place((network.params, seed))
            scores = None
            if self.budget.by_layer:
                scores = _STARTED(structure, params, seed, placement=place, costs=self.costs)
            keep = place.place(self.counts(scores, self._sparsity_at(1)))
            scores, outer = _BEGUN(structure, params, keep, seed, placement=place, costs=self.costs)
        return RunState(weights, self.everything(), scores, outer)

    def _sparsity_at(self, stage: int) -> float:
        """After so many stages of the search."""
        stages = len(self.plan.phases[0].stages) if self._searches else 1
        return self.schedule(min(stage, stages) / stages)

    @property
    def _searches(self) -> bool:
        return bool(self.plan.phases) and self.plan.phases[0].name == "bilevel"

    @property
    def sparsity(self) -> float:
        """Of the stage to come."""
        searching = self._searches and self.phase_index == 0
        return self._sparsity_at(self.stage + 1) if searching else self.method.sparsity

    def masks(self, state: RunState) -> Masks:
        """Hard masks of the current scores at the sparsity of the last stage."""
        if not self._searches or self.phase_index:
            done = self.method.sparsity
        else:
            done = self._sparsity_at(max(self.stage, 1))
        return self.selected(state.scores, self.everything(), done)

    def network(self, state: RunState) -> Network:
        """The network under hard masks."""
        weights = state.weights
        z = masked(self.expanded(self.masks(state), state), weights.params)
        return Network(z, weights.model_state)

    def enter(self, state: RunState) -> RunState:
        """The final mask is taken where the search ends."""
        if self.phase.name != "bilevel":
            state = state._replace(kept=self.masks(state))
        return super().enter(state)

    def factors(self, state: RunState) -> Any:
        """Of the final masks; the search makes its own in every step."""
        searching = bool(self.plan.phases) and self.phase.name == "bilevel"
        return None if searching else super().factors(state)

    def stretch(
        self, state: RunState, part: slice, factors: Any
    ) -> tuple[RunState, Any, StretchLog]:
        """Outer steps while searching, else weight steps."""
        phase, method, place = self.phase, self.method, self.problem.placement.place
        if phase.name != "bilevel":
            return super().stretch(state, part, factors)
        self.costs.gradient_evaluations += phase.cost(part)
        steps, scale = np.arange(phase.steps)[part], self.retreats.scale
        each = inner_steps(self.outer_step.method)
        searches = steps % (1 + method.plain_steps) == 0
        held = held_then_falling(phase.steps, method.budget_share)
        falling = method.score_rate(phase.steps) * held
        own = own_numbers(
            scale * (falling if method.outer_optimizer is None else np.ones(phase.steps))[part],
            steps / phase.steps,
            searches,
            self.counts(state.scores, self.sparsity),
            self.length,
        )
        measures = phase.measures[part]
        run = stretch(phase.rates[part] * scale, measures, self.length, scale)
        rows = self.batch_size if method.plain_steps else self.sizes[0]
        fit = self.feed.take(
            phase.rows, STREAM_FIT, len(steps) * each, rows, length=self.length * each
        )
        if isinstance(self.outer_step.method, Unrolled):
            fit = jax.tree.map(lambda leaf: leaf.reshape(self.length, each, *leaf.shape[1:]), fit)
        select = self.feed.take(
            self.select_rows, STREAM_SELECT, int(searches.sum()), self.sizes[1], length=self.length
        )
        return outer_stretch(
            self.outer_step,
            state,
            self.numbers,
            place(run),
            place(own),
            fit,
            select,
            self.dual_batches(int(measures.sum())),
            placement=self.problem.placement,
            costs=self.costs,
        )

    def more(self, log: StretchLog) -> dict[str, Any]:
        """Mean residual of the stage's linear systems, and the share of steps by status."""
        if not log.more:
            return {}
        residual, status = log.more
        looked = status >= 0
        if not looked.any():
            return {}
        kinds = [s for s in Status if s != Status.DONE]
        shares = {s.name.lower(): float(np.mean(status[looked] == s)) for s in kinds}
        found = {name: share for name, share in shares.items() if share}
        return {"hypergradient": {"residual": float(np.mean(residual[looked])), **found}}
