"""The sections that say how it came about: course of the run, cost, origin, limits."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fairbilevel._numbers import count, counted, decimal, duration, percent, points, storage
from fairbilevel.records import ConstraintResult, Result
from fairbilevel.report._groups import group_rows, on
from fairbilevel.report._history import (
    METHOD_PHASES,
    ConstraintHistory,
    Track,
    constraint_histories,
    track,
)
from fairbilevel.report._parts import Fact, Figure, Row, Table
from fairbilevel.report._verdict import BASELINE, diverged, test_rows
from fairbilevel.report.charts import MOST_LINES, Line, Reference, line_chart

_MOST_NAMES = 40


def course_section(result: Result, metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy, sparsity, violations and multipliers over the work done."""
    run = track(metrics, *METHOD_PHASES)
    other = track(metrics, "baseline", after=run.x[-1] if run.x else 0.0)
    bounds = {bound.name: bound for bound in result.constraints}

    def bound(name: str) -> ConstraintResult:
        return bounds.get(name) or ConstraintResult(name, title=name)

    histories = constraint_histories(run)
    figures = [*_accuracy_chart(result, run, other), *_sparsity_chart(run, other)]
    for i, history in enumerate(histories):
        figures += _constraint_charts(f"c{i}", history, run, bound(history.name))
    return {"figures": figures, "constrained": bool(histories)}


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


def _constraint_charts(
    key: str, history: ConstraintHistory, run: Track, bound: ConstraintResult
) -> list[Figure]:
    share = bound.unit == "points"
    more = ""
    if history.labels > MOST_LINES:
        more = f" {MOST_LINES} of {count(history.labels)}: largest multipliers."
    violations, multipliers = (f"{bound.title}: {what}" for what in ("violations", "multipliers"))
    return _chart(
        run, f"{key}-violations", violations, f"Above zero: not met.{more}", history.violations,
        title=f"{violations} over the work done",
        form=partial(points if share else decimal, signed=True),
        unit=100 if share else 1,
        y_axis=", ".join(["value minus limit", *([bound.unit] if bound.unit else [])]),
        reference=Reference(0.0, "Limit"),
    ) + _chart(
        run, f"{key}-multipliers", multipliers, f"Weight given to the limit.{more}",
        history.multipliers,
        title=f"{multipliers} over the work done",
        form=decimal,
        unit=1,
        y_axis="multiplier",
    )  # fmt: skip


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
        "unseen": "" if diverged(result) else _listed(unseen),
        "weights": result.sparsity.unit == "weight",
    }
