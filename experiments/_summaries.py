"""Reading the summary of a comparison: its lines, and a difference in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Summary = dict[str, Any]


def line_of(summary: Summary, method: str, sparsity: float) -> dict[str, Any]:
    """A line of a summary; empty where it was not run."""
    for line in summary["lines"]:
        if line["method"] == method and abs(line["sparsity"] - sparsity) < 1e-9:
            return line
    return {}


def pairs_of(
    summary: Summary, method: str, *others: str
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Lines of a method with those of others at the same sparsity, where both were run."""
    pairs = (
        (line_of(summary, method, s), line_of(summary, other, s))
        for s in sparsities_of(summary)
        for other in others
    )
    return [(own, beside) for own, beside in pairs if own and beside]


def sparsities_of(summary: Summary) -> list[float]:
    """Sparsities in ascending order, the dense model apart."""
    return sorted({x["sparsity"] for x in summary["lines"] if x["method"] != "dense"})


def count_of(seen: Sequence[bool]) -> str:
    """``"2 of 3"``."""
    return f"{sum(seen)} of {len(seen)}"


def dense_of(summary: Summary) -> dict[str, Any]:
    """The line of the dense model."""
    return next(line for line in summary["lines"] if line["method"] == "dense")
