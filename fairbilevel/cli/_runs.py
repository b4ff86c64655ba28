"""``fairbilevel methods``, ``runs``, ``report``: what can be run, what was, its report again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console

from fairbilevel._numbers import MISSING, points, share
from fairbilevel.cli._parse import parse
from fairbilevel.cli._show import plain, say, table

if TYPE_CHECKING:
    from fairbilevel.run import RunSummary


@dataclass(frozen=True)
class Runs:
    """List the runs below a folder: what they did, how they ended, whether limits were kept."""

    folder: tyro.conf.Positional[Path] = Path("runs")
    """Folder to look below; a run folder itself is a list of one."""
    json: bool = False
    """Print the list as JSON instead of a table."""


def runs(words: list[str], console: Console) -> int:
    """Print the list."""
    options = parse(Runs, "runs", words)
    from fairbilevel.run import list_runs

    found = list_runs(options.folder)
    if options.json:
        print(json.dumps([run.to_json() for run in found], indent=2))
        return 0
    if not found:
        console.print(f"no runs below {plain(str(options.folder))}", highlight=False)
        return 0

    def name(run: RunSummary) -> str:
        path = Path(run.path)
        return str(path.relative_to(options.folder)) if path != options.folder else str(path)

    rows = table(["run", "what was pruned"])
    rows.add_column("accuracy", justify="right", no_wrap=True)
    rows.add_column("gap", justify="right", no_wrap=True)
    rows.add_column("outcome", overflow="fold")
    rows.add_column("date", no_wrap=True)
    listed = [run for run in found if run.status not in ("damaged", "no run")]
    for run in listed:
        rows.add_row(
            plain(name(run)),
            plain(_pruned(run)),
            _accuracy(run),
            points(run.largest_gap),
            plain(_outcome(run)),
            MISSING if run.date is None else run.date[:10],
        )
    if listed:
        console.print(rows, highlight=False)
        console.print(
            "On test: accuracy of the dense and the pruned model in per cent, the largest loss of "
            "a group beyond the average in points, and whether the fairness limits were kept.",
            highlight=False,
        )
    for run in listed:
        for file, verdict in run.certificates.items():
            console.print(plain(f"{name(run)}/{file}: {verdict}"), highlight=False, soft_wrap=True)
    for run in found:
        if run.note is not None:
            said = f"{name(run)}: {run.status}: {run.note}"
            console.print(plain(said), highlight=False, soft_wrap=True)
    return 0


def _pruned(run: RunSummary) -> str:
    """The data, the method, and the share that it removes."""
    removed = None if run.sparsity is None else share(run.sparsity)
    method = " ".join(part for part in (run.method, removed) if part)
    return ", ".join(part for part in (run.data, method) if part) or MISSING


def _accuracy(run: RunSummary) -> str:
    if run.accuracy is None:
        return MISSING
    return f"{points(run.dense_accuracy)} -> {points(run.accuracy)}"


def _outcome(run: RunSummary) -> str:
    """How it ended, whether limits were kept, and what its certificate says."""
    limits = "no limits" if run.limits == "none" else run.limits and f"limits {run.limits}"
    certificate = None if run.certificate is None else f"certificate {run.certificate}"
    return ", ".join(part for part in (run.status, limits, certificate) if part)


@dataclass(frozen=True)
class MakeReport:
    """Write a finished run's report.html again and print its verdict."""

    run: tyro.conf.Positional[Path]
    """Run folder."""


def report(words: list[str], console: Console) -> int:
    """Write it and print the verdict."""
    options = parse(MakeReport, "report", words)
    from fairbilevel.records import CERTIFICATE, check_completed, read_json, read_result
    from fairbilevel.report import verdict, write_report

    result = read_result(options.run)
    if result.completed:
        check_completed(options.run, result)
    path = write_report(options.run)
    written = options.run / CERTIFICATE
    certificate = read_json(written) if written.is_file() else None
    console.print(verdict(result, certificate), highlight=False, markup=False)
    say(console, f"report: {path}")
    return 0


def methods(words: list[str], console: Console) -> int:
    """A line for each method."""
    if words:
        raise ValueError(f"fairbilevel methods takes no options, got {words[0]!r}")
    from fairbilevel.methods import METHODS

    shown = table(["method", "removes", "what it does"])
    shown.columns[0].no_wrap = True  # names are there to be copied
    for entry in METHODS.values():
        removes = " or ".join(f"{g}s" for g in entry.granularities)
        shown.add_row(entry.name, removes, entry.description)
    console.print(shown, highlight=False)
    return 0
