"""The runs below a folder, a line each, whatever state they are in."""

from __future__ import annotations

import datetime
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fairbilevel import report
from fairbilevel.fairness import Evaluation
from fairbilevel.records import (
    CERTIFICATE,
    CONFIG,
    METRICS,
    RESULT,
    RecordError,
    is_locked,
    is_run_folder,
    read_json,
    read_json_lines,
    read_result,
)
from fairbilevel.report import dig, number

_ENDS = ("completed", "diverged", "failed")
_LIMITS = {
    "met": "kept",
    "missed": "not kept",
    "none": "none",
    "unmeasured": "not measured",
    "doubtful": "in doubt",
}
_DEEPEST = 8  # folders below the one that was asked for


@dataclass(frozen=True)
class RunSummary:
    """One run folder in a list of many. What is not known is ``None``.

    Attributes:
        path: the folder.
        status: ``"completed"``, ``"diverged"``, ``"failed"``, ``"running"``, ``"unfinished"``
            (stopped before its end), ``"damaged"``, or ``"no run"``.
        note: a sentence where there is something to say: what is wrong, or how far it came.
        data: name of the data.
        model: name of the model.
        method: what pruned.
        sparsity: share removed, in [0, 1).
        granularity: ``"weight"`` or ``"filter"``.
        dense_accuracy: of the dense model on test.
        accuracy: of the pruned model on test.
        largest_gap: largest excess accuracy gap of a group on test, a fraction.
        limits: fairness limits on test: ``"kept"``, ``"not kept"``, ``"none"``, ``"not measured"``;
            ``"in doubt"`` where they are kept on test but not on other rows, or test has too few.
        certificate: verdict of the certificate of its own certify rows.
        certificates: verdicts of those of new data or of exported files, by file name.
        date: when its newest record was written, ISO 8601 in UTC.
    """

    path: str
    status: str
    note: str | None = None
    data: str | None = None
    model: str | None = None
    method: str | None = None
    sparsity: float | None = None
    granularity: str | None = None
    dense_accuracy: float | None = None
    accuracy: float | None = None
    largest_gap: float | None = None
    limits: str | None = None
    certificate: str | None = None
    certificates: Mapping[str, str] = field(default_factory=dict)
    date: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def list_runs(folder: str | Path) -> list[RunSummary]:
    """What lies below a folder, by path: its runs, and the folders in it that hold none.

    Reads records and never a model. A folder that cannot be read, is damaged or is from a newer
    version is a line that says so; nothing a folder holds makes this fail. Links and hidden folders
    are not followed.

    Args:
        folder: where to look; a run folder itself is a list of one.

    Raises:
        ValueError: there is no such folder.
    """
    top = Path(folder)
    if not top.is_dir():
        raise ValueError(f"there is no folder {top}: runs are written below runs/ by default")
    if _is_run(top):
        return [summarize_run(top)]
    found = []
    for child in _children(top):
        below = list(_runs(child, _DEEPEST))
        found += [summarize_run(path) for path in below]
        if not below:
            note = f"it has no {CONFIG} and {METRICS} as `fairbilevel solve` writes them"
            found.append(RunSummary(str(child), "no run", note))
    return found


def _is_run(path: Path) -> bool:
    return is_run_folder(path) or (path / RESULT).is_file() or (path / METRICS).is_file()


def _children(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            folders = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [path / name for name in sorted(folders) if not name.startswith(".")]


def _runs(path: Path, depth: int) -> Iterator[Path]:
    if _is_run(path):
        yield path
    elif depth:
        for child in _children(path):
            yield from _runs(child, depth - 1)


def summarize_run(path: Path) -> RunSummary:
    """A run folder in a line; what is wrong with it is its ``note``."""
    try:
        return _summary(path)
    except (ValueError, OSError, RecursionError) as error:
        return RunSummary(str(path), "damaged", _sentence(error), date=_date(path))


def _summary(path: Path) -> RunSummary:
    if not is_run_folder(path):
        raise RecordError(f"it lacks {CONFIG} or {METRICS}")
    config = read_json(path / CONFIG)
    if not isinstance(config, dict):
        raise RecordError(f"{path / CONFIG} holds no options")
    asked: dict[str, Any] = {
        name: _text(config, name) for name in ("data", "model", "method", "granularity")
    }
    asked |= {"sparsity": number(config, "sparsity"), "date": _date(path)}
    if not (path / RESULT).is_file():
        where = _progress(path)
        if is_locked(path):
            return RunSummary(str(path), "running", where, **asked)
        again = f"fairbilevel solve --resume {shlex.quote(str(path))} goes on with it"
        return RunSummary(str(path), "unfinished", f"{where}; {again}", **asked)
    result = read_result(path)
    status = result.status
    if status not in _ENDS:
        raise RecordError(f"{path / RESULT} has an unknown status {status!r}")
    known: dict[str, Any] = {
        **asked,
        "data": result.data.name or asked["data"],
        "model": result.model.name or asked["model"],
        "method": result.method or asked["method"],
    }
    note = result.diagnosis
    try:
        known["certificate"] = _certificate(path / CERTIFICATE)
        of_others = sorted(path.glob("certificate-*.json"))
        known["certificates"] = {p.name: _certificate(p) for p in of_others}
    except RecordError as error:
        note = _sentence(error)
    if status == "completed":
        found = result.pruned.get("test", Evaluation())
        known |= {
            "dense_accuracy": found.dense_accuracy,
            "accuracy": found.accuracy,
            "largest_gap": found.gaps.excess_accuracy.largest,
            "limits": _LIMITS.get(report.judge(result).state),
        }
    return RunSummary(str(path), status, note, **known)


def _certificate(path: Path) -> str | None:
    if not path.is_file():
        return None
    verdict = _text(read_json(path), "verdict")
    if verdict is None:
        raise RecordError(f"{path} says no verdict")
    return verdict


def _progress(path: Path) -> str:
    """How far an unfinished run came."""
    records = [r for r in read_json_lines(path / METRICS) if isinstance(r, dict)]
    if not records:
        return "nothing was recorded yet"
    phase, step, steps = (dig(records[-1], name) for name in ("phase", "step", "steps"))
    return f"at step {step} of {steps} of the {phase} phase"


def _text(tree: Any, *names: str) -> str | None:
    found = dig(tree, *names)
    return found if isinstance(found, str) else None


def _date(path: Path) -> str | None:
    times = []
    for name in (CONFIG, METRICS, RESULT, CERTIFICATE):
        try:
            times.append((path / name).stat().st_mtime)
        except OSError:
            continue
    if not times:
        return None
    newest = datetime.datetime.fromtimestamp(max(times), datetime.UTC)
    return newest.isoformat(timespec="seconds")


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
