"""Runs a comparison, goes on where it stopped, and writes its tables."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from fairbilevel import devices
from fairbilevel.comparison._design import Comparison
from fairbilevel.comparison._repetition import (
    Progress,
    read_once,
    run_dense_floor,
    run_repetition,
)
from fairbilevel.comparison._summary import summarize
from fairbilevel.comparison._tables import write_tables
from fairbilevel.records import SCHEMA_VERSION, read_object, write_json
from fairbilevel.run import FREE_OPTIONS, Config, machine, versions
from fairbilevel.run import command as typed

DESIGN = "comparison.json"


def run_comparison(
    comparison: Comparison,
    folder: Path,
    *,
    processes: int = 1,
    progress: Progress = lambda line: None,
    command: str | None = None,
) -> dict[str, Any]:
    """Run every repetition that is not there yet, then write tables and picture.

    A folder may be gone on with: with more methods, sparsities, or rounds, but not with other
    settings.

    Args:
        comparison: what to run.
        folder: where; made if need be.
        processes: repetitions at a time, each in a process of its own.
        progress: receives a line for every dense model and run.
        command: to print in the tables; by default the command line as typed.

    Returns:
        The summary.

    Raises:
        ValueError: the folder holds something else, or a comparison with other settings.
    """
    _claim(comparison, folder)
    read_once.cache_clear()  # the file may be another one than in a former call
    jobs = comparison.repetitions
    if processes > 1 and len(jobs) > 1:
        with _workers(processes) as pool:
            waiting = [pool.submit(_job, run_repetition, comparison, folder, *job) for job in jobs]
            waiting.append(pool.submit(_job, run_dense_floor, comparison, folder))
            for done in as_completed(waiting):
                for line in done.result():
                    progress(line)
    else:
        for round_, fold in jobs:
            run_repetition(comparison, folder, round_, fold, progress)
        run_dense_floor(comparison, folder, progress)
    summary = summarize(comparison, folder)
    write_tables(summary, folder, command or typed())
    return summary


def _workers(processes: int) -> ProcessPoolExecutor:
    """Processes that share the cores out: threads of two networks on one core slow both."""
    # A fork would take JAX's threads' locks along.
    spawn = multiprocessing.get_context("spawn")
    if not hasattr(os, "sched_setaffinity"):  # Linux alone has it
        return ProcessPoolExecutor(processes, spawn)
    cores = sorted(os.sched_getaffinity(0))
    shares = spawn.SimpleQueue()
    for place in range(processes):
        shares.put(cores[place::processes] or cores)
    return ProcessPoolExecutor(processes, spawn, _settle, (shares,))


def _settle(shares: SimpleQueue[list[int]]) -> None:
    os.sched_setaffinity(0, shares.get())


def _job(run: Callable[..., None], comparison: Comparison, folder: Path, *job: int) -> list[str]:
    """The lines that a run in a process of its own would print."""
    lines: list[str] = []
    devices.compile_cache(comparison.config.compile_cache)
    run(comparison, folder, *job, lines.append)
    return lines


def _claim(comparison: Comparison, folder: Path) -> None:
    path = folder / DESIGN
    settings = comparison.settings()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose another --out")
    if path.is_file():
        given = _as_json(settings)
        known = read_object(path).get("settings", {})
        # Options that came later were at their defaults then; those that no number depends on may
        # have been written down by a former version.
        defaults = {k: v for k, v in _as_json(Config().to_json()).items() if k in given}
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
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is there already and is no comparison: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    made_by = {"versions": versions(), "machine": machine()}
    write_json(path, {"schema_version": SCHEMA_VERSION, "settings": settings, **made_by})


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
