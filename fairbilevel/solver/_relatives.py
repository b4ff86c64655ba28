"""The relatives of the solver: BiFP (Dai et al. 2023) and BiP (Zhang et al., NeurIPS 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fairbilevel.fairness import AccuracyGap, Constraint
from fairbilevel.problem import FairPruningProblem
from fairbilevel.solver._bilevel import BilevelSolver, ScoreStart, WeightsOn


@dataclass(frozen=True)
class BiFP(BilevelSolver):
    """The bilevel solver as BiFP has it: a smooth accuracy gap on both levels, at a weight of 1.

    The closed-form hypergradient, and the surrogate ``F_g`` with a sigmoid for the indicator. The
    paper adds ``F`` itself, whatever its sign, which would go on driving groups apart once the
    other one is ahead; here the weight is on whichever side exceeds the tolerance (the problem's
    own accuracy gap, two points if it has none), and the guard keeps every row's loss from being
    climbed. ``multiplier_rule="gradient-ascent"`` learns the weight instead.

    Without ``constrain_masks``, ``constrain_weights`` or both it is the paper's ablations.
    """

    score_start: ScoreStart | None = "magnitude"
    distill: float = 0.0
    match_dense: bool = False
    follow_weights: bool = False
    multiplier_rule: str = "penalty"
    split_batch: bool = False
    weights_on: WeightsOn | None = "fit"

    name: ClassVar[str] = "bifp"

    @property
    def label(self) -> str:
        """With what is left out."""
        left = {
            (True, True): "",
            (False, True): "-no-mask-constraint",
            (True, False): "-no-weight-constraint",
            (False, False): "-no-constraint",
        }
        return self.name + left[self.constrain_masks, self.constrain_weights]

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """The accuracy gap (performance fairness)."""
        return (problem.own_or(AccuracyGap()),)


@dataclass(frozen=True)
class BiP(BilevelSolver):
    """The bilevel solver as BiP has it: no constraint, the closed-form hypergradient.

    Scores start as scaled magnitudes and move by the hypergradient alone. Roles, budget schedule,
    fine-tuning and early stopping are those of the solver: the same protocol for all.
    """

    score_start: ScoreStart | None = "magnitude"
    distill: float = 0.0
    match_dense: bool = False
    follow_weights: bool = False
    split_batch: bool = False
    weights_on: WeightsOn | None = "fit"

    name: ClassVar[str] = "bip"

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """Nothing."""
        return ()
