"""Runs a comparison, goes on where it stopped, and writes its tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairbilevel.comparison._design import Comparison
from fairbilevel.comparison._files import DESIGN, read_design, write_design
from fairbilevel.comparison._summary import summarize
from fairbilevel.comparison._sweep import ComparisonSweep
from fairbilevel.comparison._tables import write_tables
from fairbilevel.records import SCHEMA_VERSION
from fairbilevel.run import FREE_OPTIONS, Config, machine, versions
from fairbilevel.run import command as typed
from fairbilevel.sweeps import Engine, Status, carry_out, clean_up, failures, status


def run_comparison(
    comparison: Comparison,
    folder: Path,
    *,
    processes: int = 1,
    executor: Any = None,
    progress: Callable[[str], None] = lambda line: None,
    command: str | None = None,
) -> dict[str, Any]:
    """Run what is not there yet, then write tables and picture.

    A folder may be gone on with: with more methods, sparsities, or rounds, but not with other
    settings. Several calls on one folder, on whatever machines see it, share the work: nothing is
    run twice.

    Args:
        comparison: what to run.
        folder: where; made if need be.
        processes: jobs at a time, each in a process of its own.
        executor: an ``Engine``, or any executor of ``concurrent.futures``, whose workers see the
            folder and the data by the same paths; processes of this machine by default.
        progress: receives a line for every dense model and run.
        command: to print in the tables; by default the command line as typed.

    Returns:
        The summary.

    Raises:
        ValueError: the folder holds something else, or a comparison with other settings; the data
            cannot be read; or no repetition is complete because runs failed.
    """
    if isinstance(executor, Engine):
        executor.check_devices(comparison.config.placement().count)
    _claim(comparison, folder)
    sweep = ComparisonSweep(folder.absolute(), comparison)
    if executor is None or isinstance(executor, Engine):
        with (executor or Engine(processes=processes)).open(sweep) as (opened, at_once):
            carry_out(sweep, opened, at_once=at_once, progress=progress)
    else:
        carry_out(sweep, executor, progress=progress)
    if not failures(sweep):
        clean_up(sweep)
    sweep.merge()
    summary = summarize(comparison, folder)
    write_tables(summary, folder, command or typed())
    return summary


def comparison_status(comparison: Comparison, folder: Path) -> Status:
    """How far a comparison has come: runs that are done, under way anywhere, and failed."""
    return status(ComparisonSweep(folder.absolute(), comparison))


def pack_repetitions(comparison: Comparison, folder: Path, *, beside: bool = False) -> None:
    """Put the repetitions of a folder into one file, a tenth as large.

    Nothing is lost: tables are made from it, and the comparison can be gone on with, as before.

    Args:
        comparison: what was compared.
        folder: where.
        beside: put them into one file beside the folder, ``../repetitions.xz``, with those of the
            other comparisons there: the ids and folds of the same rows are then kept once. Without
            it they come back into the folder, and go where it goes.
    """
    ComparisonSweep(folder.absolute(), comparison).pack(beside=beside)


def _claim(comparison: Comparison, folder: Path) -> None:
    settings = comparison.settings()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose another --out")
    there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    began = read_design(folder)
    if began:
        given = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
        known = began.get("settings", {})
        # Options that came later were at their defaults then; those that no number depends on may
        # have been written down by a former version.
        defaults = {k: v for k, v in Config().to_json().items() if k in given}
        if known.get("granularity") == "filter":
            defaults |= {"round_channels": 1}  # before it was an option
        known = {k: v for k, v in {**defaults, **known}.items() if k not in FREE_OPTIONS}
        other = sorted(k for k in {*known, *given} if known.get(k) != given.get(k))
        if other:
            said = ", ".join(f"{k} ({known.get(k)!r} there, {given.get(k)!r} here)" for k in other)
            raise ValueError(
                f"{folder} holds a comparison with other settings: {said}; choose another --out"
            )
        return
    # Another call may just be writing it.
    if not all(name.startswith(f".{DESIGN}") for name in there):
        raise ValueError(f"{folder} is there already and is no comparison: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    made_by = {"versions": versions(), "machine": machine()}
    write_design(folder, {"schema_version": SCHEMA_VERSION, "settings": settings, **made_by})
