"""The files of a comparison's repetitions: two of each while it runs, one of all once packed, in
its folder or beside it with those of others."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import lzma
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fairbilevel._npz import read_npz
from fairbilevel.records import (
    RecordError,
    arrays_bytes,
    locked,
    read_arrays,
    read_json,
    read_object,
    write_bytes,
    write_json,
)

DESIGN = "comparison.json"
FLOOR = "dense-seeds"
PACKED = "repetitions.xz"
_HEAD, _TEXTS = "head", "texts"
_MOST = 2**31  # bytes unpacked
_PATIENCE = 600.0  # seconds; a dozen comparisons are packed in half a minute

Record = dict[str, Any]
Rows = dict[str, np.ndarray]
Repetitions = Mapping[str, tuple[Record, Rows]]


def stem_of(folder: Path, round_: int, fold: int) -> Path:
    """Path of a repetition's files, without their ending."""
    return folder / "repetitions" / f"{round_}-{fold}"


def read_repetition(folder: Path, round_: int, fold: int) -> tuple[Record, Rows]:
    """A repetition's record and rows; empty where there is none yet.

    Its own files come first: where there are any besides the packed one, they hold later runs too.
    """
    stem = stem_of(folder, round_, fold)
    try:
        return read_json(stem.with_suffix(".json")), read_arrays(stem.with_suffix(".npz"))
    except RecordError:
        if stem.with_suffix(".json").exists():  # else it is packed, or has just been
            raise
    return _packed(folder, stem.name)


def runs_of(folder: Path, round_: int, fold: int) -> frozenset[str]:
    """Keys of the runs in a repetition's record."""
    stem = stem_of(folder, round_, fold)
    try:
        seen = stem.with_suffix(".json").stat()
    except FileNotFoundError:
        return frozenset(_packed(folder, stem.name)[0].get("runs", ()))
    return _keys(stem.with_suffix(".json"), seen.st_mtime_ns, seen.st_size)


def read_design(folder: Path) -> Record:
    """What was written when the comparison began; empty where none has."""
    path = folder / DESIGN
    try:
        return read_object(path)
    except RecordError:
        if path.exists():
            raise
    return _packed(folder, DESIGN)[0]


def write_design(folder: Path, design: Record) -> None:
    """Keep what a comparison is."""
    write_json(folder / DESIGN, design)


def read_floor(folder: Path) -> Rows:
    """Rows of the dense models that differ in their seed alone; empty where there are none."""
    path = folder / f"{FLOOR}.npz"
    return read_arrays(path) if path.is_file() else _packed(folder, FLOOR)[1]


def has_floor(folder: Path) -> bool:
    """Whether there are any."""
    return (folder / f"{FLOOR}.npz").is_file() or FLOOR in _all_packed(folder)


def pack_folder(folder: Path, *, beside: bool = False) -> None:
    """Put all repetitions, and what they were made by, into one file in place of their own.

    Args:
        folder: of the comparison.
        beside: whether the file is that of all comparisons beside the folder, which holds once what
            they have in common, or the folder's own. What is packed in the other one moves.
    """
    live, floor, design = folder / "repetitions", folder / f"{FLOOR}.npz", folder / DESIGN
    own, shared = _places(folder)
    place, other = (shared, own) if beside else (own, shared)
    moves = bool(_read_packed(*other))
    if not (moves or live.is_dir() or floor.is_file() or design.is_file()):
        return
    with locked(shared[0].parent, ".packing.lock", patience=_PATIENCE):
        found = _all_packed(folder)
        for made in live.glob("*.json"):
            found[made.stem] = read_json(made), read_arrays(made.with_suffix(".npz"))
        if floor.is_file():
            found[FLOOR] = {}, read_arrays(floor)
        if not found:
            return
        if design.is_file():
            found[DESIGN] = read_object(design), {}
        _replace(*place, found)
        if moves:  # first: what is there might be read in place of what was written now
            _replace(*other, {})
        for name in found:  # also what a packing that was killed has left
            for suffix in (".json", ".npz"):  # the first names what the other one holds
                (live / f"{name}{suffix}").unlink(missing_ok=True)
        for made in (floor, design):
            made.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is gone, or holds files of others
        live.rmdir()


def _replace(path: Path, under: str, found: Repetitions) -> None:
    """Put a folder's repetitions into a file in place of those it has of the folder."""
    whole = {name: of for name, of in _read_packed(path).items() if not _is_of(under, name)}
    whole |= {under + name: of for name, of in found.items()}
    if whole:
        write_bytes(path, pack(dict(sorted(whole.items()))))
    else:
        path.unlink()


