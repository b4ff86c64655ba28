"""The one training loop: compiled segments of many steps, checked and reported between them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from fairbilevel import _trees, _xla
from fairbilevel.problem import FairPruningProblem, Network
from fairbilevel.records import Activity
from fairbilevel.train._batches import Batch
from fairbilevel.train._compiled import Compiled, Costs
from fairbilevel.train._divergence import (
    DivergenceError,
    Retreats,
    check_finite,
    smaller,
)
from fairbilevel.train._feasibility import Watch
from fairbilevel.train._feed import Feed
from fairbilevel.train._report import Best, Report, check_judged, tune_record
from fairbilevel.train._steps import DualState, StepLog, Steps, WeightState

# Streams of rows: one number each, so that no two of a run share their order.
STREAM_FIT, STREAM_SELECT, STREAM_DUALS, STREAM_REFRESH = 0, 1, 2, 3
STREAM_SCORES = 4  # the last: a method that scores several sets of rows counts on from here

FORWARD_COST = 1 / 3  # of a gradient evaluation: forward and backward is 1


def masked(factors: Any, params: Any) -> Any:
    """``z = m * theta``, leaf by leaf."""
    return jax.tree.map(lambda m, p: m * p, factors, params)


def dual_batches(steps: int, every: int) -> int:
    """How many dual batches a segment of ``steps`` needs when violations are measured ``every``."""
    return -(-steps // every)


def maybe_dual_step(
    steps: Steps, every: int, index: Array, duals: DualState, z: Any, model_state: Any, batches: Any
) -> DualState:
    """A dual step on every ``every``-th step, else the duals as they are."""

    def measure(state: DualState) -> DualState:
        batch = jax.tree.map(lambda leaf: leaf[index // every], batches)
        return steps.dual_step(state, z, model_state, batch)

    if every == 1:
        return measure(duals)
    return jax.lax.cond(index % every == 0, measure, lambda state: state, duals)


def settled_statistics(
    problem: FairPruningProblem, model_state: Any, z: Any, batches: Batch
) -> Any:
    """Normalization statistics of the network ``z``: running statistics over stacked batches,
    averaged over their second half. Pure."""

    def body(carry: Any, batch: Batch) -> tuple[Any, Any]:
        x = problem.normalize(batch.x)
        _, carry = problem.model.apply(z, carry, x, True, jax.random.key(0))
        return carry, carry

    last, seen = _xla.scan(body, model_state, batches)
    half = batches.y.shape[0] // 2

    def settle(final: Array, history: Array) -> Array:
        if not jnp.issubdtype(final.dtype, jnp.floating):
            return final
        return history[half:].mean(0)

    return jax.tree.map(settle, last, seen)


class WeightLoop:
    """Compiled training of weights under fixed masks, with constraints if there are any.

    Args:
        steps: the pure steps.
        costs: where time and gradient evaluations are booked.
        violation_every: steps between measurements of the true violations.
        joint: the multipliers move on each training batch's own forward pass
            (``Steps.joint_step``); then there are no dual batches.
    """

    def __init__(
        self, steps: Steps, costs: Costs, violation_every: int = 1, *, joint: bool = False
    ):
        self.steps, self.costs, self.every, self.joint = steps, costs, violation_every, joint
        self._step = steps.joint_step if joint else steps.weight_step
        placement = steps.problem.placement
        self._segment = Compiled(self.many, costs, placement=placement)
        self._refresh = Compiled(self._run_refresh, costs, placement=placement)

    def smaller(self, scale: float) -> WeightLoop:
        """The same loop with the steps of weights and multipliers scaled."""
        steps = dataclasses.replace(
            self.steps,
            optimizer=smaller(self.steps.optimizer, scale),
            dual_rule=smaller(self.steps.dual_rule, scale),
        )
        return WeightLoop(steps, self.costs, self.every, joint=self.joint)

    def many(
        self, state: WeightState, factors: Any, batches: Batch, dual_batches: Batch | None
    ) -> tuple[WeightState, StepLog]:
        """A step for each leading entry of ``batches``, in one loop. Pure."""

        def body(carry: WeightState, xs: tuple[Array, Batch]) -> tuple[WeightState, StepLog]:
            index, batch = xs
            carry, log = self._step(carry, factors, batch)
            if dual_batches is not None:
                z = masked(factors, carry.params)
                duals = maybe_dual_step(
                    self.steps, self.every, index, carry.duals, z, carry.model_state, dual_batches
                )
                carry = carry._replace(duals=duals)
            return carry, log

        count = batches.y.shape[0]
        return _xla.scan(body, state, (jnp.arange(count), batches))

    def segment(
        self, state: WeightState, factors: Any, batches: Batch, dual_batches: Batch | None
    ) -> tuple[WeightState, StepLog]:
        """Run a step for each leading entry of ``batches``, compiled; ``state`` is donated."""
        count = batches.y.shape[0]
        self.costs.gradient_evaluations += count
        if dual_batches is not None:
            self.costs.gradient_evaluations += FORWARD_COST * dual_batches.y.shape[0]
        return self._segment(state, factors, batches, dual_batches)

    def _run_refresh(self, model_state: Any, z: Any, batches: Batch) -> Any:
        return settled_statistics(self.steps.problem, model_state, z, batches)

    def refresh(self, model_state: Any, z: Any, batches: Batch) -> Any:
        """``settled_statistics``, compiled and booked."""
        if not jax.tree.leaves(model_state):
            return model_state
        self.costs.gradient_evaluations += FORWARD_COST * batches.y.shape[0]
        return self._refresh(model_state, z, batches)


def run_weights(
    loop: WeightLoop,
    feed: Feed,
    state: WeightState,
    factors_at: Callable[[int, WeightState], Any],
    *,
    phase: str,
    rows: Int[np.ndarray, " n"],
    dual_rows: Int[np.ndarray, " duals"] | None,
    steps: int,
    segments: int,
    report: Report,
    best: Best | None,
    sparsity_at: Callable[[int], float | None],
    steps_before: int = 0,
    steps_after: int = 0,
    watch: Watch | None = None,
    activity: Activity | None = None,
) -> WeightState:
    """Train weights for ``steps`` steps in ``segments`` compiled calls.

    A segment that diverges is taken back and run again with smaller steps, a bounded number of
    times.

    Args:
        loop: the compiled steps.
        feed: where batches come from.
        state: start; donated.
        factors_at: the multiplier of every parameter in a segment, from the state before it.
        phase: name in the log.
        rows: rows the weights are fitted to.
        dual_rows: rows that move the multipliers, if they move.
        steps: total, rounded up to whole segments.
        segments: compiled calls.
        report: receives one record a segment.
        best: early stopping on tune, if wanted.
        sparsity_at: sparsity of a segment, for the log.
        steps_before: steps of the same phase already done, for the log.
        steps_after: steps of the same phase still to come, for the log.
        watch: sees the network and the multipliers after each segment.
        activity: its checkpoints, gone on from where there are any; ``None`` writes none.

    Raises:
        DivergenceError: the loss is not finite or exploded, with smaller steps too.
        Interrupted: a stop was asked, and a checkpoint written.
    """
    length = -(-steps // segments)
    place = _Place(feed, report, Best() if best is None else best, watch)
    smaller_loop = loop
    if activity is not None and (found := activity.resume(lambda a: place.like(state, a))):
        state = place.restore(*found)
        smaller_loop = loop.smaller(place.retreats.scale) if place.retreats.made else loop
    while place.segment < segments:
        segment = place.segment
        before = steps_before + segment * length
        factors = factors_at(segment, state)
        # New arrays: what is donated below is gone afterwards.
        good, position = _trees.copy(state), feed.state()
        try:
            batches = feed.take(rows, STREAM_FIT, length)
            duals = None
            if dual_rows is not None:
                duals = feed.take(dual_rows, STREAM_DUALS, dual_batches(length, loop.every))
            state, log = smaller_loop.segment(state, factors, batches, duals)
            left = (state.params, state.model_state)
            classes = len(feed.problem.data.classes)
            check_finite(log, left, phase, before, classes=classes)
            network = Network(masked(factors, state.params), state.model_state)
            record = tune_record(loop.steps.problem, network, feed.reference)
            check_judged(record, phase, before + length, classes)
        except DivergenceError as error:
            error.last_good = Network(masked(factors, good.params), good.model_state)
            report.rollbacks.append(place.retreats.retreat(error, before))
            smaller_loop, state = loop.smaller(place.retreats.scale), good
            feed.restore(position)
            continue
        score = None if best is None else best.offer(record, network)
        if watch is not None:
            watch.look(network, state.duals)
        report.write(
            phase,
            before + length,
            steps_before + segments * length + steps_after,
            log,
            record,
            loop.steps,
            state.duals,
            sparsity_at(segment),
        )
        place.segment += 1
        if activity is not None:
            last = place.segment == segments
            tree = functools.partial(place.tree, state)
            activity.save(place.segment, tree, place.about, last=last, score=score)
    return state


@dataclass
class _Place:
    """Where a training of weights is, beside its state: what a checkpoint has to hold."""

    feed: Feed
    report: Report
    best: Best
    watch: Watch | None
    retreats: Retreats = field(default_factory=Retreats)
    segment: int = 0

    def tree(self, state: WeightState) -> Any:
        network = self.best.network
        return state, () if network is None else (network.params, network.state)

    def like(self, state: WeightState, about: dict[str, Any]) -> Any:
        state = self.feed.problem.placement.place(state)
        return state, (state.params, state.model_state) if about["best"] is not None else ()

    def about(self) -> dict[str, Any]:
        return {
            "segment": self.segment,
            "best": None if self.best.network is None else self.best.score,
            "feed": self.feed.state(),
            "report": self.report.state(),
            "watch": None if self.watch is None else self.watch.state(),
            "retreats": self.retreats.made,
        }

    def restore(self, tree: Any, about: dict[str, Any]) -> WeightState:
        state, best = tree
        self.segment, self.retreats.made = about["segment"], about["retreats"]
        if about["best"] is not None:
            self.best.score, self.best.network = about["best"], Network(*best)
        self.feed.restore(about["feed"])
        self.report.restore(about["report"])
        if self.watch is not None:
            self.watch.restore(about["watch"])
        return state
