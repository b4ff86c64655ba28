"""A problem in a few words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fairbilevel import _display, _numbers, masks

if TYPE_CHECKING:
    from fairbilevel.problem._problem import FairPruningProblem


def facts(problem: FairPruningProblem) -> list[tuple[str, str]]:
    """What a reader wants to know, by name."""
    data = problem.data
    sizes = {
        kind: _numbers.counted(sum(math.prod(u.shape) for u in problem.layers.units(kind)), kind)
        for kind in masks.GRANULARITIES
    }
    outside = [g for g, c in zip(data.groups, problem.counted, strict=True) if not c]
    groups = f"{len(data.groups)}: {_display.listed(data.groups)}"
    groups += f"; outside every limit: {_display.listed(outside)}" if outside else ""
    limits = [f"{c.name}={_told(c.tolerance)}" for c in problem.constraints]
    return [
        ("model", f"{problem.model.name}, {' or '.join(sizes.values())} to prune"),
        ("data", f"{data.name}, {_numbers.counted(len(data), 'row')}"),
        ("classes", f"{len(data.classes)}: {_display.listed(data.classes)}"),
        ("groups", groups),
        ("roles", ", ".join(f"{name} {len(rows):,}" for name, rows in problem.roles.items())),
        ("constraints", ", ".join(limits) or "none"),
    ]


def _told(tolerance: Any) -> str:
    """One tolerance, or the range of those that groups have."""
    if not isinstance(tolerance, tuple):
        return f"{tolerance:.10g}"
    return f"{min(tolerance):.10g} to {max(tolerance):.10g} by group"
