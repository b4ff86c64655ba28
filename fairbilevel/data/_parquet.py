"""Parquet files: a table in memory, or columns and row groups read as they are asked for.

A column is read as a whole, which costs what a column of labels does; rows are read by the row
groups that they lie in, or, as numbers and out of order, from a file that one pass has written.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ._errors import DataError, reason
from ._raw import FileRows
from ._stores import StoredRows, held, passed, row_bytes, rows_at_once, tell

if TYPE_CHECKING:
    import pandas as pd

PARQUET = (".parquet", ".pq")
_KEPT_BYTES = 2**27  # of row groups that have been read
_BUFFER = 2**16


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever damage makes pyarrow raise becomes one sentence."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name} is not a readable Parquet file ({reason(error)}).") from None


class ParquetFile:
    """An open file: columns as a whole, and rows by row group.

    Row groups stay once read as long as 128 MiB take them, and the last two besides: rows drawn at
    random come back to every group alike, so that none is worth more than another.

    Attributes:
        names: name -> the same in the file; what a data frame had as its index is none of them.
        starts: int64 `[groups + 1]`: the number of the first row of each group, and of all.
    """

    def __init__(self, path: Path):
        import pyarrow.parquet as pq

        from ._table import refuse_twins

        self.path, self._lock = path, threading.Lock()
        with _told(path.name):
            self._file = pq.ParquetFile(path, buffer_size=_BUFFER, page_checksum_verification=True)
            self.schema, meta = self._file.schema_arrow, self._file.metadata
            sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
            index = (self.schema.pandas_metadata or {}).get("index_columns", ())
            raw = [name for name in self.schema.names if name not in index]
        refuse_twins([name.strip() for name in raw], path.name)
        self.names = {name.strip(): name for name in raw}
        self.starts = np.cumsum([0, *sizes])
        self._types: dict[str, Any] = {}  # of numbers; None of text
        self._kept: dict[Any, Any] = {}
        self._latest: deque[tuple[Any, Any]] = deque(maxlen=2)  # threads meet where one ends
        self._room = _KEPT_BYTES

    def __len__(self) -> int:
        return int(self.starts[-1])

    def table(self, names: Sequence[str]) -> pd.DataFrame:
        """Whole columns: numbers, and text in place of all else."""
        from ._attributes import is_numeric

        columns = [self.names[name] for name in names]
        with _told(self.path.name), self._lock:
            found = self._file.read(columns).select(columns).to_pandas().reset_index(drop=True)
        found.columns = list(names)
        for name in names:
            numeric = is_numeric(found[name])
            self._types[name] = found[name].dtype if numeric else None
            if not numeric:
                found[name] = self._text(found[name], name)
        return found

    def first(self, name: str, count: int) -> list[Any]:
        """The first values of a column."""
        with _told(self.path.name), self._lock:
            batch = next(self._file.iter_batches(count, columns=[self.names[name]]), None)
            return [] if batch is None else batch.column(0).to_pylist()

    def group(self, number: int, names: Sequence[str]) -> Any:
        """Columns of a row group, as pyarrow has them."""
        key = number, tuple(names)
        with _told(self.path.name), self._lock:
            if key in self._kept:
                return self._kept[key]
            found = next((group for known, group in self._latest if known == key), None)
            if found is None:
                columns = [self.names[name] for name in names]
                found = self._file.read_row_group(number, columns).select(columns)
                self._latest.append((key, found))
                if found.nbytes <= self._room:
                    self._kept[key] = found
                    self._room -= found.nbytes
            return found

    def value(self, row: int, name: str) -> Any:
        """One value, as Python has it."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        with _told(self.path.name):
            return self.group(number, (name,))[0][row - int(self.starts[number])].as_py()

    def rows(self, rows: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
        """These columns of rows by their numbers, in any order, typed as in `table`."""
        import pandas as pd

        for name in names:  # a value that is missing elsewhere makes another type of a column
            if name not in self._types:
                self.table([name])
        if not rows.size:
            return self.table(names).iloc[:0]
        where = np.searchsorted(self.starts, rows, side="right") - 1
        parts = []
        for number in np.unique(where).tolist():
            mine = np.flatnonzero(where == number)
            with _told(self.path.name):
                found = self.group(number, names).take(rows[mine] - self.starts[number])
                part = found.to_pandas().set_axis(list(names), axis=1).set_axis(mine)
            for name in names:
                if self._types[name] is None:
                    part[name] = self._text(part[name].astype(object), name)
                else:
                    part[name] = part[name].astype(self._types[name])
            parts.append(part)
        return pd.concat(parts).sort_index()

    def _text(self, values: pd.Series, name: str) -> pd.Series:
        """A column as text, None where missing."""
        import pandas as pd

        from ._attributes import as_text
        from ._table import MISSING_TEXT

        try:
            found = as_text(values)
        except Exception as error:  # bytes that are no UTF-8 are found only here
            told = f"{self.path.name}: column {name!r} cannot be read ({reason(error)})."
            raise DataError(told) from None
        if any("\0" in t for t in found if t is not None):
            raise DataError(f"{self.path.name}: column {name!r} holds bytes that are no text.")
        text = pd.Series(found, index=values.index, dtype=object)
        return text.where(~text.isin(MISSING_TEXT), None)


@dataclass(frozen=True, eq=False)
class StoredTable:
    """A table that stays in its Parquet file: like a data frame, a column by its name, several by a
    list of names, rows by a slice; only what is asked for is read.

    Attributes:
        file: where it lies.
        columns: names, a pandas index.
        rows: int64 `[rows]`, their numbers in the file; None for all in order.
    """

    file: ParquetFile
    columns: Any
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.file) if self.rows is None else len(self.rows)

    def __repr__(self) -> str:
        return f"StoredTable({len(self)} rows of {self.file.path.name}: {list(self.columns)})"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self), len(self.columns)

    @property
    def empty(self) -> bool:
        """Whether there are no rows, or no columns."""
        return 0 in self.shape

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return self.read(np.arange(*key.indices(len(self))))
        if not isinstance(key, str):
            return replace(self, columns=self.columns[self.columns.isin(key)])
        values = self.file.table([key])[key]
        return values if self.rows is None else values.iloc[self.rows].reset_index(drop=True)

    def take(self, rows: np.ndarray) -> StoredTable:
        """The rows of these numbers, in this order; nothing is read."""
        rows = np.asarray(rows, np.int64)
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def read(self, rows: np.ndarray) -> pd.DataFrame:
        """The rows of these numbers."""
        rows = np.asarray(rows, np.int64)
        return self.file.rows(rows if self.rows is None else self.rows[rows], list(self.columns))

    @functools.cached_property
    def content(self) -> np.ndarray:
        """uint64 `[n]`: equal numbers for equal rows."""
        return row_hashes(self)

    def passed(self, what: str) -> Iterator[pd.DataFrame]:
        """All rows in their order, part by part; `what` is done is told to `watch_passes`."""
        return (part for _, part in passed(self.__getitem__, self.shape, np.float64, what))

    def encoded(
        self, encode: Callable[[pd.DataFrame], np.ndarray], shape: tuple[int, ...]
    ) -> StoredRows:
        """Rows as `encode` makes float32 arrays of this shape of each, as they are read."""
        store = EncodedTable(self, encode, (len(self), *shape))
        return StoredRows(store, store.shape, store.dtype)


