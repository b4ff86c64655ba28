"""A fixed penalty on the constraints: the simplest in-training baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fairbilevel.fairness import Constraint
from fairbilevel.problem import FairPruningProblem
from fairbilevel.pruners._gradual import GradualMagnitude


@dataclass(frozen=True)
class Penalty(GradualMagnitude):
    """Gradual magnitude pruning whose loss carries the constraints' surrogates, weights fixed.

    ``L + sum_c weight max(violation_c, 0)``, all along; the weight is an option of the rule
    (``multiplier_rule="penalty:weight=2"``).
    """

    enforce: bool = True
    enforce_in: tuple[str, ...] = ("prune", "fine-tune")
    multiplier_rule: str = "penalty"

    name: ClassVar[str] = "penalty"

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """The problem's constraints.

        Raises:
            ValueError: it has none.
        """
        if not problem.constraints:
            raise ValueError("penalty needs a constraint to weigh: give the problem one")
        return problem.constraints