def _is_of(under: str | None, name: str) -> bool:
    """Whether a name is one of the folder's whose names begin so; ``None``: of all folders."""
    return under is None or (name.startswith(under) and "/" not in name.removeprefix(under))


def pack(repetitions: Repetitions) -> bytes:
    """Records and rows of all repetitions, compressed; equal ones give equal bytes.

    Whether a row is right is a bit, and the bits of a row stand together: methods mostly agree on
    it. Texts, which are ids, become places in one list of them.
    """
    arrays = [values for _, rows in repetitions.values() for values in rows.values()]
    texts = [np.empty(0, "U1"), *(v for v in arrays if v.dtype.kind == "U")]
    listed = np.unique(np.concatenate(texts))
    head: dict[str, Any] = {}
    out = {_TEXTS: listed}
    for name, (record, rows) in repetitions.items():
        bits: dict[str, list[str]] = {}
        own: list[str] = []
        for key, values in rows.items():
            if values.dtype == bool:
                bits.setdefault(str(len(values)), []).append(key)
            elif values.dtype.kind == "U":
                own.append(key)
                out[f"{name}/{key}"] = np.diff(np.searchsorted(listed, values), prepend=0)
            else:
                out[f"{name}/{key}"] = values
        for length, keys in bits.items():
            stacked = np.packbits(np.stack([rows[key] for key in keys]), axis=0)
            out[f"{name}/{length}"] = np.ascontiguousarray(stacked.T)
        head[name] = {"record": record, "bits": bits, "texts": own, "order": list(rows)}
    told = json.dumps(head, allow_nan=False, separators=(",", ":")).encode()
    return lzma.compress(arrays_bytes({_HEAD: np.frombuffer(told, np.uint8), **out}), preset=9)


def unpack(data: bytes, under: str | None = None) -> dict[str, tuple[Record, Rows]]:
    """What ``pack`` was given, or the folder's whose names begin so, without that beginning;
    ``ValueError`` where it did not write this, or it is damaged."""
    try:
        reader = lzma.LZMADecompressor()
        plain = reader.decompress(data, _MOST)
        if not reader.eof:
            raise ValueError(f"it ends too early, or holds more than {_MOST >> 30} GiB")
        arrays = read_npz(io.BytesIO(plain))
        texts = arrays[_TEXTS]
        found = {}
        for name, part in json.loads(arrays[_HEAD].tobytes()).items():
            if not _is_of(under, name):
                continue
            rows = {key: texts[np.cumsum(arrays[f"{name}/{key}"])] for key in part["texts"]}
            for length, keys in part["bits"].items():
                stacked = np.unpackbits(arrays[f"{name}/{length}"].T, axis=0, count=len(keys))
                rows |= dict(zip(keys, stacked.astype(bool), strict=True))
            whole = {key: rows[key] if key in rows else arrays[f"{name}/{key}"]
                     for key in part["order"]}  # fmt: skip
            found[name.removeprefix(under or "")] = part["record"], whole
    except (lzma.LZMAError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"it holds no packed repetitions: {error}") from None
    return found


def _places(folder: Path) -> tuple[tuple[Path, str], tuple[Path, str]]:
    """Where repetitions of a folder may be packed, in it or beside it, and what their names have in
    front of them there."""
    folder = Path(os.path.abspath(folder))
    return (folder / PACKED, ""), (folder.parent / PACKED, f"{folder.name}/")


def _packed(folder: Path, name: str) -> tuple[Record, Rows]:
    record, rows = _all_packed(folder).get(name, ({}, {}))
    return copy.deepcopy(record), dict(rows)


def _all_packed(folder: Path) -> dict[str, tuple[Record, Rows]]:
    own, shared = (_read_packed(*place) for place in _places(folder))
    return {**shared, **own}


def _read_packed(path: Path, under: str | None = None) -> Repetitions:
    """What is packed there, or a folder's, without what its names have in front."""
    try:
        seen = path.stat()
    except FileNotFoundError:
        return {}
    return _kept(path, under, seen.st_mtime_ns, seen.st_size)


# Read once as long as the files are the same.
@functools.lru_cache(maxsize=2)
def _kept(path: Path, under: str | None, changed: int, size: int) -> Repetitions:
    try:
        return unpack(path.read_bytes(), under)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read as packed repetitions: {error}") from None


@functools.lru_cache(maxsize=256)
def _keys(path: Path, changed: int, size: int) -> frozenset[str]:
    return frozenset(read_json(path)["runs"])
