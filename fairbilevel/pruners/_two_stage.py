"""Two stages, one after the other: pruning and fairness apart (the rivals of Dai et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fairbilevel.fairness import AccuracyGap, Constraint
from fairbilevel.problem import FairPruningProblem
from fairbilevel.pruners._gradual import GradualMagnitude


@dataclass(frozen=True)
class _TwoStage(GradualMagnitude):
    enforce: bool = True
    multiplier_rule: str = "penalty"

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """The accuracy gap (BiFP's performance fairness)."""
        return (problem.own_or(AccuracyGap()),)


@dataclass(frozen=True)
class PruneThenFair(_TwoStage):
    """Gradual magnitude pruning, then fair training of what is left (P&F).

    The fairness term is that of BiFP: the smooth accuracy gap at a fixed weight of 1, its tolerance
    the problem's own, two points if it has none.
    """

    enforce_in: tuple[str, ...] = ("fine-tune",)

    name: ClassVar[str] = "prune-then-fair"


@dataclass(frozen=True)
class FairThenPrune(_TwoStage):
    """Fair training of the dense network, then gradual magnitude pruning without it (F&P).

    The same fairness term, for ``before_share`` of the steps.
    """

    enforce_in: tuple[str, ...] = ("before",)

    name: ClassVar[str] = "fair-then-prune"
