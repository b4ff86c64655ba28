"""``fairbilevel plan``: what a solve would do."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from fairbilevel import _numbers
from fairbilevel.cli._parse import configuration
from fairbilevel.cli._show import plain, say, table


def plan(words: list[str], console: Console) -> int:
    """Print it; nothing is trained."""
    config = configuration("plan", words)
    from fairbilevel.run import make_plan, prepare

    prepared = prepare(config)
    print_plan(console, prepared, make_plan(prepared))
    return 0


def print_plan(console: Console, prepared: Any, plan: Any) -> None:
    from fairbilevel.data import ROLES

    problem = prepared.problem
    data = problem.data
    method, units = prepared.method, f"{prepared.method.granularity}s"
    share = _numbers.share(method.sparsity)
    if method.sparsity_of == "units":
        asked = f"{plan.removed:,} of {plan.prunable:,} {units} to remove ({share})"
    else:
        asked = (
            f"{share} of the {method.sparsity_of} to remove with some of {plan.prunable:,} {units}"
        )
    console.print(
        f"[bold]{data.name}[/bold]: {len(data):,} rows, {len(data.classes)} classes, "
        f"{len(data.groups)} groups; {problem.model.name}, {asked}",
        highlight=False,
        soft_wrap=True,
    )
    for reason, count in data.skipped.items():
        say(console, f"skipped {count:,}: {reason}")
    for note in data.notes:
        say(console, f"note: {note}")
    rows = table(["group"], [*ROLES, "least tolerance"])
    shown = list(plan.rows)
    if len(shown) > 40:
        shown = sorted(shown, key=lambda g: sum(plan.rows[g].values()))[:20]
    for group in shown:
        least = plan.least[group]
        cells = [f"{plan.rows[group][role]:,}" for role in ROLES]
        mark = "" if group in plan.counted else " (reported only)"
        bound = _numbers.in_points(None if mark else least)
        rows.add_row(plain(group) + mark, *cells, bound)
    console.print(rows, highlight=False)
    if len(shown) < len(plan.rows):
        console.print(f"({len(plan.rows) - len(shown)} larger groups not shown)")
    _print_power(console, plan)
    work = ", ".join(f"{name} {count:,.0f}" for name, count in plan.gradient_evaluations.items())
    expected = ""
    if plan.seconds is not None:
        expected = (
            f"; expected time {duration(plan.seconds)}, of which {duration(plan.compile_seconds)} "
            "compile what no run before has left on disk"
        )
    say(console, f"Gradient evaluations: {work}{expected}")
    for line in plan.phases:
        say(console, f"  {line}")
    say(console, f"  {plan.weight_updates:,} weight updates in all")
    console.print()


def _print_power(console: Console, plan: Any) -> None:
    least, sure = plan.least_tolerance, f"{_numbers.share(plan.confidence)} confidence"
    say(
        console,
        "No tolerance can be certified: a counted group has no certify rows."
        if least is None
        else f"Certify rows could prove, with {sure} and at best (no answer changes), that no "
        f"group loses more than {_numbers.in_points(least)} beyond the average.",
    )
    if plan.power:
        say(
            console,
            "With 80 % power, if no group really loses more than another and pruning changes this "
            "share of answers:",
        )
        shares = [_numbers.share(share) for share in plan.power[0].tolerances]
        power = table(["certify rows of the smallest counted group"], shares)
        for line in plan.power:
            rows = f"{line.rows:,}" + ("" if line.times == 1 else f" ({line.times} times as many)")
            power.add_row(rows, *map(_numbers.in_points, line.tolerances.values()))
        console.print(power, highlight=False)
    if plan.need is not None:
        need = plan.need
        wanted = "; ".join(
            f"{'tens of thousands' if rows is None else f'about {rows:,}'} at "
            f"{_numbers.share(part)}"
            for part, rows in need.rows.items()
        )
        say(
            console,
            f"For the tolerance of {_numbers.exact_points(need.tolerance)} points a group needs "
            f"{need.least:,} certify rows at the very least (ln(1/delta)/tolerance); with "
            f"80 % power: {wanted}.",
        )


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(round(seconds / 5) * 5, 5)} s"
    return f"about {round(seconds / 60)} min"
