"""Files written whole or not at all, and read without executing anything in them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from fairbilevel._files import replacing
from fairbilevel._npz import read_npz

MOST_JSON = 256 * 2**20  # bytes


class RecordError(ValueError):
    """A file of a run folder is missing, damaged or of another kind; one sentence."""


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of ``path`` only once it is complete."""
    with replacing(path) as unfinished, unfinished.open("wb") as stream:
        yield stream


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with _replacing(path) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, atomically; columns in the order in which they first come."""
    stream = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, stream.getvalue())


def to_digits(value: Any, digits: int = 7) -> Any:
    """The same with every float in it, of lists and dictionaries too, at so many significant
    digits: single precision bears no more, and the others take half of a compressed file."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {name: to_digits(each, digits) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_digits(each, digits) for each in value]
    return value


def json_text(value: Any) -> str:
    """JSON as it is written. NaN and infinity are refused: JSON has no such numbers."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, as ``json_text``."""
    write_text(path, json_text(value))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has two values of {next(n for n in names if names.count(n) > 1)!r}")
    return found


def read_json(path: Path, *, unique: bool = False) -> Any:
    """Read JSON; with ``unique``, every name of an object must be there once.

    Raises:
        RecordError: missing, unreadable or not JSON.
    """
    if path.is_file() and path.stat().st_size > MOST_JSON:
        raise RecordError(f"{path} is larger than {MOST_JSON >> 20} MiB: no file of a run is")
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=_once if unique else None)
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path} cannot be read as JSON: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read JSON that is an object.

    Raises:
        RecordError: missing, unreadable, not JSON or no object.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise RecordError(f"{path} holds no JSON object")
    return found


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Write named arrays as an ``.npz``, atomically and without pickle.

    Members carry a fixed time stamp, so that equal arrays give equal files.
    """
    with _replacing(path) as stream:
        _archive(stream, arrays, compressed)


def arrays_bytes(arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> bytes:
    """What ``write_arrays`` would write."""
    stream = io.BytesIO()
    _archive(stream, arrays, compressed)
    return stream.getvalue()


def _archive(stream: Any, arrays: Mapping[str, np.ndarray], compressed: bool) -> None:
    with zipfile.ZipFile(stream, "w") as archive:
        for name, value in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
            with archive.open(member, "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(value), allow_pickle=False)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a ``.npz`` written by ``write_arrays``; pickled entries are refused.

    Raises:
        RecordError: missing, damaged or not such a file.
    """
    try:
        with path.open("rb") as opened:
            return read_npz(opened)
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read as stored arrays: {error}") from None


class JsonLines:
    """Append-only JSON lines, flushed one by one.

    Args:
        path: file to write.
        append: go on behind what is there, in place of creating it anew.
    """

    def __init__(self, path: Path, *, append: bool = False):
        self._stream = path.open("a" if append else "w", encoding="utf-8")

    def write(self, record: Any) -> None:
        """Append one record."""
        self._stream.write(json.dumps(record, allow_nan=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a JSON lines file, an object each; a last line cut short by a crash is left out.

    Raises:
        RecordError: unreadable, or damaged before its last line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number < len(lines):
                raise RecordError(f"{path}, line {number} of {len(lines)}, is not JSON") from None
            break
        if not isinstance(record, dict):
            raise RecordError(f"{path}, line {number} of {len(lines)}, is no JSON object")
        records.append(record)
    return records
