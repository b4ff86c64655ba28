"""Rows that stay where they are, and are read by the batch when they are needed.

A `RowStore` is whatever has a length, a shape, a type and rows by their numbers: a user's own is
ten lines. `StoredRows` are rows of one, chosen and encoded but not yet read; they stand where an
array of inputs would.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float

from ._errors import DataError

T = TypeVar("T")

_READ_BYTES, _READ_ROWS = 4 * 2**20, 4096  # at most, of one read where all rows are passed through
HELD_BYTES = 512 * 2**20
"""Inputs of a source that are held in memory where the user leaves that open."""


@runtime_checkable
class RowStore(Protocol):
    """Rows of one shape, read by their numbers.

    Attributes:
        shape: `(rows, ...)`.
        dtype: of every row: uint8 for images `[h, w]` or `[h, w, c]`, else numbers.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Rows of these numbers (int64 `[n]`, any order, repeats allowed): `[n, ...]`.

        Called from several threads; what cannot be read is a `DataError`.
        """
        ...


def is_store(x: Any) -> bool:
    """Whether rows are to be read from `x` by their numbers: arrays and what turns into one
    (`__array__`) are in memory already."""
    return isinstance(x, StoredRows) or (isinstance(x, RowStore) and not hasattr(x, "__array__"))


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows of a store, chosen and encoded but not read; indexed like an array, by row numbers of
    any shape, a slice or one number, it reads just these.

    Attributes:
        store: where they lie.
        shape: `(rows, ...)` after encoding.
        dtype: after encoding.
        rows: int64 `[rows]`, their numbers in the store; None for all in order.
        encode: from rows as the store gives them, `[n, ...]`, to rows of this shape and type.
    """

    store: RowStore
    shape: tuple[int, ...]
    dtype: np.dtype
    rows: np.ndarray | None = None
    encode: Callable[[np.ndarray], np.ndarray] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"StoredRows({self.dtype} {list(self.shape)} of {type(self.store).__name__})"

    @property
    def ndim(self) -> int:
        """Axes, that of the rows among them."""
        return len(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in memory."""
        return row_bytes(self.shape, self.dtype)

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, slice):
            key = np.arange(*key.indices(len(self)))
        elif not isinstance(key, (int, np.integer)):
            key = np.asarray(key)
            key = np.flatnonzero(key) if key.dtype == bool else key
        asked = np.asarray(key, np.int64)
        flat = asked.reshape(-1)
        if not flat.size:
            return np.empty((*asked.shape, *self.shape[1:]), self.dtype)
        flat = np.where(flat < 0, flat + len(self), flat)
        if flat.min() < 0 or flat.max() >= len(self):
            raise IndexError(f"row {int(asked.reshape(-1)[0])} of {len(self)}")
        found = self.store[flat if self.rows is None else self.rows[flat]]
        if self.encode is not None:
            found = self.encode(found)
        if found.shape != (len(flat), *self.shape[1:]) or found.dtype != self.dtype:
            raise DataError(
                f"{type(self.store).__name__} gave {found.dtype} {list(found.shape)} where "
                f"{self.dtype} {[len(flat), *self.shape[1:]]} was asked for."
            )
        return found.reshape(*asked.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, in memory."""
        out = np.empty(self.shape, self.dtype)
        for start, part in self.passed():
            out[start : start + len(part)] = part
        return out if dtype is None else out.astype(dtype)

    def take(self, rows: np.ndarray) -> StoredRows:
        """The rows of these numbers, in this order; nothing is read."""
        rows = np.asarray(rows, np.int64)
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        chosen = rows if self.rows is None else self.rows[rows]
        return dataclasses.replace(self, shape=(len(rows), *self.shape[1:]), rows=chosen)

    def encoded(
        self, encode: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], dtype: Any
    ) -> StoredRows:
        """Rows on which `encode` is called too, when they are read.

        Args:
            encode: from rows `[n, ...]` to as many.
            shape: of one row after it.
            dtype: after it.
        """
        first = self.encode
        return dataclasses.replace(
            self,
            shape=(len(self), *shape),
            dtype=np.dtype(dtype),
            encode=encode if first is None else lambda x: encode(first(x)),
        )

    def passed(self, what: str = "") -> Iterator[tuple[int, np.ndarray]]:
        """All rows in their order, `(number of the first, rows)`, a part being read while the one
        before is worked on.

        Args:
            what: is done, for whoever waits (`watch_passes`).
        """
        yield from passed(self.__getitem__, self.shape, self.dtype, what)

    @functools.cached_property
    def survey(self) -> Any:
        """What one pass over the rows tells (`Survey`)."""
        from ._fingerprints import survey

        return survey(self)


