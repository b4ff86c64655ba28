"""The one loop of every run: its phases stage by stage, from where a former one stopped."""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import jax
import numpy as np

from fairbilevel.devices import Program, copied
from fairbilevel.masks import Masks
from fairbilevel.problem import FairPruningProblem, Network, Numbers, Reference
from fairbilevel.records import Activity
from fairbilevel.train._batches import STREAM_DUALS, STREAM_FIT, Batch, Feed
from fairbilevel.train._divergence import DivergenceError, Retreats, check_finite
from fairbilevel.train._feasibility import Watch
from fairbilevel.train._plan import FORWARD_COST, Costs, Phase, Plan
from fairbilevel.train._report import (
    Best,
    Callback,
    Candidate,
    Noise,
    Report,
    TuneRecord,
    check_judged,
    tune_record,
)
from fairbilevel.train._rules import Rules, _begin
from fairbilevel.train._state import DualState, WeightState
from fairbilevel.train._steps import masked
from fairbilevel.train._stretch import StretchLog, joined, lengths, pieces, stretch, weight_stretch

_begun = Program(_begin)


class RunState(NamedTuple):
    """The whole state of a run between two stages: one pytree.

    Attributes:
        weights: weights, statistics, optimizer, multipliers, buffers, key.
        kept: hard masks by layer; none while nothing is pruned.
        scores: of the units, by layer; likewise.
        outer: what a method remembers beside them.
    """

    weights: WeightState
    kept: Masks
    scores: Masks
    outer: Any = ()


