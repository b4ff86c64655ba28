"""The run folder: what lies in it and how to tell one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fairbilevel.records._files import RecordError, json_text, read_json, write_json, write_text
from fairbilevel.records._result import Result

CONFIG, METRICS, RESULT, MODEL = "config.json", "metrics.jsonl", "result.json", "model"
ROWS, CERTIFICATE = "rows.npz", "certificate.json"
MANIFEST = "manifest.json"
ANALYSIS, ANALYSIS_TABLE = "analysis.json", "analysis.csv"
PROFILE = "profile.json"
EXPORT = "export-*.json"  # what lower precision did, for each format and precision
EVENTS, CHECKPOINTS = "events.jsonl", "checkpoints"


def is_run_folder(path: Path) -> bool:
    """Whether ``path`` looks like a run folder, complete or not."""
    return (path / CONFIG).is_file() and (path / METRICS).is_file()


def write_result(path: Path, result: Result) -> None:
    """Write the manifest and then ``result.json``, with which a run folder is complete."""
    seal(path, json_text(result.to_json()))


def seal(path: Path, text: str) -> None:
    """Write the manifest and then ``text`` as ``result.json``.

    The manifest holds SHA-256 digests of all files that a run is read back from, so that one that
    was edited, lost or taken from another run is noticed. It says nothing of who wrote them.
    """
    files = [path / name for name in (CONFIG, METRICS, ROWS) if (path / name).is_file()]
    files += sorted((path / MODEL).glob("*"))
    digests = {str(file.relative_to(path)): _digest(file.read_bytes()) for file in files}
    write_json(path / MANIFEST, {"sha256": digests | {RESULT: _digest(text.encode())}})
    write_text(path / RESULT, text)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_completed(path: Path, result: Result) -> None:
    """Refuse a run that ended without a model, or whose files are not those that it wrote.

    Raises:
        RecordError: it diverged or failed, and why; or the file that was edited or is missing.
    """
    if not result.completed:
        why = f"the run in {path} {result.status}, it has no model: {result.diagnosis}"
        raise RecordError(why)
    if not (path / MANIFEST).is_file():
        raise RecordError(
            f"{path} has no {MANIFEST}, so nobody can tell whether its files belong together: make "
            "the run again"
        )
    manifest = read_json(path / MANIFEST)
    digests = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(digests, dict) or RESULT not in digests:
        raise RecordError(f"{path / MANIFEST} is damaged: it has no digests of the run's files")
    present = {str(file.relative_to(path)) for file in (path / MODEL).glob("*")}
    for name in sorted({*digests, *present}):
        file = path / name
        if not file.is_file():
            raise RecordError(f"{file} is missing: the run wrote it")
        if name not in digests:
            raise RecordError(f"{file} was not written by the run")
        if _digest(file.read_bytes()) != digests[name]:
            raise RecordError(
                f"{file} is not what the run wrote: restore it, or make the run again"
            )


def read_result(path: Path) -> Result:
    """``result.json`` of a run folder.

    Raises:
        RecordError: not a finished run folder, a damaged result or a newer schema.
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
    return Result.from_json(read_json(path / RESULT), str(path / RESULT))
