"""What a run says of itself: the network on tune, and a record of every compiled call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fairbilevel import _trees, fairness
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.train._compiled import Costs
from fairbilevel.train._divergence import DivergenceError, exploded
from fairbilevel.train._steps import DualState, StepLog, Steps

Callback = Callable[[dict[str, Any]], None]


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


def check_judged(record: TuneRecord, phase: str, step: int, classes: int) -> None:
    """Refuse finite weights whose loss on tune is not, or exploded: the next step would show it.

    Raises:
        DivergenceError: naming ``step``.
    """
    loss = record.log["loss"]
    if loss is not None and not loss <= exploded(classes):
        raise DivergenceError(phase, step, loss=loss)


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
