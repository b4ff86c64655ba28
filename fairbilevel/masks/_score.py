"""Where scores start."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fairbilevel import _options
from fairbilevel._trees import flatten_named
from fairbilevel.masks._apply import channel_sums
from fairbilevel.masks._layers import Layer, Layers, Slice
from fairbilevel.masks._threshold import Masks

MAGNITUDES = ("magnitude", "layer-magnitude")
STARTS = (*MAGNITUDES, "random", "constant")


def magnitude(params: Any, layers: Layers, granularity: str) -> Masks:
    """Magnitudes by name: ``|w|``, or the root mean square of all weights that make a channel.

    Biases and norms are left out; of coupled channels the weights of all kernels count alike.
    """
    named = flatten_named(params)
    scores: Masks = {}
    for unit in layers.units(granularity):
        if isinstance(unit, Layer):
            scores[unit.name] = jnp.abs(jnp.asarray(named[unit.kernel]))
            continue
        total, count = jnp.zeros(unit.shape), 0
        for member in unit.members:
            if member.leaf in unit.kernels:
                weights = jnp.asarray(named[member.leaf])
                total = total + channel_sums(weights**2, member, unit.size)
                count += weights.size // unit.size
        scores[unit.name] = jnp.sqrt(total / count)
    return scores


def median_distance(params: Any, layers: Layers) -> Masks:
    """How far each filter lies from its fellows: smallest nearest the geometric median.

    ``mean_j |w_i - w_j|`` over the filters of a unit set, divided by the root of the number of
    weights in a filter, so that layers of different shape can be compared (FPGM, He et al. 2019,
    equation 8: the filter with the least sum of distances is the one nearest their geometric
    median). Where several layers share their channels, a filter is what all of them hold of one.
    Float ``[filters]`` by the name of the channels.
    """
    named = flatten_named(params)
    scores = {}
    for channels in layers.channels:
        made_by = [m for m in channels.members if m.leaf in channels.kernels]
        filters = jnp.concatenate(
            [_by_channel(jnp.asarray(named[m.leaf]), m, channels.size) for m in made_by], 1
        )

        def from_one(one: Array, filters: Array = filters) -> Array:
            return jnp.mean(jnp.sqrt(jnp.mean((filters - one) ** 2, -1)))

        scores[channels.name] = jax.lax.map(from_one, filters)
    return scores


def _by_channel(leaf: Array, member: Slice, size: int) -> Float[Array, "channels entries"]:
    """What each channel holds of a leaf."""
    front = jnp.moveaxis(leaf, member.axis, 0)
    front = front.reshape(member.outer, size, member.inner, -1)
    return jnp.moveaxis(front, 1, 0).reshape(size, -1)


def magnitude_scale(magnitudes: Masks) -> Float[Array, ""]:
    """Mean magnitude over all layers (1 where all are zero): the unit of scaled magnitudes.

    One scale for all layers keeps the order of global magnitude pruning while the scores' size no
    longer depends on how the network was initialized (HYDRA, Sehwag et al. 2020, scales likewise).
    """
    total = sum(jnp.sum(s) for s in magnitudes.values())
    mean = total / sum(s.size for s in magnitudes.values())
    return jnp.where(mean > 0, mean, 1)


def magnitude_scales(kind: str, magnitudes: Masks) -> dict[str, Float[Array, ""]]:
    """The unit of each layer's magnitudes as scores: one for all (``"magnitude"``), or the layer's
    own mean (``"layer-magnitude"``)."""
    if kind == "magnitude":
        return dict.fromkeys(magnitudes, magnitude_scale(magnitudes))
    return {name: magnitude_scale({name: m}) for name, m in magnitudes.items()}


def start_scores(kind: str, params: Any, layers: Layers, granularity: str, key: Array) -> Masks:
    """Scores to begin with.

    Args:
        kind: ``"magnitude"`` (scaled to mean one over all layers), ``"layer-magnitude"`` (scaled to
            mean one in every layer), ``"random"`` (uniform in [0, 2]) or ``"constant"`` (one
            everywhere: the first masks are decided by index alone).
        params: dense parameters.
        layers: prunable layers.
        granularity: ``"weight"`` or ``"filter"``.
        key: random key, for ``"random"``.

    Raises:
        ValueError: unknown kind.
    """
    _options.one_of("score start", kind, STARTS)
    if kind in MAGNITUDES:
        scores = magnitude(params, layers, granularity)
        scales = magnitude_scales(kind, scores)
        return {name: s / scales[name] for name, s in scores.items()}
    shapes = {unit.name: unit.shape for unit in layers.units(granularity)}
    if kind == "constant":
        return {name: jnp.ones(shape) for name, shape in shapes.items()}
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.uniform(k, shape, maxval=2.0)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
