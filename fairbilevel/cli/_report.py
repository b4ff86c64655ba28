"""``fairbilevel report``: the report of a finished run, written again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from fairbilevel.cli._parse import parse
from fairbilevel.cli._show import say


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
