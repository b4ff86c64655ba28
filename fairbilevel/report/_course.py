"""The sections that say how it came about: course of the run, cost, origin, limits."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fairbilevel._display import esc
from fairbilevel.records import ConstraintResult, Result
from fairbilevel.report._certificate import certificate_line
from fairbilevel.report._groups import group_rows, on
from fairbilevel.report._history import (
    METHOD_PHASES,
    ConstraintHistory,
    Track,
    constraint_histories,
    track,
)
from fairbilevel.report._lines import MOST_LINES, Line, Point, Reference, line_chart
from fairbilevel.report._markup import Row, bullets, facts, figure, section, table
from fairbilevel.report._numbers import (
    count,
    counted,
    duration,
    number,
    percent,
    plain,
    points,
)
from fairbilevel.report._verdict import BASELINE, diverged, test_rows

_MOST_NAMES = 40


def course_section(result: Result, metrics: Sequence[dict[str, Any]]) -> str:
    """Accuracy, sparsity, violations and multipliers over the work done."""
    run = track(metrics, *METHOD_PHASES)
    other = track(metrics, "baseline", after=run.x[-1] if run.x else 0.0)
    charts = _accuracy_chart(result, run, other) + _sparsity_chart(run, other)
    bounds = {bound.name: bound for bound in result.constraints}

    def bound(name: str) -> ConstraintResult:
        return bounds.get(name) or ConstraintResult(name, title=name)

    histories = constraint_histories(
        run, lambda name: 100.0 if bound(name).unit == "points" else 1.0
    )
    for i, history in enumerate(histories):
        charts += _constraint_charts(f"c{i}", history, run, bound(history.name))
    intro = (
        "Accuracy is measured on the tune rows, which no update touches. One gradient evaluation "
        "is one forward and backward pass over one batch."
    )
    if histories:
        intro += (
            " A <b>violation</b> above zero means that a limit is exceeded at that time; the "
            "<b>multiplier</b> is the weight that the method gives to this limit in answer."
        )
    body = f'<p>{intro}</p><div class="charts">{charts}</div>'
    if not charts:
        body = "<p>The run left no progress lines, so its course cannot be drawn.</p>"
    return section("course", "The course of the run", body)


def _scaled(points: list[Point]) -> list[Point]:
    return [(x, None if y is None else 100 * y) for x, y in points]


def _chart(run: Track, key: str, head: str, text: str, lines: Sequence[Line], **look: Any) -> str:
    """A figure of the lines that have points; nothing where none has."""
    lines = [line for line in lines if line.points]
    draw = partial(line_chart, lines=lines, phases=run.phases, **look)
    return figure(key, head, text, draw) if lines else ""


def _accuracy_chart(result: Result, run: Track, other: Track) -> str:
    def accuracy(line: dict[str, Any]) -> float | None:
        return number(line, "tune", "accuracy")

    def worst(line: dict[str, Any]) -> float | None:
        return number(line, "tune", "worst_group_accuracy")

    found = [
        Line("Pruned", _scaled(run.series(accuracy)), 0),
        Line("Pruned, worst group", _scaled(run.series(worst)), 1),
        Line(BASELINE, _scaled(other.series(accuracy)), 4),
        Line("Grad. magn., worst", _scaled(other.series(worst)), 5),
    ]
    dense = on(result.dense, "tune").accuracy
    text = "All rows and the worst group; the dense model for comparison."
    return _chart(
        run, "accuracy-over-time", "Accuracy over time", text, found,
        title="Accuracy on tune over the work done",
        form=lambda v: percent(v / 100),
        y_axis="accuracy on tune, %",
        reference=None if dense is None else Reference(100 * dense, "Dense"),
    )  # fmt: skip


def _sparsity_chart(run: Track, other: Track) -> str:
    found = [
        Line(name, _scaled(track.series(lambda line: number(line, "sparsity"))), color)
        for name, track, color in (("Pruned", run, 0), (BASELINE, other, 4))
    ]
    return _chart(
        run, "sparsity-over-time", "Sparsity over time", "Share that is removed.", found,
        title="Sparsity over the work done",
        form=lambda v: percent(v / 100),
        y_axis="removed, % of what may be pruned",
        y_domain=(0, 100),
    )  # fmt: skip


def _constraint_charts(
    key: str, history: ConstraintHistory, run: Track, bound: ConstraintResult
) -> str:
    def form(value: float) -> str:
        share = bound.unit == "points"
        return points(value / 100, signed=True) if share else plain(value, signed=True)

    more = ""
    if history.labels > MOST_LINES:
        more = f" {MOST_LINES} of {count(history.labels)}: largest multipliers."
    violations, multipliers = (f"{bound.title}: {what}" for what in ("violations", "multipliers"))
    return _chart(
        run, f"{key}-violations", violations, f"Above zero: not met.{more}", history.violations,
        title=f"{violations} over the work done",
        form=form,
        y_axis=", ".join(["value minus limit", *([bound.unit] if bound.unit else [])]),
        reference=Reference(0.0, "Limit"),
    ) + _chart(
        run, f"{key}-multipliers", multipliers, f"Weight given to the limit.{more}",
        history.multipliers,
        title=f"{multipliers} over the work done",
        form=plain,
        y_axis="multiplier",
    )  # fmt: skip


def cost_section(result: Result) -> str:
    """Gradient evaluations by part, time and memory, and what the network left takes."""
    cost = result.cost
    parts = (
        ("Training the dense model", cost.dense_gradient_evaluations),
        ("Pruning and fine-tuning", cost.gradient_evaluations),
        (f"{BASELINE} pruning, for comparison", cost.baseline_gradient_evaluations),
    )
    known = [(name, value) for name, value in parts if value is not None]
    work = table(["Work", "Gradient evaluations"], [Row(name, [count(v)]) for name, v in known])
    evaluations = f'<div class="slim">{work}</div>' if known else ""
    memory, whole, compiling = cost.peak_memory_mb, cost.seconds, cost.compile_seconds
    times = facts(
        (
            ("The pruned network keeps", _left(result)),
            ("Wall time", duration(whole) if whole is not None else ""),
            ("of which compiling", duration(compiling) if compiling is not None else ""),
            ("Peak memory", f"{count(memory)} MB" if memory is not None else ""),
        )
    )
    return section("cost", "What it cost", evaluations, times)


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


def origin_section(config: dict[str, Any], result: Result) -> str:
    """Command, data, model, seed, versions and every option."""
    data, model, removed = result.data, result.model, result.sparsity
    code = f"<pre><code>{esc(result.command)}</code></pre>" if result.command else ""
    rows = ", ".join(f"{count(n)} {role}" for role, n in data.roles.items())
    left_out = ", ".join(f"{counted(n, 'row')} ({why})" for why, n in data.skipped.items())
    asked = [percent(removed.requested)] if removed.requested is not None else []
    asked += [f"granularity {removed.granularity}"] if removed.granularity else []
    asked += [f"budget {removed.budget}"] if removed.budget else []
    origin = facts(
        (
            ("Data", data.name),
            ("Fingerprint", data.fingerprint),
            ("Rows", rows),
            ("Left out", left_out),
            ("Classes", _listed(data.classes)),
            ("Groups", _listed(data.groups)),
            ("Model", model.name),
            ("Parameters", "" if model.parameters is None else count(model.parameters)),
            ("Method", result.method),
            ("Sparsity asked for", ", ".join(asked)),
            ("Seed", "" if result.seed is None else str(result.seed)),
            ("Versions", ", ".join(f"{k} {v}" for k, v in result.versions.items())),
        )
    )
    notes = bullets(data.notes)
    items = "".join(f"<li><b>{esc(k)}:</b> {esc(_option(v))}</li>" for k, v in config.items())
    every = f"<details><summary>All {counted(len(config), 'option')}</summary>"
    options = f'{every}<ul class="options">{items}</ul></details>' if items else ""
    return section("origin", "How it was made", code, origin, notes, options)


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


def limits_section(result: Result, certificate: dict[str, Any] | None = None) -> str:
    """What the numbers on this page do not show."""
    rows = group_rows(result)
    held, unit = result.data.roles.get("certify"), result.sparsity.unit
    unclaimed = [r.name for r in rows if not r.pruned.counted]
    unseen = [r.name for r in rows if r.pruned.counted and r.pruned.accuracy is None]
    aside = "that nothing has touched are set aside, from which a certificate can be computed."
    certify = f" {counted(held, 'row')} {aside}" if held else ""
    where = counted(test_rows(result), "test row") if test_rows(result) else "the test rows"
    estimates = (
        f"No certificate has been computed. The numbers are point estimates on {where}: other "
        f"rows from the same source would give somewhat different ones.{certify}"
    )
    if certificate_line(certificate):
        estimates = (
            f"All numbers but those of the certificate are point estimates on {where}: other rows "
            "from the same source would give somewhat different ones. The certificate speaks of "
            "rows like those it was made from; data of another kind, later drift and errors in "
            "group labels are not covered."
        )
    sentences = [
        estimates,
        "The largest of several noisy gaps is on average larger than the largest true gap; with "
        "many or small groups a part of every “largest gap” is noise.",
        "This is one run with one seed and one division of the data. A difference between two "
        "methods in one run is a description, not evidence that one method is better.",
        f"Shown, but outside every limit and claim: {_listed(unclaimed)}." if unclaimed else "",
        f"No test rows, so nothing is known about: {_listed(unseen)}."
        if unseen and not diverged(result)
        else "",
        "Fairness here means what the limits above say about the groups named above. It says "
        "nothing about other groups, other harms, or whether the labels are right.",
        "Removed weights are set to zero. Whether that makes the model smaller or faster depends "
        "on the software that runs it."
        if unit == "weight"
        else "",
    ]
    return section("limits", "What this report does not show", bullets(sentences))
