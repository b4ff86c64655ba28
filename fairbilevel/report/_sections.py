"""The sections that say what came out: verdict, groups, fairness on every role, layers."""

from collections.abc import Callable
from functools import partial
from typing import Any

from fairbilevel._display import esc
from fairbilevel.report._bars import Bars, Cut, bar_chart
from fairbilevel.report._groups import GroupRow, claimed, ends, group_rows
from fairbilevel.report._markup import Row, bullets, figure, section, sign, table
from fairbilevel.report._numbers import (
    MISSING,
    count,
    counted,
    dig,
    exact_points,
    number,
    percent,
    points,
    strings,
)
from fairbilevel.report._verdict import (
    BASELINE,
    ROLES,
    Limit,
    beside_average,
    diverged,
    hardest_hit,
    judge,
    limits,
    test_rows,
)

GAPS = (
    ("accuracy_gap", "Accuracy gap", "best group minus worst group"),
    ("degradation_gap", "Degradation gap", "largest loss minus smallest loss of a group"),
    ("max_excess_accuracy_gap", "Largest excess loss", "worst group’s loss beyond the average"),
)
SHARES = (
    ("balanced_accuracy", "Balanced accuracy"),
    ("majority_share", "Rows of the majority class"),
    ("commonest_answer_share", "Rows with the commonest answer"),
)
"""What an accuracy is worth, of a model on each role."""
_MOST_LAYERS = 60
_MOST_OUTSIDE = 10


def has_baseline(result: dict[str, Any]) -> bool:
    """Whether the run was compared with the baseline."""
    return number(result, "baseline", "test", "accuracy") is not None


def verdict_section(result: dict[str, Any], certificate: dict[str, Any] | None = None) -> str:
    """The card at the top: headline, sentences, caution; then four key figures, warnings."""
    found = judge(result, certificate)
    sentences = "".join(f"<p>{esc(s)}</p>" for s in found.sentences)
    caution = f'<p class="caution">{esc(found.caution)}</p>' if found.caution else ""
    card = (
        f'<section class="verdict {found.state}" aria-labelledby="verdict-heading">'
        f'<h2 id="verdict-heading">{sign(found.state)}<span>{esc(found.headline)}</span></h2>'
        f"{sentences}{caution}</section>"
    )
    warnings = bullets(w[:1].upper() + w[1:] for w in strings(result, "warnings"))
    if warnings:
        warnings = f'<div class="warnings"><h3 style="margin:0">Warnings</h3>{warnings}</div>'
    return card + _key_figures(result) + warnings


def _key_figures(result: dict[str, Any]) -> str:
    items: list[tuple[str, str, str]] = []
    achieved = number(result, "sparsity", "achieved")
    if achieved is not None:
        unit = str(dig(result, "sparsity", "unit") or "weight")
        kept = number(result, "sparsity", "kept")
        left = f"{count(kept)} {unit}s kept" if kept is not None else ""
        of, share = dig(result, "sparsity", "of"), number(result, "sparsity", "achieved_of")
        if isinstance(of, str) and share is not None:
            items.append((f"Removed, {of}", percent(share), left))
        else:
            items.append(("Removed", percent(achieved), left))
    before = number(result, "dense", "test", "accuracy")
    after = number(result, "pruned", "test", "accuracy")
    if after is not None:
        small = ""
        if before is not None:
            small = f"{percent(before)} before, {points(after - before, signed=True)} points"
        items.append(("Accuracy on test", percent(after), small))
    worst = hardest_hit(result)
    if worst is not None and worst.change is not None:
        big = f"{points(worst.change, signed=True)} points"
        items.append(("Hardest hit group", big, f"“{worst.name}”: {beside_average(worst.excess)}"))
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


def groups_section(result: dict[str, Any]) -> str:
    """Every group on test: a table, accuracies side by side, and loss beyond the average."""
    rows = group_rows(result)
    if not any(r.dense is not None or r.pruned is not None for r in rows):
        return ""
    inside, outside = claimed(rows)
    shown, left_out = ends(inside)
    third = has_baseline(result)
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
    if any(r.lost is not None for r in rows):
        notes.append(
            "“Rows lost / won”: rows that only the dense model gets right / that only the "
            "pruned model gets right."
        )
    if any(not r.counted for r in rows):
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
    return group.name if group.counted else f"{group.name} †"


def _short_percent(value: float) -> str:
    return percent(value).removesuffix("%")


def _signed_points(value: float) -> str:
    return points(value, signed=True)


def _range(interval: tuple[float, float] | None, form: Callable[[float], str]) -> str:
    """An interval in small print; nothing where there is none."""
    if interval is None:
        return ""
    return f"<small>{form(interval[0])} to {form(interval[1])}</small>"


def all_rows(result: dict[str, Any]) -> list[str]:
    """Cells of all test rows together: how many, accuracies, their change, no excess."""
    before, after = (number(result, model, "test", "accuracy") for model in ("dense", "pruned"))
    change = after - before if before is not None and after is not None else None
    accuracies = [percent(before), percent(after), points(change, signed=True)]
    return [count(test_rows(result)), *accuracies, MISSING]


