"""Which rows each step sees: endless shuffled streams addressed by position, so that any step's rows
can be named again from ``(seed, stream, position)`` alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from fairbilevel.problem import FairPruningProblem, Reference


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

    x: Shaped[Array, "rows ..."]
    y: Int[Array, " rows"]
    group: Int[Array, " rows"]
    weight: Float[Array, " rows"]
    dense_correct: Float[Array, " rows"]
    dense_loss: Float[Array, " rows"]


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
    order = np.concatenate(
        [np.random.default_rng([seed, stream, e]).permutation(size) for e in epochs]
    )
    first = start - epochs[0] * size
    return rows[order[first : first + count]]


def gather(
    problem: FairPruningProblem, reference: Reference | None, rows: Int[np.ndarray, "..."]
) -> Batch:
    """The batch of ``rows``, leading axes kept; without a reference the dense entries are 0."""
    y = problem.y[rows]
    zeros = np.zeros(y.shape, np.float32)
    return Batch(
        problem.inputs[rows],
        y,
        problem.group[rows],
        problem.weight[rows],
        zeros if reference is None else reference.correct[rows].astype(np.float32),
        zeros if reference is None else reference.loss[rows],
    )
