"""What a run says of itself: the network on tune, and a record of every compiled call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fairbilevel import _numbers
from fairbilevel.devices import copied
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.train._divergence import DivergenceError, exploded
from fairbilevel.train._plan import Costs
from fairbilevel.train._state import StepLog

Callback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TuneRecord:
    """What a network does on tune: accuracy, violations, and the short form that logs keep."""

    accuracy: float
    violations: tuple[float, ...]
    log: dict[str, Any]


def tune_record(
    problem: FairPruningProblem, network: Network, reference: Reference | None
) -> TuneRecord:
    """Evaluate a network on tune (``problem.watched``), beside the dense reference if there is
    one."""
    rows = problem.watched
    outcomes = problem.outcomes(network, reference, rows)
    found = problem.evaluate(outcomes, rows, "tune")
    log = {"accuracy": found.accuracy, "loss": found.loss}
    log["worst_group_accuracy"] = found.worst_group_accuracy
    violations: tuple[float, ...] = ()
    if reference is not None:
        measured = [c.violation for c in found.constraints.values()]
        violations = tuple(v for v in measured if v is not None)
        log["max_excess_accuracy_gap"] = found.gaps.excess_accuracy.largest
        log["largest_violation"] = max(violations, default=None)
    # Without tune rows there is nothing to stop by: every network is as good, the last one stays.
    return TuneRecord(found.accuracy or 0.0, violations, log)


@dataclass(frozen=True)
class Noise:
    """What the draw of tune's rows alone explains, the same for every network of a run.

    Attributes:
        accuracy: standard error of an accuracy on all rows.
        violation: of one on the smallest counted group's rows.
    """

    accuracy: float = 0.0
    violation: float = 0.0

    @staticmethod
    def of(problem: FairPruningProblem, reference: Reference | None) -> Noise:
        """Binomial, at the dense reference's error (none without a reference).

        About what the paired differences of pruned networks have too, whose share of changed
        outcomes is of the size of the dense error; and, unlike that share, it does not grow with
        the damage.
        """
        rows = problem.watched
        if reference is None or not len(rows):
            return Noise()
        size = np.bincount(problem.group[rows], minlength=len(problem.groups))
        smallest = int(size[problem.counted & (size > 0)].min(initial=len(rows)))
        right = float(reference.correct[rows].mean())
        spread = np.sqrt(max(right * (1 - right), 1 / len(rows)))
        return Noise(float(spread / np.sqrt(len(rows))), float(spread / np.sqrt(smallest)))


def check_judged(record: TuneRecord, phase: str, step: int, classes: int) -> None:
    """Refuse finite weights whose loss on tune is not, or exploded (``DivergenceError``): the next
    step would show it."""
    loss = record.log["loss"]
    if loss is not None and not loss <= exploded(classes):
        raise DivergenceError(phase, step, loss=loss)


@dataclass(frozen=True)
class Candidate:
    """A copy of a network that may be kept: its accuracy on tune, and by how much its violations
    there exceed noise, added up."""

    accuracy: float
    excess: float
    network: Network


@dataclass
class Best:
    """The best network of a phase by its records on tune.

    Among the networks whose accuracy is within noise of the highest, the one whose violations
    exceed noise least; among those the most accurate, and of equals the later. A network below
    them is taken only if its violations are smaller by more than the accuracy it costs and by more
    than noise explains. Where nothing is enforced, accuracy alone decides. One noise serves all
    candidates: an allowance that grew with a network's own damage would prefer the more damaged.

    Attributes:
        noise: of tune.
        enforces: whether violations count.
        held: what no other candidate beats in both respects, in the order in which they came.
    """

    noise: Noise = Noise()
    enforces: bool = True
    held: list[Candidate] = field(default_factory=list)

    def offer(
        self, record: TuneRecord, network: Network, copy: Callable[[Any], Any] = copied
    ) -> None:
        """Hold a copy of ``network`` unless another one is at least as good in both respects."""
        violations = record.violations if self.enforces else ()
        excess = sum(max(v - self.noise.violation, 0.0) for v in violations)
        if any(c.accuracy > record.accuracy and c.excess <= excess for c in self.held):
            return
        if any(c.accuracy >= record.accuracy and c.excess < excess for c in self.held):
            return
        kept = [c for c in self.held if c.accuracy > record.accuracy or c.excess < excess]
        mine = Network(*copy((network.params, network.state)))
        self.held = [*kept, Candidate(record.accuracy, excess, mine)]

    @property
    def chosen(self) -> Candidate | None:
        """What would be kept now; ``None`` where nothing was offered."""
        if not self.held:
            return None
        highest = max(c.accuracy for c in self.held)
        near = [c for c in self.held if c.accuracy >= highest - self.noise.accuracy]
        best = min(near, key=lambda c: (c.excess, -c.accuracy))
        beyond = [c for c in self.held if best.excess - c.excess > self.noise.violation]
        other = max(beyond, key=lambda c: (c.accuracy - c.excess, c.accuracy), default=best)
        pays = other.accuracy - other.excess > best.accuracy - best.excess
        return other if pays else best

    @property
    def network(self) -> Network | None:
        """Of ``chosen``."""
        return None if self.chosen is None else self.chosen.network


@dataclass
class Report:
    """Turns segments into records of ``metrics.jsonl`` and hands them on, with running costs."""

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
                "the guard against negative group weights was active in "
                f"{_numbers.percent(share, 0)} of the steps: the multipliers ask for more than can "
                "be taken from the better-off groups"
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
        sparsity: float | None,
        **more: Any,
    ) -> None:
        """One record: losses, tune, and ``more``: where constraints act, the multipliers and the
        violations they last saw."""
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
        if "multipliers" in more:
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
