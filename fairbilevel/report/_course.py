"""The sections that say how it came about: course of the run, trade-off, cost, origin, limits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fairbilevel._numbers import count, counted, decimal, duration, percent, points, storage
from fairbilevel.records import ConstraintResult, Result
from fairbilevel.report._groups import group_rows, on
from fairbilevel.report._parts import Fact, Figure, Row, Table, dig, mapping, number
from fairbilevel.report._verdict import BASELINE, test_rows
from fairbilevel.report.charts import (
    MOST_LINES,
    NETWORKS,
    Line,
    Point,
    Reference,
    Spot,
    line_chart,
    tradeoff_chart,
)

_MOST_NAMES = 40
_GAP = "max_excess_accuracy_gap"
_MOST_STEPS = 40
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


def _history(run: Track, name: str) -> tuple[list[Line], list[Line], int]:
    """A constraint's violations and multipliers over time, and how many labels it has.

    The labels drawn are those with the largest multipliers, then the largest violations, ever
    reached; a label has the same style in both charts.
    """

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

    return lines("violations"), lines("multipliers"), len(everyone)


def course_section(result: Result, metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy, sparsity, violations and multipliers over the work done."""
    run = track(metrics, *METHOD_PHASES)
    other = track(metrics, "baseline", after=run.x[-1] if run.x else 0.0)
    bounds = {bound.name: bound for bound in result.constraints}
    kinds = ("violations", "multipliers")
    names = {name: None for line in run.lines for kind in kinds for name in mapping(line, kind)}
    figures = [*_accuracy_chart(result, run, other), *_sparsity_chart(run, other)]
    for i, name in enumerate(names):
        bound = bounds.get(name) or ConstraintResult(name, title=name)
        figures += _constraint_charts(f"c{i}", run, bound)
    return {"figures": figures, "constrained": bool(names)}


def _chart(
    run: Track, key: str, head: str, text: str, lines: Sequence[Line], **look: Any
) -> list[Figure]:
    """A figure of the lines that have points; none where none has."""
    lines = [line for line in lines if line.points]
    look |= {"lines": lines, "phases": run.phases}
    return [Figure(key, head, text, line_chart, look)] if lines else []


def _line(label: str, of: Track, style: int, *path: str) -> Line:
    return Line(label, of.series(*path), style)


def _accuracy_chart(result: Result, run: Track, other: Track) -> list[Figure]:
    found = [
        _line("Pruned", run, 0, "tune", "accuracy"),
        _line("Pruned, worst group", run, 1, "tune", "worst_group_accuracy"),
        _line(BASELINE, other, 4, "tune", "accuracy"),
        _line("Grad. magn., worst", other, 5, "tune", "worst_group_accuracy"),
    ]
    dense = on(result.dense, "tune").accuracy
    text = "All rows and the worst group; the dense model for comparison."
    return _chart(
        run, "accuracy-over-time", "Accuracy over time", text, found,
        title="Accuracy on tune over the work done",
        form=percent,
        y_axis="accuracy on tune, %",
        reference=None if dense is None else Reference(dense, "Dense"),
    )  # fmt: skip


def _sparsity_chart(run: Track, other: Track) -> list[Figure]:
    found = [_line("Pruned", run, 0, "sparsity"), _line(BASELINE, other, 4, "sparsity")]
    return _chart(
        run, "sparsity-over-time", "Sparsity over time", "Share that is removed.", found,
        title="Sparsity over the work done",
        form=percent,
        y_axis="removed, % of what may be pruned",
        y_domain=(0, 1),
    )  # fmt: skip


def _constraint_charts(key: str, run: Track, bound: ConstraintResult) -> list[Figure]:
    share = bound.unit == "points"
    over, weights, labels = _history(run, bound.name)
    moved = any(y for line in weights for _, y in line.points)
    drawn = f" {MOST_LINES} of {count(labels)}: largest {'multipliers' if moved else 'violations'}."
    more = drawn if labels > MOST_LINES else ""
    violations, multipliers = (f"{bound.title}: {what}" for what in ("violations", "multipliers"))
    given = "Weight given to the limit"
    if not moved:
        given += ": none, as no violation stood out on the rows that steer it"
    return _chart(
        run, f"{key}-violations", violations, f"Above zero: not met.{more}", over,
        title=f"{violations} over the work done",
        form=partial(points if share else decimal, signed=True),
        unit=100 if share else 1,
        y_axis=", ".join(["value minus limit", *([bound.unit] if bound.unit else [])]),
        reference=Reference(0.0, "Limit"),
    ) + _chart(
        run, f"{key}-multipliers", multipliers, f"{given}.{more}", weights,
        title=f"{multipliers} over the work done",
        form=decimal,
        unit=1,
        y_axis="multiplier",
    )  # fmt: skip


