"""Rows counted by group: all that a certificate is computed from.

Copies of rows make every bound too narrow. Where nobody names rows, what can be seen, group by
group, is a sequence of outcomes that begins anew (a file written twice), and outcomes in runs of
one length (every row written several times). Where these are too long, and too unlikely of
independent rows, to be anything else, a row counts once. Counts that all share a divisor, as copies
in any order have them, and patterns of a few rows may be made by hand as well: they leave a doubt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from fairbilevel.certificates._samples import histogram

_UNIT_SEED = 40961
_MOST_BINS = 2**20

# Of what is too unlikely of independent rows, and the least that is looked at.
_CHANCE = math.log(1e-6)
_LEAST = 8  # rows of a group
_PATTERN = 12  # rows of a group: a shorter sequence that repeats may be a pattern


@dataclass(frozen=True)
class GroupCounts:
    """One group's rows.

    Attributes:
        group: its name.
        claimed: whether the claim speaks of it; small groups are only part of the average.
        rows: all its rows.
        dense_right: rows the dense model gets right.
        pruned_right: rows the pruned model gets right.
        lost: rows that only the dense model gets right.
        won: rows that only the pruned model gets right.
        positive_rows: rows of the positive class, for gaps of answers.
        positive_answers: rows of the positive class that the pruned model calls positive.
        negative_answers: rows of other classes that the pruned model calls positive.
        quantity: rows by bin of the quantity's range.
        quantity_total: sum of the quantity.
    """

    group: str
    claimed: bool
    rows: int
    dense_right: int
    pruned_right: int
    lost: int
    won: int
    positive_rows: int | None = None
    positive_answers: int | None = None
    negative_answers: int | None = None
    quantity: tuple[int, ...] | None = None
    quantity_total: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; the bins of a quantity as pairs of bin and rows."""
        values = {k: v for k, v in vars(self).items() if v is not None}
        if self.quantity is not None:
            values["quantity"] = [[i, n] for i, n in enumerate(self.quantity) if n]
            values["quantity_bins"] = len(self.quantity)
        return values

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> GroupCounts:
        """The inverse of ``to_json``; missing or impossible counts are a ``ValueError``."""
        fields = dict(values)
        bins = fields.pop("quantity_bins", None)
        try:
            if bins is not None:
                if not 0 < bins <= _MOST_BINS:
                    raise ValueError(f"a quantity has up to {_MOST_BINS} bins, got {bins!r:.40}")
                counts = np.zeros(int(bins), np.int64)
                for i, n in fields["quantity"]:
                    counts[i] += n
                fields["quantity"] = tuple(counts.tolist())
            found = GroupCounts(**fields)
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise ValueError(f"the counts of a group are malformed: {error}") from None
        found.check()
        return found

    def check(self) -> None:
        """Refuse counts that no rows could have (``ValueError``)."""
        if not isinstance(self.group, str) or not isinstance(self.claimed, bool):
            raise ValueError(f"group {self.group!r}: a name is text, and claimed is true or false")
        whole = [v for k, v in vars(self).items() if k not in _NOT_COUNTS and v is not None]
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in whole):
            raise ValueError(f"the counts of group {self.group!r} must be whole numbers")
        both = self.dense_right - self.lost
        possible = (
            min(*whole, both) >= 0
            and both + self.won == self.pruned_right
            and both + self.lost + self.won <= self.rows
            and (self.positive_rows or 0) <= self.rows
            and (self.positive_answers or 0) <= (self.positive_rows or 0)
            and (self.negative_answers or 0) <= self.rows - (self.positive_rows or 0)
            and (self.quantity is None or sum(self.quantity) == self.rows)
        )
        if not possible:
            raise ValueError(f"the counts of group {self.group!r} contradict each other")


_NOT_COUNTS = ("group", "claimed", "quantity", "quantity_total")


