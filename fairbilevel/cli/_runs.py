"""``fairbilevel runs``: the runs below a folder and how they ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from fairbilevel.cli._show import percent, plain, table


@dataclass(frozen=True)
class Runs:
    """List the runs below a folder: what they did, how they ended, whether limits were kept."""

    folder: tyro.conf.Positional[Path] = Path("runs")
    """Folder to look below; a run folder itself is a list of one."""
    json: bool = False
    """Print the list as JSON instead of a table."""


def runs(options: Runs, console: Console) -> int:
    """Print the list."""
    from fairbilevel.run import RunSummary, list_runs

    found = list_runs(options.folder)
    if options.json:
        print(json.dumps([run.to_json() for run in found], indent=2))
        return 0
    if not found:
        console.print(f"no runs below {plain(str(options.folder))}", highlight=False)
        return 0

    def accuracy(run: RunSummary) -> str:
        if run.accuracy is None:
            return "-"
        return f"{percent(run.dense_accuracy, '')} -> {percent(run.accuracy, '')}"

    def name(run: RunSummary) -> str:
        path = Path(run.path)
        return str(path.relative_to(options.folder)) if path != options.folder else str(path)

    rows = table(["run", "data", "method"])
    rows.add_column("sparsity", justify="right")
    rows.add_column("status", no_wrap=True)
    rows.add_column("accuracy", justify="right", no_wrap=True)
    rows.add_column("gap", justify="right")
    for column in ("limits", "certified", "date"):
        rows.add_column(column, overflow="fold")
    listed = [run for run in found if run.status not in ("damaged", "no run")]
    for run in listed:
        rows.add_row(
            plain(name(run)),
            plain(run.data or "-"),
            plain(run.method or "-"),
            "-" if run.sparsity is None else f"{run.sparsity:g}",
            run.status,
            accuracy(run),
            percent(run.largest_gap, ""),
            run.limits or "-",
            plain(run.certificate or "-"),
            "-" if run.date is None else run.date[:10],
        )
    if listed:
        console.print(rows, highlight=False)
        console.print(
            "On test: accuracy of the dense and the pruned model in per cent, the largest loss of "
            "a group beyond the average in points, and whether the fairness limits were kept.",
            highlight=False,
        )
    for run in found:
        if run.note is not None:
            said = f"{name(run)}: {run.status}: {run.note}"
            console.print(plain(said), highlight=False, soft_wrap=True)
    return 0
