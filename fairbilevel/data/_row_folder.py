"""Source row folder: inputs in `.npy` files or ArrayRecord shards, columns beside them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ._arrays import encodable, is_column, named_rows
from ._errors import DataError, listing, reason
from ._load import read_table
from ._raw import ABOUT, BEGUN, COLUMNS, FORMAT, npy_rows, sharded_records
from ._source import Location, Request, Rows, Source, row_numbers
from ._stores import Joined, RowStore, held, row_bytes, select

# x.npy, or its shards x-00000.npy, x_1.npy, x-00000-of-00004.npy.
_ARRAY = re.compile(r"([A-Za-z]\w*?)(?:[-_.]?(\d+)(?:-of-(\d+))?)?\.npy")
_OF = re.compile(r"(\d+)-of-(\d+)")
_RECORDS = re.compile(r".*\.array_?record(-\d+-of-\d+)?")


class RowFolder(Source):
    """A folder of arrays, or one `.npy` with its columns in the folder around it.

    `x` are the inputs: `x.npy`, shards `x-00000.npy`, `x-00001.npy`, ..., or ArrayRecord files with
    a `rows.json` that says shape and dtype of a row. Columns are further arrays (`y.npy`,
    `group.npy`, sharded or not) or those of `columns.parquet` or `columns.csv`.
    """

    forms = "a folder with x.npy, or with shards of it, and y.npy and group.npy"
    may_be_damaged = True

    def matches(self, location: Location) -> bool:
        """Inputs are there, or were being written."""
        if location.is_file(".npy"):
            return True
        files = list(location.path.iterdir()) if location.path.is_dir() else []
        names = [p.name for p in files]
        arrays = (m[1] for n in names if (m := _ARRAY.fullmatch(n)))
        written = ABOUT in names or BEGUN in names
        return written or "x" in arrays or any(map(_is_record_file, files))

    def read(self, location: Location, request: Request) -> Rows:
        """Read the columns; inputs are held, or left where they are, as `in_memory` says."""
        path = location.path
        folder = path if path.is_dir() else path.parent
        if path.is_dir() and (folder / BEGUN).exists() and not (folder / ABOUT).exists():
            raise DataError(
                f"{folder} is a conversion that did not end; run fairbilevel convert again."
            )
        about = read_about(folder / ABOUT) if path.is_dir() else {}
        if "columns" in about:
            return _converted(folder, about, request)
        arrays = _arrays(folder)
        if path.is_dir():
            files = arrays.pop("x", [])
            records = sorted(filter(_is_record_file, folder.iterdir()), key=_by_number)
            told = [m for p in records if (m := _OF.search(p.name))]
            if told:
                numbers = sorted(int(m[1]) for m in told)
                _refuse_gaps(folder, numbers, [p.name for p in records])
            if files and records:
                raise DataError(f"{folder} holds x both in .npy and in ArrayRecord files.")
            name = folder.name
        else:
            files, records, name = [path], [], path.name
            arrays = {n: paths for n, paths in arrays.items() if path not in paths and n != "x"}
        damaged: list[int] = []
        if records:
            skip = request.options.skip_damaged
            x: RowStore
            x, damaged = sharded_records(records, *_row(about, folder), skip)
        elif files:
            x = Joined.of(tuple(map(npy_rows, files)), tuple(f.name for f in files))
        else:
            raise DataError(f"{folder} has no x.npy, nor shards of it.")
        shards = {n: [npy_rows(p) for p in paths] for n, paths in arrays.items()}
        columns = {
            n: np.concatenate([part[np.arange(len(part))] for part in parts])
            for n, parts in shards.items()
            if is_column(n, parts[0].shape)
        }
        inputs = _held(x, request, damaged)
        rows = named_rows(inputs, columns, name, request, _table(folder))
        return _without(rows, damaged)


def _is_record_file(path: Path) -> bool:
    return _RECORDS.fullmatch(path.name) is not None


def _by_number(path: Path) -> list[Any]:
    """Names in the order of the numbers in them: 2 before 10."""
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", path.name)]


def _refuse_gaps(folder: Path, numbers: list[int], names: list[str]) -> None:
    """Refuse shards of which one is missing: rows would stand beside those of other arrays."""
    of = {int(m[2]) for name in names if (m := _OF.search(name))}
    count = max(of, default=len(names))
    if len(of) > 1 or len(names) != count or numbers not in (
        list(range(count)), list(range(1, count + 1))
    ):  # fmt: skip
        lacks = next((i for i in range(min(numbers[0], 1), count) if i not in numbers), numbers[0])
        raise DataError(
            f"{folder} holds {listing(sorted(names), 4)}, and not every shard from the first to "
            f"the last (see number {lacks}); complete them, or number those that are there anew."
        )


def _held(x: RowStore, request: Request, damaged: list[int]) -> Any:
    """The rows as an array where they are to be held in memory, zeros where they are damaged."""
    size = len(x) * row_bytes(x.shape, x.dtype)
    if not held(request.options.in_memory, size):
        return x
    sound = np.setdiff1d(np.arange(len(x)), damaged)
    if not damaged:
        return x[sound]
    found = np.zeros(x.shape, x.dtype)
    found[sound] = x[sound]
    return found


def _without(rows: Rows, damaged: list[int]) -> Rows:
    """The same rows, these of which are left out when they are read."""
    read = rows.read

    def sound(chosen: np.ndarray) -> Any:
        rows.damaged[:] = np.intersect1d(chosen, damaged).tolist()
        return read(chosen[~np.isin(chosen, damaged)])

    return dataclasses.replace(rows, read=sound, piece="record") if damaged else rows


def _arrays(folder: Path) -> dict[str, list[Path]]:
    """The files of each array by its name, shards in the order of their numbers."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in folder.iterdir():
        if match := _ARRAY.fullmatch(path.name):
            found.setdefault(match[1], []).append((int(match[2] or -1), path))
    for name, files in found.items():
        numbers = [number for number, _ in files]
        if len(set(numbers)) < len(numbers) or (-1 in numbers and len(numbers) > 1):
            told = listing(sorted(p.name for _, p in files), 4)
            raise DataError(f"{folder} holds {name} more than once ({told}); keep one.")
        if -1 not in numbers:
            _refuse_gaps(folder, sorted(numbers), [p.name for _, p in files])
    return {name: [path for _, path in sorted(files)] for name, files in sorted(found.items())}


