"""The sections that say what came out: verdict, groups, fairness on every role, layers."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fairbilevel._numbers import (
    MISSING,
    count,
    counted,
    exact_points,
    percent,
    points,
)
from fairbilevel.fairness import Evaluation, Gap, Gaps
from fairbilevel.records import Result
from fairbilevel.report._groups import GroupRow, claimed, ends, group_rows, on
from fairbilevel.report._limits import ROLES, Limit, limits
from fairbilevel.report._parts import Cell, Figure, Row, Table
from fairbilevel.report._verdict import (
    BASELINE,
    beside_average,
    hardest_hit,
    test_rows,
)
from fairbilevel.report.charts import NETWORKS, Bars, Cut, bar_chart

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


def key_figures(result: Result) -> list[tuple[str, str, str]]:
    """Four numbers in large print: names, numbers, words below."""
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
    if bounds and result.completed:
        met = sum(limit.met() is True for limit in bounds)
        failed = [limit.title for limit in bounds if limit.met() is False]
        names = f"Not met: {', '.join(failed)}" if failed else ", ".join(b.title for b in bounds)
        items.append(("Fairness limits met on test", f"{met} of {len(bounds)}", names))
    return items


def groups_section(result: Result) -> dict[str, Any] | None:
    """Every group on test: a table, accuracies side by side, and loss beyond the average."""
    rows = group_rows(result)
    if all((r.pruned.accuracy, r.pruned.dense_accuracy) == (None, None) for r in rows):
        return None
    inside, outside = claimed(rows)
    shown, left_out = ends(inside)
    third = on(result.baseline).accuracy is not None
    return {
        "rows": counted(test_rows(result), "test row"),
        "table": _group_table(result, shown, left_out, outside, third),
        "flips": any(r.pruned.lost is not None for r in rows),
        "outside": any(not r.pruned.counted for r in rows),
        # Groups outside are not drawn: one row would stretch every axis to a hundred points.
        "figures": _group_charts(result, shown, third),
    }


def _name(group: GroupRow) -> str:
    return group.name if group.pruned.counted else f"{group.name} †"


signed_points = partial(points, signed=True)


def _sure(text: str, interval: tuple[float, float] | None, form: Callable[[float], str]) -> Cell:
    """A number with its interval in small print."""
    return text if interval is None else (text, f"{form(interval[0])} to {form(interval[1])}")


def all_rows(result: Result) -> list[str]:
    """Cells of all test rows together: how many, accuracies, their change, no excess."""
    before, after = on(result.dense).accuracy, on(result.pruned).accuracy
    change = after - before if before is not None and after is not None else None
    accuracies = [percent(before), percent(after), signed_points(change)]
    return [count(test_rows(result)), *accuracies, MISSING]


def _group_table(
    result: Result,
    shown: list[GroupRow],
    left_out: int,
    outside: list[GroupRow],
    third: bool,
) -> Table:
    flips = any(r.pruned.lost is not None for r in (*shown, *outside))
    head = ["Group", "Rows", "Dense", "Pruned", "Change, points", "Beyond average, points"]
    head += ["Rows lost / won"] if flips else []
    head += [BASELINE, f"{BASELINE}, beyond average"] if third else []

    def cells(r: GroupRow) -> list[Cell]:
        own, other = r.pruned, r.baseline

        def accuracy(value: float | None) -> Cell:
            return _sure(percent(value), r.interval(value), points)

        out: list[Cell] = [count(own.rows), accuracy(own.dense_accuracy), accuracy(own.accuracy)]
        out.append(_sure(signed_points(own.change), r.change_interval, signed_points))
        out.append(signed_points(own.excess))
        if flips:
            known = own.lost is not None and own.won is not None
            out.append(f"{count(own.lost)} / {count(own.won)}" if known else MISSING)
        return [*out, accuracy(other.accuracy), signed_points(other.excess)] if third else out

    total = all_rows(result) + ([MISSING] if flips else [])
    total += [percent(on(result.baseline).accuracy), MISSING] if third else []
    body = [Row("All rows", total, css="all")]
    half = len(shown) // 2
    for i, group in enumerate(shown):
        if left_out and i == half:
            said = (
                f"{count(left_out)} groups between these are left out: the {half} hardest hit "
                f"stand above, the {len(shown) - half} least hit below."
            )
            body.append(Row(said, css="cut"))
        body.append(Row(_name(group), cells(group)))
    body += [Row(_name(group), cells(group)) for group in outside[:_MOST_OUTSIDE]]
    if len(outside) > _MOST_OUTSIDE:
        more = counted(len(outside) - _MOST_OUTSIDE, "more group")
        body.append(Row(f"{more} outside every limit are left out.", css="cut"))
    return Table(head, body)


def _group_charts(result: Result, shown: list[GroupRow], third: bool) -> list[Figure]:
    def accuracies(network: str, values: list[float | None]) -> Bars:
        return Bars(network, values, [r.interval(v) for r, v in zip(shown, values, strict=True)])

    accuracy = [
        accuracies("dense", [r.pruned.dense_accuracy for r in shown]),
        accuracies("pruned", [r.pruned.accuracy for r in shown]),
    ]
    excess = [Bars("pruned", [r.pruned.excess for r in shown])]
    if third:
        accuracy.append(accuracies("baseline", [r.baseline.accuracy for r in shown]))
        excess.append(Bars("baseline", [r.baseline.excess for r in shown]))
    both = {"categories": [_name(r) for r in shown], "slots": len(accuracy)}
    look = both | {
        "title": "Accuracy of every group on test",
        "series": accuracy,
        "form": percent,
        "axis": "accuracy on test, %",
        "domain": (0, 1),
    }
    text = "Test rows, hardest hit group first."
    first = Figure("acc", "Accuracy by group", text, bar_chart, look)
    look = both | {
        "title": "Loss of accuracy beyond the average, by group, on test",
        "series": excess,
        "form": signed_points,
        "axis": "points lost beyond the average",
        "cut": _excess_cut(limits(result)),
    }
    text = "To the right: the group loses more than the average row."
    return [first, Figure("excess", "Loss beyond the average, by group", text, bar_chart, look)]


def _excess_cut(bounds: list[Limit]) -> Cut | None:
    """The tolerance of an excess accuracy constraint: it bounds exactly what is drawn."""
    for limit in bounds:
        tolerance = limit.bound.tolerance
        if limit.bound.name == "excess-accuracy-gap" and tolerance is not None:
            return Cut(tolerance, f"limit {exact_points(tolerance)}")
    return None


def roles_section(result: Result) -> dict[str, Any] | None:
    """Limits and gaps on fit, select, tune and test side by side."""
    told = [(limit.title, limit.bound.meaning) for limit in limits(result)]
    found = {
        "limits": _limits_table(limits(result)),
        "meanings": [f"{title}: {meaning}." for title, meaning in told if meaning],
        "gaps": _gaps_table(result),
        "figures": _role_charts(result),
    }
    return found if found["limits"] or found["gaps"] else None


def _limits_table(bounds: list[Limit]) -> Table | None:
    body = []
    words = {True: "✓ met", False: "✗ not met", None: ""}
    for limit in bounds:
        measured = [(limit.value_text(role), words[limit.met(role)]) for role in ROLES]
        css = {True: "good", False: "bad", None: ""}[limit.met()]
        body.append(Row(limit.title, [limit.tolerance_text(), *measured], last=css))
    head = ["Fairness limit", "Limit", *(r.capitalize() for r in ROLES)]
    return Table(head, body, "Pruned model, largest value") if body else None


def _judged(result: Result) -> dict[str, dict[str, Evaluation]]:
    """Evaluations of the networks that have gaps."""
    found = {"pruned": result.pruned, "baseline": result.baseline}
    return {
        name: one for name, one in found.items() if any(on(one, r).gaps != Gaps() for r in ROLES)
    }


def _gaps_table(result: Result) -> Table | None:
    body = []
    for network, roles in _judged(result).items():
        accuracy = [percent(on(roles, role).accuracy) for role in ROLES]
        body.append(Row(f"{NETWORKS[network][0]}: accuracy", accuracy, css="all"))
        body += [Row(name, [percent(v) for v in values]) for name, values in shares(roles)]
        worst = [percent(on(roles, role).worst_group_accuracy) for role in ROLES]
        body.append(Row("Worst group’s accuracy", worst))
        for key, name, _ in GAPS:
            body.append(Row(name, [points(gap(roles, role, key)) for role in ROLES]))
    head = ["Measure", *(r.capitalize() for r in ROLES)]
    return Table(head, body, "Accuracy in percent, gaps in points") if body else None


def _role_charts(result: Result) -> list[Figure]:
    every = {
        key: [
            Bars(network, [gap(roles, role, key) for role in ROLES])
            for network, roles in _judged(result).items()
        ]
        for key, _, _ in GAPS
    }
    values = [v for bars in every.values() for one in bars for v in one.values if v is not None]
    look = {
        "categories": [role.capitalize() for role in ROLES],
        "form": points,
        "axis": "points",
        "domain": (min([0.0, *values]), max([1e-4, *values])),
    }
    return [
        Figure(
            key.replace("_", "-"), name, f"{meaning[0].upper()}{meaning[1:]}.", bar_chart,
            {**look, "title": f"{name} on fit, select, tune and test", "series": every[key]},
            wide=330, narrow=240,
        )
        for key, name, meaning in (GAPS if values else ())
    ]  # fmt: skip


def layers_section(result: Result) -> dict[str, Any] | None:
    """The kept share of every layer, in the network's order."""
    layers = [(layer.name, layer.kept, layer.prunable) for layer in result.layers if layer.prunable]
    if not layers:
        return None
    unit = result.sparsity.unit
    text = f"Share of each layer’s prunable {unit}s that is kept, from input to output."
    if unit == "filter" and any("+" in name for name, _, _ in layers):
        text += " A name with +2 stands for channels that two more layers share."
    if len(layers) > _MOST_LAYERS:
        by_share = sorted(layers, key=lambda layer: layer[1] / layer[2])
        chosen = {id(x) for x in by_share[: _MOST_LAYERS // 2] + by_share[-_MOST_LAYERS // 2 :]}
        total, layers = len(layers), [layer for layer in layers if id(layer) in chosen]
        text += f" Of {total} layers the {len(layers)} most and least pruned are shown."
    left = [kept / prunable for _, kept, prunable in layers]
    title = "Kept share per layer"
    look = {
        "title": title,
        "categories": [f"{name} ({count(kept)} of {count(size)})" for name, kept, size in layers],
        "series": [Bars("pruned", left)],
        "form": percent,
        "axis": f"{unit}s kept, %",
        "domain": (0, max(left)),
    }
    return {
        "figure": Figure("layers", title, text, bar_chart, look, wide=720),
        "empty": [name for name, kept, _ in layers if kept == 0],
    }
