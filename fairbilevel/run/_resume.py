"""Where a run goes, and whether it goes on: the same command finds its unfinished run again."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fairbilevel import methods, report
from fairbilevel.records import (
    CHECKPOINTS,
    CONFIG,
    RESULT,
    Checkpoints,
    RecordError,
    Result,
    check_completed,
    differences,
    is_locked,
    is_run_folder,
    read_object,
    read_result,
)
from fairbilevel.run._config import FREE_OPTIONS, Config
from fairbilevel.run._folder import Events, check_free


def is_unfinished(path: Path) -> bool:
    """Whether a run began in a folder and did not end: removing its checkpoints is its last act."""
    return is_run_folder(path) and (not has_result(path) or (path / CHECKPOINTS).is_dir())


def has_result(path: Path) -> bool:
    """Whether nothing is left to be computed."""
    return (path / RESULT).is_file()


def complete(path: Path) -> Result:
    """What a run that has a result still has to do: its report, and no checkpoints.

    Returns:
        The result.

    Raises:
        RecordError: the run diverged or failed, or its result is damaged.
    """
    result = read_result(path)
    if (path / CHECKPOINTS).is_dir() or not (path / "report.html").is_file():
        check_completed(path, result)
        report.write_report(path)
        Events(path).write("completed")
        Checkpoints(path / CHECKPOINTS).discard()
    return result


def stored_config(path: Path) -> Config:
    """The configuration of the run in a folder, to go on with.

    Raises:
        RecordError: there is no run, or its configuration cannot be read.
    """
    if not is_run_folder(path):
        raise RecordError(f"there is no run in {path} to go on with")
    values = read_object(path / CONFIG)
    try:
        return Config.from_mapping({**values, "out": str(path), "overwrite": False})
    except ValueError as error:
        raise RecordError(
            f"the run in {path} was begun by another version of fairbilevel: {error}"
        ) from None


def changes(before: Config, now: Config) -> str:
    """The options in which two configurations differ, in words; empty where in none."""

    def relevant(config: Config) -> Mapping[str, Any]:
        return {k: v for k, v in config.to_json().items() if k not in FREE_OPTIONS}

    return differences(relevant(before), relevant(now))


def check_resumable(path: Path, config: Config) -> None:
    """Refuse to go on with a run under other options.

    Raises:
        ValueError: says what differs.
    """
    changed = changes(stored_config(path), config)
    if changed:
        raise ValueError(
            f"the run in {path} has other options: {changed}; choose another --out, "
            "or add --overwrite to begin anew"
        )


def run_folder(config: Config) -> tuple[Path, bool]:
    """Where a run goes: ``--out``, or a folder below ``runs/``; and whether it goes on there.

    An unfinished run of the same options that no process is working on is gone on with.

    Raises:
        ValueError: ``--out`` holds something that would be lost, or an unfinished run of other
            options.
    """
    if config.out is not None:
        path = Path(config.out)
        if not config.overwrite and is_unfinished(path):
            check_resumable(path, config)
            return path, True
        check_free(path, config.overwrite)
        return path, False
    stem = Path(config.data.split("?")[0].replace("tfds:", "")).stem or "data"
    what = f"{config.granularity}-{config.sparsity:g}-seed{config.seed}"
    name = methods.find(config.method).name
    base = Path("runs") / (f"{stem}-{what}" if name == "bilevel" else f"{stem}-{name}-{what}")
    path, number = base, 2
    while path.exists():
        if is_unfinished(path) and not is_locked(path):
            with contextlib.suppress(ValueError):
                if not changes(stored_config(path), config):
                    return path, True
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path, False


@contextlib.contextmanager
def stopping(checkpoints: Checkpoints, say: Callable[[str], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask for a checkpoint and an orderly end; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears of signals
        return

    def heard(number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if checkpoints.stop is not None:
            raise KeyboardInterrupt
        checkpoints.request_stop(name)
        say(f"{name}: the run stops after the step under way and a checkpoint; again: at once")

    before = {n: signal.signal(n, heard) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
