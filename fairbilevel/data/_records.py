"""Rows as the records of ArrayRecord files, read at random and in batches."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from ._errors import DataError, reason
from ._stores import Joined, row_bytes

SUFFIX = ".arrayrecord"
_GROUP_BYTES = 2**15  # of records that are packed together: a reader's index has an entry for each
_RANDOM = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER = 2**14


class Records:
    """Rows of one file: the bytes of each are a record, in C order and little-endian.

    Arguments:
        path: the file.
        shape: of one row.
        dtype: of one row.

    Raises:
        DataError: it is missing, cut short or no such file.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any):
        self.path, self.dtype = path, np.dtype(dtype)
        self._reader = open_records(path)
        self._lock = threading.Lock()
        self.shape = (self._reader.num_records(), *shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        size = row_bytes(self.shape, self.dtype)
        try:
            with self._lock:
                records = self._reader.read(rows.tolist())
        except Exception as error:  # whatever damage makes the reader raise
            raise DataError(
                f"{self.path.name} holds a record that cannot be read ({reason(error)[:160]}); "
                "make it again."
            ) from None
        for row, record in zip(rows.tolist(), records, strict=True):
            if len(record) != size:
                raise DataError(
                    f"record {row} of {self.path.name} has {len(record)} bytes where a row of "
                    f"shape {list(self.shape[1:])} and type {self.dtype} takes {size}."
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


def write_records(path: Path, rows: Any) -> None:
    """Write an ArrayRecord file.

    Arguments:
        path: the file.
        rows: parts of the rows, `[n, ...]` each.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = None
    for part in rows:
        if writer is None:
            group = max(1, _GROUP_BYTES // max(row_bytes(part.shape, part.dtype), 1))
            writer = ArrayRecordWriter(str(path), f"group_size:{group},uncompressed")
        for row in np.ascontiguousarray(part, part.dtype.newbyteorder("<")):
            writer.write(row.tobytes())
    assert writer is not None
    writer.close()


def sharded_records(paths: list[Path], shape: tuple[int, ...], dtype: Any) -> Joined:
    """The rows of several files as one store."""
    parts = tuple(Records(path, shape, dtype) for path in paths)
    return Joined.of(parts, tuple(path.name for path in paths))
