"""Batches on their way to the devices: gathered while the segment before them computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.train._batches import Batch, gather, stream_rows

# Rows of a segment below which gathering takes less than handing them from thread to thread.
AHEAD_BYTES = 2**22
_ENDLESS = 2**31  # segments of a stream


class Feed:
    """Stacked batches of named row sets, each its own endless stream.

    Row order is a function of seed, stream and position (``stream_rows``) and nothing else: not of
    the number of devices or processes, of what is gathered ahead, or of a restart. Each process
    reads the rows of its own devices. Where segments are large, Grain reads the next one of a
    stream in a thread and puts it onto the devices while this one computes.

    Args:
        problem: where rows live, and on which devices they go.
        reference: dense outcomes to put beside each row.
        seed: of the run.
        batch_size: rows a batch, over all devices; a smaller row set repeats rows within a batch.
        ahead_bytes: size of a segment's inputs from which the next one is gathered ahead.

    Raises:
        ValueError: a batch that cannot be split evenly over the problem's devices.
    """

    def __init__(
        self,
        problem: FairPruningProblem,
        reference: Reference | None,
        seed: int,
        batch_size: int,
        *,
        ahead_bytes: int = AHEAD_BYTES,
    ):
        problem.placement.check_batch(batch_size)
        self.problem, self.reference = problem, reference
        self.seed, self.batch_size, self.ahead_bytes = seed, batch_size, ahead_bytes
        self._position: dict[int, int] = {}
        self._readers: dict[int, _Reader] = {}

    def rows(
        self, rows: Int[np.ndarray, " n"], stream: int, steps: int
    ) -> Int[np.ndarray, "steps batch"]:
        """Row numbers of the next ``steps`` batches of a stream."""
        start = self._position.get(stream, 0)
        count = steps * self.batch_size
        self._position[stream] = start + count
        return stream_rows(rows, self.seed, stream, start, count).reshape(steps, self.batch_size)

    def take(self, rows: Int[np.ndarray, " n"], stream: int, steps: int) -> Batch:
        """The next ``steps`` batches of a stream: leaves ``[steps, batch, ...]``."""
        row_bytes = self.problem.inputs[:1].nbytes
        if steps * self.batch_size * row_bytes < self.ahead_bytes:
            return gather(self.problem, self.reference, self.rows(rows, stream, steps))
        start = self._position.get(stream, 0)
        reader = self._readers.get(stream)
        if reader is None or not reader.continues(rows, start, steps):
            reader = self._reader(rows, stream, start, steps)
        self._position[stream] = start + steps * self.batch_size
        return reader.next()

    def _reader(self, rows: Int[np.ndarray, " n"], stream: int, start: int, steps: int) -> _Reader:
        before = self._readers.get(stream)
        if before is not None:
            before.close()
        count = steps * self.batch_size

        def segment(index: int) -> Batch:
            chosen = stream_rows(rows, self.seed, stream, start + index * count, count)
            return gather(self.problem, self.reference, chosen.reshape(steps, self.batch_size))

        # A second segment of the same length is a sign that a third will follow.
        follows = before is not None and before.ends_at(rows, start, steps)
        self._readers[stream] = _Reader(segment, rows, start, steps, count, ahead=follows)
        return self._readers[stream]

    def everything(self) -> Batch:
        """All rows, whole on every device, to gather batches from there."""
        return self.problem.placement.place(
            gather(self.problem, self.reference, np.arange(len(self.problem.y)), spread=False)
        )

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
        self.close()
        self._position = {int(stream): position for stream, position in state.items()}

    def close(self) -> None:
        """Forget what was gathered ahead; rows go on as if nothing had been."""
        for reader in self._readers.values():
            reader.close()
        self._readers = {}


@dataclass(eq=False)
class _Segments:
    """A stream cut into segments of one length: Grain's random access source."""

    read: Callable[[int], Batch]

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: Any) -> Batch:
        return self.read(int(index))


class _Reader:
    """Segments of one length from one position on, the next one in the making.

    Args:
        segment: from its number to its batches.
        rows: the row set.
        start: position of the first.
        steps: batches of each.
        count: rows of each.
        ahead: whether a thread gathers the next one.
    """

    def __init__(
        self,
        segment: Callable[[int], Batch],
        rows: Int[np.ndarray, " n"],
        start: int,
        steps: int,
        count: int,
        *,
        ahead: bool,
    ):
        self._rows, self._position, self._steps, self._count = rows, start, steps, count
        self._segment, self._taken = segment, 0
        self._iterator: Any = None
        if ahead:
            import grain

            # One segment ahead: this one computes, the next one waits on the devices.
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
            source: Any = _Segments(segment)
            self._iterator = iter(grain.MapDataset.source(source).to_iter_dataset(options))

    def continues(self, rows: Int[np.ndarray, " n"], start: int, steps: int) -> bool:
        """Whether the next segment is the one asked for, and this reader gathers ahead."""
        return self._iterator is not None and self.ends_at(rows, start, steps)

    def ends_at(self, rows: Int[np.ndarray, " n"], start: int, steps: int) -> bool:
        """Whether the segment asked for is of the same kind and follows the last one."""
        same = rows is self._rows or np.array_equal(rows, self._rows)
        return same and start == self._position and steps == self._steps

    def next(self) -> Batch:
        """The next segment."""
        batch = self._segment(self._taken) if self._iterator is None else next(self._iterator)
        self._taken += 1
        self._position += self._count
        return batch

    def close(self) -> None:
        """Drop what was gathered ahead."""
        if self._iterator is not None:
            self._iterator.close()
