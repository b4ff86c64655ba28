"""Whether tolerances can be met: violations that stay while multipliers grow.

A multiplier that keeps growing is the solver asking for more than the network can give under its
mask and budget. Then the run says so, and names the smallest tolerance that it did reach.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fairbilevel.fairness import Constraint, Measurement
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.train._state import DualState

INFEASIBLE = "infeasible within this budget"

# Violations shrink if their best in the second half of the watch undercuts the first half's by a
# tenth; fewer looks than this have no halves to speak of.
_SHRINKS = 0.1
_LEAST_LOOKS = 4


@dataclass(frozen=True)
class Reached:
    """How far one constraint got, on the rows that move the multipliers.

    Attributes:
        name: of the constraint.
        status: ``"met"``, ``"not met"`` or ``"infeasible within this budget"``.
        over: by how much the tolerance is exceeded, by label: which groups, by how much.
        tolerance: the tightest tolerance that a network of the final sparsity met on the way (for a
            floor the highest); ``None`` where groups have their own.
        exceeded: by how much that network exceeded what was asked (negative: it met it).
    """

    name: str
    status: str
    over: dict[str, float]
    tolerance: float | None
    exceeded: float


@dataclass(frozen=True)
class Feasibility:
    """How far each constraint got.

    Attributes:
        rows: rows it was measured on.
        constraints: one entry each, those without a claimed group left out.
    """

    rows: int
    constraints: tuple[Reached, ...]

    @property
    def status(self) -> str:
        """The worst of the constraints' statuses."""
        found = {c.status for c in self.constraints}
        return next((s for s in (INFEASIBLE, "not met") if s in found), "met")

    def to_json(self) -> dict[str, Any]:
        """For ``result.json``."""
        return {
            "status": self.status,
            "rows": self.rows,
            "constraints": [
                {"tolerance_reached" if k == "tolerance" else k: v for k, v in asdict(c).items()}
                for c in self.constraints
            ],
        }


@dataclass
class Watch:
    """Looks at networks of the final sparsity on the way.

    Every look measures all rows that move the multipliers: buffers hold too few to tell a violation
    that stays from noise.

    Args:
        problem: what is solved.
        reference: the dense model.
    """

    problem: FairPruningProblem
    reference: Reference
    _looks: list[list[Measurement]] = field(default_factory=list)
    _multipliers: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    @property
    def looks(self) -> int:
        """How many there were."""
        return len(self._looks)

    def _measure(self, network: Network) -> list[Measurement]:
        rows = self.problem.select_duals
        return self.problem.measure(self.problem.outcomes(network, self.reference, rows), rows)

    def look(self, network: Network, duals: DualState) -> None:
        """Measure a network beside the multipliers that it was trained under."""
        self._looks.append(self._measure(network))
        self._multipliers.append(tuple(np.asarray(m) for m in duals.multipliers))

    def state(self) -> dict[str, Any]:
        """All looks so far, plain JSON."""
        return {
            "looks": [[m._asdict() for m in look] for look in self._looks],
            "multipliers": [[np.asarray(m).tolist() for m in each] for each in self._multipliers],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the looks of a former process."""
        self._looks[:] = [[Measurement(**m) for m in look] for look in state["looks"]]
        self._multipliers[:] = [
            tuple(np.asarray(m, np.float32) for m in each) for each in state["multipliers"]
        ]

    def assess(self, network: Network | None = None) -> Feasibility:
        """How far each constraint got, ending with ``network``, or with the last look's."""
        problem = self.problem
        last = self._looks[-1] if network is None else self._measure(network)
        size = np.bincount(problem.group[problem.select_duals], minlength=len(problem.groups))
        smallest = size[problem.counted & (size > 0)].min(initial=max(len(problem.select_duals), 1))
        reached = [
            self._reached(i, constraint, last[i], 1 / float(smallest))
            for i, constraint in enumerate(problem.constraints)
            if last[i].violation is not None
        ]
        return Feasibility(len(problem.select_duals), tuple(reached))

    def _reached(
        self, index: int, constraint: Constraint, last: Measurement, one_row: float
    ) -> Reached:
        final = float(last.violation or 0.0)
        seen = [v for v in (look[index].violation for look in self._looks) if v is not None]
        least = min([*seen, final])
        asked = constraint.tolerance
        status = "met" if final <= 0 else "not met"
        # A violation of one row may go with the next draw of rows: no sign of infeasibility.
        if final > one_row and self._stuck(index, constraint, seen):
            status = INFEASIBLE
        tolerance = None
        if isinstance(asked, (int, float)):
            tolerance = asked - least if constraint.floor else asked + least
        over = {label: d for label, d in last.distances.items() if d > 0}
        return Reached(constraint.name, status, over, tolerance, least)

    def _stuck(self, index: int, constraint: Constraint, violations: list[float]) -> bool:
        if len(violations) < _LEAST_LOOKS:
            return False
        half = len(violations) // 2
        before, after = min(violations[:half]), min(violations[half:])
        # Of the labels that are violated at the end: those that are not may well have shrunk.
        labels = constraint.labels(self.problem.groups)
        violated = [self._looks[-1][index].distances.get(n, -1.0) > 0 for n in labels]
        pressed = [float(np.abs(m[index][violated]).sum()) for m in self._multipliers]
        grew = pressed[-1] > 0 and pressed[-1] >= pressed[half - 1]
        return grew and before > 0 and after > (1 - _SHRINKS) * before
