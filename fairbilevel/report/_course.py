"""The sections that say how it came about: course of the run, cost, origin, limits."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fairbilevel._display import esc
from fairbilevel.report._certificate import certificate_line
from fairbilevel.report._groups import group_rows
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
    dig,
    duration,
    mapping,
    number,
    percent,
    plain,
    points,
    strings,
)
from fairbilevel.report._verdict import BASELINE, Limit, diverged, test_rows

_MOST_NAMES = 40


def course_section(result: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> str:
    """Accuracy, sparsity, violations and multipliers over the work done."""
    run = track(metrics, *METHOD_PHASES)
    other = track(metrics, "baseline", after=run.x[-1] if run.x else 0.0)
    charts = _accuracy_chart(result, run, other) + _sparsity_chart(run, other)
    histories = constraint_histories(
        run, lambda name: 100.0 if Limit(name, None, {}).in_points else 1.0
    )
    for i, history in enumerate(histories):
        charts += _constraint_charts(f"c{i}", history, run)
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


def _accuracy_chart(result: dict[str, Any], run: Track, other: Track) -> str:
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
    dense = number(result, "dense", "tune", "accuracy")
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


def _constraint_charts(key: str, history: ConstraintHistory, run: Track) -> str:
    limit = Limit(history.name, None, {})
    unit = "points" if limit.in_points else "loss"

    def form(value: float) -> str:
        return points(value / 100, signed=True) if limit.in_points else plain(value, signed=True)

    more = ""
    if history.labels > MOST_LINES:
        more = f" {MOST_LINES} of {count(history.labels)}: largest multipliers."
    violations, multipliers = (f"{limit.title}: {what}" for what in ("violations", "multipliers"))
    return _chart(
        run, f"{key}-violations", violations, f"Above zero: not met.{more}", history.violations,
        title=f"{violations} over the work done",
        form=form,
        y_axis=f"value minus limit, {unit}",
        reference=Reference(0.0, "Limit"),
    ) + _chart(
        run, f"{key}-multipliers", multipliers, f"Weight given to the limit.{more}",
        history.multipliers,
        title=f"{multipliers} over the work done",
        form=plain,
        y_axis="multiplier",
    )  # fmt: skip


def cost_section(result: dict[str, Any]) -> str:
    """Gradient evaluations by part, time and memory, and what the network left takes."""
    parts = (
        ("Training the dense model", "dense_gradient_evaluations"),
        ("Pruning and fine-tuning", "gradient_evaluations"),
        (f"{BASELINE} pruning, for comparison", "baseline_gradient_evaluations"),
    )
    known = [(name, value) for name, key in parts if (value := number(result, "cost", key))]
    work = table(["Work", "Gradient evaluations"], [Row(name, [count(v)]) for name, v in known])
    evaluations = f'<div class="slim">{work}</div>' if known else ""
    memory = number(result, "cost", "peak_memory_mb")
    whole, compiling = (number(result, "cost", key) for key in ("seconds", "compile_seconds"))
    times = facts(
        (
            ("The pruned network keeps", _left(result)),
            ("Wall time", duration(whole) if whole is not None else ""),
            ("of which compiling", duration(compiling) if compiling is not None else ""),
            ("Peak memory", f"{count(memory)} MB" if memory is not None else ""),
        )
    )
    return section("cost", "What it cost", evaluations, times)


def _left(result: dict[str, Any]) -> str:
    """What the pruned network still takes, of what the dense one took."""
    said = []
    for key, noun in (("parameters", "parameters"), ("multiply_adds", "multiply-adds a row")):
        kept, dense = (number(result, "sparsity", key, which) for which in ("kept", "dense"))
        if kept is not None and dense:
            said.append(f"{count(kept)} of {count(dense)} {noun} ({percent(kept / dense)})")
    return ", ".join(said)


def origin_section(config: dict[str, Any], result: dict[str, Any]) -> str:
    """Command, data, model, seed, versions and every option."""
    command = str(dig(result, "command") or "")
    code = f"<pre><code>{esc(command)}</code></pre>" if command else ""
    sparsity = mapping(result, "sparsity")
    requested = number(sparsity, "requested")
    seed = dig(result, "seed")
    parameters = number(result, "model", "parameters")
    roles, skipped = mapping(result, "data", "roles"), mapping(result, "data", "skipped")
    rows = ", ".join(f"{count(number(n))} {role}" for role, n in roles.items())
    left_out = ", ".join(f"{counted(number(n), 'row')} ({why})" for why, n in skipped.items())
    asked = [percent(requested)] if requested is not None else []
    asked += [f"{word} {sparsity[word]}" for word in ("granularity", "budget") if word in sparsity]
    origin = facts(
        (
            ("Data", str(dig(result, "data", "name") or "")),
            ("Fingerprint", str(dig(result, "data", "fingerprint") or "")),
            ("Rows", rows),
            ("Left out", left_out),
            ("Classes", _listed(strings(result, "data", "classes"))),
            ("Groups", _listed(strings(result, "data", "groups"))),
            ("Model", str(dig(result, "model", "name") or "")),
            ("Parameters", count(parameters) if parameters is not None else ""),
            ("Method", str(dig(result, "method") or "")),
            ("Sparsity asked for", ", ".join(asked)),
            ("Seed", "" if seed is None else str(seed)),
            ("Versions", ", ".join(f"{k} {v}" for k, v in mapping(result, "versions").items())),
        )
    )
    notes = bullets(strings(result, "data", "notes"))
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


def limits_section(result: dict[str, Any], certificate: dict[str, Any] | None = None) -> str:
    """What the numbers on this page do not show."""
    rows = group_rows(result)
    held = number(result, "data", "roles", "certify")
    unit = str(dig(result, "sparsity", "unit") or "weight")
    unclaimed = [r.name for r in rows if not r.counted]
    unseen = [r.name for r in rows if r.counted and r.pruned is None]
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
