"""BiP: pruning as a bilevel problem, without fairness (Zhang et al., NeurIPS 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fairbilevel.fairness import Constraint
from fairbilevel.problem import FairPruningProblem
from fairbilevel.solver._bilevel import BilevelSolver


@dataclass(frozen=True)
class BiP(BilevelSolver):
    """The bilevel solver as BiP has it: no constraint, the closed-form hypergradient.

    Scores start as scaled magnitudes and move by the hypergradient alone. Roles, budget schedule,
    fine-tuning and early stopping are those of the solver: the same protocol for all.
    """

    follow_weights: bool = False
    split_batch: bool = False

    name: ClassVar[str] = "bip"

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """Nothing."""
        return ()
