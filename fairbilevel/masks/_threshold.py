"""Exact top-k masks without sorting: bisection on the bits of the floating-point scores.

Counting entries above a threshold is all it needs: linear time, a traced ``k``, and across devices
only counts to add up.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num, UInt

Scores = Mapping[str, Float[Array, "..."]]
Masks = dict[str, Float[Array, "..."]]


def sortable_bits(scores: Float[Array, "..."]) -> UInt[Array, "..."]:
    """Unsigned integers in the order of the scores (NaN last among the positive)."""
    width = jnp.finfo(scores.dtype).bits
    unsigned = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[width]
    bits = lax.bitcast_convert_type(scores + 0.0, unsigned)  # + 0.0: -0.0 equals 0.0
    sign = unsigned(1) << unsigned(width - 1)
    return jnp.where(bits & sign, ~bits, bits | sign)


def _kth_bits(keys: Sequence[UInt[Array, "..."]], keep: Int[Array, ""]) -> UInt[Array, ""]:
    """The ``keep``-th largest of all entries (0 where ``keep`` is 0 or exceeds the entries)."""
    dtype = keys[0].dtype
    width = jnp.iinfo(dtype).bits

    def one_bit(i: Int[Array, ""], threshold: UInt[Array, ""]) -> UInt[Array, ""]:
        raised = threshold | (dtype.type(1) << (width - 1 - i).astype(dtype))
        above = sum(jnp.sum(key >= raised, dtype=jnp.int32) for key in keys)
        return jnp.where(above >= keep, raised, threshold)

    return lax.fori_loop(0, width, one_bit, jnp.zeros((), dtype))


def top_k_masks(scores: Scores, keep: Int[Array, ""] | int, reserved: Sequence[str] = ()) -> Masks:
    """Masks that keep exactly ``keep`` entries (may be traced) of all arrays together: the largest.

    Of equal scores at the threshold those that come first (layer order, then flat index) are kept;
    ``reserved`` layers keep at least their best entry (removing them would cut the network).
    """
    keep = jnp.asarray(keep, jnp.int32)
    keys = {}
    for name, score in scores.items():
        key = sortable_bits(score)
        top = key.dtype.type(jnp.iinfo(key.dtype).max)
        key = jnp.minimum(key, top - key.dtype.type(1))  # the top is free for reserved entries
        if name in reserved:
            place = _places(key.shape)
            first = jnp.min(jnp.where(key == jnp.max(key), place, key.size))
            key = jnp.where(place == first, top, key)
        keys[name] = key
    threshold = _kth_bits(list(keys.values()), keep)
    above = sum(jnp.sum(key > threshold, dtype=jnp.int32) for key in keys.values())
    offsets = itertools.accumulate((k.size for k in keys.values()), initial=0)
    tied = [(key == threshold, at) for key, at in zip(keys.values(), offsets, strict=False)]
    end = _end_of_ties(tied, keep - above)
    masks = {}
    for (name, key), (ties, offset) in zip(keys.items(), tied, strict=True):
        kept: Bool[Array, "..."] = (key > threshold) | (ties & (_places(key.shape) + offset < end))
        masks[name] = kept.astype(scores[name].dtype)
    return masks


def _places(shape: tuple[int, ...]) -> Int[Array, "..."]:
    """The flat index of every entry, made where the entry lies: no reshape across devices."""
    place = jnp.zeros(shape, jnp.int32)
    for axis, size in enumerate(shape):
        place = place * size + lax.broadcasted_iota(jnp.int32, shape, axis)
    return place


def _end_of_ties(
    tied: Sequence[tuple[Bool[Array, "..."], int]], left: Int[Array, ""]
) -> Int[Array, ""]:
    """The index over all arrays before which exactly ``left`` ties lie (beyond them, if so few are
    tied): bisected by counting too, and only where some ties have to go."""
    bits = sum(ties.size for ties, _ in tied).bit_length()

    def before(end: Int[Array, ""]) -> Int[Array, ""]:
        counts = [
            jnp.sum(ties & (_places(ties.shape) + offset < end), dtype=jnp.int32)
            for ties, offset in tied
        ]
        return sum(counts, jnp.zeros((), jnp.int32))

    def one_bit(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        i, end = carry
        raised = end | (jnp.int32(1) << (bits - 1 - i))
        return i + 1, jnp.where(before(raised) <= left, raised, end)

    beyond = jnp.int32(2**bits - 1)
    split = before(beyond) > left
    start = (jnp.where(split, 0, bits).astype(jnp.int32), jnp.where(split, 0, beyond))
    return lax.while_loop(lambda carry: carry[0] < bits, one_bit, start)[1]


def kth_largest(scores: Scores, keep: Int[Array, ""] | int) -> Float[Array, ""]:
    """The ``keep``-th largest score of all arrays together (``keep`` from 1 up)."""
    keys = [sortable_bits(s) for s in scores.values()]
    bits = _kth_bits(keys, jnp.maximum(jnp.asarray(keep, jnp.int32), 1))
    dtype = next(iter(scores.values())).dtype
    sign = bits.dtype.type(1) << bits.dtype.type(jnp.iinfo(bits.dtype).bits - 1)
    return lax.bitcast_convert_type(jnp.where(bits & sign, bits ^ sign, ~bits), dtype)


def capped_simplex(point: Scores, total: Num[Array, ""] | int, iterations: int = 60) -> Masks:
    """Euclidean projection of all arrays together onto ``{0 <= m <= 1, sum m = total}``.

    The projection is ``clip(point - shift, 0, 1)``; the shift is found by bisection (the sum falls
    in it), then made exact on the entries strictly inside (Wang and Lu 2015).
    """
    leaves = list(point.values())
    dtype = leaves[0].dtype
    total = jnp.asarray(total, dtype)
    low = jnp.min(jnp.stack([jnp.min(leaf) for leaf in leaves])) - 1
    high = jnp.max(jnp.stack([jnp.max(leaf) for leaf in leaves]))

    def summed(shift: Float[Array, ""]) -> Float[Array, ""]:
        return sum((jnp.sum(jnp.clip(leaf - shift, 0, 1)) for leaf in leaves), jnp.zeros((), dtype))

    def halve(_: Int[Array, ""], bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        below, above = bracket
        middle = (below + above) / 2
        larger = summed(middle) > total
        return jnp.where(larger, middle, below), jnp.where(larger, above, middle)

    below, above = lax.fori_loop(0, iterations, halve, (low, high))
    shift = (below + above) / 2
    inside = [(leaf > shift) & (leaf < shift + 1) for leaf in leaves]
    count = sum(jnp.sum(i) for i in inside)
    shift = shift + jnp.where(count > 0, (summed(shift) - total) / jnp.maximum(count, 1), 0)
    return {name: jnp.clip(leaf - shift, 0, 1) for name, leaf in point.items()}
