"""The sections that say what came out: verdict, groups, fairness on every role, layers."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fairbilevel._display import esc
from fairbilevel.fairness import Evaluation, Gap, Gaps
from fairbilevel.records import Result
from fairbilevel.report._bars import Bars, Cut, bar_chart
from fairbilevel.report._groups import GroupRow, claimed, ends, group_rows, on
from fairbilevel.report._limits import ROLES, Limit, limits
from fairbilevel.report._markup import Row, bullets, figure, section, sign, table
from fairbilevel.report._numbers import (
    MISSING,
    count,
    counted,
    exact_points,
    percent,
    points,
)
from fairbilevel.report._verdict import (
    BASELINE,
    beside_average,
    diverged,
    hardest_hit,
    judge,
    test_rows,
)

GAPS = (
    ("accuracy", "Accuracy gap", "best group minus worst group"),
    ("degradation", "Degradation gap", "largest loss minus smallest loss of a group"),
    ("excess_accuracy", "Largest excess loss", "worst group’s loss beyond the average"),
)
"""Fields of `Evaluation.gaps`."""
SHARES = (
    ("balanced_accuracy", "Balanced accuracy"),
    ("majority_share", "Rows of the majority class"),
    ("commonest_answer_share", "Rows with the commonest answer"),
)
"""Fields of `Evaluation`: what an accuracy is worth."""
_MOST_LAYERS = 60
_MOST_OUTSIDE = 10


def shares(roles: dict[str, Evaluation]) -> Iterator[tuple[str, list[float | None]]]:
    """Of the measures in `SHARES` those that were taken: their names, and their values by role."""
    for key, name in SHARES:
        values = [getattr(on(roles, role), key) for role in ROLES]
        if any(value is not None for value in values):
            yield name, values


def gap(roles: dict[str, Evaluation], role: str, key: str) -> float | None:
    """A gap's largest value on a role."""
    found: Gap = getattr(on(roles, role).gaps, key)
    return found.largest


def verdict_section(result: Result, certificate: dict[str, Any] | None = None) -> str:
    """The card at the top: headline, sentences, caution; then four key figures, warnings."""
    found = judge(result, certificate)
    sentences = "".join(f"<p>{esc(s)}</p>" for s in found.sentences)
    caution = f'<p class="caution">{esc(found.caution)}</p>' if found.caution else ""
    card = (
        f'<section class="verdict {found.state}" aria-labelledby="verdict-heading">'
        f'<h2 id="verdict-heading">{sign(found.state)}<span>{esc(found.headline)}</span></h2>'
        f"{sentences}{caution}</section>"
    )
    warnings = bullets(w[:1].upper() + w[1:] for w in result.warnings)
    if warnings:
        warnings = f'<div class="warnings"><h3 style="margin:0">Warnings</h3>{warnings}</div>'
    return card + _key_figures(result) + warnings


def _key_figures(result: Result) -> str:
    items: list[tuple[str, str, str]] = []
    removed, found = result.sparsity, on(result.pruned)
    if removed.achieved is not None:
        left = f"{count(removed.kept)} {removed.unit}s kept" if removed.kept is not None else ""
        if removed.of is not None and removed.achieved_of is not None:
            items.append((f"Removed, {removed.of}", percent(removed.achieved_of), left))
        else:
            items.append(("Removed", percent(removed.achieved), left))
    if found.accuracy is not None:
        small, before = "", found.dense_accuracy
        if before is not None:
            change = points(found.accuracy - before, signed=True)
            small = f"{percent(before)} before, {change} points"
        items.append(("Accuracy on test", percent(found.accuracy), small))
    worst = hardest_hit(result)
    if worst is not None and worst.pruned.change is not None:
        big = f"{points(worst.pruned.change, signed=True)} points"
        small = f"“{worst.name}”: {beside_average(worst.pruned.excess)}"
        items.append(("Hardest hit group", big, small))
    bounds = limits(result)
    if bounds and not diverged(result):
        met = sum(limit.met() is True for limit in bounds)
        failed = [limit.title for limit in bounds if limit.met() is False]
        names = f"Not met: {', '.join(failed)}" if failed else ", ".join(b.title for b in bounds)
        items.append(("Fairness limits met on test", f"{met} of {len(bounds)}", names))
    cells = "".join(
        f'<div><dt>{esc(name)}</dt><dd class="big">{esc(big)}</dd>'
        f'<dd class="small">{esc(small)}</dd></div>'
        for name, big, small in items
    )
    return f'<dl class="keys">{cells}</dl>' if cells else ""


