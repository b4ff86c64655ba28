"""Batches on their way to the devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.train._batches import Batch, gather, stream_rows


class Feed:
    """Stacked batches of named row sets, each its own endless stream.

    Row order is a function of seed, stream and position (``stream_rows``) and nothing else: not of
    the number of devices or processes, of how many batches are taken at a time, or of a restart.
    Each process reads the rows of its own devices.

    Args:
        problem: where rows live, and on which devices they go.
        reference: dense outcomes to put beside each row.
        seed: of the run.
    """

    def __init__(self, problem: FairPruningProblem, reference: Reference | None, seed: int):
        self.problem, self.reference, self.seed = problem, reference, seed
        self._position: dict[int, int] = {}

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
        chosen = self.rows(rows, stream, batches * size).reshape(batches, size)
        if length is not None and length > batches:
            chosen = np.concatenate([chosen, np.zeros((length - batches, size), chosen.dtype)])
        return gather(self.problem, self.reference, chosen)

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
