"""Replay buffers: the last ``k`` paired outcomes of each group, as a ring on the device.

A rare group's accuracy is then measured on ``k`` rows and not on the few that one batch holds
(CEAG, Hashemizadeh et al. 2024). Outcomes are paired, pruned beside dense on the same row, and the
overall quantities weigh groups by their share in the role: buffers of equal length averaged plainly
would give a macro mean, another quantity.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fairbilevel.fairness._statistics import GroupStatistics, Outcomes, from_means


class Buffers(NamedTuple):
    """A ring per group.

    Attributes:
        values: ``[groups, k, 4]``: the fields of ``Outcomes``.
        written: rows of each group ever written since the buffers were emptied.
    """

    values: Float[Array, "groups k 4"]
    written: Int[Array, " groups"]


def empty_buffers(groups: int, size: int) -> Buffers:
    """Buffers that hold nothing.

    Raises:
        ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f"a replay buffer holds at least 1 row a group, got {size}")
    return Buffers(jnp.zeros((groups, size, 4)), jnp.zeros(groups, jnp.int32))


def write(buffers: Buffers, outcomes: Outcomes, group: Int[Array, " rows"]) -> Buffers:
    """Append rows to their groups' rings, the oldest overwritten; negative groups are ignored."""
    groups, size, _ = buffers.values.shape
    # Rank of each row among those of its group, from a stable sort: no [rows, groups] table.
    order = jnp.argsort(group, stable=True)
    ordered = group[order]
    position = jnp.arange(group.shape[0])
    first = jnp.searchsorted(ordered, ordered, side="left")
    rank = jnp.zeros_like(group).at[order].set((position - first).astype(group.dtype))
    count = jnp.zeros(groups, jnp.int32).at[group].add(1, mode="drop", wrap_negative_indices=False)
    # Of more than k new rows of a group only the last k may land, or the order of writing decides.
    lands = (group >= 0) & (rank >= count[group] - size)
    slot = (buffers.written[group] + rank) % size
    values = buffers.values.at[jnp.where(lands, group, groups), slot].set(
        jnp.stack(outcomes, -1), mode="drop"
    )
    return Buffers(values, buffers.written + count)


def buffer_statistics(
    buffers: Buffers, share: Float[Array, " groups"], counted: Bool[Array, " groups"]
) -> GroupStatistics:
    """Group means over full buffers; groups whose buffer is not full yet are absent."""
    present = buffers.written >= buffers.values.shape[1]
    means = jnp.where(present[:, None], buffers.values.mean(1), 0)
    return from_means(list(means.T), share, present, counted)