def groups_section(result: Result) -> str:
    """Every group on test: a table, accuracies side by side, and loss beyond the average."""
    rows = group_rows(result)
    known = [(r.pruned.accuracy, r.pruned.dense_accuracy) for r in rows]
    if all(pair == (None, None) for pair in known):
        return ""
    inside, outside = claimed(rows)
    shown, left_out = ends(inside)
    third = on(result.baseline).accuracy is not None
    intro = (
        f"<p>Accuracy of the dense model (before) and the pruned model (after) on the "
        f"{counted(test_rows(result), 'test row')}, group by group, hardest hit first. "
        "“Beyond average” is the group’s loss minus the loss over all rows: positive means that "
        "pruning costs this group more than the average row.</p>"
    )
    notes = [
        "Differences are in percentage points and are taken before rounding.",
        "Ranges in small print and whiskers: 95 % intervals, each for itself (for all groups at "
        "once see a certificate).",
    ]
    if any(r.pruned.lost is not None for r in rows):
        notes.append(
            "“Rows lost / won”: rows that only the dense model gets right / that only the "
            "pruned model gets right."
        )
    if any(not r.pruned.counted for r in rows):
        notes.append(
            "† Reported only: too few rows, outside every limit and claim, so below the others "
            "and in no picture."
        )
    note = f'<p class="note">{esc(" ".join(notes))}</p>'
    # Groups outside are not drawn: one row would stretch every axis to a hundred points.
    charts = _group_charts(result, shown, third)
    body = _group_table(result, shown, left_out, outside, third)
    return section("groups", "Who gains, who loses", intro, body, note, charts)


def _name(group: GroupRow) -> str:
    return group.name if group.pruned.counted else f"{group.name} †"


def _short_percent(value: float) -> str:
    return percent(value).removesuffix("%")


def _signed_points(value: float) -> str:
    return points(value, signed=True)


def _range(interval: tuple[float, float] | None, form: Callable[[float], str]) -> str:
    """An interval in small print; nothing where there is none."""
    if interval is None:
        return ""
    return f"<small>{form(interval[0])} to {form(interval[1])}</small>"


def all_rows(result: Result) -> list[str]:
    """Cells of all test rows together: how many, accuracies, their change, no excess."""
    before, after = on(result.dense).accuracy, on(result.pruned).accuracy
    change = after - before if before is not None and after is not None else None
    accuracies = [percent(before), percent(after), points(change, signed=True)]
    return [count(test_rows(result)), *accuracies, MISSING]


def _group_table(
    result: Result,
    shown: list[GroupRow],
    left_out: int,
    outside: list[GroupRow],
    third: bool,
) -> str:
    flips = any(r.pruned.lost is not None for r in (*shown, *outside))
    head = ["Group", "Rows", "Dense", "Pruned", "Change, points", "Beyond average, points"]
    head += ["Rows lost / won"] if flips else []
    head += [BASELINE, f"{BASELINE}, beyond average"] if third else []

    def cells(r: GroupRow) -> list[str]:
        own, other = r.pruned, r.baseline
        out = [count(own.rows)]
        for accuracy in (own.dense_accuracy, own.accuracy):
            out.append(percent(accuracy) + _range(r.interval(accuracy), _short_percent))
        out += [points(own.change, signed=True) + _range(r.change_interval, _signed_points)]
        out += [points(own.excess, signed=True)]
        if flips:
            known = own.lost is not None and own.won is not None
            out.append(f"{count(own.lost)} / {count(own.won)}" if known else MISSING)
        if third:
            sure = _range(r.interval(other.accuracy), _short_percent)
            out += [percent(other.accuracy) + sure, points(other.excess, signed=True)]
        return out

    total = all_rows(result)
    if flips:
        total.append(MISSING)
    if third:
        total += [percent(on(result.baseline).accuracy), MISSING]
    body = [Row("All rows", total, css="all")]
    half = len(shown) // 2
    for i, group in enumerate(shown):
        if left_out and i == half:
            said = (
                f"{count(left_out)} groups between these are left out: the {half} hardest hit "
                f"stand above, the {len(shown) - half} least hit below."
            )
            body.append(Row(said, (), css="cut"))
        body.append(Row(_name(group), cells(group)))
    body += [Row(_name(group), cells(group)) for group in outside[:_MOST_OUTSIDE]]
    if len(outside) > _MOST_OUTSIDE:
        more = counted(len(outside) - _MOST_OUTSIDE, "more group")
        body.append(Row(f"{more} outside every limit are left out.", (), css="cut"))
    return table(head, body)


