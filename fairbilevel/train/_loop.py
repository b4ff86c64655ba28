"""The one training loop: compiled segments of many steps, checked and reported between them."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from fairbilevel import _trees, _xla, fairness
from fairbilevel.devices import Placement
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.records import Activity
from fairbilevel.train._batches import Batch
from fairbilevel.train._divergence import (
    DivergenceError,
    Retreats,
    check_finite,
    exploded,
    smaller,
)
from fairbilevel.train._feasibility import Watch
from fairbilevel.train._feed import Feed
from fairbilevel.train._steps import DualState, StepLog, Steps, WeightState

# Streams of rows: one number each, so that no two of a run share their order.
STREAM_FIT, STREAM_SELECT, STREAM_DUALS, STREAM_REFRESH = 0, 1, 2, 3
STREAM_SCORES = 4  # the last: a method that scores several sets of rows counts on from here

FORWARD_COST = 1 / 3  # of a gradient evaluation: forward and backward is 1

Callback = Callable[[dict[str, Any]], None]


@dataclass
class Costs:
    """What was spent, in the units of the protocol.

    Attributes:
        gradient_evaluations: one is forward plus backward on one nominal batch.
        seconds: wall time of the compiled calls, compilation included.
        compile_seconds: of that, the part spent compiling.
    """

    gradient_evaluations: float = 0.0
    seconds: float = 0.0
    compile_seconds: float = 0.0

    def restore(self, state: dict[str, float]) -> None:
        """Take over what a former process had spent (``dataclasses.asdict``)."""
        for name, value in state.items():
            setattr(self, name, value)


@dataclass
class Compiled:
    """A function compiled on first use per shape, its compile time booked apart.

    The first argument is donated: what was passed is gone afterwards. Unless ``donate`` is off.
    Arguments other than batches are states: they and the results lie where the placement says, so
    that a state that is split over devices is never gathered between calls.
    """

    function: Callable[..., Any]
    costs: Costs
    donate: bool = True
    placement: Placement | None = None
    _executables: dict[Any, Any] = field(default_factory=dict)

    def __call__(self, *args: Any) -> Any:
        """Run, compiling first where these shapes are new."""
        spread = None if self.placement is None or self.placement.alone else self.placement
        if spread is None:
            args = jax.tree.map(jnp.asarray, args)
        else:
            # Batches lie where the feed put them.
            args = jax.tree.map(
                lambda part: part if isinstance(part, Batch) else spread.place(part),
                args,
                is_leaf=lambda part: isinstance(part, Batch),
            )
        leaves, structure = jax.tree.flatten(args)
        where = None if spread is None else tuple(leaf.sharding for leaf in leaves)
        key = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves), where)
        start = time.perf_counter()
        if key not in self._executables:
            self._executables[key] = self.lower(*args).compile()
            self.costs.compile_seconds += time.perf_counter() - start
        out = jax.block_until_ready(self._executables[key](*args))
        self.costs.seconds += time.perf_counter() - start
        return out

    def lower(self, *args: Any) -> Any:
        """What is compiled for these arguments, placed already: a ``jax.stages.Lowered``."""
        donated = 0 if self.donate else ()
        if self.placement is None or self.placement.alone:
            return jax.jit(self.function, donate_argnums=donated).lower(*args)
        results = self.placement.outputs(self.function, *args)
        jitted = jax.jit(self.function, donate_argnums=donated, out_shardings=results)
        return jitted.lower(*args)


def masked(factors: Any, params: Any) -> Any:
    """``z = m * theta``, leaf by leaf."""
    return jax.tree.map(lambda m, p: m * p, factors, params)


def check_judged(record: TuneRecord, phase: str, step: int, classes: int) -> None:
    """Refuse finite weights whose loss on tune is not, or exploded: the next step would show it.

    Raises:
        DivergenceError: naming ``step``.
    """
    loss = record.log["loss"]
    if loss is not None and not loss <= exploded(classes):
        raise DivergenceError(phase, step, loss=loss)


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


@dataclass
class Best:
    """The best network seen so far by its record on tune.

    The criterion is accuracy less the violations, as far as they exceed what noise explains: a
    point of accuracy then pays for a point of violation (or 0.01 nats of one). Largest gaps of
    small groups are mostly noise; stopping by them would throw accuracy away for luck. Of equals
    the later network is kept.
    """

    score: float = -np.inf
    network: Network | None = None

    def offer(self, record: TuneRecord, network: Network) -> float:
        """Keep a copy of ``network`` if it is at least as good; its score."""
        score = record.accuracy - sum(max(v - record.noise, 0.0) for v in record.violations)
        if score >= self.score:
            self.score = score
            self.network = Network(_trees.copy(network.params), _trees.copy(network.state))
        return score


@dataclass(frozen=True)
class TuneRecord:
    """What a network does on tune: accuracy, violations, and the short form that logs keep.

    ``noise`` is the standard error of the loss of accuracy of the smallest counted group: the root
    of the share of rows whose outcome changed over the group's rows.
    """

    accuracy: float
    violations: tuple[float, ...]
    noise: float
    log: dict[str, Any]


def tune_record(
    problem: FairPruningProblem, network: Network, reference: Reference | None
) -> TuneRecord:
    """Evaluate a network on tune, beside the dense reference if there is one."""
    rows = problem.roles["tune"]
    outcomes = problem.outcomes(network, reference, rows)
    correct = np.asarray(outcomes.correct)
    performance = fairness.performance(
        correct, np.asarray(outcomes.loss), problem.group[rows], problem.groups
    )
    log = {"accuracy": performance["accuracy"], "loss": performance["loss"]}
    violations: tuple[float, ...] = ()
    noise = 0.0
    if reference is None:
        rates = performance["group_accuracy"].values()
        log["worst_group_accuracy"] = min((r for r in rates if r is not None), default=None)
    else:
        summary = problem.summarize(outcomes, rows)
        violations = tuple(v for v in summary["violations"] if v is not None)
        changed = float(np.mean(correct != reference.correct[rows])) if len(rows) else 0.0
        size = np.bincount(problem.group[rows], minlength=len(problem.groups))
        smallest = size[problem.counted & (size > 0)].min(initial=max(len(rows), 1))
        noise = float(np.sqrt(changed / smallest))
        log["worst_group_accuracy"] = summary["gaps"]["worst_group_accuracy"]
        log["max_excess_accuracy_gap"] = summary["gaps"]["max_excess_accuracy_gap"]
        log["largest_violation"] = max(violations, default=None)
    # Without tune rows there is nothing to stop by: every network is as good, the last one stays.
    return TuneRecord(performance["accuracy"] or 0.0, violations, noise, log)


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


@dataclass
class Report:
    """Turns segments into records of ``metrics.jsonl`` and hands them on.

    Args:
        callback: receives each record.
        costs: read for the running totals.
    """

    callback: Callback
    costs: Costs
    history: list[dict[str, Any]] = field(default_factory=list)
    guard_steps: float = 0.0
    steps: int = 0
    rollbacks: list[dict[str, Any]] = field(default_factory=list)

    def warnings(self) -> tuple[str, ...]:
        """What a reader should know: the guard against negative group weights, and rollbacks."""
        said = []
        if self.guard_steps:
            share = self.guard_steps / self.steps
            said.append(
                f"the guard against negative group weights was active in {100 * share:.0f} % of "
                "the steps: the multipliers ask for more than can be taken from the better-off "
                "groups"
            )
        return (*said, *rollback_warnings(self.rollbacks))

    def state(self) -> dict[str, Any]:
        """All of it, plain JSON."""
        return {
            "history": self.history,
            "guard_steps": self.guard_steps,
            "steps": self.steps,
            "rollbacks": self.rollbacks,
            "costs": dataclasses.asdict(self.costs),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over from a former process: records not handed on here yet are handed on now."""
        fresh = state["history"][len(self.history) :]
        self.history.extend(fresh)
        self.guard_steps, self.steps = state["guard_steps"], state["steps"]
        self.rollbacks[:] = state["rollbacks"]
        self.costs.restore(state["costs"])
        for entry in fresh:
            self.callback(entry)

    def write(
        self,
        phase: str,
        step: int,
        steps: int,
        log: StepLog,
        record: TuneRecord,
        rules: Steps,
        duals: DualState,
        sparsity: float | None,
        **more: Any,
    ) -> None:
        """One record: losses, tune, multipliers and the violations they last saw, and ``more``."""
        entry: dict[str, Any] = {
            "phase": phase,
            "step": step,
            "steps": steps,
            "gradient_evaluations": round(self.costs.gradient_evaluations, 2),
            "seconds": round(self.costs.seconds, 3),
            "compile_seconds": round(self.costs.compile_seconds, 3),
            "loss": float(np.mean(log.loss)),
            "accuracy": float(np.mean(log.accuracy)),
            "sparsity": sparsity,
            "tune": record.log,
            **more,
        }
        if rules.constraints:
            stats = rules.statistics(duals)
            names = rules.problem.groups
            entry["violations"], entry["multipliers"] = {}, {}
            for constraint, values in zip(rules.constraints, duals.multipliers, strict=True):
                labels = constraint.labels(names)
                measured = np.asarray(constraint.violations(stats))
                entry["violations"][constraint.name] = _rounded(labels, measured)
                entry["multipliers"][constraint.name] = _rounded(labels, np.asarray(values))
            entry["guard"] = float(np.mean(log.guard))
            self.guard_steps += float(np.sum(log.guard))
            self.steps += len(np.asarray(log.guard))
        self.history.append(entry)
        self.callback(entry)


def rollback_warnings(rollbacks: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """A sentence for each time a run went back."""
    return tuple(
        f"the loss was {r['loss']} at step {r['step']} of the {r['phase']} phase: the run went "
        f"back to step {r['back_to']} and on with steps of {r['step_scale']:g} times the size"
        for r in rollbacks
    )


def _rounded(labels: list[str], values: np.ndarray) -> dict[str, float]:
    return {name: round(float(v), 6) for name, v in zip(labels, values, strict=True)}
