"""Budgets: how many units each layer, or all layers together, may keep; and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from fairbilevel import _options
from fairbilevel.masks._layers import Layers
from fairbilevel.masks._threshold import Masks, Scores, capped_simplex, kth_largest, top_k_masks

BUDGETS = ("global", "uniform")


class CutNetworkError(ValueError):
    """So much is removed that no input reaches the outputs."""


def removed(sparsity: float, units: int) -> int:
    """How many of ``units`` a sparsity removes: ``floor(sparsity * units + 1e-9)``."""
    return int(np.floor(sparsity * units + 1e-9))


def uniform_removed(sparsity: float, units: Mapping[str, int]) -> dict[str, int]:
    """Per-layer removals by largest remainder that add up to ``removed(sparsity, total)``.

    Ties go to the layer that comes first.
    """
    exact = {name: sparsity * n for name, n in units.items()}
    counts = {name: int(np.floor(value + 1e-9)) for name, value in exact.items()}
    missing = removed(sparsity, sum(units.values())) - sum(counts.values())
    # Rounded: remainders that are equal on paper must be equal here for the tie to go by order.
    order = sorted(units, key=lambda name: -round(exact[name] - counts[name], 9))
    for name in order[:missing]:
        counts[name] += 1
    return counts


@dataclass(frozen=True)
class Budget:
    """What may be kept, as counts. Both kinds offer the same operations on scores.

    Hashable and compared by value: programs are compiled for a budget.

    A unit is a weight, or at granularity ``filter`` a channel with everything coupled to it: the
    channels that all blocks of a residual stage add to are as many units as the stage is wide.

    Attributes:
        kind: ``"global"`` (the best of all layers together) or ``"uniform"`` (the same share of
            each layer).
        units: prunable units by layer, or by set of coupled channels.
        essential: layers (or sets) that always keep at least one unit.
        by_layer: counts are given layer by layer (``Allocation``), whatever the kind.
    """

    kind: str
    units: Mapping[str, int]
    essential: tuple[str, ...] = ()
    by_layer: bool = False

    def __hash__(self) -> int:
        """Of the values."""
        return hash((self.kind, tuple(self.units.items()), self.essential, self.by_layer))

    @staticmethod
    def of(layers: Layers, granularity: str, kind: str) -> Budget:
        """The budget over ``layers``.

        Raises:
            ValueError: unknown granularity or kind, or a model none of whose channels can go.
        """
        units = layers.units(granularity)
        _options.one_of("budget", kind, BUDGETS)
        if not units:
            what = (
                "the model has no residual block whose shortcut changes nothing"
                if granularity == "block"
                else "no channel of this model can go without changing others"
            )
            raise ValueError(
                f"nothing to prune at granularity {granularity!r}: {what}; use granularity 'weight'"
            )
        counts = {unit.name: int(np.prod(unit.shape)) for unit in units}
        return Budget(kind, counts, tuple(unit.name for unit in units if unit.essential))

    def by_layers(self) -> Budget:
        """The same, counts to be given by layer."""
        return replace(self, by_layer=True)

    @property
    def together(self) -> bool:
        """Whether one count speaks of all layers."""
        return self.kind == "global" and not self.by_layer

    @property
    def prunable(self) -> int:
        """Units that may be removed at all."""
        return sum(self.units.values())

    def keep(self, sparsity: float) -> dict[str, int]:
        """Units kept at ``sparsity``, by layer (``uniform``) or under ``"all"`` (``global``).

        Raises:
            ValueError: sparsity outside [0, 1).
            CutNetworkError: it is so high that an essential layer is left empty.
        """
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
        if self.kind == "global":
            kept = self.prunable - removed(sparsity, self.prunable)
            if kept < len(self.essential):
                raise CutNetworkError(
                    f"sparsity {sparsity} keeps {kept} of {self.prunable} units, fewer than the "
                    f"{len(self.essential)} layers that data cannot pass around: ask for less"
                )
            return {"all": kept}
        gone = uniform_removed(sparsity, self.units)
        keep = {name: n - gone[name] for name, n in self.units.items()}
        for name in self.essential:
            if keep[name] == 0:
                raise CutNetworkError(
                    f"sparsity {sparsity} leaves layer {name!r} ({self.units[name]} units) empty, "
                    "which cuts the network: ask for less, or for the global budget"
                )
        return keep

    def _parts(self, scores: Scores, keep: Mapping[str, Any]) -> list[tuple[dict[str, Array], Any]]:
        if self.together:
            return [(dict(scores), keep["all"])]
        return [({name: score}, keep[name]) for name, score in scores.items()]

    def top_k(self, scores: Scores, keep: Mapping[str, Int[Array, ""] | int]) -> Masks:
        """Exact hard masks of the best scores."""
        masks: Masks = {}
        for part, count in self._parts(scores, keep):
            reserved = self.essential if self.together else ()
            masks.update(top_k_masks(part, count, reserved))
        return masks

    def thresholds(self, scores: Scores, keep: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        """The last kept score, by layer."""
        found = {}
        for part, count in self._parts(scores, keep):
            value = kth_largest(part, count)
            found.update(dict.fromkeys(part, value))
        return found

    def project(self, scores: Scores, keep: Mapping[str, Any]) -> Masks:
        """Euclidean projection onto the capped simplex of each part of the budget."""
        masks: Masks = {}
        for part, count in self._parts(scores, keep):
            masks.update(capped_simplex(part, count))
        return masks


@dataclass(frozen=True)
class CubicSchedule:
    """Sparsity that rises quickly, then slowly (Zhu and Gupta 2018).

    ``sparsity(t) = final * (1 - (1 - t / share)^3)`` for progress ``t`` up to ``share``, ``final``
    after.

    Attributes:
        final: sparsity at the end, in [0, 1).
        share: part of the phase after which the final sparsity is reached, in (0, 1].
    """

    final: float
    share: float = 0.8

    def __call__(self, progress: float) -> float:
        """Sparsity at ``progress`` in [0, 1]."""
        left = max(0.0, 1 - progress / self.share)
        return self.final * (1 - left**3) if left > 0 else self.final


def as_counts(keep: Mapping[str, int]) -> dict[str, Int[Array, ""]]:
    """Counts as device scalars, so that a moving budget does not recompile."""
    return {name: jax.device_put(np.int32(count)) for name, count in keep.items()}