def _group_charts(result: Result, shown: list[GroupRow], third: bool) -> str:
    names = [_name(r) for r in shown]

    def accuracies(title: str, style: str, values: list[float | None]) -> Bars:
        sure = [r.interval(v) for r, v in zip(shown, values, strict=True)]
        whiskers = [pair and (100 * pair[0], 100 * pair[1]) for pair in sure]
        return Bars(title, [_times(v) for v in values], style, whiskers)

    accuracy = [
        accuracies("Dense", "dense", [r.pruned.dense_accuracy for r in shown]),
        accuracies("Pruned", "pruned", [r.pruned.accuracy for r in shown]),
    ]
    excess = [Bars("Pruned", [_times(r.pruned.excess) for r in shown], "pruned")]
    if third:
        other = [r.baseline for r in shown]
        accuracy.append(accuracies(BASELINE, "baseline", [g.accuracy for g in other]))
        excess.append(Bars(BASELINE, [_times(g.excess) for g in other], "baseline"))
    draw_accuracy = partial(
        bar_chart,
        title="Accuracy of every group on test",
        categories=names,
        series=accuracy,
        form=lambda v: percent(v / 100),
        axis="accuracy on test, %",
        domain=(0, 100),
        slots=len(accuracy),
    )
    draw_excess = partial(
        bar_chart,
        title="Loss of accuracy beyond the average, by group, on test",
        categories=names,
        series=excess,
        form=lambda v: points(v / 100, signed=True),
        axis="points lost beyond the average",
        cut=_excess_cut(limits(result)),
        slots=len(accuracy),
    )
    left = figure("acc", "Accuracy by group", "Test rows, hardest hit group first.", draw_accuracy)
    text = "To the right: the group loses more than the average row."
    right = figure("excess", "Loss beyond the average, by group", text, draw_excess)
    return f'<div class="charts">{left}{right}</div>'


def _excess_cut(bounds: list[Limit]) -> Cut | None:
    """The tolerance of an excess accuracy constraint: it bounds exactly what is drawn."""
    for limit in bounds:
        tolerance = limit.bound.tolerance
        if limit.bound.name == "excess-accuracy-gap" and tolerance is not None:
            return Cut(100 * tolerance, f"limit {exact_points(tolerance)}")
    return None


def roles_section(result: Result) -> str:
    """Limits and gaps on fit, select, tune and test side by side."""
    intro = (
        "<p>A model can look fair on the rows it was trained on and be unfair on new ones. The "
        "same measures therefore stand side by side on four disjoint parts of the data: "
        "<b>fit</b> (the weights were learned here), <b>select</b> (what to remove was learned "
        "here; some of it may join the last training of the kept weights), <b>tune</b> (never "
        "trained on, used to choose settings) and <b>test</b> (used only for this report).</p>"
    )
    tables = _limits_table(result) + _gaps_table(result)
    charts = _role_charts(result)
    if not tables:
        return ""
    return section("roles", "Does fairness carry over to new data?", intro, tables, charts)


def _limits_table(result: Result) -> str:
    bounds = limits(result)
    if not bounds:
        return ""
    body = []
    for limit in bounds:
        cells = [esc(limit.tolerance_text())]
        for role in ROLES:
            met = limit.met(role)
            word = {True: "✓ met", False: "✗ not met", None: ""}[met]
            cells.append(f"{limit.value_text(role)}<small>{word}</small>")
        css = {True: "good", False: "bad", None: ""}[limit.met()]
        body.append(Row(limit.title, cells, last=css))
    head = ["Fairness limit", "Limit", *(r.capitalize() for r in ROLES)]
    told = [(limit.title, limit.bound.meaning) for limit in bounds]
    meanings = [f"{title}: {meaning}." for title, meaning in told if meaning]
    note = f'<p class="note">{esc(" ".join(meanings))}</p>' if meanings else ""
    caption = "Pruned model, largest value"
    return table(head, body, caption=caption) + note


