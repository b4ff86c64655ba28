"""From masks by layer to multipliers of every parameter, and gradients the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fairbilevel._trees import flatten_named, map_named
from fairbilevel.masks._layers import Layer
from fairbilevel.masks._threshold import Masks


def _along(mask: Array, layer: Layer) -> Array:
    """A filter mask shaped to multiply the layer's kernel."""
    shape = [1] * len(layer.shape)
    shape[layer.out_axis] = -1
    return mask.reshape(shape)


def expand(masks: Masks, params: Any, layers: Sequence[Layer], granularity: str) -> Any:
    """The multiplier of every parameter: a pytree like ``params``, broadcastable to it.

    Unmasked leaves get the scalar one. At granularity ``filter`` a layer's companions (bias, norm
    scale and shift) carry its mask too, so that a removed filter outputs exactly zero.
    """
    factors: dict[str, Array] = {}
    for layer in layers:
        mask = masks[layer.name]
        if granularity == "weight":
            factors[layer.kernel] = mask
        else:
            factors[layer.kernel] = _along(mask, layer)
            factors.update(dict.fromkeys(layer.companions, mask))
    one = jnp.ones(())
    return map_named(lambda name, leaf: factors.get(name, one.astype(leaf.dtype)), params)


def apply(masks: Masks, params: Any, layers: Sequence[Layer], granularity: str) -> Any:
    """``z = m * theta``."""
    factors = expand(masks, params, layers, granularity)
    return jax.tree.map(lambda m, p: m.astype(p.dtype) * p, factors, params)


def collect(entries: Any, layers: Sequence[Layer], granularity: str) -> Masks:
    """Sum per-parameter contributions to ``dL/dm`` over the entries that share a mask unit.

    The transpose of ``expand``.

    Args:
        entries: a pytree like the parameters holding ``dL/d(multiplier)`` of each entry.
        layers: prunable layers.
        granularity: ``"weight"`` or ``"filter"``.
    """
    named = flatten_named(entries)
    gradient = {}
    for layer in layers:
        whole = named[layer.kernel]
        if granularity == "weight":
            gradient[layer.name] = whole
            continue
        axes = tuple(a for a in range(whole.ndim) if a != layer.out_axis)
        total = jnp.sum(whole, axes)
        for companion in layer.companions:
            total = total + named[companion]
        gradient[layer.name] = total
    return gradient
