"""Rows that lie one behind the other in a file, as numpy writes them: read without mapping it.

What a memory map touches counts as this process's memory, against whatever limit it has; what is
read by position does not.
"""

from __future__ import annotations

import functools
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairbilevel._npz import read_header

from ._errors import DataError
from ._stores import RowStore, is_store, row_bytes


@dataclass(frozen=True, eq=False)
class FileRows:
    """Rows of one size at equal distances in a file.

    Attributes:
        path: the file.
        offset: of the first row, in bytes.
        stride: bytes from one row to the next.
        shape: `(rows, ...)`.
        dtype: of every row.

    Raises:
        DataError: the file is too short for them.
    """

    path: Path
    offset: int
    stride: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __post_init__(self) -> None:
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}.") from None
        ends = (self.offset, self.offset + (len(self) - 1) * self.stride)
        needed = max(ends) + row_bytes(self.shape, self.dtype) if len(self) else self.offset
        if size < needed:
            raise DataError(
                f"{self.path.name} is cut short: it has {size:,} bytes where {len(self):,} rows of "
                f"shape {list(self.shape[1:])} and type {self.dtype} take {needed:,}; copy it "
                "again."
            )

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return len(self) * row_bytes(self.shape, self.dtype)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        size = row_bytes(self.shape, self.dtype)
        if not out.size:
            return out
        view = memoryview(out.reshape(-1).view(np.uint8))
        # Neighbours come in one read: where rows are passed through in order it is one for all.
        joined = np.diff(rows) == 1 if self.stride == size else np.zeros(len(rows) - 1, bool)
        begins = np.flatnonzero(np.concatenate([[True], ~joined]))
        ends = np.append(begins[1:], len(rows)) * size
        places = self.offset + rows[begins].astype(np.int64) * self.stride
        try:
            handle = os.open(self.path, os.O_RDONLY)
            try:
                for begin, end, place in zip(
                    (begins * size).tolist(), ends.tolist(), places.tolist(), strict=True
                ):
                    while begin < end:
                        got = os.preadv(handle, [view[begin:end]], place)
                        if not got:
                            raise DataError(f"{self.path} has become shorter while it was read.")
                        begin, place = begin + got, place + got
            finally:
                os.close(handle)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}.") from None
        return out


def npy_rows(path: Path) -> FileRows:
    """The rows of a `.npy` file.

    Raises:
        DataError: no such file, cut short, with objects, or stored column by column.
    """
    try:
        with path.open("rb") as stream:
            rows = _rows_at(path, stream, path.name)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    if rows is None:
        raise DataError(
            f"{path.name} is stored column by column; save it again with np.ascontiguousarray."
        )
    return rows


def npz_rows(path: Path, name: str) -> FileRows | None:
    """The rows of one array of an `.npz`; None where there is none, or it is compressed or stored
    column by column and so has to be read as a whole.

    Raises:
        DataError: as `npy_rows`.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        entry = archive.NameToInfo.get(f"{name}.npy")
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            return None
        stream.seek(entry.header_offset)
        local = stream.read(30)
        if len(local) < 30 or not local.startswith(b"PK\x03\x04"):
            raise DataError(f"{path.name} is damaged where {name!r} begins; copy it again.")
        begin = stream.seek(sum(struct.unpack("<HH", local[26:30])), os.SEEK_CUR)
        rows = _rows_at(path, stream, f"{name!r} in {path.name}")
    if rows is None:
        return None
    if rows.offset + len(rows) * rows.stride != begin + entry.file_size:
        raise DataError(f"{name!r} in {path.name} is not as long as its header says.")
    return rows


def _rows_at(path: Path, stream: Any, name: str) -> FileRows | None:
    """Rows from here on; None where columns come first."""
    try:
        shape, fortran, dtype = read_header(stream, name)
    except ValueError as error:
        raise DataError(f"{path.name} is no readable array ({error}).") from None
    if fortran and len(shape) > 1:
        return None
    if not shape:
        raise DataError(f"{name} holds a single number, no rows.")
    return FileRows(path, stream.tell(), row_bytes(shape, dtype), shape, dtype)


def mapped_rows(x: np.memmap) -> FileRows | None:
    """The rows of a memory map, to be read from its file; None where it is not mapped row by row,
    or holds changes that its file does not."""
    mapping: Any = getattr(x, "_mmap", None)
    whole = x.ndim > 1 and len(x) > 0 and x.strides[0] >= 0 and x[0].flags.c_contiguous
    if mapping is None or x.filename is None or x.mode == "c" or not whole:
        return None
    begin = np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
    aligned = x.offset - x.offset % _granularity()
    place = aligned + x.__array_interface__["data"][0] - begin
    return FileRows(Path(x.filename), place, x.strides[0], x.shape, x.dtype)


@functools.cache
def _granularity() -> int:
    import mmap

    return mmap.ALLOCATIONGRANULARITY


def as_store(x: Any) -> RowStore | None:
    """What rows of `x` are read from, None where it is held in memory."""
    if isinstance(x, np.memmap):
        return mapped_rows(x)
    return x if is_store(x) else None
