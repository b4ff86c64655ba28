"""Replay buffers: the last ``k`` paired outcomes of each group, as a ring on the device.

A rare group's accuracy is then measured on ``k`` rows and not on the few that one batch holds
(CEAG, Hashemizadeh et al. 2024). Outcomes are paired, pruned beside dense on the same row, and the
overall quantities weigh groups by their share in the role: buffers of equal length averaged plainly
would give a macro mean, another quantity.

Constraints on rates of answers need them by group and label. Each of these cells then has a ring of
its own, so that a rare label of a rare group is measured on ``k`` rows too, and a group's rates are
put together by the cells' shares in the role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fairbilevel.fairness._statistics import GroupStatistics, Outcomes, cell_answers, from_means


class CellBuffers(NamedTuple):
    """A ring of answers per cell, a cell being a group and a label.

    ``tally`` says how often each answer is held, kept up to date so that a step costs what its
    batch costs and not what the buffers hold; ``written`` and ``capacity`` are as of ``Buffers``.
    """

    answer: Int[Array, "cells k"]
    tally: Int[Array, "cells classes"]
    written: Int[Array, " cells"]
    capacity: Int[Array, " cells"]


class Buffers(NamedTuple):
    """A ring per group.

    Attributes:
        values: ``[groups, k, 4]``: ``Outcomes.paired``.
        written: rows of each group ever written since the buffers were emptied.
        capacity: rows that each ring holds, ``k`` at most.
        cells: rings per group and label, where a constraint counts answers.
        own: rings of the quantities of the user's own constraints, in step with ``values``.
    """

    values: Float[Array, "groups k 4"]
    written: Int[Array, " groups"]
    capacity: Int[Array, " groups"]
    cells: CellBuffers | None = None
    own: Mapping[str, Float[Array, "groups k"]] = {}


def empty_buffers(
    groups: int,
    size: int,
    *,
    classes: int | None = None,
    own: Sequence[str] = (),
    rows: Int[np.ndarray, "groups classes"] | None = None,
) -> Buffers:
    """Buffers that hold nothing.

    Args:
        groups: how many.
        size: rows a group, and a cell, at most.
        classes: number of classes, where answers are to be counted by group and label.
        own: names of the user's own quantities.
        rows: how many there are to be measured, by group and label: a ring need not hold more, and
            where it holds all of them its mean is that of the whole group.

    Raises:
        ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f"a replay buffer holds at least 1 row a group, got {size}")
    if rows is None:
        rows = np.full((groups, classes or 1), size)

    def capacity(rows: Any) -> Array:
        return jax.device_put(np.minimum(rows, size).astype(np.int32))

    def zeros(shape: Any, kind: Any = float) -> Array:
        return jax.device_put(np.zeros(shape, jax.dtypes.canonicalize_dtype(kind)))

    cells = None
    if classes is not None:
        cells = CellBuffers(
            zeros((groups * classes, size), np.int32),
            zeros((groups * classes, classes), np.int32),
            zeros(groups * classes, np.int32),
            capacity(rows.reshape(-1)),
        )
    return Buffers(
        zeros((groups, size, 4)),
        zeros(groups, np.int32),
        capacity(rows.sum(1)),
        cells,
        {name: zeros((groups, size)) for name in own},
    )


class _Places(NamedTuple):
    """Where each row of a batch lands (ring, past the last one if nowhere; slot), rows by ring."""

    ring: Int[Array, " rows"]
    slot: Int[Array, " rows"]
    new: Int[Array, " rings"]


def _places(
    key: Int[Array, " rows"], written: Int[Array, " rings"], capacity: Int[Array, " rings"]
) -> _Places:
    rings = written.shape[0]
    # Rank of each row among those of its ring, from a stable sort: no [rows, rings] table.
    order = jnp.argsort(key, stable=True)
    ordered = key[order]
    position = jnp.arange(key.shape[0])
    first = jnp.searchsorted(ordered, ordered, side="left")
    rank = jnp.zeros_like(key).at[order].set((position - first).astype(key.dtype))
    count = jnp.zeros(rings, jnp.int32).at[key].add(1, mode="drop", wrap_negative_indices=False)
    # Of more new rows than a ring holds only the last may land, or the order of writing decides.
    size = capacity[key]
    lands = (key >= 0) & (rank >= count[key] - size)
    slot = (written[key] + rank) % jnp.maximum(size, 1)
    return _Places(jnp.where(lands, key, rings), slot, count)


def write(buffers: Buffers, outcomes: Outcomes, group: Int[Array, " rows"]) -> Buffers:
    """Append rows to their groups' rings, the oldest overwritten; negative groups are ignored."""
    ring, slot, count = _places(group, buffers.written, buffers.capacity)
    values = buffers.values.at[ring, slot].set(jnp.stack(outcomes.paired, -1), mode="drop")
    own = {
        name: held.at[ring, slot].set(outcomes.own[name], mode="drop")
        for name, held in buffers.own.items()
    }
    cells = None if buffers.cells is None else _write_cells(buffers.cells, outcomes, group)
    return Buffers(values, buffers.written + count, buffers.capacity, cells, own)


