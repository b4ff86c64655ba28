"""Which rows each step sees: endless shuffled streams addressed by position.

The rows of any step can be named again from ``(seed, stream, position)`` alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from fairbilevel.problem import FairPruningProblem, Reference

# Streams of rows: one number each, so that no two of a run share their order.
STREAM_FIT, STREAM_SELECT, STREAM_DUALS, STREAM_REFRESH = 0, 1, 2, 3
STREAM_SCORES = 4  # the last: a method that scores several sets of rows counts on from here


class Batch(NamedTuple):
    """Rows of one step, or of several with a leading axis of steps.

    Attributes:
        x: encoded inputs.
        y: classes.
        group: groups.
        weight: row weights of mean one.
        dense_correct: what the dense reference says of each row.
        dense_loss: likewise, in nats.
    """

    x: Shaped[Array, "..."]
    y: Int[Array, "..."]
    group: Int[Array, "..."]
    weight: Float[Array, "..."]
    dense_correct: Float[Array, "..."]
    dense_loss: Float[Array, "..."]


def stream_rows(
    rows: Int[np.ndarray, " n"], seed: int, stream: int, start: int, count: int
) -> Int[np.ndarray, " count"]:
    """Rows ``start`` to ``start + count`` of the endless stream that shuffles ``rows`` each epoch.

    Args:
        rows: row indices to draw from, not empty.
        seed: of the run.
        stream: a number of the stream, so that two streams of one run differ.
        start: position, from 0.
        count: how many.
    """
    size = len(rows)
    epochs = range(start // size, (start + count - 1) // size + 1)
    order = np.concatenate([_epoch(seed, stream, e, size) for e in epochs])
    first = start - epochs[0] * size
    return rows[order[first : first + count]]


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, stream: int, epoch: int, size: int) -> Int[np.ndarray, " size"]:
    return np.random.default_rng([seed, stream, epoch]).permutation(size)


def gather(
    problem: FairPruningProblem, reference: Reference | None, rows: Int[np.ndarray, "..."]
) -> Batch:
    """The batch of ``rows``, leading axes kept; without a reference the dense entries are 0.

    Args:
        problem: where rows live; the last axis of ``rows`` is split over its devices.
        reference: dense outcomes to put beside each row.
        rows: row numbers, ``[..., batch]``.
    """

    def zeros(some: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        return np.zeros(some.shape, np.float32)

    def column(read: Callable[[Any], Any]) -> Array:
        return problem.placement.rows(read, rows)

    return Batch(
        column(problem.inputs.__getitem__),
        column(problem.y.__getitem__),
        column(problem.group.__getitem__),
        column(problem.weight.__getitem__),
        column(
            zeros if reference is None else lambda some: reference.correct[some].astype(np.float32)
        ),
        column(zeros if reference is None else reference.loss.__getitem__),
    )
