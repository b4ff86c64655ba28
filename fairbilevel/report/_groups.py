"""One row per group, worst first: what the table, the bars and the verdict are made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairbilevel.report._intervals import Interval, of_change, of_rate
from fairbilevel.report._numbers import dig, mapping, number, strings

SHOWN_AT_EACH_END = 20
"""With more than twice as many groups only this many worst and best are shown."""


@dataclass(frozen=True)
class GroupRow:
    """One group's numbers on one role; accuracies and gaps are fractions, `None` is unknown.

    `excess` is the excess accuracy gap: how much more of its accuracy the group lost than all
    rows together. `lost` counts rows that only the dense model gets right, `won` the reverse.
    """

    name: str
    counted: bool
    rows: float | None
    dense: float | None
    pruned: float | None
    baseline: float | None
    excess: float | None
    baseline_excess: float | None
    lost: int | None
    won: int | None

    @property
    def change(self) -> float | None:
        """Accuracy after minus before; negative is a loss."""
        if self.dense is None or self.pruned is None:
            return None
        return self.pruned - self.dense

    @property
    def change_interval(self) -> Interval | None:
        """How sure the change is."""
        return of_change(self.lost, self.won, self.rows)

    def interval(self, accuracy: float | None) -> Interval | None:
        """How sure one of the group's accuracies is."""
        return of_rate(accuracy, self.rows)


def group_rows(result: dict[str, Any], role: str = "test") -> list[GroupRow]:
    """All groups on `role`: largest excess accuracy gap first, then those without a measured gap,
    and last those outside every limit, whose few rows make any gap."""
    names = strings(result, "data", "groups")
    sizes: dict[str, Any] = {}
    for model in ("baseline", "pruned", "dense"):
        sizes |= mapping(result, model, role, "group_size")
    listed = set(names)
    names += [name for name in sizes if name not in listed]
    claimed = dig(result, "data", "counted_groups")
    counted = set(names if claimed is None else strings(result, "data", "counted_groups"))
    rows = [_row(result, role, name, name in counted, number(sizes.get(name))) for name in names]
    return sorted(rows, key=lambda r: (not r.counted, r.excess is None, -(r.excess or 0.0)))


def _accuracy(result: dict[str, Any], model: str, role: str, name: str) -> float | None:
    return number(result, model, role, "group_accuracy", name)


def _excess(result: dict[str, Any], gaps: str, model: str, role: str, name: str) -> float | None:
    stated = number(result, gaps, role, "excess_accuracy_gap", name)
    if stated is not None:
        return stated
    before, after = (_accuracy(result, m, role, name) for m in ("dense", model))
    all_before, all_after = (number(result, m, role, "accuracy") for m in ("dense", model))
    if before is None or after is None or all_before is None or all_after is None:
        return None
    return (before - after) - (all_before - all_after)


def _row(
    result: dict[str, Any], role: str, name: str, is_counted: bool, size: float | None
) -> GroupRow:
    flips = dig(result, "gaps", role, "discordant", name)
    told = [number(flip) for flip in flips] if isinstance(flips, list | tuple) else []
    lost, won = told if len(told) == 2 else (None, None)
    return GroupRow(
        name=name,
        counted=is_counted,
        rows=size,
        dense=_accuracy(result, "dense", role, name),
        pruned=_accuracy(result, "pruned", role, name),
        baseline=_accuracy(result, "baseline", role, name),
        excess=_excess(result, "gaps", "pruned", role, name),
        baseline_excess=_excess(result, "baseline_gaps", "baseline", role, name),
        lost=None if lost is None else int(lost),
        won=None if won is None else int(won),
    )


def claimed(rows: Sequence[GroupRow]) -> tuple[list[GroupRow], list[GroupRow]]:
    """The groups that limits speak of, and those outside; all are the former if none is."""
    inside = [row for row in rows if row.counted]
    return (inside, [row for row in rows if not row.counted]) if inside else (list(rows), [])


def ends(rows: Sequence[GroupRow], each: int = SHOWN_AT_EACH_END) -> tuple[list[GroupRow], int]:
    """The `each` worst and `each` best rows, and how many between them were left out.

    Groups without a measured gap are dropped first when anything must be dropped.
    """
    if len(rows) <= 2 * each:
        return list(rows), 0
    measured = [row for row in rows if row.excess is not None] or list(rows)
    kept = measured[:each] + measured[max(each, len(measured) - each) :]
    return kept, len(rows) - len(kept)