def _judged(result: Result) -> list[tuple[str, str, dict[str, Evaluation]]]:
    """The networks that have gaps: title, style of bars, evaluations."""
    found = [("Pruned", "pruned", result.pruned), (BASELINE, "baseline", result.baseline)]
    return [one for one in found if any(on(one[2], r).gaps != Gaps() for r in ROLES)]


def _gaps_table(result: Result) -> str:
    body = []
    for title, _, roles in _judged(result):
        accuracy = [percent(on(roles, role).accuracy) for role in ROLES]
        body.append(Row(f"{title}: accuracy", accuracy, css="all"))
        body += [Row(name, [percent(v) for v in values]) for name, values in shares(roles)]
        worst = [percent(on(roles, role).worst_group_accuracy) for role in ROLES]
        body.append(Row("Worst group’s accuracy", worst))
        for key, name, _ in GAPS:
            body.append(Row(name, [points(gap(roles, role, key)) for role in ROLES]))
    head = ["Measure", *(r.capitalize() for r in ROLES)]
    return table(head, body, caption="Accuracy in percent, gaps in points") if body else ""


def _role_charts(result: Result) -> str:
    def series(key: str) -> list[Bars]:
        return [
            Bars(title, [_times(gap(roles, role, key)) for role in ROLES], fill)
            for title, fill, roles in _judged(result)
        ]

    every = {key: series(key) for key, _, _ in GAPS}
    values = [v for bars in every.values() for one in bars for v in one.values if v is not None]
    if not values:
        return ""
    domain = (min(0.0, *values), max(0.01, *values))

    def chart(key: str, name: str, meaning: str) -> str:
        draw = partial(
            bar_chart,
            title=f"{name} on fit, select, tune and test",
            categories=[role.capitalize() for role in ROLES],
            series=every[key],
            form=lambda v: points(v / 100),
            axis="points",
            domain=domain,
        )
        text = meaning[0].upper() + meaning[1:] + "."
        return figure(key.replace("_", "-"), name, text, draw, wide=330, narrow=240)

    charts = "".join(chart(*gap) for gap in GAPS)
    return f'<div class="charts three">{charts}</div>'


def _times(value: float | None) -> float | None:
    return None if value is None else 100 * value


def layers_section(result: Result) -> str:
    """The kept share of every layer, in the network's order."""
    layers = [(layer.name, layer.kept, layer.prunable) for layer in result.layers if layer.prunable]
    if not layers:
        return ""
    unit = result.sparsity.unit
    text = f"Share of each layer’s prunable {unit}s that is kept, from input to output."
    if unit == "filter" and any("+" in name for name, _, _ in layers):
        text += " A name with +2 stands for channels that two more layers share."
    if len(layers) > _MOST_LAYERS:
        by_share = sorted(layers, key=lambda layer: layer[1] / layer[2])
        chosen = {id(x) for x in by_share[: _MOST_LAYERS // 2] + by_share[-_MOST_LAYERS // 2 :]}
        total, layers = len(layers), [layer for layer in layers if id(layer) in chosen]
        text += f" Of {total} layers the {len(layers)} most and least pruned are shown."
    left = [100 * kept / prunable for _, kept, prunable in layers]
    draw = partial(
        bar_chart,
        title="Kept share per layer",
        categories=[f"{name} ({count(kept)} of {count(size)})" for name, kept, size in layers],
        series=[Bars("Kept", left, "pruned")],
        form=lambda v: percent(v / 100),
        axis=f"{unit}s kept, %",
        domain=(0, max(left)),
    )
    empty = [name for name, kept, _ in layers if kept == 0]
    note = ""
    if empty:
        what = "layer is" if len(empty) == 1 else "layers are"
        note = f'<p class="note">{len(empty)} {what} empty: {esc(", ".join(empty))}.</p>'
    chart = figure("layers", "Kept share per layer", text, draw, wide=720)
    lone = f'<div class="lone">{chart}</div>'
    return section("layers", "Where the network was pruned", lone, note)
