"""Rows that are surely no independent draws, seen in the outcomes alone.

Copies of rows make every bound too narrow. Where nobody names rows, what can be seen, group by
group, is a sequence of outcomes that begins anew (a file written twice), and outcomes in runs of
one length (every row written several times). Where these are too long, and too unlikely of
independent rows, to be anything else, a row counts once. Counts that all share a divisor, as copies
in any order have them, and patterns of a few rows may be made by hand as well: they leave a doubt.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int

_CHANCE = math.log(1e-6)
_LEAST = 8  # rows of a group
_PATTERN = 12  # rows of a group: a shorter sequence that repeats may be a pattern


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
