"""Rows as the records of ArrayRecord files, read at random and in batches."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ._errors import DataError, reason
from ._stores import Joined, row_bytes

SUFFIX = ".arrayrecord"
ABOUT, BEGUN = "rows.json", ".convert.json"
COLUMNS = ("columns.parquet", "columns.csv")
"""Files beside records: what a record is, a conversion that has not ended, columns."""
_GROUP_BYTES = 2**15  # of records that are packed together: a reader's index has an entry for each
_RANDOM = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER = 2**14
_TRIED = 256  # rows that are looked at together
_OR_SKIP = ", or leave such rows out with skip_damaged (--skip-damaged)"


class RecordFile:
    """Records of one file, of any length.

    Raises:
        DataError: it is missing, cut short or no such file.
    """

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
    """Rows of one file: the bytes of each are a record, in C order and little-endian.

    Args:
        path: the file.
        shape: of one row.
        dtype: of one row.

    Raises:
        DataError: it is missing, cut short or no such file.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any):
        super().__init__(path)
        self.dtype = np.dtype(dtype)
        self.shape = (len(self), *shape)

    def damaged(self) -> list[int]:
        """Rows that cannot be read: all are tried."""
        found: list[int] = []
        for start in range(0, len(self), _TRIED):
            rows = np.arange(start, min(start + _TRIED, len(self)))
            try:
                self[rows]
            except DataError:
                found += [row for row in rows.tolist() if not self._sound(row)]
        return found

    def _sound(self, row: int) -> bool:
        try:
            self[np.array([row])]
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
    """A reader of an ArrayRecord file.

    Raises:
        DataError: the package is not installed, or the file is missing, cut short or none.
    """
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError:
        raise DataError(f"{path.name} needs the package array_record; install it.") from None
    reader = ArrayRecordReader(str(path), options=_RANDOM, file_reader_buffer_size=_BUFFER)
    if not reader.ok():
        raise DataError(f"{path.name} is missing, cut short or no ArrayRecord; make it again.")
    return reader


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Write an ArrayRecord file; records are packed together by the length of the first."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = None
    for record in records:
        if writer is None:
            group = max(1, _GROUP_BYTES // max(len(record), 1))
            writer = ArrayRecordWriter(str(path), f"group_size:{group},uncompressed")
        writer.write(record)
    assert writer is not None
    writer.close()


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
