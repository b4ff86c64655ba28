"""Any source as ArrayRecord shards, read once: to be solved from as from the source itself."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from fairbilevel._files import LOCK, locked, replacing

from ._dataset import Options
from ._errors import DataError
from ._load import open_source
from ._raw import ABOUT, BEGUN, COLUMNS, FORMAT, SUFFIX, RecordFile, write_records
from ._source import Request, Rows, row_numbers
from ._stores import StoredRows, row_bytes, rows_at_once, select

_SHARD_BYTES = 2**28
_MEASURED = 256  # image files, of which the first tell how many a shard takes
_READ = 64  # records that are read back together
_TABLES = (".csv", ".parquet")
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Converted:
    """What `convert` has written.

    Attributes:
        path: the folder.
        rows: how many.
        shards: files that they lie in.
        written: of these, how many were written now; the others were there from a call before.
        skipped: reason -> rows left out.
        there: whether all of it was there, complete, and nothing was to be done.
    """

    path: Path
    rows: int
    shards: int
    written: int
    skipped: dict[str, int]
    there: bool = False


def convert(
    source: str | PathLike[str],
    out: str | PathLike[str],
    options: Options | None = None,
    *,
    keep_encoded: bool = False,
    shard_rows: int | None = None,
    told: Told = lambda what, done, total: None,
) -> Converted:
    """Write the rows of a source as ArrayRecord shards, with their attributes beside.

    Images become uint8 pixels, of the size that was asked for, or stay the files that they are;
    nothing else changes, so that roles, fingerprints and masks are those of the source. What a call
    that was killed has written is gone on with; a folder is complete once it has `rows.json`, which
    is written last, after everything has been read back.

    Args:
        source: as for `load`.
        out: a folder, new, empty or begun by the same call.
        options: how to read: image_size, skip_damaged, split, data_dir and download count; the
            others are for `load`, of the folder as of the source.
        keep_encoded: keep the bytes of image files, to be decoded and resized whenever they are
            read: smaller, and the size is chosen then.
        shard_rows: rows of a file; 256 MiB of them by default.
        told: what is done, rows done, of how many.

    Raises:
        DataError: a source that cannot be read or is a table, image files to be kept where there
            are none or with a size, a folder that holds something else, rows that are not read back
            as they were written, or a source that changed meanwhile.
        HeldError: another call is writing to the folder.
        OSError: the disk is full, or cannot be written to.
    """
    options = dataclasses.replace(options or Options(), in_memory="no", max_rows=None)
    if keep_encoded and options.image_size is not None:
        raise DataError(
            "image_size (--image-size) is given where images are read, if they are kept encoded; "
            "leave it out here."
        )
    folder = Path(out).expanduser()
    location, reader = open_source(fspath(source), options, True)
    if reader.has_features:
        raise DataError(
            f"{location.text} is a table, which is read as it is: shards are for images and arrays."
        )
    known = _identity(location.path, location.text, folder)
    asked = [options.image_size, options.skip_damaged, options.split, options.data_dir]
    if keep_encoded:  # all are decoded once, to find those that cannot be: any size will do
        options = dataclasses.replace(options, image_size=1)
    rows = reader.read(location, Request(options))
    if keep_encoded and rows.encoded is None:
        raise DataError(
            "keep_encoded (--keep-encoded) is for folders, zips and Parquet columns of image "
            f"files, and {location.text} is none of these: leave it out."
        )
    kept = np.arange(len(rows.ids))
    inputs = rows.read(kept)
    kept = np.setdiff1d(kept, np.array(rows.damaged, np.int64))
    assert isinstance(inputs, (np.ndarray, StoredRows))
    what: dict[str, Any]
    records: Callable[[int, int], Iterator[bytes]]
    if keep_encoded and rows.encoded is not None:
        lengths = [len(rows.encoded(row)) for row in kept[:_MEASURED].tolist()]
        bytes_each, what = sum(lengths) // len(lengths), {"encoded": True}
        records = partial(_files, rows.encoded, kept)
    else:
        bytes_each = row_bytes(inputs.shape, inputs.dtype)
        what = {"shape": list(inputs.shape[1:]), "dtype": np.dtype(inputs.dtype).name}
        records = partial(_pixels, inputs)
    size = max(1, _SHARD_BYTES // max(bytes_each, 1)) if shard_rows is None else shard_rows
    starts = range(0, len(kept), size)
    names = [f"x-{i:05d}{SUFFIX}" for i in range(len(starts))]
    about = _about(rows, what, kept, names)
    told_as = json.dumps([known, asked]).encode()
    about["source"] = hashlib.blake2b(told_as, digest_size=16).hexdigest()
    with locked(folder):
        digests = _begun(folder, about)
        if digests is None:
            return Converted(folder, len(kept), len(names), 0, about["skipped"], there=True)
        written = 0
        for begin, name in zip(starts, names, strict=True):
            if not (name in digests["shards"] and (folder / name).exists()):
                with replacing(folder / name) as unfinished:
                    digest = hashlib.blake2b(digest_size=16)
                    part = records(begin, min(begin + size, len(kept)))
                    part = _hashed(part, digest, "converting", begin, kept, told)
                    write_records(unfinished, part)
                digests["shards"][name] = digest.hexdigest()
                _write_json(folder / BEGUN, digests)
                written += 1
        for begin, name in zip(starts, names, strict=True):
            digest = hashlib.blake2b(digest_size=16)
            with contextlib.suppress(DataError):  # cannot be read: not what was written either
                for _ in _hashed(_read(folder / name), digest, "verifying", begin, kept, told):
                    pass
            if digest.hexdigest() != digests["shards"][name]:
                (folder / name).unlink()
                raise DataError(
                    f"{name} does not hold what was written into it, and has been removed: look "
                    "after the disk, and run the command again."
                )
        _columns(folder / COLUMNS[0], rows, kept, about)
        if _identity(location.path, location.text, folder) != known:
            raise DataError(
                f"{location.text} has changed while it was converted; remove {folder}, and run the "
                "command again."
            )
        _write_json(folder / ABOUT, about)
        (folder / BEGUN).unlink()
    return Converted(folder, len(kept), len(names), written, about["skipped"])


def _pixels(inputs: Any, begin: int, end: int) -> Iterator[bytes]:
    """The bytes of rows, one after the other."""
    size = rows_at_once(inputs.shape, inputs.dtype)
    some = select(inputs, np.arange(begin, end))
    parts = (
        some.passed()
        if isinstance(some, StoredRows)
        else ((i, some[i : i + size]) for i in range(0, len(some), size))
    )
    for _, part in parts:
        for row in np.ascontiguousarray(part, part.dtype.newbyteorder("<")):
            yield row.tobytes()


def _files(
    encoded: Callable[[int], bytes], kept: np.ndarray, begin: int, end: int
) -> Iterator[bytes]:
    """The image files of rows, one after the other."""
    return map(encoded, kept[begin:end].tolist())


def _read(path: Path) -> Iterator[bytes]:
    """The records of a file, one after the other."""
    file = RecordFile(path)
    for start in range(0, len(file), _READ):
        yield from file.records(np.arange(start, min(start + _READ, len(file))))


def _hashed(
    records: Iterator[bytes], digest: Any, what: str, begin: int, kept: np.ndarray, told: Told
) -> Iterator[bytes]:
    """The same records, which go into the digest; what is done with them is told."""
    for done, record in enumerate(records, begin + 1):
        digest.update(record)
        yield record
        if done % _READ == 0 or done == len(kept):
            told(what, done, len(kept))


def _begun(folder: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """The digests of shards written before; None where nothing is left to be done."""
    there = [p.name for p in folder.iterdir() if p.name != LOCK]
    known = next((n for n in (ABOUT, BEGUN) if n in there), None)
    if known is None:
        if there:
            raise DataError(f"{folder} holds files already; choose an empty or new folder.")
        _write_json(folder / BEGUN, {"about": about, "shards": {}})
        return {"about": about, "shards": {}}
    try:
        found = json.loads((folder / known).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    former = found if known == ABOUT or not isinstance(found, dict) else found.get("about")
    if known == ABOUT and isinstance(former, dict):  # what was complete did not always tell
        former = {"source": about["source"], **former}
    if former != json.loads(json.dumps(about)):
        raise DataError(
            f"{folder} holds the rows of another source, or of this one as it was read otherwise "
            "or before it changed; choose an empty or new folder."
        )
    for name in (*about["shards"], *COLUMNS, ABOUT, BEGUN):  # what a killed call has left
        for unfinished in folder.glob(f".{name}.*"):
            unfinished.unlink()
    return None if known == ABOUT else found


def _identity(path: Path, text: str, out: Path) -> str:
    """A digest of what tells that a source is the same one: its name, and the size and time of
    every file of it, those of what is written left out."""
    path, out = path.resolve(), out.resolve()
    if path.is_dir():
        found = [p for p in sorted(path.rglob("*")) if p.is_file() and out not in p.parents]
    elif path.suffix == ".npy":  # its columns lie beside it
        found = [p for p in sorted(path.parent.iterdir()) if p.suffix in (".npy", *_TABLES)]
    else:
        found = [path] if path.is_file() else []
    top = path if path.is_dir() else path.parent
    digest = hashlib.blake2b((path.name if found else text).encode(), digest_size=16)
    for p in found:
        told = p.stat()
        digest.update(f"{p.relative_to(top)}\0{told.st_size}\0{told.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _about(rows: Rows, what: dict[str, Any], kept: np.ndarray, names: list[str]) -> dict[str, Any]:
    """What `rows.json` says."""
    skipped = dict(rows.skipped)
    if rows.damaged:
        skipped[f"{rows.piece} cannot be used"] = len(rows.damaged)
    columns = [str(c) for c in rows.attributes.columns]
    taken = set(columns)

    def free(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    numbers = {name: free(f"{name} as a number") for name in rows.numbers}
    plain = rows.numbered and np.array_equal(rows.ids[kept], row_numbers(len(kept)))
    return {
        "format": FORMAT,
        **what,
        "rows": len(kept),
        "shards": names,
        "columns": columns,
        "ids": None if plain else free("id"),
        "numbers": numbers,
        "name": rows.name,
        "target": rows.target,
        "group": list(rows.group),
        "orders": {name: list(order) for name, order in rows.orders.items()},
        "skipped": {why: count for why, count in skipped.items() if count},
        "notes": list(rows.notes),
        "numbered": rows.numbered,
    }


def _columns(path: Path, rows: Rows, kept: np.ndarray, about: dict[str, Any]) -> None:
    import pandas as pd

    from ._attributes import as_text, is_numeric

    table = {}
    for name in rows.attributes.columns:
        values = rows.attributes[name]
        # A column of mixed objects is nothing to Parquet, and text to every reader of attributes.
        plain = values if is_numeric(values) else pd.Series(as_text(values), dtype="str")
        table[str(name)] = plain.iloc[kept].reset_index(drop=True)
    for name, column in about["numbers"].items():
        table[column] = rows.numbers[name].iloc[kept].reset_index(drop=True)
    if about["ids"] is not None:
        table[about["ids"]] = pd.Series(rows.ids[kept])
    with replacing(path) as unfinished:
        pd.DataFrame(table).to_parquet(unfinished)


def _write_json(path: Path, value: Any) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
