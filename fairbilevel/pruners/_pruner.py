"""The face that all pruners share: score units, keep the best, train, fine-tune.

A pruner says how units are scored. How often, on which schedule, whether weights train in between,
and which constraints act when, are options and class attributes; the loop is ``PrunerRun``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int

from fairbilevel import fairness, masks
from fairbilevel.fairness import Constraint
from fairbilevel.masks import Budget, CubicSchedule, Masks
from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.pruners._moment import Moment
from fairbilevel.pruners._run import PrunerRun
from fairbilevel.records import Checkpoints
from fairbilevel.train import Callback, Solution, WeightState, hard_masks

PHASES = ("before", "prune", "fine-tune")


@dataclass(frozen=True)
class Pruner(ABC):
    """Scores units, keeps the best, fine-tunes.

    A new pruner is a subclass with one method, ``scores``. All pruners start from the same dense
    reference, train on fit and select together (they have no outer problem, and all methods see the
    same data), remove exactly what the budget says, stop early on tune and end recalibrated.

    Attributes:
        sparsity: share of units to remove, in [0, 1).
        granularity: ``"weight"`` or ``"filter"``.
        budget: ``"global"`` or ``"uniform"``.
        steps: gradient evaluations to spend, dense training apart, scores included.
        pruning_share: part of them spent while units are removed, by methods that train there; the
            rest fine-tunes.
        budget_share: part of the pruning phase after which the final sparsity is reached, by
            methods on a cubic schedule.
        rounds: how often units are scored and removed.
        batches: batches of rows that each scoring looks at, by methods that look at rows. Fewer
            batches, then fewer rounds are taken where half of the steps does not pay for them.
        batch_size: rows a batch.
        learning_rate: of the default optimizer.
        enforce: whether constraints act at all; else the problem's are only measured.
        enforce_in: when they act: ``"before"`` pruning, on the dense network, for ``before_share``
            of the steps; while it is ``"prune"``d; when it is ``"fine-tune"``d.
        before_share: see there.
        constraints: what is enforced, in place of what the method or the problem has; the problem's
            constraints stay what is measured, stops training early and is reported.
        dual_rule: how multipliers move (``fb.fairness.multiplier_rule``).
        dual_step: of that rule.
        buffer_size: rows a group in the replay buffers; 0 for none.
        optimizer: any optax rule, restarted for each phase.
        seed: of batches, random scores and dropout.

    Raises:
        ValueError: an option outside its range.
    """

    sparsity: float = 0.9
    granularity: str = "weight"
    budget: str = "global"
    steps: int = 1000
    pruning_share: float = 0.5
    budget_share: float = 0.8
    rounds: int = 1
    batches: int = 10
    batch_size: int = 128
    learning_rate: float = 0.05
    enforce: bool = False
    enforce_in: tuple[str, ...] = ("fine-tune",)
    before_share: float = 0.25
    constraints: tuple[Constraint, ...] | None = None
    dual_rule: str = "gradient-ascent"
    dual_step: float = 0.01
    buffer_size: int = 32
    optimizer: optax.GradientTransformation | None = None
    seed: int = 0

    name: ClassVar[str]
    granularities: ClassVar[tuple[str, ...]] = masks.GRANULARITIES
    # Gradient evaluations a batch that ``scores`` takes; 0 for methods that look at no rows.
    passes: ClassVar[float] = 0.0
    # Whether weights train after each round: ``pruning_share`` of the steps.
    trains: ClassVar[bool] = False
    # Whether ``rewound`` puts weights back: they then train between the rounds only.
    rewinds: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must lie in [0, 1), got {self.sparsity}")
        if self.granularity not in masks.GRANULARITIES:
            raise ValueError(
                f"unknown granularity {self.granularity!r}: choose from "
                f"{', '.join(masks.GRANULARITIES)}"
            )
        if self.granularity not in self.granularities:
            raise ValueError(
                f"{self.name} prunes at granularity {' or '.join(self.granularities)} only, got "
                f"{self.granularity!r}"
            )
        if self.budget not in masks.BUDGETS:
            raise ValueError(
                f"unknown budget {self.budget!r}: choose from {', '.join(masks.BUDGETS)}"
            )
        for name in ("steps", "batch_size", "rounds", "batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.buffer_size < 0:
            raise ValueError(f"buffer_size must be at least 0, got {self.buffer_size}")
        for name in ("pruning_share", "budget_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        if not 0 <= self.before_share < 1:
            raise ValueError(f"before_share must lie in [0, 1), got {self.before_share}")
        for name in ("learning_rate", "dual_step"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be a finite number of at least 0")
        for phase in self.enforce_in:
            if phase not in PHASES:
                raise ValueError(f"enforce_in holds {', '.join(map(repr, PHASES))}, got {phase!r}")
        fairness.multiplier_rule(self.dual_rule, self.dual_step)

    @abstractmethod
    def scores(self, at: Moment) -> Any:
        """A score for every unit, by layer name; the largest are kept. Pure: it is compiled.

        Args:
            at: the network and rows to judge it by.
        """

    @property
    def label(self) -> str:
        """What results call the method."""
        added = self.enforce and not type(self).enforce
        return f"{self.name}-constrained" if added else self.name

    def run(
        self,
        problem: FairPruningProblem,
        reference: Reference,
        *,
        callback: Callback = lambda record: None,
        checkpoints: Checkpoints | None = None,
    ) -> Solution:
        """Prune a problem's dense reference.

        Args:
            problem: what to prune.
            reference: the dense model.
            callback: receives one record per compiled call.
            checkpoints: where checkpoints go, and where the run goes on from if there are any.

        Raises:
            DivergenceError: the loss is not finite or exploded, with smaller steps too.
            Interrupted: a stop was asked, and a checkpoint written.
            ValueError: the sparsity leaves a layer empty where that cuts the network, or the steps
                do not pay for one scoring.
        """
        return self.start(problem, reference, callback=callback, checkpoints=checkpoints).run()

    def start(
        self,
        problem: FairPruningProblem,
        reference: Reference,
        *,
        callback: Callback = lambda record: None,
        checkpoints: Checkpoints | None = None,
    ) -> PrunerRun:
        """The same run stage by stage, to look at scores and masks on the way."""
        return PrunerRun(self, problem, reference, callback, checkpoints)

    # What a method may have otherwise, beside its options.

    def sparsity_at(self, progress: float) -> float:
        """Sparsity after a share of the rounds: cubic (Zhu and Gupta 2018)."""
        return CubicSchedule(self.sparsity, self.budget_share)(progress)

    def select(self, budget: Budget, scores: Any, kept: Masks, sparsity: float) -> Masks:
        """Masks of exactly the budget: the best scores among the units that are still there."""
        left = {name: jnp.where(kept[name] > 0, s, -jnp.inf) for name, s in scores.items()}
        return hard_masks(budget, left, sparsity)

    def parts(
        self, problem: FairPruningProblem, reference: Reference, rows: Int[np.ndarray, " n"]
    ) -> list[Int[np.ndarray, "_"]]:
        """Sets of training rows that ``scores`` looks at one by one: all together by default."""
        return [rows]

    def view(self, problem: FairPruningProblem, rows: Int[np.ndarray, " n"]) -> FairPruningProblem:
        """The problem as the weights train on it: with other row weights, for example."""
        return problem

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """What is enforced where no ``constraints`` are given: the problem's own by default."""
        return problem.constraints

    def rewound(self, weights: WeightState, run: PrunerRun) -> WeightState:
        """The weights after units were removed: as they are, unless a method rewinds them."""
        return weights


def exponential(sparsity: float, progress: float) -> float:
    """Sparsity whose density falls by the same factor each round: ``1 - (1 - s)^progress``."""
    return sparsity if progress >= 1 else 1 - (1 - sparsity) ** progress
