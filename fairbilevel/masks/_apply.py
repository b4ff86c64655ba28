"""From masks by name to multipliers of every parameter, gradients the way back, and real cuts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from fairbilevel._trees import flatten_named, map_named
from fairbilevel.masks._layers import GRANULARITIES, Layer, Layers, Slice, kept_entries
from fairbilevel.masks._threshold import Masks


def _along(mask: Array, place: Slice, rank: int) -> Array:
    """A mask of channels shaped to multiply the array that they lie in."""
    entries = jnp.tile(jnp.repeat(mask, place.inner), place.outer)
    return entries.reshape([-1 if axis == place.axis else 1 for axis in range(rank)])


def channel_sums(entries: Array, place: Slice, size: int) -> Array:
    """Sums over the entries of an array that belong to each channel."""
    axes = tuple(axis for axis in range(entries.ndim) if axis != place.axis)
    return jnp.sum(jnp.sum(entries, axes).reshape(place.outer, size, place.inner), (0, 2))


def expand(masks: Masks, params: Any, layers: Layers, granularity: str) -> Any:
    """The multiplier of every parameter: a pytree like ``params``, broadcastable to it.

    Unmasked leaves get the scalar one. At granularity ``filter`` the mask of a set of channels
    multiplies every array that makes them (kernels, biases, norm scales and shifts), so that a
    removed channel is exactly zero wherever it is read.
    """
    named = flatten_named(params)
    factors: dict[str, Array] = {}
    for unit in layers.units(granularity):
        mask = masks[unit.name]
        if isinstance(unit, Layer):
            factors[unit.kernel] = mask
        else:
            factors.update({m.leaf: _along(mask, m, named[m.leaf].ndim) for m in unit.members})
    one = jnp.ones(())
    return map_named(lambda name, leaf: factors.get(name, one.astype(leaf.dtype)), params)


def apply(masks: Masks, params: Any, layers: Layers, granularity: str) -> Any:
    """``z = m * theta``."""
    factors = expand(masks, params, layers, granularity)
    return jax.tree.map(lambda m, p: m.astype(p.dtype) * p, factors, params)


def collect(entries: Any, layers: Layers, granularity: str) -> Masks:
    """Sum per-parameter contributions to ``dL/dm`` over the entries that share a mask unit.

    The transpose of ``expand``.

    Args:
        entries: a pytree like the parameters holding ``dL/d(multiplier)`` of each entry.
        layers: prunable layers.
        granularity: ``"weight"`` or ``"filter"``.
    """
    named = flatten_named(entries)
    gradient: Masks = {}
    for unit in layers.units(granularity):
        if isinstance(unit, Layer):
            gradient[unit.name] = named[unit.kernel]
        else:
            parts = [channel_sums(named[m.leaf], m, unit.size) for m in unit.members]
            gradient[unit.name] = sum(parts[1:], parts[0])
    return gradient


def wrap(
    rule: optax.GradientTransformation, masks: Any, layers: Layers | None = None
) -> optax.GradientTransformation:
    """An optax rule that leaves removed weights where they are, decay and momentum too.

    ``fb.masks.wrap(optax.adam(1e-3), solution.masks)`` trains a pruned network on and keeps it
    sparse, since removed weights are zero.

    Args:
        rule: any rule.
        masks: of single weights by name, as in ``solution.masks``; of filters, with ``layers``; or
            a pytree like the parameters, of arrays that broadcast to them.
        layers: what masks of filters belong to: ``problem.layers``.

    Returns:
        The rule; its ``update`` raises ``ValueError`` where masks are not of these parameters.
    """

    def factors(like: Any) -> Any:
        shaped: Any = jax.tree.structure(like)
        if jax.tree.structure(masks) == shaped:
            return masks
        if layers is not None:
            return expand(masks, like, layers, _granularity(masks, layers))
        found = {}
        for name, leaf in flatten_named(like).items():
            of = name.rpartition("/")[0]
            if of in masks and np.shape(masks[of]) == np.shape(leaf):
                found[name] = masks[of]
        if len(found) != len(masks):
            missing = next(n for n in masks if not any(k.startswith(f"{n}/") for k in found))
            raise ValueError(
                f"no parameter has the shape of mask {missing!r}: masks of filters need layers "
                "(problem.layers), and all masks the parameters that they are of"
            )
        return map_named(lambda name, leaf: found.get(name, jnp.ones(())), like)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = rule.update(updates, state, params)
        kept = jax.tree.map(
            lambda m, u: jnp.where(m != 0, u, 0).astype(u.dtype), factors(updates), updates
        )
        return kept, state

    return optax.GradientTransformation(rule.init, update)


def _granularity(masks: Masks, layers: Layers) -> str:
    """What masks are of, by their names and shapes."""
    shapes = {name: tuple(np.shape(mask)) for name, mask in masks.items()}
    for granularity in GRANULARITIES:
        if shapes == {unit.name: unit.shape for unit in layers.units(granularity)}:
            return granularity
    raise ValueError("the masks are not those of these layers")


def filters_of(masks: Masks, layers: Layers) -> Masks:
    """Masks of filters that keep all but the channels inside removed blocks: what ``compact`` can
    cut out of them."""
    gone = {c.name for b in layers.blocks if not np.any(masks[b.name]) for c in layers.within(b)}
    return {c.name: jnp.full(c.shape, float(c.name not in gone)) for c in layers.channels}


def compact(masks: Masks, params: Any, state: Any, layers: Layers) -> tuple[Any, Any]:
    """Cut removed channels out of parameters and state for real, at granularity ``filter``.

    What is left gives the same logits as the masked network, wherever the model takes its widths
    from its arrays (every built-in model does). Where all channels of a set are removed one stays,
    which is zero, so that no array is empty.

    Args:
        masks: hard 0/1 masks by name.
        params: parameters under these masks: removed entries are zero.
        state: normalization statistics and the like.
        layers: prunable layers.

    Returns:
        Parameters and state with smaller arrays.
    """
    cuts: dict[tuple[str, bool], list[tuple[int, np.ndarray]]] = {}
    for unit in layers.channels:
        kept = np.flatnonzero(np.asarray(masks[unit.name]))
        kept = kept if len(kept) else np.zeros(1, int)
        for place in (*unit.members, *unit.readers):
            entries = kept_entries(place, kept, unit.size)
            cuts.setdefault((place.leaf, place.state), []).append((place.axis, entries))

    def cut(name: str, leaf: Any, of_state: bool) -> Any:
        for axis, entries in cuts.get((name, of_state), ()):
            leaf = jnp.take(leaf, entries, axis)
        return leaf

    return (
        map_named(lambda name, leaf: cut(name, leaf, False), params),
        map_named(lambda name, leaf: cut(name, leaf, True), state),
    )
