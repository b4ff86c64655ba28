"""The report's twin for the terminal: verdict, groups and gaps, readable at 80 columns."""

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fairbilevel._display import printable
from fairbilevel._numbers import count, percent, points
from fairbilevel.records import Result
from fairbilevel.report._groups import GroupRow, claimed, ends, group_rows, on
from fairbilevel.report._limits import ROLES, limits
from fairbilevel.report._sections import GAPS, all_rows, gap, shares
from fairbilevel.report._verdict import BASELINE, judge

_AT_EACH_END = 10

_COLORS = {"met": "green", "missed": "red", "diverged": "red"}


def summary_table(result: Result) -> RenderableType:
    """The outcome of a run for `rich.print`: groups on test, gaps on every role, the verdict.

    With more than 20 groups the 10 hardest and
    the 10 least hit are shown.
    """
    found = judge(result)
    # Names are put in as `Text`: a group called "[red]" is no instruction to the terminal.
    words = Text(found.headline, style=f"bold {_COLORS.get(found.state, 'yellow')}")
    lines = Text("\n".join(s for s in (*found.sentences, found.caution) if s))
    parts: list[RenderableType] = [_groups(result), _gaps(result), words, lines]
    return Group(*parts)


def _table(title: str, columns: list[tuple[str, int]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, (name, width) in enumerate(columns):
        if i == 0:
            table.add_column(name, max_width=width, overflow="ellipsis", no_wrap=True)
        else:
            table.add_column(name, min_width=width, justify="right", no_wrap=True)
    return table


def _fit(name: str, width: int) -> str:
    """`name` with its middle left out where it takes more than `width` cells."""
    kept = len(name)
    text = name
    while cell_len(text) > width:
        kept -= 1
        text = f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}"
    return text


def _groups(result: Result) -> Table:
    third = on(result.baseline).accuracy is not None
    columns = [("Group", 20 if third else 34), ("Rows", 5), ("Dense", 7), ("Pruned", 7)]
    columns += [("Change", 6), ("Beyond", 6)]
    columns += [("GradMag", 7)] if third else []
    rows = group_rows(result)
    inside, outside = claimed(rows)
    shown, left_out = ends(inside, _AT_EACH_END)
    table = _table("Accuracy on test, hardest hit group first", columns)

    def cells(r: GroupRow) -> list[str]:
        own = r.pruned
        out = [count(own.rows), percent(own.dense_accuracy), percent(own.accuracy)]
        out += [points(own.change, signed=True), points(own.excess, signed=True)]
        return [*out, percent(r.baseline.accuracy)] if third else out

    for i, r in enumerate([*shown, *outside[:_AT_EACH_END]]):
        if left_out and i == len(shown) // 2:
            table.add_row(Text(f"… {count(left_out)} left out", style="dim"))
        name = printable(r.name) + ("" if r.pruned.counted else " †")
        table.add_row(Text(_fit(name, columns[0][1])), *cells(r))
    total = all_rows(result)
    total += [percent(on(result.baseline).accuracy)] if third else []
    table.add_section()
    table.add_row(Text("All rows"), *total, style="bold")
    table.caption = "Change, Beyond (the average): points; Beyond > 0: loses more than average."
    if third:
        table.caption += f"\nGradMag: {BASELINE.lower()} pruning, for comparison."
    if any(not r.pruned.counted for r in rows):
        more = len(outside) - _AT_EACH_END
        unseen = f" {count(more)} more are not shown." if more > 0 else ""
        table.caption += f"\n† Reported only, outside every limit.{unseen}"
    table.caption_justify = "left"
    return table


def _gaps(result: Result) -> Table:
    columns = [("Pruned model, points", 34), *((role.capitalize(), 7) for role in ROLES)]
    table = _table("Gaps on every part of the data", columns)
    for name, values in shares(result.pruned):
        table.add_row(name, *map(percent, values))
    for key, name, _ in GAPS:
        table.add_row(name, *(points(gap(result.pruned, role, key)) for role in ROLES))
    for limit in limits(result):
        marks = {True: " ✓", False: " ✗", None: ""}
        cells = [limit.value_text(role) + marks[limit.met(role)] for role in ROLES]
        title = f"{limit.title} (limit {limit.short_tolerance()})"
        table.add_row(Text(_fit(printable(title), columns[0][1])), *cells)
    by_group = [limit for limit in limits(result) if limit.bound.group_tolerance]
    own = [f"{limit.title}: limit {limit.tolerance_text()}" for limit in by_group]
    if own:
        table.caption, table.caption_justify = Text(printable("\n".join(own))), "left"
    return table