def _table(folder: Path) -> pd.DataFrame | None:
    """The table beside the inputs, if there is one."""
    paths = [folder / name for name in COLUMNS if (folder / name).exists()]
    paths = paths or sorted(p for p in folder.iterdir() if p.suffix in (".csv", ".parquet"))
    if not paths:
        return None
    if len(paths) > 1:
        told = listing(p.name for p in paths)
        raise DataError(f"{folder} holds several tables ({told}); call the right one columns.")
    path = paths[0]
    return read_columns(path) if path.suffix == ".parquet" else read_table(path).table


def read_columns(path: Path) -> pd.DataFrame:
    """A table of columns, or that of a folder which was converted."""
    path = path / COLUMNS[0] if path.is_dir() else path
    try:
        return pd.read_parquet(path)
    except Exception as error:  # whatever damage makes pyarrow raise
        raise DataError(f"{path.name} is not a readable Parquet file ({reason(error)}).") from None


def read_about(path: Path) -> dict[str, Any]:
    """What `rows.json` says, nothing where there is none."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({reason(error)}).") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no JSON object.")
    if found.get("format", FORMAT) != FORMAT:
        raise DataError(f"{path} was written by a later version: upgrade, or convert again.")
    return found


def _row(about: dict[str, Any], folder: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of one row."""
    shape, dtype = about.get("shape"), about.get("dtype")
    shape = shape if isinstance(shape, list) else [0]
    whole = all(type(n) is int and n > 0 for n in shape)
    try:
        kind = np.dtype(dtype) if isinstance(dtype, str) else None
    except TypeError:
        kind = None
    if not whole or kind is None or kind.kind not in "fiub":
        raise DataError(
            f"{folder} holds ArrayRecord files, and no {ABOUT} that says what a record is, as "
            '{"shape": [48, 48, 3], "dtype": "uint8"}.'
        )
    return tuple(shape), kind


def _converted(folder: Path, about: dict[str, Any], request: Request) -> Rows:
    """The rows of a folder that `convert` has written, as those of its source."""
    table = read_columns(folder)
    with whole(folder):
        files = [folder / name for name in about["shards"]]
        store, damaged = sharded_records(files, *_row(about, folder), request.options.skip_damaged)
        check_counts(folder, about, len(store), len(table))
        inputs = encodable(_held(store, request, damaged))
        attributes, told = told_columns(about, table)
        rows = Rows(about["name"], attributes, lambda rows: select(inputs, rows), **told)
        return _without(rows, damaged)


def told_columns(about: dict[str, Any], table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Attributes that were converted, and further fields of `Rows`."""
    ids = about["ids"]
    return table[about["columns"]], {
        "ids": row_numbers(about["rows"]) if ids is None else table[ids].to_numpy(dtype=str),
        "target": about["target"],
        "group": tuple(about["group"]),
        "orders": {name: tuple(order) for name, order in about["orders"].items()},
        "numbers": {name: table[column] for name, column in about["numbers"].items()},
        "skipped": about["skipped"],
        "notes": about["notes"],
        "numbered": about["numbered"],
    }


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[None]:
    """Says so where `rows.json` turns out to lack something."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / ABOUT} is malformed ({error}); convert it again.") from None


def check_counts(folder: Path, about: dict[str, Any], inputs: int, columns: int) -> None:
    """Refuse records and columns of another length than was written (`DataError`)."""
    if not columns == inputs == about["rows"]:
        raise DataError(
            f"{folder} has {inputs} rows of inputs, {columns} of columns and {about['rows']} by "
            f"its {ABOUT}; convert it again."
        )
