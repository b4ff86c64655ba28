"""The life of a run folder: claimed before work starts, filled file by file, read back whole."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from fairbilevel import _display, deploy, report
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
    JsonLines,
    RecordError,
    Result,
    check_completed,
    is_run_folder,
    read_json_lines,
    read_object,
    read_result,
    write_json,
    write_result,
)
from fairbilevel.run._result import build_result
from fairbilevel.run._rows import write_rows
from fairbilevel.train import Solution


class Events:
    """``events.jsonl`` of one run folder: when a run began, was interrupted, went on and ended;
    what is there is never written over."""

    def __init__(self, folder: Path):
        self._path = folder / EVENTS

    def write(self, event: str, **more: Any) -> None:
        """Append an event with the time, UTC."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        lines = JsonLines(self._path, append=True)
        try:
            lines.write({"time": now, "event": event, **more})
        finally:
            lines.close()

    def first(self, name: str) -> Any:
        """An entry of the first event, ``None`` where there is none."""
        try:
            found = read_json_lines(self._path)
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
