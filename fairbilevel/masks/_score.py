"""Scores: where they start, how they become a mask (relaxations), and how its gradient comes
back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fairbilevel import _options
from fairbilevel._trees import flatten_named
from fairbilevel.masks._apply import channel_sums
from fairbilevel.masks._budget import Budget
from fairbilevel.masks._layers import Layer, Layers, Slice
from fairbilevel.masks._threshold import Masks, Scores

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


def usual_start(granularity: str) -> str:
    """Which magnitudes compare units of several layers: of filters those in units of their layer's
    mean, as they say more of how wide a layer's input is than of what filters are worth; of single
    weights those of all layers alike."""
    return "layer-magnitude" if granularity == "filter" else "magnitude"


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


@runtime_checkable
class Relaxation(Protocol):
    """A way from scores to masks in [0, 1] and back.

    ``keep`` holds the budget's counts (``Budget.keep``), ``progress`` runs from 0 to 1 over the
    bilevel phase. All methods are pure and work under ``jit``.
    """

    def start(self, scores: Scores, budget: Budget, keep: Mapping[str, Any]) -> Masks:
        """The scores to begin with."""

    def mask(self, scores: Scores, budget: Budget, keep: Mapping[str, Any], progress: Any) -> Masks:
        """Masks in [0, 1]."""

    def vjp(self, scores: Scores, masks: Masks, gradient: Masks, progress: Any) -> Masks:
        """Gradient of the scores from the gradient of the masks."""

    def project(self, scores: Scores, budget: Budget, keep: Mapping[str, Any]) -> Masks:
        """Scores brought back to where they must lie after a step."""


@dataclass(frozen=True)
class _Anywhere:
    """Scores may lie anywhere."""

    def start(self, scores: Scores, budget: Budget, keep: Mapping[str, Any]) -> Masks:
        """Unchanged."""
        return dict(scores)

    project = start


@dataclass(frozen=True)
class TopK(_Anywhere):
    """Exact top-k forward, identity backward: the straight-through estimator (BiP, HYDRA)."""

    def mask(self, scores: Scores, budget: Budget, keep: Mapping[str, Any], progress: Any) -> Masks:
        """Hard 0/1 masks of exactly the budget."""
        return budget.top_k(scores, keep)

    def vjp(self, scores: Scores, masks: Masks, gradient: Masks, progress: Any) -> Masks:
        """The gradient itself: removed units feel what returning would do."""
        return gradient


@dataclass(frozen=True)
class Sigmoid(_Anywhere):
    """``sigmoid((score - threshold) / temperature)``, the threshold at the budget's last score.

    The temperature falls geometrically from ``start_temperature`` to ``end_temperature`` (in
    units of the scores) so that the mask hardens; the threshold counts as a constant in the
    gradient.
    """

    start_temperature: float = 0.3
    end_temperature: float = 0.01

    def _temperature(self, progress: Any) -> Any:
        ratio = self.end_temperature / self.start_temperature
        return self.start_temperature * jnp.power(ratio, progress)

    def mask(self, scores: Scores, budget: Budget, keep: Mapping[str, Any], progress: Any) -> Masks:
        """Soft masks, one half at the threshold."""
        threshold = budget.thresholds(scores, keep)
        temperature = self._temperature(progress)
        return {
            name: jax.nn.sigmoid((score - threshold[name]) / temperature)
            for name, score in scores.items()
        }

    def vjp(self, scores: Scores, masks: Masks, gradient: Masks, progress: Any) -> Masks:
        """The sigmoid's own derivative."""
        temperature = self._temperature(progress)
        return {
            name: masks[name] * (1 - masks[name]) / temperature * g for name, g in gradient.items()
        }


@dataclass(frozen=True)
class CappedSimplex:
    """Scores are the mask: projected onto ``{0 <= m <= 1, sum m = kept}`` after each step.

    The derivative is the identity: differentiating through the projection would give clipped
    entries no gradient, and they would never return (PAPERS: the relaxed masks of BiFP).
    """

    def mask(self, scores: Scores, budget: Budget, keep: Mapping[str, Any], progress: Any) -> Masks:
        """The projection again: the budget may have moved since the last step."""
        return budget.project(scores, keep)

    def vjp(self, scores: Scores, masks: Masks, gradient: Masks, progress: Any) -> Masks:
        """The gradient itself."""
        return gradient

    def project(self, scores: Scores, budget: Budget, keep: Mapping[str, Any]) -> Masks:
        """Euclidean projection onto the capped simplex."""
        return budget.project(scores, keep)

    start = project


RELAXATIONS: dict[str, Relaxation] = {
    "top-k": TopK(),
    "sigmoid": Sigmoid(),
    "capped-simplex": CappedSimplex(),
}


def spread(scores: Scores) -> Float[Array, ""]:
    """Standard deviation over all scores: the natural unit of a score step."""
    count = sum(score.size for score in scores.values())
    mean = sum(jnp.sum(score) for score in scores.values()) / count
    return jnp.sqrt(sum(jnp.sum((score - mean) ** 2) for score in scores.values()) / count)