class StagedRun(ABC):
    """A run: ``init``, then ``step`` for each of ``stages``.

    A stage is prepared (units are removed, the budget moves), trained in compiled calls, checked,
    judged on tune, recorded and checkpointed; one that diverged is taken back and run again with
    smaller steps, a bounded number of times. Subclasses plan the phases, make the first state, say
    what is prepared, and may train otherwise than by weight steps.

    Args:
        problem: what is trained on.
        reference: the dense model, ``None`` while it is trained itself.
        rules: constraints and what moves weights and multipliers.
        seed: of the rows' order and the state's key.
        batch_size: rows of a nominal batch, over all devices.
        callback: receives one record a stage.
        costs: where time and gradient evaluations are booked.

    Raises:
        ValueError: a batch that cannot be split evenly over the problem's devices.
    """

    plan: Plan

    def __init__(
        self,
        problem: FairPruningProblem,
        reference: Reference | None,
        rules: Rules,
        *,
        seed: int,
        batch_size: int,
        callback: Callback,
        costs: Costs | None = None,
    ):
        problem.placement.check_batch(batch_size)
        self.problem, self.reference, self.rules = problem, reference, rules
        self.steps, self.seed, self.batch_size = rules.steps(problem), seed, batch_size
        self.costs = Costs() if costs is None else costs
        self.report = Report(callback, self.costs)
        self.feed = Feed(problem, reference, seed, rules.distill)
        self.length, self.dual_length = lengths(batch_size * problem.inputs[:1].nbytes)
        self.phase_index = self.stage = 0
        self.retreats = Retreats()
        self.watch: Watch | None = None
        self.noise = Noise.of(problem, reference)
        self.best = Best(self.noise)

    @abstractmethod
    def init(self) -> RunState:
        """The state before the first stage."""

    def enter(self, state: RunState) -> RunState:
        """The state as the phase that begins wants it (``self.phase``)."""
        return state

    def prepare(self, state: RunState) -> RunState:
        """The state as the stage that begins wants it."""
        return state

    @abstractmethod
    def factors(self, state: RunState) -> Any:
        """The multiplier of every parameter in the stage to come."""

    @property
    def sparsity(self) -> float | None:
        """Of the stage to come, for the log."""
        return 0.0

    @property
    def enforces(self) -> bool:
        """Whether constraints act in the phase."""
        return False

    @property
    def watched(self) -> bool:
        """Whether ``watch`` looks at the networks of the phase."""
        return False

    @property
    def activity(self) -> Activity | None:
        """The run's checkpoints, if there are to be any."""
        return None

    @property
    def phase(self) -> Phase:
        """The phase under way."""
        return self.plan.phases[self.phase_index]

    @property
    def stages(self) -> int:
        """Stages of the whole run."""
        return sum(len(p.stages) for p in self.plan.phases)

    @property
    def done(self) -> int:
        """Stages behind it."""
        before = self.plan.phases[: self.phase_index]
        return sum(len(p.stages) for p in before) + self.stage

    def run_stages(self) -> RunState:
        """All stages, from the newest checkpoint on.

        Raises:
            DivergenceError: the loss is not finite or exploded, with smaller steps too.
            Interrupted: a stop was asked, and a checkpoint written.
            CheckpointError: checkpoints of another run, or one that cannot be written.
        """
        state, activity = self.init(), self.activity
        if activity is not None and (found := activity.resume(lambda a: self._like(state, a))):
            state = self._restore(*found)
        while self.done < self.stages:
            state = self.step(state)
            if activity is not None:
                tree = functools.partial(self._tree, state)
                best = self.best.chosen
                activity.save(
                    self.done,
                    tree,
                    self._about,
                    last=self.done == self.stages,
                    score=None if best is None else best.accuracy - best.excess,
                )
        return state

    def step(self, state: RunState) -> RunState:
        """One stage; ``state`` is donated: use the one that comes back.

        Raises:
            DivergenceError: the loss is not finite or exploded, with smaller steps too.
        """
        phase, begin, waited = self.phase, time.perf_counter(), self.feed.waited
        self.feed.distill = self.distill
        with self.costs.timed():
            if self.stage == 0:
                self.best, self.retreats = Best(self.noise, self.enforces), Retreats()
                state = self.enter(state)
            state = self.prepare(state)
        while True:
            position, first = self.feed.state(), phase.before(self.stage)
            try:
                after, log, network, record = self._attempt(state)
                break
            except DivergenceError as error:
                error.last_good = self.network(state)
                self.report.rollbacks.append(self.retreats.retreat(error, first))
                self.feed.restore(position)
        if phase.chooses:
            self.best.offer(record, network, self._copied)
        if self.watch is not None and self.watched:
            self.watch.look(network, after.weights.duals)
        waiting = (self.feed.waited - waited) / (time.perf_counter() - begin)
        self._write(after, log, record, waiting)
        self.stage += 1
        if self.stage == len(phase.stages) and self.phase_index + 1 < len(self.plan.phases):
            self.phase_index, self.stage = self.phase_index + 1, 0
        return after

    @property
    def distill(self) -> float:
        """Share of the dense outputs in the losses of the stage to come.

        Less as the network comes within noise of its teacher on tune, nothing where it is as good:
        what is left to learn is in the labels.
        """
        rows, seen, noise = self.problem.watched, self.report.history, self.noise.accuracy
        if self.reference is None or not (len(rows) and seen and noise):
            return self.rules.distill
        teacher = float(self.reference.correct[rows].mean())
        behind = (teacher - seen[-1]["tune"]["accuracy"]) / noise
        return self.rules.distill * float(np.clip(behind, 0, 1))

    def network(self, state: RunState) -> Network:
        """The network of a state as the stage to come computes with it."""
        return Network(masked(self.factors(state), state.weights.params), state.weights.model_state)

    def _attempt(self, state: RunState) -> tuple[RunState, StretchLog, Network, TuneRecord]:
        phase, classes = self.phase, len(self.problem.data.classes)
        first = phase.before(self.stage)
        state, log, z = self._stage(self._copied(state))
        network = Network(z, state.weights.model_state)
        check_finite(np.asarray(log.steps.loss), bool(log.finite), phase.name, first, classes)
        record = tune_record(self.problem, network, self.reference)
        check_judged(record, phase.name, first + phase.stages[self.stage], classes)
        return state, log, network, record

    def _stage(self, state: RunState) -> tuple[RunState, StretchLog, Any]:
        """The stage's steps in as many compiled calls as it takes."""
        phase, z = self.phase, None
        logs: list[Any] = []
        first = phase.before(self.stage)
        measures = phase.measures[first : first + phase.stages[self.stage]]
        # Where multipliers move on the steps' own passes, no dual batch limits a call.
        looks = self.length if phase.dual_rows is None else self.dual_length
        calls = pieces(measures, self.length, looks)
        with self.costs.timed():
            factors = self.factors(state)
            self.feed.busy = lambda: bool(logs) and not logs[-1].finite.is_ready()
            for begin, count in calls:
                part = slice(first + begin, first + begin + count)
                state, z, log = self.stretch(state, part, factors)
                logs.append(log)
                if len(logs) > 1:  # one call computes while the next one's rows are gathered
                    jax.block_until_ready(logs[-2].finite)
            jax.block_until_ready(z)
        self.feed.busy = lambda: False
        return state, joined(logs, [count for _, count in calls]), z

    def stretch(
        self, state: RunState, part: slice, factors: Any
    ) -> tuple[RunState, Any, StretchLog]:
        """One compiled call: the steps ``part`` of the phase.

        Returns:
            The state, the network's parameters ``z``, the log.
        """
        phase, place = self.phase, self.problem.placement.place
        measures = phase.measures[part]
        self.costs.gradient_evaluations += phase.cost(part)
        run = stretch(
            phase.rates[part] * self.retreats.scale, measures, self.length, self.retreats.scale
        )
        size, length = self.batch_size, self.length
        batches = self.feed.take(phase.rows, STREAM_FIT, len(measures), size, length=length)
        weights, z, log = weight_stretch(
            self.steps,
            state.weights,
            factors,
            self.numbers,
            place(run),
            batches,
            self.dual_batches(int(measures.sum())),
            placement=self.problem.placement,
            costs=self.costs,
        )
        return state._replace(weights=weights), z, log

    @functools.cached_property
    def numbers(self) -> Numbers:
        """What programs are told of the problem, on its devices."""
        rules = self.rules
        numbers = self.problem.numbers(
            rules.constraints,
            temperature=rules.temperature,
            shrink=rules.shrink,
            row_weights=rules.row_weights,
        )
        return self.problem.placement.place(numbers)

    @functools.cached_property
    def _nothing(self) -> Batch:
        """Dual batches where no multiplier moves."""
        feed, rows = Feed(self.problem, self.reference, 0), self.problem.roles["fit"]
        return feed.take(rows, STREAM_DUALS, 1, self.batch_size, length=self.dual_length)

    def begun(self, network: Network, duals: DualState, drawn: Any = None) -> WeightState:
        """The state at a network's weights, the optimizer afresh.

        Args:
            network: params and statistics.
            duals: multipliers and buffers.
            drawn: steps that drew random numbers before.
        """
        place, drawn = self.problem.placement, np.int32(0) if drawn is None else drawn
        start = place.place((network.params, network.state, duals, np.uint32(self.seed), drawn))
        with self.costs.timed():
            return _begun(self.rules.optimizer, *start, placement=place, costs=self.costs)

    def dual_batches(self, count: int) -> Batch:
        """The next ``count`` batches that move multipliers, booked; any where none do."""
        rows = self.phase.dual_rows
        if rows is None or not count:
            return self._nothing
        self.costs.gradient_evaluations += FORWARD_COST * count
        return self.feed.take(rows, STREAM_DUALS, count, self.batch_size, length=self.dual_length)

    def _copied(self, tree: Any) -> Any:
        return copied(tree, self.problem.placement)

    def _write(self, state: RunState, log: StretchLog, record: TuneRecord, waiting: float) -> None:
        phase = self.phase
        seen = {"multipliers": state.weights.duals.multipliers, "violations": log.violations}
        self.report.write(
            phase.name,
            phase.before(self.stage + 1),
            phase.steps,
            log.steps,
            record,
            self.sparsity,
            waiting=round(waiting, 4),
            **{name: self._named(values) for name, values in seen.items() if self.enforces},
            **self.more(log),
        )

    def _named(self, values: Any) -> dict[str, dict[str, float]]:
        """One array a constraint by constraint and label."""
        return {
            c.name: {
                label: round(float(v), 6)
                for label, v in zip(c.labels(self.problem.groups), np.asarray(each), strict=True)
            }
            for c, each in zip(self.rules.constraints, values, strict=True)
        }

    def more(self, log: StretchLog) -> dict[str, Any]:
        """What a method adds to its records."""
        return {}

    def _tree(self, state: RunState) -> Any:
        held = [(c.network.params, c.network.state) for c in self.best.held]
        return state, held

    def _like(self, state: RunState, about: dict[str, Any]) -> Any:
        state = self.problem.placement.place(state)
        network = (state.weights.params, state.weights.model_state)
        return state, [network] * len(about["best"])

    def _about(self) -> dict[str, Any]:
        return {
            "phase": self.phase_index,
            "stage": self.stage,
            "best": [[c.accuracy, c.excess] for c in self.best.held],
            "enforces": self.best.enforces,
            "feed": self.feed.state(),
            "report": self.report.state(),
            "watch": None if self.watch is None else self.watch.state(),
            "retreats": self.retreats.made,
        }

    def _restore(self, tree: Any, about: dict[str, Any]) -> RunState:
        state, held = tree
        self.phase_index, self.stage = about["phase"], about["stage"]
        self.retreats.made = about["retreats"]
        self.best = Best(self.noise, about["enforces"])
        self.best.held = [
            Candidate(accuracy, excess, Network(*network))
            for (accuracy, excess), network in zip(about["best"], held, strict=True)
        ]
        self.feed.restore(about["feed"])
        self.report.restore(about["report"])
        if self.watch is not None:
            self.watch.restore(about["watch"])
        return state
