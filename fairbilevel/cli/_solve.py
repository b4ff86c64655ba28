"""``fairbilevel solve``: a run from its configuration, or on from where it stopped."""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from fairbilevel._numbers import duration
from fairbilevel.cli import _show as show
from fairbilevel.cli._parse import configuration, taken
from fairbilevel.cli._plan import print_plan
from fairbilevel.cli._progress import Progress

HELP = """\
fairbilevel solve --resume RUN goes on with a run that was killed or stopped, under the options it
was begun with; the same command as before does so too, and with --resume behind it refuses to begin
a new one.
"""


def solve(words: list[str], console: Console) -> int:
    """Run, or go on with a run that was begun."""
    if {"-h", "--help"} & set(words):
        print(HELP)
    # Alone, --resume insists on what the same command does anyway: going on where there is a run.
    followed = [not word.startswith("--") for word in [*words[1:], "--"]]
    must = [i for i, w in enumerate(words) if w == "--resume" and not followed[i]]
    options, rest = taken([w for i, w in enumerate(words) if i not in must], {"resume": ""})
    if options["resume"]:
        from fairbilevel.run import stored_config

        path = Path(options["resume"])
        return _resume(path, configuration("solve", rest, stored_config(path)), console)
    return _solve(configuration("solve", rest), console, bool(must))


def _solve(config: Any, console: Console, must_resume: bool) -> int:
    """Run, or go on with the unfinished run that the same options began, which must be there where
    it ``must_resume``."""
    from fairbilevel import devices
    from fairbilevel.records import is_run_folder
    from fairbilevel.run import check_resumable, has_result, run_folder

    def place() -> tuple[str, bool]:
        if must_resume and config.out is not None and is_run_folder(Path(config.out)):
            check_resumable(Path(config.out), config)  # finished ones too
            return config.out, True
        path, goes_on = run_folder(config)
        if must_resume and not goes_on:
            raise ValueError("these options began no run that could be gone on with")
        return str(path), goes_on

    console = _joined(config, console)
    path, goes_on = devices.told_by_first(place)
    if goes_on and has_result(Path(path)):
        return _complete(Path(path), console)
    return _run(Path(path), config, goes_on, console)


def _resume(path: Path, config: Any, console: Console) -> int:
    """Go on with a run, complete already or not, under the options that it was begun with."""
    from fairbilevel.run import check_resumable, has_result

    check_resumable(path, config)
    config = dataclasses.replace(config, out=str(path), overwrite=False)
    console = _joined(config, console)
    if has_result(path):
        return _complete(path, console)
    return _run(path, config, True, console)


def _joined(config: Any, console: Console) -> Console:
    """With the other processes of the run, if there are any; the first one prints."""
    from fairbilevel import devices

    processes = config.processes()
    if processes is None:
        return console
    processes.start()
    if not devices.is_first():
        # JAX's own libraries write past Python.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return console


def _complete(path: Path, console: Console) -> int:
    """Nothing is left to be computed; perhaps the report, where a run was killed that late."""
    from fairbilevel import devices, report
    from fairbilevel.records import check_completed, read_result
    from fairbilevel.run import complete

    devices.on_first(lambda: complete(path))
    result = read_result(path)
    check_completed(path, result)
    show.say(console, f"the run in {path} is complete")
    console.print(report.summary_table(result))
    return 0


def _run(path: Path, config: Any, goes_on: bool, console: Console) -> int:
    from fairbilevel import devices, report
    from fairbilevel.records import Interrupted
    from fairbilevel.run import describe_machine, follow_run, make_plan, prepare, solve_run

    def say(sentence: str) -> None:
        if devices.is_first():
            print(f"fairbilevel: {sentence}", file=sys.stderr)

    prepared = prepare(config)
    plan = make_plan(prepared)
    try:
        if not devices.is_first():
            follow_run(prepared, path)
            return 0
        print_plan(console, prepared, plan)
        show.say(console, describe_machine(prepared.problem))
        if goes_on:
            show.say(console, f"going on with the run in {path}")
        with Progress(console, sum(plan.gradient_evaluations.values())) as progress:
            result = solve_run(prepared, path, progress, resume=goes_on, say=say)
    except Interrupted as error:
        again = shlex.join(["fairbilevel", "solve", "--resume", str(path)])
        say(f"{error}; go on with: {again}")
        return 128 + int(getattr(signal, error.signal, signal.SIGTERM))
    console.print()
    console.print(report.summary_table(result))
    # The command's start and its files are left out.
    compiling, total = result.cost.compile_seconds or 0.0, result.cost.seconds or 0.0
    took = f"compiled in {duration(compiling)}, ran {duration(total - compiling)}"
    show.say(console, took)
    for warning in result.warnings:
        show.say(console, f"note: {warning}")
    show.say(console, f"\nreport: {path / 'report.html'}")
    show.say(console, f"model:  {path / 'model'}")
    return 0