def tradeoff_section(result: Result, metrics: Sequence[dict[str, Any]]) -> list[Figure]:
    """Two pictures: every logged network on tune, and the final ones on test."""
    if not result.completed:
        return []
    trails = {}
    for network, phases in (("pruned", METHOD_PHASES), ("baseline", ("baseline",))):
        lines = track(metrics, *phases).lines
        lines = lines[:: -(-len(lines) // _MOST_STEPS) or 1]
        trail = [
            (gap, accuracy)
            for line in lines
            if (gap := number(line, "tune", _GAP)) is not None
            and (accuracy := number(line, "tune", "accuracy")) is not None
        ]
        if len(trail) > 1:
            trails[network] = trail
    figures, title = [], "Accuracy against the largest gap on"
    if ends := _ends(result, "test"):
        look = {"title": f"{title} test", "ends": ends, "trails": {}}
        text = "Final networks, on test."
        figures.append(Figure("tradeoff-test", "Where it ended", text, tradeoff_chart, look))
    if trails and (ends := _ends(result, "tune")):
        look = {"title": f"{title} tune over the run", "ends": ends, "trails": trails}
        text = "Every logged network, on tune; thicker dots are later, the large marks final ones."
        figures.append(Figure("tradeoff-tune", "How it got there", text, tradeoff_chart, look))
    return figures


def _ends(result: Result, role: str) -> dict[str, Spot]:
    """Dense, pruned and baseline, as far as they were measured on ``role``."""
    ends = {}
    for network in NETWORKS:
        found = on(getattr(result, network), role)
        gap = 0.0 if network == "dense" else found.gaps.excess_accuracy.largest
        if found.accuracy is not None and gap is not None:
            ends[network] = gap, found.accuracy
    return ends if "pruned" in ends else {}


def cost_section(result: Result) -> dict[str, Any]:
    """Gradient evaluations by part, time and memory, and what the network left takes."""
    cost = result.cost
    parts = (
        ("Training the dense model", cost.dense_gradient_evaluations),
        ("Pruning and fine-tuning", cost.gradient_evaluations),
        (f"{BASELINE} pruning, for comparison", cost.baseline_gradient_evaluations),
    )
    known = [Row(name, [count(value)]) for name, value in parts if value is not None]
    memory, whole, compiling = cost.peak_memory_mb, cost.seconds, cost.compile_seconds
    return {
        "work": Table(["Work", "Gradient evaluations"], known) if known else None,
        "facts": [
            ("The pruned network keeps", _left(result)),
            ("Wall time", duration(whole) if whole is not None else ""),
            ("of which compiling", duration(compiling) if compiling is not None else ""),
            ("Peak memory", storage(2**20 * memory) if memory is not None else ""),
        ],
    }


def _left(result: Result) -> str:
    """What the pruned network still takes, of what the dense one took."""
    said = []
    for noun, left in (
        ("parameters", result.sparsity.parameters),
        ("multiply-adds a row", result.sparsity.multiply_adds),
    ):
        if left.kept is not None and left.dense:
            share = percent(left.kept / left.dense)
            said.append(f"{count(left.kept)} of {count(left.dense)} {noun} ({share})")
    return ", ".join(said)


def origin_section(config: dict[str, Any], result: Result) -> dict[str, Any]:
    """Command, data, model, seed, versions and every option."""
    data, model, removed = result.data, result.model, result.sparsity
    asked = [percent(removed.requested)] if removed.requested is not None else []
    asked += [f"granularity {removed.granularity}"] if removed.granularity else []
    asked += [f"budget {removed.budget}"] if removed.budget else []
    facts: list[Fact] = [
        ("Data", data.name),
        ("Fingerprint", data.fingerprint),
        ("Rows", ", ".join(f"{count(n)} {role}" for role, n in data.roles.items())),
        (
            "Left out",
            ", ".join(f"{counted(n, 'row')} ({why})" for why, n in data.skipped.items()),
        ),
        ("Classes", _listed(data.classes)),
        ("Groups", _listed(data.groups)),
        ("Model", model.name),
        ("Parameters", "" if model.parameters is None else count(model.parameters)),
        ("Method", result.method),
        ("Sparsity asked for", ", ".join(asked)),
        ("Seed", "" if result.seed is None else str(result.seed)),
        ("Versions", ", ".join(f"{k} {v}" for k, v in result.versions.items())),
    ]
    return {
        "command": result.command,
        "facts": facts,
        "notes": data.notes,
        "options": [(name, _option(value)) for name, value in config.items()],
    }


def _option(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _listed(names: list[str]) -> str:
    if not names:
        return ""
    more = len(names) - _MOST_NAMES
    tail = f" and {count(more)} more" if more > 0 else ""
    return f"{count(len(names))}: {'; '.join(names[:_MOST_NAMES])}{tail}"


def limits_section(result: Result) -> dict[str, Any]:
    """What the numbers on this page do not show."""
    rows, on_test = group_rows(result), test_rows(result)
    unseen = [r.name for r in rows if r.pruned.counted and r.pruned.accuracy is None]
    return {
        "where": counted(on_test, "test row") if on_test else "the test rows",
        "held": result.data.roles.get("certify"),
        "unclaimed": _listed([r.name for r in rows if not r.pruned.counted]),
        "unseen": _listed(unseen) if result.completed else "",
        "weights": result.sparsity.unit == "weight",
    }
