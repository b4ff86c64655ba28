"""From the lines of `metrics.jsonl` to series over the work done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fairbilevel.report._lines import MOST_LINES, Line, Point
from fairbilevel.report._numbers import dig, mapping, number

# Phases of a method's own run, in their order.
METHOD_PHASES = ("bilevel", "prune", "finetune", "settle")
_PHASE_NAMES = {"bilevel": "prune", "finetune": "fine-tune", "settle": "all rows"}


@dataclass(frozen=True)
class Track:
    """The logged lines of consecutive phases, on one axis of gradient evaluations."""

    lines: list[dict[str, Any]]
    x: list[float]
    phases: list[tuple[float, str]]

    def series(self, read: Callable[[dict[str, Any]], float | None]) -> list[Point]:
        """One point per logged line; empty where `read` finds nothing at all."""
        points = [(x, read(line)) for x, line in zip(self.x, self.lines, strict=True)]
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


def constraint_histories(run: Track, scale: Callable[[str], float]) -> list[ConstraintHistory]:
    """One history per constraint in the log.

    The labels drawn are those with the largest multipliers, then the largest violations, ever
    reached; a label has the same style in both charts. Violations are multiplied by
    `scale(constraint)`.
    """
    names: dict[str, None] = {}
    for line in run.lines:
        for kind in ("violations", "multipliers"):
            names |= dict.fromkeys(mapping(line, kind))
    return [_history(run, name, scale(name)) for name in names]


def _history(run: Track, name: str, scale: float) -> ConstraintHistory:
    found: dict[str, dict[str, list[Point]]] = {}
    for kind, factor in (("violations", scale), ("multipliers", 1.0)):
        labels: dict[str, None] = {}
        for line in run.lines:
            labels |= dict.fromkeys(mapping(line, kind, name))
        found[kind] = {}
        for label in labels:
            values = [number(line, kind, name, label) for line in run.lines]
            if any(v is not None for v in values):
                found[kind][label] = [
                    (x, None if v is None else factor * v)
                    for x, v in zip(run.x, values, strict=True)
                ]

    def peak(kind: str, label: str) -> float:
        values = [y for _, y in found[kind].get(label, []) if y is not None]
        return max(values, default=float("-inf"))

    everyone = list(dict.fromkeys([*found["violations"], *found["multipliers"]]))
    ranked = sorted(everyone, key=lambda lb: (-peak("multipliers", lb), -peak("violations", lb)))
    shown = ranked[:MOST_LINES]

    def lines(kind: str) -> list[Line]:
        return [
            Line(label, found[kind][label], style)
            for style, label in enumerate(shown)
            if label in found[kind]
        ]

    return ConstraintHistory(name, lines("violations"), lines("multipliers"), len(everyone))