def only(buffers: Buffers, outcomes: Outcomes, group: Int[Array, " rows"]) -> Buffers:
    """What one batch alone says: buffers of size one that hold each group's mean over its rows.

    For methods without replay buffers. Groups without a row in the batch are absent.

    Args:
        buffers: of size one, for their structure.
        outcomes: of the batch's rows.
        group: of each row; negative groups are ignored.
    """
    groups = buffers.written.shape[0]
    where = jnp.where(group < 0, groups, group)

    def total(values: Any, rings: int, ring: Int[Array, " rows"]) -> Any:
        return jnp.zeros((rings, *values.shape[1:]), values.dtype).at[ring].add(values, mode="drop")

    count = total(jnp.ones(group.shape, jnp.int32), groups, where)
    rows = jnp.maximum(count, 1)
    values = total(jnp.stack(outcomes.paired, -1), groups, where) / rows[:, None]
    own = {name: (total(outcomes.own[name], groups, where) / rows)[:, None] for name in buffers.own}
    cells = buffers.cells
    if cells is not None:
        rings, classes = cells.tally.shape
        ring, answer = _cells_of(outcomes, group, classes, rings)
        tally = total(jax.nn.one_hot(answer, classes, dtype=jnp.int32), rings, ring)
        cells = cells._replace(tally=tally, written=tally.sum(-1))
    return Buffers(values[:, None], jnp.minimum(count, 1), buffers.capacity, cells, own)


def _cells_of(
    outcomes: Outcomes, group: Int[Array, " rows"], classes: int, outside: int
) -> tuple[Int[Array, " rows"], Int[Array, " rows"]]:
    """The cell of each row, ``outside`` where the group is negative, and its answer."""
    if outcomes.label is None or outcomes.answer is None:
        raise ValueError("buffers by group and label need the rows' labels and answers")
    cell = jnp.where(group < 0, outside, group * classes + outcomes.label)
    return cell, jnp.asarray(outcomes.answer)


def _write_cells(cells: CellBuffers, outcomes: Outcomes, group: Int[Array, " rows"]) -> CellBuffers:
    cell, answer = _cells_of(outcomes, group, cells.tally.shape[1], -1)
    ring, slot, count = _places(cell, cells.written, cells.capacity)
    # What stood in a slot leaves the count as the new answer enters it.
    held = jnp.where(slot < cells.written.at[ring].get(mode="fill", fill_value=0), 1, 0)
    old = cells.answer.at[ring, slot].get(mode="fill", fill_value=0)
    counts = cells.tally.at[ring, old].add(-held, mode="drop")
    return CellBuffers(
        cells.answer.at[ring, slot].set(answer, mode="drop"),
        counts.at[ring, answer].add(1, mode="drop"),
        cells.written + count,
        cells.capacity,
    )


def buffer_statistics(
    buffers: Buffers,
    share: Float[Array, " groups"],
    counted: Bool[Array, " groups"],
    cell_share: Float[Array, "groups classes"] | None = None,
) -> GroupStatistics:
    """Group means over full buffers; groups and cells whose buffer is not full yet are absent.

    Args:
        buffers: what was measured.
        share: the groups' shares in the role.
        counted: groups that a claim speaks of.
        cell_share: the cells' shares in the role, for buffers that count answers.
    """
    size = jnp.maximum(buffers.capacity, 1)
    present = (buffers.capacity > 0) & (buffers.written >= size)

    def mean(held: Float[Array, "groups k"]) -> Float[Array, " groups"]:
        return jnp.where(present, held.sum(1) / size, 0)

    answers = None
    if buffers.cells is not None and cell_share is not None:
        least = jnp.maximum(buffers.cells.capacity, 1).reshape(cell_share.shape)
        answers = cell_answers(buffers.cells.tally, least, cell_share)
    own = {name: mean(held) for name, held in buffers.own.items()}
    correct, dense_correct, loss, _ = paired = [buffers.values[..., i] for i in range(4)]

    def error(held: Float[Array, "groups k"]) -> Float[Array, " groups"]:
        # A single row says nothing of its noise: as much as an outcome of 0 or 1 can have.
        variance = jnp.where(size > 1, mean(held**2) - mean(held) ** 2, 1)
        return variance / jnp.maximum(size - 1, 1)

    errors = jnp.stack([error(correct), error(dense_correct - correct), error(loss)])
    means = [mean(v) for v in paired]
    return from_means(means, share, present, counted, answers, own, errors)
