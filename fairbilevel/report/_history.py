"""From the lines of `metrics.jsonl` to series over the work done."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairbilevel.report._read import dig, mapping, number
from fairbilevel.report.charts import MOST_LINES, Line, Point

# Phases of a method's own run, in their order.
METHOD_PHASES = ("bilevel", "prune", "finetune", "settle")
_PHASE_NAMES = {"bilevel": "prune", "finetune": "fine-tune", "settle": "all rows"}


@dataclass(frozen=True)
class Track:
    """The logged lines of consecutive phases, on one axis of gradient evaluations."""

    lines: list[dict[str, Any]]
    x: list[float]
    phases: list[tuple[float, str]]

    def series(self, *path: str) -> list[Point]:
        """What every line logged under `path`; empty where that is nothing at all."""
        points = [(x, number(line, *path)) for x, line in zip(self.x, self.lines, strict=True)]
        return points if any(y is not None for _, y in points) else []


def track(metrics: Sequence[dict[str, Any]], *phases: str, after: float = 0.0) -> Track:
    """The lines of `phases` in the order written.

    The count of gradient evaluations may start anew with each phase; then the phase is set
    behind the one before. A count that continues beyond `after` (that of another track) is
    taken back by so much, so that two tracks start together.
    """
    chosen = [
        line
        for line in metrics
        if dig(line, "phase") in phases and number(line, "gradient_evaluations") is not None
    ]
    x: list[float] = []
    starts: list[tuple[float, str]] = []
    shift, phase = 0.0, None
    for line in chosen:
        raw = number(line, "gradient_evaluations") or 0.0
        end = x[-1] if x else 0.0
        if not x and after and raw >= after:
            shift = -after
        if line["phase"] != phase:
            phase = line["phase"]
            if raw + shift < end:
                shift = end
            starts.append((end, _PHASE_NAMES.get(phase, phase)))
        x.append(max(raw + shift, end))
    return Track(chosen, x, starts)


@dataclass(frozen=True)
class ConstraintHistory:
    """A constraint's violations and multipliers over time, for its most pressing labels."""

    name: str
    violations: list[Line]
    multipliers: list[Line]
    labels: int
    """How many labels there are; more than are drawn where there are many groups."""


def constraint_histories(run: Track) -> list[ConstraintHistory]:
    """One history per constraint in the log.

    The labels drawn are those with the largest multipliers, then the largest violations, ever
    reached; a label has the same style in both charts.
    """
    kinds = ("violations", "multipliers")
    names = {name: None for line in run.lines for kind in kinds for name in mapping(line, kind)}
    return [_history(run, name) for name in names]


def _history(run: Track, name: str) -> ConstraintHistory:
    def series(kind: str) -> dict[str, list[Point]]:
        labels = {label: None for line in run.lines for label in mapping(line, kind, name)}
        drawn = {label: run.series(kind, name, label) for label in labels}
        return {label: points for label, points in drawn.items() if points}

    found = {kind: series(kind) for kind in ("violations", "multipliers")}

    def pressing(label: str) -> list[float]:
        lines = (found[kind].get(label, []) for kind in ("multipliers", "violations"))
        return [-max((y for _, y in line if y is not None), default=-math.inf) for line in lines]

    everyone = list(dict.fromkeys([*found["violations"], *found["multipliers"]]))
    shown = enumerate(sorted(everyone, key=pressing)[:MOST_LINES])
    styles = {label: style for style, label in shown}

    def lines(kind: str) -> list[Line]:
        known = found[kind]
        return [Line(label, known[label], styles[label]) for label in styles if label in known]

    return ConstraintHistory(name, lines("violations"), lines("multipliers"), len(everyone))
