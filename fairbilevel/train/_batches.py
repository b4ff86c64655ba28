"""Which rows each step sees, and their way to the devices: endless shuffled streams by position.

The rows of any step can be named again from ``(seed, stream, position)`` alone.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from fairbilevel.data import StoredRows, readers
from fairbilevel.devices import on_device
from fairbilevel.problem import FairPruningProblem, Reference

# Streams of rows: one number each, so that no two of a run share their order.
STREAM_FIT, STREAM_SELECT, STREAM_DUALS, STREAM_REFRESH = 0, 1, 2, 3
STREAM_SCORES = 4  # the last: a method that scores several sets of rows counts on from here
_AHEAD_BYTES = 2**25  # of inputs of a stream that are read before they are asked for


class Batch(NamedTuple):
    """Rows of one step, or of several with a leading axis of steps.

    Attributes:
        x: encoded inputs.
        y: classes.
        group: groups.
        weight: row weights of mean one.
        dense_logits: what the dense reference says of each row.
        distill: share of each row's loss that is measured against the dense outputs.
    """

    x: Shaped[Array, "..."]
    y: Int[Array, "..."]
    group: Int[Array, "..."]
    weight: Float[Array, "..."]
    dense_logits: Float[Array, "..."]
    distill: Float[Array, "..."]


def stream_rows(
    rows: Int[np.ndarray, " n"], seed: int, stream: int, start: int, count: int
) -> Int[np.ndarray, " count"]:
    """Rows ``start`` to ``start + count`` of the endless stream that shuffles ``rows`` each epoch,
    those that move multipliers once.

    Args:
        rows: row indices to draw from, not empty.
        seed: of the run.
        stream: a number of the stream, so that two streams of one run differ.
        start: position, from 0.
        count: how many.
    """
    size = len(rows)
    epochs = range(start // size, (start + count - 1) // size + 1)
    # Multipliers' rows come in one order: buffers that hold all of them then hold each once.
    again = stream == STREAM_DUALS
    order = np.concatenate([_epoch(seed, stream, 0 if again else e, size) for e in epochs])
    first = start - epochs[0] * size
    return rows[order[first : first + count]]


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, stream: int, epoch: int, size: int) -> Int[np.ndarray, " size"]:
    return np.random.default_rng([seed, stream, epoch]).permutation(size).astype(np.int32)


def gather(
    problem: FairPruningProblem,
    reference: Reference | None,
    rows: Int[np.ndarray, "..."],
    distill: float = 0.0,
    x: Array | None = None,
) -> Batch:
    """The batch of ``rows``, leading axes kept; without a reference the dense entries are 0.

    Args:
        problem: where rows live; the last axis of ``rows`` is split over its devices.
        reference: dense outcomes to put beside each row.
        rows: row numbers, ``[..., batch]``.
        distill: share of the rows' losses that is measured against the dense outputs.
        x: their inputs, where they were read before.
    """

    classes = len(problem.data.classes)

    def dense(some: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        if reference is None:
            return np.zeros((*some.shape, classes), np.float32)
        return reference.logits[some]

    def column(read: Callable[[Any], Any]) -> Array:
        return problem.placement.rows(read, rows)

    return Batch(
        column(problem.inputs.__getitem__) if x is None else x,
        column(problem.y.__getitem__),
        column(problem.group.__getitem__),
        column(problem.weight.__getitem__),
        column(dense),
        column(lambda some: np.full(some.shape, distill, np.float32)),
    )


class _ReadAhead:
    """Inputs of one stream, read from a store by the batch before they are asked for: of each batch
    what the devices of this process take."""

    def __init__(self, problem: FairPruningProblem):
        self._problem = problem
        self._waiting: deque[tuple[Int[np.ndarray, " batch"], Future[np.ndarray]]] = deque()

    def take(
        self, rows: Int[np.ndarray, "batches batch"], length: int, then: Int[np.ndarray, "..."]
    ) -> Array:
        """Inputs of these batches, ``[length, batch, ...]``, zeros behind the last; begins to read
        the batches in ``then``, which is what will be asked for next."""
        place, inputs, size = self._problem.placement, self._problem.inputs, rows.shape[1]
        own = place.columns(size)
        if any(not np.array_equal(r, w[0]) for r, w in zip(rows, self._waiting, strict=False)):
            self.forget()
        for batch in [*rows, *then][len(self._waiting) :]:
            self._waiting.append((batch, readers().submit(inputs.__getitem__, batch[own])))
        out = np.zeros((length, len(own), *inputs.shape[1:]), inputs.dtype)
        for i in range(len(rows)):
            out[i] = self._waiting.popleft()[1].result()
        if place.alone:
            return on_device(out)
        column = np.searchsorted(own, np.arange(size))
        return place.rows(
            lambda at: out[at // size, column[at % size]],
            np.arange(length * size).reshape(length, size),
        )

    def forget(self) -> None:
        """What was read ahead is not asked for after all."""
        for _, reading in self._waiting:
            reading.cancel()
        self._waiting.clear()


class Feed:
    """Stacked batches of named row sets, each its own endless stream.

    Row order is a function of seed, stream and position (``stream_rows``) and nothing else: not of
    the number of devices or processes, of how many batches are taken at a time, or of a restart.
    Each process reads the rows of its own devices; those of a store are read ahead, while the
    batches before are computed with.

    Args:
        problem: where rows live, and on which devices they go.
        reference: dense outcomes to put beside each row.
        seed: of the run.
        distill: share of the rows' losses that is measured against the dense outputs.

    Attributes:
        waited: seconds in which no device had anything to do until batches were there.
        busy: whether devices still compute with batches taken before.
    """

    def __init__(
        self,
        problem: FairPruningProblem,
        reference: Reference | None,
        seed: int,
        distill: float = 0.0,
    ):
        self.problem, self.reference, self.seed, self.distill = problem, reference, seed, distill
        self.waited = 0.0
        self.busy: Callable[[], bool] = lambda: False
        self._position: dict[int, int] = {}
        self._ahead: dict[int, _ReadAhead] = {}

    def rows(
        self, rows: Int[np.ndarray, " n"], stream: int, count: int
    ) -> Int[np.ndarray, " count"]:
        """Row numbers of the next ``count`` rows of a stream."""
        start = self._position.get(stream, 0)
        self._position[stream] = start + count
        return stream_rows(rows, self.seed, stream, start, count)

    def take(
        self,
        rows: Int[np.ndarray, " n"],
        stream: int,
        batches: int,
        size: int,
        *,
        length: int | None = None,
    ) -> Batch:
        """The next batches of a stream: leaves ``[length, size, ...]``.

        Args:
            rows: row numbers; fewer than a batch are repeated within it.
            stream: its number.
            batches: how many are taken.
            size: rows of each, over all devices.
            length: entries of the leading axis; what is behind ``batches`` means nothing.
        """
        begin = time.perf_counter()
        chosen = self.rows(rows, stream, batches * size).reshape(batches, size)
        length, x = max(batches, length or batches), None
        if isinstance(self.problem.inputs, StoredRows):
            start = self._position[stream]
            soon = min(batches, max(1, _AHEAD_BYTES // (size * self.problem.inputs.row_bytes)))
            then = stream_rows(rows, self.seed, stream, start, soon * size).reshape(soon, size)
            reader = self._ahead.setdefault(stream, _ReadAhead(self.problem))
            x = reader.take(chosen, length, then)
        chosen = np.concatenate([chosen, np.zeros((length - batches, size), chosen.dtype)])
        batch = gather(self.problem, self.reference, chosen, self.distill, x)
        if not self.busy():
            self.waited += time.perf_counter() - begin
        return batch

    def state(self) -> dict[str, int]:
        """How many rows each stream has given, by its number: plain JSON."""
        return {str(stream): position for stream, position in sorted(self._position.items())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken: the same rows follow.

        Raises:
            ValueError: not what ``state`` returns.
        """
        for stream, position in state.items():
            whole = isinstance(position, int) and not isinstance(position, bool)
            if not (str(stream).isdecimal() and whole and position >= 0):
                raise ValueError(
                    "the state of a feed counts rows by stream, as in {'0': 1280}, got "
                    f"{stream!r}: {position!r}"
                )
        self._position = {int(stream): position for stream, position in state.items()}
        for reader in self._ahead.values():
            reader.forget()
