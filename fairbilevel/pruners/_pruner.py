"""The face that all pruners share: score units, keep the best, train, fine-tune.

A pruner says how units are scored. How often, on which schedule, whether weights train in between,
and which constraints act when, are options and class attributes; the loop is ``PrunerRun``.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int

from fairbilevel import _options
from fairbilevel.fairness import Constraint
from fairbilevel.masks import CubicSchedule, Masks
from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.pruners._run import Moment, PrunerRun, training_rows
from fairbilevel.train import (
    FORWARD_COST,
    Method,
    Phase,
    Plan,
    WeightState,
    affordable,
    every,
    learning_rates,
    stages,
)


class Split(NamedTuple):
    """A pruner's steps, shared out.

    Attributes:
        rounds: of scoring and removal.
        batches: rows that each scoring looks at.
        scoring: gradient evaluations of one scoring.
        before: steps of fair training before pruning.
        pruning: steps between rounds.
        trained: rounds that are followed by training before the next.
        fine: steps of fine-tuning.
    """

    rounds: int
    batches: int
    scoring: float
    before: int
    pruning: int
    trained: int
    fine: int


PHASES = ("before", "prune", "fine-tune")
SCORING_SHARE = 0.5  # of the steps: what scores may cost at most


@dataclass(frozen=True)
class Pruner(Method):
    """Scores units, keeps the best, fine-tunes.

    A new pruner is a subclass with one method, ``scores``. All pruners start from the same dense
    reference, train on fit and select together (they have no outer problem, and all methods see the
    same data), remove exactly what the budget says, stop early on tune and end recalibrated.

    Attributes:
        pruning_share: part of the steps spent while units are removed, by methods that train there;
            the rest fine-tunes.
        rounds: how often units are scored and removed.
        batches: batches of rows that each scoring looks at, by methods that look at rows. Fewer
            batches, then fewer rounds are taken where half of the steps does not pay for them.
        enforce: whether constraints act at all; else the problem's are only measured.
        enforce_in: when they act: ``"before"`` pruning, on the dense network, for ``before_share``
            of the steps; ``"prune"``, while it is pruned; ``"fine-tune"``, while it is fine-tuned.
        before_share: see there.

    Raises:
        ValueError: an option outside its range.
    """

    pruning_share: float = 0.5
    rounds: int = 1
    batches: int = 10
    enforce: bool = False
    enforce_in: tuple[str, ...] = ("fine-tune",)
    before_share: float = 0.25

    # Gradient evaluations a batch that ``scores`` takes; 0 for methods that look at no rows.
    passes: ClassVar[float] = 0.0
    runs: ClassVar[Any] = PrunerRun
    # Whether weights train after each round: ``pruning_share`` of the steps.
    trains: ClassVar[bool] = False
    # Whether ``rewound`` puts weights back: they then train between the rounds only.
    rewinds: ClassVar[bool] = False
    # Whether each round keeps the same share of what is left, in place of the cubic schedule.
    same_share: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _options.at_least(self, 1, "rounds", "batches")
        _options.share(self, "pruning_share")
        if not 0 <= self.before_share < 1:
            raise ValueError(f"before_share must lie in [0, 1), got {self.before_share}")
        for phase in self.enforce_in:
            if phase not in PHASES:
                raise ValueError(f"enforce_in holds {', '.join(map(repr, PHASES))}, got {phase!r}")

    @abstractmethod
    def scores(self, at: Moment) -> Any:
        """A score for every unit, by layer name; the largest are kept. Pure: it is compiled.

        It may depend on the options that the class adds, on no other.
        """

    @property
    def label(self) -> str:
        """What results call the method."""
        added = self.enforce and not type(self).enforce
        return f"{self.name}-constrained" if added else self.name

    @property
    def joint(self) -> bool:
        """Multipliers move on the training batches' own passes (CEAG's order)."""
        return True

    def enforced(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """Nothing, unless constraints act at all."""
        return super().enforced(problem) if self.enforce else ()

    def plan(self, problem: FairPruningProblem, reference: Reference | None = None) -> Plan:
        """Fair training before pruning (if asked), rounds with training between them, fine-tuning;
        scoring and the final statistics are paid out of the same steps."""
        rows, split = training_rows(problem), self.split(problem, reference)
        phases = (
            self._phase(problem, "before", split.before, 10, rows),
            self._phase(
                problem, "prune", split.pruning, split.trained, rows,
                scoring=split.scoring * split.trained,
            ),
            self._phase(
                problem, "finetune", split.fine, 10, rows,
                scoring=split.scoring * (split.rounds - split.trained), chooses=True,
            ),
        )  # fmt: skip
        return Plan(tuple(p for p in phases if p.steps), **self.ending(problem))

    def acts(self, problem: FairPruningProblem, phase: str) -> bool:
        """Whether constraints act in a phase of the plan."""
        when = "fine-tune" if phase == "finetune" else phase
        return when in self.enforce_in and bool(self.enforced(problem))

    def _phase(
        self,
        problem: FairPruningProblem,
        name: str,
        steps: int,
        count: int,
        rows: Int[np.ndarray, " n"],
        **more: Any,
    ) -> Phase:
        # Where the weights stay at the end, the learning rate falls to zero.
        to_zero, lengths = name != "prune" or self.rewinds, stages(steps, count)
        # One schedule over the phase; where weights are rewound, one over each stage.
        each = lengths if name == "prune" and self.rewinds else (steps,)
        rates = [learning_rates(self.learning_rate, n, to_zero=to_zero) for n in each]
        return Phase(
            name,
            lengths,
            np.concatenate(rates) if self.inner_optimizer is None else np.ones(steps),
            every(steps, int(self.acts(problem, name))),
            rows,
            cycle=self._cycle(problem, name),
            **more,
        )

    def _cycle(self, problem: FairPruningProblem, phase: str) -> tuple[float, ...]:
        """Of a step; micro-batches take a forward pass more before the multipliers move."""
        again = problem.accumulate > 1 and self.acts(problem, phase)
        return (1 + FORWARD_COST * again,)

    def split(self, problem: FairPruningProblem, reference: Reference | None = None) -> Split:
        """The steps shared out: fewer batches, then fewer rounds where half of them does not pay
        for scoring.

        Raises:
            ValueError: they do not pay for one scoring.
        """
        parts = 0
        if self.passes:
            parts = len(self.parts(problem, reference, training_rows(problem)))
        rounds, batches, each = self.rounds, self.batches, self.passes * parts
        while each * batches * rounds > SCORING_SHARE * self.steps:
            if batches > 1:
                batches //= 2
            elif rounds > 1:
                rounds //= 2
            else:
                raise ValueError(
                    f"{self.steps} steps do not pay for one scoring of {self.name}: half of "
                    f"them must reach {each:g} gradient evaluations"
                )
        cycles = {p: self._cycle(problem, p) for p in ("before", "prune", "finetune")}
        left, before = self.steps - sum(self.ending(problem).values()), 0
        scoring = each * batches
        if self.acts(problem, "before"):
            before = affordable(self.before_share * self.steps, cycles["before"])
            left -= before * cycles["before"][0]
        trained = rounds - self.rewinds if self.trains else 0
        pruning = 0
        if trained:
            share = self.pruning_share * (left - scoring * rounds)
            pruning = affordable(share, cycles["prune"])
            if pruning < trained:  # a step after each round, as far as they go
                rounds, trained = max(rounds - trained + pruning, 1), pruning
        left -= scoring * rounds + pruning * cycles["prune"][0]
        fine = affordable(left, cycles["finetune"])
        return Split(rounds, batches, scoring, before, pruning, trained, fine)

    # What a method may have otherwise, beside its options.

    @property
    def own(self) -> Pruner:
        """The same pruner with the options that all pruners share at their defaults: what its
        scores are compiled for."""
        shared = {f.name for f in dataclasses.fields(Pruner)}
        usual: Any = {f.name: f.default for f in dataclasses.fields(self) if f.name in shared}
        return dataclasses.replace(self, **usual)

    def sparsity_at(self, progress: float) -> float:
        """Sparsity after a share of the rounds: cubic (Zhu and Gupta 2018), or of a density that
        falls by the same factor each round, ``1 - (1 - s)^progress``."""
        if self.same_share:
            return self.sparsity if progress >= 1 else 1 - (1 - self.sparsity) ** progress
        return CubicSchedule(self.sparsity, self.budget_share)(progress)

    def select(self, run: PrunerRun, scores: Any, kept: Masks, sparsity: float) -> Masks:
        """Masks of exactly the budget: the best scores among the units that are still there."""
        return run.selected(scores, kept, sparsity)

    def ranking(self, scores: Any) -> Masks:
        """One number a unit of what ``scores`` gave, to be kept beside the masks."""
        return scores

    def parts(
        self, problem: FairPruningProblem, reference: Reference | None, rows: Int[np.ndarray, " n"]
    ) -> list[Int[np.ndarray, "_"]]:
        """Sets of training rows that ``scores`` looks at one by one: all together by default."""
        return [rows]

    def view(self, problem: FairPruningProblem, rows: Int[np.ndarray, " n"]) -> FairPruningProblem:
        """The problem as the weights train on it: with other row weights, for example."""
        return problem

    def rewound(self, state: WeightState, run: PrunerRun) -> WeightState:
        """The weights after units were removed: as they are, unless a method rewinds them."""
        return state
