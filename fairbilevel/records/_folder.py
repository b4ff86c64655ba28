"""The run folder: what lies in it and how to tell one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairbilevel.records._files import RecordError, read_json

SCHEMA_VERSION = 1
CONFIG, METRICS, RESULT, MODEL = "config.json", "metrics.jsonl", "result.json", "model"
ROWS, CERTIFICATE = "rows.npz", "certificate.json"
ANALYSIS, ANALYSIS_TABLE = "analysis.json", "analysis.csv"
EVENTS, CHECKPOINTS = "events.jsonl", "checkpoints"


def is_run_folder(path: Path) -> bool:
    """Whether ``path`` looks like a run folder, complete or not."""
    return (path / CONFIG).is_file() and (path / METRICS).is_file()


def check_run_folder(path: Path) -> None:
    """Refuse what is not a finished run folder of a schema that this version reads.

    Raises:
        RecordError: one sentence that says what it is instead.
    """
    if not path.exists():
        raise RecordError(f"there is no run folder {path}")
    if not is_run_folder(path):
        raise RecordError(
            f"{path} is not a run folder: it has no {CONFIG} and {METRICS} as `fairbilevel solve` "
            "writes them"
        )
    if not (path / RESULT).is_file():
        raise RecordError(
            f"the run in {path} did not finish: it has no {RESULT} "
            f"(`fairbilevel solve --resume {path}` goes on with it)"
        )


def check_completed(path: Path, result: dict[str, Any]) -> None:
    """Refuse a run that ended without a model.

    Raises:
        RecordError: it diverged or failed; says why.
    """
    status = result.get("status", "completed")
    if status != "completed":
        raise RecordError(f"the run in {path} {status}, it has no model: {result.get('diagnosis')}")


def read_result(path: Path) -> dict[str, Any]:
    """``result.json`` of a run folder.

    Raises:
        RecordError: not a finished run folder, a damaged result or a newer schema.
    """
    check_run_folder(path)
    result = read_json(path / RESULT)
    version = result.get("schema_version") if isinstance(result, dict) else None
    if not isinstance(version, int):
        raise RecordError(f"{path / RESULT} has no schema_version")
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"{path} was written with schema {version}, this version of fairbilevel reads up to "
            f"{SCHEMA_VERSION}: upgrade it"
        )
    return result
