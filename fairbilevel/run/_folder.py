"""The life of a run folder: claimed before work starts, filled file by file, gone on with where the
same command finds its unfinished run again, read back whole."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from fairbilevel import _display, deploy, methods, report
from fairbilevel.data import as_labels
from fairbilevel.problem import predict, probabilities
from fairbilevel.records import (
    ANALYSIS,
    ANALYSIS_TABLE,
    CERTIFICATE,
    CHECKPOINTS,
    CONFIG,
    EVENTS,
    EXPORT,
    LOCK,
    MANIFEST,
    METRICS,
    MODEL,
    PROFILE,
    RESULT,
    ROWS,
    TENSORBOARD,
    Checkpoints,
    JsonLines,
    RecordError,
    Result,
    check_completed,
    differences,
    is_locked,
    is_run_folder,
    read_json_lines,
    read_object,
    read_result,
    write_json,
    write_result,
)
from fairbilevel.run._config import FREE_OPTIONS, Config
from fairbilevel.run._result import build_result
from fairbilevel.run._rows import write_rows
from fairbilevel.train import Solution


def write_event(folder: Path, event: str, **more: Any) -> None:
    """Append what befell a run (it began, was interrupted, went on, ended) with the time, UTC, to
    ``events.jsonl``, where nothing is ever written over."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    lines = JsonLines(folder / EVENTS, append=True)
    try:
        lines.write({"time": now, "event": event, **more})
    finally:
        lines.close()


def first_event(folder: Path, name: str) -> Any:
    """An entry of the first event, ``None`` where there is none."""
    try:
        found = read_json_lines(folder / EVENTS)
    except RecordError:
        return None
    return found[0].get(name) if found and isinstance(found[0], dict) else None


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a folder that holds a run, unless ``overwrite``, or something else
    (``ValueError``)."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(f"{path} is a file, not a folder for a run")
    if all(_is_begun(entry) for entry in path.iterdir()):
        return
    if not is_run_folder(path):
        raise ValueError(f"{path} holds files that are no run: choose an empty or new folder")
    if not overwrite:
        raise ValueError(f"{path} already holds a run: choose another --out or add --overwrite")


def _is_begun(entry: Path) -> bool:
    """Whether a file is what a run leaves that was killed before it had a configuration."""
    begun = entry.name == METRICS and entry.is_file() and entry.stat().st_size == 0
    return begun or entry.name == LOCK or entry.name.startswith(f".{CONFIG}.")


def claim(
    path: Path, config: dict[str, Any], overwrite: bool, *, resume: bool = False
) -> JsonLines:
    """Start a free run folder (``check_free``): ``config.json`` and an open ``metrics.jsonl``,
    which a run that is gone on with writes again, out of its checkpoints."""
    if resume:
        return JsonLines(path / METRICS)
    check_free(path, overwrite)
    if path.exists() and is_run_folder(path):
        # Only what a run writes is removed: whatever else a user keeps there stays.
        # The ledger of looks stays too: rows do not forget that they were looked at.
        written = (RESULT, MANIFEST, "report.html", CERTIFICATE, ANALYSIS, ANALYSIS_TABLE, ROWS)
        for name in (*written, PROFILE, METRICS, EVENTS, CONFIG):
            (path / name).unlink(missing_ok=True)
        for other in [*path.glob("certificate-*.json"), *path.glob(EXPORT)]:
            other.unlink()
        for name in (MODEL, CHECKPOINTS, TENSORBOARD):
            shutil.rmtree(path / name, ignore_errors=True)
    path.mkdir(parents=True, exist_ok=True)
    lines = JsonLines(path / METRICS)
    try:
        write_json(path / CONFIG, config)  # last: a folder that has it can be gone on with
    except OSError:
        lines.close()
        raise
    return lines


def of_baseline(steps: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """From a method's records, in their order, to those of the baseline beside another method: one
    phase, whose steps go on counting, of so many in all."""
    counted: dict[str, int] = {}

    def told(entry: dict[str, Any]) -> dict[str, Any]:
        counted[entry["phase"]] = entry["step"]
        return {**entry, "phase": "baseline", "step": sum(counted.values()), "steps": steps}

    return told


def finish(path: Path, solution: Solution, result: Result) -> None:
    """Model files and rows, the result, the report: a folder with a result is complete."""
    (path / MODEL).mkdir(exist_ok=True)
    deploy.save_model(path / MODEL, solution)
    write_rows(path, solution.problem)
    write_result(path, result)
    report.write_report(path)


def save_run(
    solution: Solution,
    path: str | Path,
    *,
    baseline: Solution | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a solution as a run folder, as the command line does.

    Args:
        solution: what ``fb.solve`` returned.
        path: the folder; new or empty, unless ``overwrite``.
        baseline: shown beside it in the report.
        seed: recorded.
        overwrite: replace the run that is there.

    Raises:
        ValueError: the folder holds something that would be lost.
    """
    folder = Path(path)
    result = build_result(solution, baseline, seed=seed)
    config = {
        "sparsity": solution.sparsity,
        "granularity": solution.granularity,
        "normalize": solution.problem.normalization,
        "seed": seed,
    }
    lines = claim(folder, config, overwrite)
    beside = [] if baseline is None else baseline.history
    told = of_baseline(sum({entry["phase"]: entry["steps"] for entry in beside}.values()))
    for record in [*solution.history, *map(told, beside)]:
        lines.write(record)
    lines.close()
    finish(folder, solution, result)
    return folder


@dataclass(frozen=True)
class Run(deploy.ModelFiles):
    """A finished run, read back: its ``model/`` folder, and beside it:

    Attributes:
        path: its folder.
        config: options it was made with.
        result: ``result.json``, typed.
        metrics: records of ``metrics.jsonl``.
    """

    path: Path
    config: dict[str, Any]
    result: Result
    metrics: list[dict[str, Any]]

    def __repr__(self) -> str:
        return _display.line("Run", str(self.path), *self.result.facts())

    def logits(self, inputs: Any, *, dense: bool = False) -> Float[np.ndarray, "rows classes"]:
        """Logits of rows in the form the data came in.

        Args:
            inputs: raw images, feature vectors or a table with the run's columns.
            dense: of the dense reference instead of the sparse network.
        """
        network = self.dense if dense else self.network
        return predict(self.model, self.encoder, network, self.encoder.transform(inputs))

    def predict_proba(
        self, inputs: Any, *, dense: bool = False
    ) -> Float[np.ndarray, "rows classes"]:
        """Probabilities of classes in the order of ``classes``; arguments as for ``logits``."""
        return probabilities(self.logits(inputs, dense=dense))

    def predict(self, inputs: Any, *, dense: bool = False) -> Shaped[np.ndarray, " rows"]:
        """Names of the rows' classes in the type of the labels, to be compared with them: numbers
        where all names are whole numbers (``fb.data.as_labels``); arguments as for ``logits``."""
        return as_labels(self.classes)[self.logits(inputs, dense=dense).argmax(-1)]


def load_run(path: str | Path, *, model: Any = None) -> Run:
    """Read a finished run folder; nothing in it is executed.

    Args:
        path: the folder.
        model: needed where the run's model was the user's own: a ``Model`` or ``flax.nnx`` module.

    Raises:
        ValueError: not a finished run, damaged, or from a newer schema.
    """
    folder = Path(path)
    result = read_result(folder)
    check_completed(folder, result)
    return Run(
        **vars(deploy.load_model(folder / MODEL, model)),
        path=folder,
        config=read_object(folder / CONFIG),
        result=result,
        metrics=read_json_lines(folder / METRICS),
    )


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
        write_event(path, "completed")
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