@dataclass(frozen=True, eq=False)
class EncodedTable:
    """Rows of a stored table as numbers: a `RowStore`.

    A row drawn at random would take its whole row group along. The first time that rows are asked
    for out of order all of them are written, as numbers, to a file without a name (below TMPDIR, or
    /var/tmp), from which any row is read alone; where it does not fit the row groups are read on.
    """

    table: StoredTable
    encode: Callable[[Any], np.ndarray]
    shape: tuple[int, ...]
    _lock: Any = field(default_factory=threading.Lock)

    dtype: ClassVar[np.dtype] = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if (np.diff(rows) == 1).all():
            return self.encode(self.table.read(rows))
        with self._lock:
            written = self._written
        return self.encode(self.table.read(rows)) if written is None else written[rows]

    @functools.cached_property
    def _written(self) -> FileRows | None:
        """All rows in a file of their own."""
        # Where /tmp is memory, /var/tmp is not.
        usual = "/var/tmp" if os.access("/var/tmp", os.W_OK) else None
        size, at_once = row_bytes(self.shape, self.dtype), rows_at_once(self.shape, self.dtype)
        try:
            with tempfile.TemporaryFile(dir=os.environ.get("TMPDIR") or usual) as stream:
                if shutil.disk_usage(stream.fileno()).free < 2 * size * len(self):
                    return None
                # In this thread, which may be one of those that read ahead.
                for start in range(0, len(self), at_once):
                    rows = np.arange(start, min(start + at_once, len(self)))
                    stream.write(np.ascontiguousarray(self.encode(self.table.read(rows))))
                    tell("rows as numbers", start + len(rows), len(self))
                stream.flush()
                kept = os.dup(stream.fileno())
        except OSError:
            return None
        weakref.finalize(self, os.close, kept)
        return FileRows(Path(f"/dev/fd/{kept}"), 0, size, self.shape, self.dtype)


def table_parts(table: pd.DataFrame | StoredTable, what: str) -> Iterator[pd.DataFrame]:
    """A table in memory as it is, one that is stored part by part."""
    return table.passed(what) if isinstance(table, StoredTable) else iter((table,))


def row_hashes(table: pd.DataFrame | StoredTable) -> np.ndarray:
    """uint64 `[n]`: equal numbers for equal rows, but for chance."""
    import pandas as pd

    parts = table_parts(table, "equal rows")
    found = [pd.util.hash_pandas_object(part, index=False).to_numpy() for part in parts]
    return np.concatenate(found)


def open_table(path: Path, in_memory: str) -> pd.DataFrame | StoredTable:
    """A Parquet file, in memory where that is asked or its numbers take 512 MiB at most."""
    import pandas as pd

    file = ParquetFile(path)
    if held(in_memory, 8 * len(file) * len(file.names)):
        return file.table(list(file.names))
    return StoredTable(file, pd.Index(list(file.names)))