def count_groups(
    dense_right: Bool[np.ndarray, " rows"],
    pruned_right: Bool[np.ndarray, " rows"],
    group: Int[np.ndarray, " rows"],
    names: Sequence[str],
    claimed: Bool[np.ndarray, " groups"],
    *,
    positive: tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]] | None = None,
    quantity: tuple[Float[np.ndarray, " rows"], float] | None = None,
) -> tuple[GroupCounts, ...]:
    """Count rows by group.

    ``positive`` says which rows are of the positive class and which the pruned model calls so,
    ``quantity`` holds a value a row and the largest value possible.
    """
    found = []
    for g, name in enumerate(names):
        own = group == g
        dense, pruned = dense_right[own], pruned_right[own]
        more: dict[str, Any] = {}
        if positive is not None:
            label, answer = positive[0][own], positive[1][own]
            more["positive_rows"] = int(label.sum())
            more["positive_answers"] = int((label & answer).sum())
            more["negative_answers"] = int((~label & answer).sum())
        if quantity is not None:
            more["quantity"] = histogram(quantity[0][own], 0.0, quantity[1])
            more["quantity_total"] = float(quantity[0][own].sum())
        masks = (own, dense, pruned, dense & ~pruned, pruned & ~dense)
        counts: Any = (int(mask.sum()) for mask in masks)
        found.append(GroupCounts(str(name), bool(claimed[g]), *counts, **more))
    return tuple(found)


def one_row_per_unit(unit: np.ndarray) -> Int[np.ndarray, " units"]:
    """Row numbers, sorted: one row of each unit, drawn at random (always the same draw).

    Rows of one person are not independent; persons are.
    """
    bits = np.random.PCG64(np.random.SeedSequence([_UNIT_SEED, len(unit)]))
    order = np.argsort(bits.random_raw(len(unit)), kind="stable")
    _, first = np.unique(np.asarray(unit)[order], return_index=True)
    return np.sort(order[first])


def copies(
    outcome: Int[np.ndarray, " rows"], group: Int[np.ndarray, " rows"]
) -> tuple[np.ndarray | None, str | None]:
    """The rows that are no copies, ``None`` where all are kept; and what remains in doubt.

    ``outcome`` is a number a row, equal for rows with the same label, answers and quantity.
    """
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(group[order]) != 0))
    parts = [part for part in np.split(order, starts[1:]) if len(part) >= _LEAST]
    if not parts:
        return None, None
    for find, doubt in ((_period, "the same outcomes in the same order"), (_block, "runs of rows")):
        found = [find(outcome[rows]) for rows in parts]
        chance = sum(
            _repeats(outcome[rows], len(own)) for rows, (own, _) in zip(parts, found, strict=True)
        )
        kept = sum(len(own) for own, _ in found)
        if chance < _CHANCE and kept <= sum(map(len, parts)) / 2 + 1:
            if all(sure for own, sure in found):
                copied = np.zeros(len(outcome), bool)
                copied[np.concatenate(parts)] = True
                for rows, (own, _) in zip(parts, found, strict=True):
                    copied[rows[own]] = False
                return np.flatnonzero(~copied), None
            return None, f"{doubt} repeat throughout"
    counts = [np.unique(outcome[rows], return_counts=True)[1] for rows in parts]
    every = np.concatenate(counts)
    shared = int(np.gcd.reduce(every))
    # Of independent rows a count is divisible with chance 1 / shared; one a group is no chance.
    free = len(every) - len(parts)
    if shared > 1 and -free * math.log(shared) < _CHANCE:
        return None, f"all counts are multiples of {shared}"
    return None, None


def _repeats(values: np.ndarray, own: int) -> float:
    """Log of the chance that, of independent rows, all but ``own`` equal a row that is given."""
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return (len(values) - own) * math.log(float((shares**2).sum()))


def _period(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """The rows before the sequence first begins anew, if it does so to its end, and whether it is
    too long for a pattern."""
    n = len(values)
    candidates = np.arange(1, n // 2 + 1)
    for place in range(min(64, n // 2)):
        candidates = candidates[values[candidates + place] == values[place]]
    for p in candidates[:1000].tolist():
        if np.array_equal(values[p:], values[:-p]):
            return np.arange(p), p >= _PATTERN
    return np.arange(n), False


def _block(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """One row of each block, where all runs of equal rows are of whole blocks, and whether there
    are more runs than rows in order would have."""
    ends = np.flatnonzero(np.append(np.diff(values) != 0, True)) + 1
    size = int(np.gcd.reduce(ends))
    return np.arange(0, len(values), size), len(ends) > 2 * len(np.unique(values))