def _group_table(
    result: dict[str, Any],
    shown: list[GroupRow],
    left_out: int,
    outside: list[GroupRow],
    third: bool,
) -> str:
    flips = any(r.lost is not None for r in (*shown, *outside))
    head = ["Group", "Rows", "Dense", "Pruned", "Change, points", "Beyond average, points"]
    head += ["Rows lost / won"] if flips else []
    head += [BASELINE, f"{BASELINE}, beyond average"] if third else []

    def cells(r: GroupRow) -> list[str]:
        out = [count(r.rows)]
        out += [percent(v) + _range(r.interval(v), _short_percent) for v in (r.dense, r.pruned)]
        out += [points(r.change, signed=True) + _range(r.change_interval, _signed_points)]
        out += [points(r.excess, signed=True)]
        if flips:
            known = r.lost is not None and r.won is not None
            out.append(f"{count(r.lost)} / {count(r.won)}" if known else MISSING)
        if third:
            other = percent(r.baseline) + _range(r.interval(r.baseline), _short_percent)
            out += [other, points(r.baseline_excess, signed=True)]
        return out

    total = all_rows(result)
    if flips:
        total.append(MISSING)
    if third:
        total += [percent(number(result, "baseline", "test", "accuracy")), MISSING]
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


def _group_charts(result: dict[str, Any], shown: list[GroupRow], third: bool) -> str:
    names = [_name(r) for r in shown]

    def accuracies(title: str, model: str) -> Bars:
        values = [getattr(r, model) for r in shown]
        sure = [r.interval(v) for r, v in zip(shown, values, strict=True)]
        whiskers = [pair and (100 * pair[0], 100 * pair[1]) for pair in sure]
        return Bars(title, [_times(v) for v in values], model, whiskers)

    accuracy = [accuracies("Dense", "dense"), accuracies("Pruned", "pruned")]
    excess = [Bars("Pruned", [_times(r.excess) for r in shown], "pruned")]
    if third:
        accuracy.append(accuracies(BASELINE, "baseline"))
        excess.append(Bars(BASELINE, [_times(r.baseline_excess) for r in shown], "baseline"))
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
        if limit.name == "excess-accuracy-gap" and limit.tolerance is not None:
            return Cut(100 * limit.tolerance, f"limit {exact_points(limit.tolerance)}")
    return None


def roles_section(result: dict[str, Any]) -> str:
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


def _limits_table(result: dict[str, Any]) -> str:
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
    meanings = [f"{limit.title}: {limit.meaning}." for limit in bounds if limit.meaning]
    note = f'<p class="note">{esc(" ".join(meanings))}</p>' if meanings else ""
    caption = "Pruned model, largest value"
    return table(head, body, caption=caption) + note


def _gaps_table(result: dict[str, Any]) -> str:
    body = []
    models = [("gaps", "pruned", "Pruned")]
    models += [("baseline_gaps", "baseline", BASELINE)] if has_baseline(result) else []
    for gaps, model, title in models:
        if not any(dig(result, gaps, role) for role in ROLES):
            continue
        accuracy = [percent(number(result, model, role, "accuracy")) for role in ROLES]
        body.append(Row(f"{title}: accuracy", accuracy, css="all"))
        for key, name in SHARES:
            shares = [number(result, model, role, key) for role in ROLES]
            if any(share is not None for share in shares):
                body.append(Row(name, [percent(share) for share in shares]))
        worst = [percent(number(result, gaps, role, "worst_group_accuracy")) for role in ROLES]
        body.append(Row("Worst group’s accuracy", worst))
        for key, name, _ in GAPS:
            body.append(Row(name, [points(number(result, gaps, role, key)) for role in ROLES]))
    head = ["Measure", *(r.capitalize() for r in ROLES)]
    return table(head, body, caption="Accuracy in percent, gaps in points") if body else ""


def _role_charts(result: dict[str, Any]) -> str:
    models = [("gaps", "Pruned", "pruned")]
    models += [("baseline_gaps", BASELINE, "baseline")] if has_baseline(result) else []

    def series(key: str) -> list[Bars]:
        return [
            Bars(title, [_times(number(result, gaps, role, key)) for role in ROLES], fill)
            for gaps, title, fill in models
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


def layers_section(result: dict[str, Any]) -> str:
    """The kept share of every layer, in the network's order."""
    layers = [
        (str(dig(layer, "name") or "unnamed"), kept, prunable)
        for layer in dig(result, "layers") or []
        if (kept := number(layer, "kept")) is not None and (prunable := number(layer, "prunable"))
    ]
    if not layers:
        return ""
    unit = str(dig(result, "sparsity", "unit") or "weight")
    text = f"Share of each layer’s prunable {unit}s that is kept, from input to output."
    if unit == "filter" and any("+" in name for name, _, _ in layers):
        text += " A name with +2 stands for channels that two more layers share."
    if len(layers) > _MOST_LAYERS:
        by_share = sorted(layers, key=lambda layer: layer[1] / layer[2])
        chosen = {id(x) for x in by_share[: _MOST_LAYERS // 2] + by_share[-_MOST_LAYERS // 2 :]}
        total, layers = len(layers), [layer for layer in layers if id(layer) in chosen]
        text += f" Of {total} layers the {len(layers)} most and least pruned are shown."
    shares = [100 * kept / prunable for _, kept, prunable in layers]
    draw = partial(
        bar_chart,
        title="Kept share per layer",
        categories=[f"{name} ({count(kept)} of {count(size)})" for name, kept, size in layers],
        series=[Bars("Kept", shares, "pruned")],
        form=lambda v: percent(v / 100),
        axis=f"{unit}s kept, %",
        domain=(0, max(shares)),
    )
    empty = [name for name, kept, _ in layers if kept == 0]
    note = ""
    if empty:
        what = "layer is" if len(empty) == 1 else "layers are"
        note = f'<p class="note">{len(empty)} {what} empty: {esc(", ".join(empty))}.</p>'
    chart = figure("layers", "Kept share per layer", text, draw, wide=720)
    lone = f'<div class="lone">{chart}</div>'
    return section("layers", "Where the network was pruned", lone, note)
