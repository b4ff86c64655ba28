"""Relaxations: how differentiable scores become a mask, and how its gradient comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fairbilevel.masks._budget import Budget
from fairbilevel.masks._threshold import Masks, Scores


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