_watcher: list[Callable[[str, int, int], None]] = []


def watch_passes(told: Callable[[str, int, int], None]) -> None:
    """Have `told(what is done, rows done, of how many)` called while all rows of a store are passed
    through; it takes the place of a former one."""
    _watcher[:] = [told]


def tell(what: str, done: int, count: int) -> None:
    """Rows done of so many, to whoever watches."""
    if what and _watcher:
        _watcher[0](what, done, count)


@functools.cache
def readers() -> ThreadPoolExecutor:
    """Threads that read rows while others compute."""
    return ThreadPoolExecutor(2, thread_name_prefix="fairbilevel-rows")


def ahead(read: Callable[[Any], T], keys: Any) -> Iterator[T]:
    """`read(key)` of each key, the next one under way while one is worked on."""
    waiting = None
    try:
        for key in keys:
            following = readers().submit(read, key)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
    finally:
        if waiting is not None:
            waiting.cancel()


def passed(
    read: Callable[[slice], T], shape: tuple[int, ...], dtype: Any, what: str = ""
) -> Iterator[tuple[int, T]]:
    """`read(rows)` of all rows in their order, `(number of the first, found)`, a part being read
    while the one before is worked on; `what` is done is told to `watch_passes`."""
    count, size = shape[0], rows_at_once(shape, dtype)
    starts = range(0, count, size)
    parts = ahead(lambda start: read(slice(start, start + size)), starts)
    for start, part in zip(starts, parts, strict=True):
        yield start, part
        tell(what, min(start + size, count), count)


def row_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of one of the rows of an array."""
    return int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(dtype).itemsize


def rows_at_once(shape: tuple[int, ...], dtype: Any) -> int:
    """How many of them are worked on together where all are passed through."""
    return min(_READ_ROWS, max(1, _READ_BYTES // max(row_bytes(shape, dtype), 1)))


def held(in_memory: str, size: int) -> bool:
    """Whether inputs of so many bytes are read into memory, by `Options.in_memory`."""
    return in_memory == "yes" or (in_memory == "auto" and size <= HELD_BYTES)


def select(inputs: Any, rows: np.ndarray) -> Any:
    """Rows of an array, or of a table; of a store they are not read yet."""
    return inputs[rows] if isinstance(inputs, np.ndarray) else inputs.take(rows)


@dataclass(frozen=True, eq=False)
class Joined:
    """Several stores of rows of one shape and type as one, in their order."""

    parts: tuple[RowStore, ...]  # at least one
    starts: np.ndarray  # int64 `[parts + 1]`: the number of the first row of each, and of all

    @staticmethod
    def of(parts: tuple[RowStore, ...], names: tuple[str, ...]) -> Joined:
        """Refuses parts of different shapes or types (`DataError`); names are told of these."""
        first = parts[0]
        for part, name in zip(parts, names, strict=True):
            if (tuple(part.shape[1:]), part.dtype) != (tuple(first.shape[1:]), first.dtype):
                raise DataError(
                    f"shards differ: {names[0]} holds {first.dtype} rows of shape "
                    f"{list(first.shape[1:])} and {name} {part.dtype} rows of shape "
                    f"{list(part.shape[1:])}; give rows of one shape and type."
                )
        return Joined(parts, np.cumsum([0, *(len(part) for part in parts)]))

    @property
    def shape(self) -> tuple[int, ...]:
        """`(rows, ...)`."""
        return (int(self.starts[-1]), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Of every row."""
        return self.parts[0].dtype

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        where = np.searchsorted(self.starts, rows, side="right") - 1
        for part in np.unique(where):
            mine = np.flatnonzero(where == part)
            out[mine] = self.parts[part][rows[mine] - self.starts[part]]
        return out


class Moments:
    """Mean and deviation of columns, of which parts are added: merging moments loses no digits
    where means are large beside deviations (Chan, Golub and LeVeque, "Updating formulae and a
    pairwise algorithm for computing sample variances", 1979)."""

    def __init__(self, columns: int):
        self.count, self.mean, self._squares = 0, np.zeros(columns), np.zeros(columns)

    def add(self, part: Float[np.ndarray, "rows columns"]) -> None:
        """Count the rows of a part, float64."""
        if not len(part):
            return
        mean, count = part.mean(0), self.count + len(part)
        apart = mean - self.mean
        self._squares += ((part - mean) ** 2).sum(0) + apart**2 * self.count * len(part) / count
        self.mean = self.mean + apart * len(part) / count
        self.count = count

    @property
    def std(self) -> Float[np.ndarray, " columns"]:
        """Of the rows as a population, as numpy's."""
        return np.sqrt(self._squares / max(self.count, 1))
