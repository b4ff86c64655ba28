"""Rows that lie in files, one behind the other as numpy writes them or as records of ArrayRecord.

Both are read by position and not mapped: what a memory map touches counts as this process's memory,
against whatever limit it has.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairbilevel._npz import read_header

from ._errors import DataError, reason
from ._stores import Joined, RowStore, is_store, row_bytes

SUFFIX = ".arrayrecord"
ABOUT, BEGUN, FORMAT = "rows.json", ".convert.json", 1
COLUMNS = ("columns.parquet", "columns.csv")
"""Files beside records: what a record is (in this format), a conversion that has not ended,
columns."""
_GROUP_BYTES = 2**15  # of records that are packed together: a reader's index has an entry for each
_RANDOM = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER = 2**14
_TRIED = 256  # rows that are looked at together
_OR_SKIP = ", or leave such rows out with skip_damaged (--skip-damaged)"


@dataclass(frozen=True, eq=False)
class FileRows:
    """Rows of one size at equal distances in a file; one that is too short is a `DataError`."""

    path: Path
    offset: int  # of the first row, in bytes
    stride: int  # bytes from one row to the next
    shape: tuple[int, ...]  # `(rows, ...)`
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
    """The rows of a `.npy` file."""
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
    column by column and so has to be read as a whole."""
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
    import mmap

    mapping: Any = getattr(x, "_mmap", None)
    whole = x.ndim > 1 and len(x) > 0 and x.strides[0] >= 0 and x[0].flags.c_contiguous
    if mapping is None or x.filename is None or x.mode == "c" or not whole:
        return None
    begin = np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
    aligned = x.offset - x.offset % mmap.ALLOCATIONGRANULARITY
    place = aligned + x.__array_interface__["data"][0] - begin
    return FileRows(Path(x.filename), place, x.strides[0], x.shape, x.dtype)


def as_store(x: Any) -> RowStore | None:
    """What rows of `x` are read from, None where it is held in memory."""
    if isinstance(x, np.memmap):
        return mapped_rows(x)
    if hasattr(x, "toarray"):
        raise DataError("x is a sparse matrix; give x.toarray(), or a store of your own.")
    return x if is_store(x) else None


class RecordFile:
    """Records of one file, of any length."""

    def __init__(self, path: Path):
        self.path = path
        self._reader = open_records(path)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._reader.num_records()

    def records(self, rows: np.ndarray) -> list[bytes]:
        """Some of them; a `DataError` without a remedy where one cannot be read."""
        try:
            with self._lock:
                return self._reader.read(rows.tolist())
        except Exception as error:  # whatever damage makes the reader raise
            why = reason(error)[:160]
            raise DataError(
                f"{self.path.name} holds a record that cannot be read ({why})"
            ) from None


class Records(RecordFile):
    """Rows of one file: the bytes of each are a record, in C order and little-endian."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any):
        super().__init__(path)
        self.dtype = np.dtype(dtype)
        self.shape = (len(self), *shape)

    def damaged(self) -> list[int]:
        """Rows that cannot be read: all are tried."""
        parts = np.split(np.arange(len(self)), range(_TRIED, len(self), _TRIED))
        suspect = [row for part in parts if not self._sound(part) for row in part.tolist()]
        return [row for row in suspect if not self._sound(np.array([row]))]

    def _sound(self, rows: np.ndarray) -> bool:
        try:
            self[rows]
        except DataError:
            return False
        return True

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        size = row_bytes(self.shape, self.dtype)
        try:
            records = self.records(rows)
        except DataError as error:
            raise DataError(f"{error}; make it again{_OR_SKIP}.") from None
        for row, record in zip(rows.tolist(), records, strict=True):
            if len(record) != size:
                raise DataError(
                    f"record {row} of {self.path.name} has {len(record)} bytes where a row of "
                    f"shape {list(self.shape[1:])} and type {self.dtype} takes {size}; "
                    f"make the file again{_OR_SKIP}."
                )
        found = np.frombuffer(b"".join(records), self.dtype.newbyteorder("<"))
        return found.astype(self.dtype, copy=False).reshape(len(rows), *self.shape[1:])


def open_records(path: Path) -> Any:
    """A reader of an ArrayRecord file."""
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError:
        raise DataError(f"{path.name} needs the package array_record; install it.") from None
    reader = ArrayRecordReader(str(path), options=_RANDOM, file_reader_buffer_size=_BUFFER)
    if not reader.ok():
        raise DataError(f"{path.name} is missing, cut short or no ArrayRecord; make it again.")
    return reader


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Write an ArrayRecord file; records are packed together by the length of the first. What the
    disk refuses is an `OSError`."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = None
    try:
        for record in records:
            if writer is None:
                group = max(1, _GROUP_BYTES // max(len(record), 1))
                writer = ArrayRecordWriter(str(path), f"group_size:{group},uncompressed")
            writer.write(record)
        assert writer is not None
        writer.close()
    except RuntimeError as error:  # the writer's word for all that goes wrong
        causes = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        code = next((c for c in causes if os.strerror(c) in str(error)), errno.EIO)
        raise OSError(code, os.strerror(code), str(path)) from None


def sharded_records(
    paths: list[Path], shape: tuple[int, ...], dtype: Any, skip_damaged: bool
) -> tuple[Joined, list[int]]:
    """The rows of several files as one store, and those of them that cannot be read, which are
    looked for only where they are to be left out."""
    parts = tuple(Records(path, shape, dtype) for path in paths)
    whole = Joined.of(parts, tuple(path.name for path in paths))
    starts = whole.starts.tolist()
    found = (part.damaged() for part in parts if skip_damaged)
    return whole, [start + row for start, rows in zip(starts, found, strict=False) for row in rows]
