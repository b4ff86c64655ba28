"""One row per group, worst first: what the table, the bars and the verdict are made from.

A group's intervals each hold with 95 % confidence, one by one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairbilevel.fairness import Evaluation, GroupEvaluation
from fairbilevel.records import Result

CONFIDENCE = 0.95
Interval = tuple[float, float]

SHOWN_AT_EACH_END = 20
"""With more than twice as many groups only this many worst and best are shown."""


@dataclass(frozen=True)
class GroupRow:
    """One group of the pruned network on one role, and what the baseline does to it."""

    name: str
    pruned: GroupEvaluation
    baseline: GroupEvaluation

    @property
    def change_interval(self) -> Interval | None:
        """How sure the change is: Agresti and Min's (2005) interval for one on the same rows.

        Half a row is added to each of the four cells; the interval is shifted nowhere else and
        never leaves [-1, 1].
        """
        lost, won, rows = self.pruned.lost, self.pruned.won, self.pruned.rows
        if lost is None or won is None or not rows:
            return None
        from scipy import special  # its second is for those who write reports

        size = rows + 2
        change = (won - lost) / size
        error = math.sqrt((won + lost + 1) - (won - lost) ** 2 / size) / size
        reach = float(special.ndtri(0.5 + CONFIDENCE / 2)) * error
        return max(change - reach, -1.0), min(change + reach, 1.0)

    def interval(self, accuracy: float | None) -> Interval | None:
        """How sure one of the group's accuracies is: Clopper and Pearson's (1934) interval."""
        rows = self.pruned.rows
        if accuracy is None or not rows:
            return None
        from scipy import special

        right, tail = round(accuracy * rows), (1 - CONFIDENCE) / 2
        low = special.betaincinv(right, rows - right + 1, tail) if right else 0.0
        high = special.betaincinv(right + 1, rows - right, 1 - tail) if right < rows else 1.0
        return float(low), float(high)


def on(roles: dict[str, Evaluation], role: str = "test") -> Evaluation:
    """A network on a role; empty where it was not evaluated."""
    return roles.get(role, Evaluation())


def group_rows(result: Result) -> list[GroupRow]:
    """All groups on test: largest excess accuracy gap first, then those without a measured gap,
    and last those outside every limit, whose few rows make any gap."""
    dense, pruned, other = (on(m).groups for m in (result.dense, result.pruned, result.baseline))
    counted = result.data.counted_groups

    def unseen(name: str) -> GroupEvaluation:
        """A group that the pruned network was not looked at on: what the dense one did."""
        known = dense.get(name, GroupEvaluation())
        is_counted = counted is None or name in counted
        return GroupEvaluation(known.rows, is_counted, dense_accuracy=known.accuracy)

    names = dict.fromkeys((*result.data.groups, *dense, *pruned, *other))
    rows = [
        GroupRow(name, pruned.get(name) or unseen(name), other.get(name, GroupEvaluation()))
        for name in names
    ]
    return sorted(rows, key=_order)


def _order(row: GroupRow) -> tuple[bool, bool, float]:
    return not row.pruned.counted, row.pruned.excess is None, -(row.pruned.excess or 0.0)


def claimed(rows: Sequence[GroupRow]) -> tuple[list[GroupRow], list[GroupRow]]:
    """The groups that limits speak of, and those outside; all are the former if none is."""
    inside = [row for row in rows if row.pruned.counted]
    outside = [row for row in rows if not row.pruned.counted]
    return (inside, outside) if inside else (list(rows), [])


def ends(rows: Sequence[GroupRow], each: int = SHOWN_AT_EACH_END) -> tuple[list[GroupRow], int]:
    """The `each` worst and `each` best rows, and how many between them were left out.

    Groups without a measured gap are dropped first when anything must be dropped.
    """
    if len(rows) <= 2 * each:
        return list(rows), 0
    measured = [row for row in rows if row.pruned.excess is not None] or list(rows)
    kept = measured[:each] + measured[max(each, len(measured) - each) :]
    return kept, len(rows) - len(kept)
