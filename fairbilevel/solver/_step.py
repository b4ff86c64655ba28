"""The outer step of the bilevel solver, and the compiled loop of many of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fairbilevel import _xla, masks
from fairbilevel.masks import Budget, Masks, Relaxation
from fairbilevel.train import Batch, StepLog, Steps, WeightState, masked, maybe_dual_step

Hypergradient = Callable[[Any, Any, Any, Any, Callable[[Any], Any]], Any]


class BilevelState(NamedTuple):
    """The whole state of the bilevel phase: one pytree, donated to each compiled call.

    Attributes:
        weights: weights, statistics, inner optimizer, duals, key.
        scores: differentiable mask scores by layer.
        outer: state of the outer optimizer.
    """

    weights: WeightState
    scores: Masks
    outer: optax.OptState


@dataclass(frozen=True, eq=False)
class OuterStep:
    """One outer step: weights on fit, scores on select, multipliers on rows no gradient uses.

    Attributes:
        steps: the weight and dual steps.
        hypergradient: from gradients with respect to ``z`` to the gradient of the scores.
        outer: moves the scores.
        relaxation: between scores and masks.
        budget: what may be kept.
        granularity: ``"weight"`` or ``"filter"``.
        violation_every: outer steps between dual steps.
        magnitude_scale: unit of scaled magnitudes where scores follow their weights (a weight that
            the inner problem grows gains as much score); ``None`` where they do not.
    """

    steps: Steps
    hypergradient: Hypergradient
    outer: optax.GradientTransformation
    relaxation: Relaxation
    budget: Budget
    granularity: str
    violation_every: int
    magnitude_scale: float | None

    def network(
        self, scores: Masks, params: Any, keep: dict[str, Array], progress: Float[Array, ""]
    ) -> Any:
        """``z = m * theta`` under the current relaxation."""
        relaxed = self.relaxation.mask(scores, self.budget, keep, progress)
        return masks.apply(relaxed, params, self.steps.problem.layers, self.granularity)

    def __call__(
        self,
        state: BilevelState,
        fit: Batch,
        select: Batch,
        keep: dict[str, Array],
        progress: Float[Array, ""],
    ) -> tuple[BilevelState, Any, StepLog]:
        """Weights, then scores: two gradient evaluations.

        Returns:
            The state, the network ``z`` after the weight step, the log.
        """
        steps, layers = self.steps, self.steps.problem.layers
        relaxed = self.relaxation.mask(state.scores, self.budget, keep, progress)
        factors = masks.expand(relaxed, state.weights.params, layers, self.granularity)
        weights, inner_gradient, log = steps.weight_step(state.weights, factors, fit)
        key, dropout = jax.random.split(weights.key)
        z = masked(factors, weights.params)
        row_weights = steps.weigh(weights.duals, jnp.asarray(steps.problem.share["select"]))
        # Train mode on select, its statistics dropped: only fit moves the running ones.
        outer_gradient, _ = jax.grad(steps.objective, has_aux=True)(
            z, weights.model_state, select, row_weights, dropout
        )

        def pullback(entries: Any) -> Masks:
            of_masks = masks.collect(entries, layers, self.granularity)
            return self.relaxation.vjp(state.scores, relaxed, of_masks, progress)

        gradient = self.hypergradient(
            weights.params, factors, outer_gradient, inner_gradient, pullback
        )
        updates, outer_state = self.outer.update(gradient, state.outer, state.scores)
        moved = optax.apply_updates(state.scores, updates)
        if self.magnitude_scale is not None:
            moved = self._follow(moved, state.weights.params, weights.params, self.magnitude_scale)
        scores = self.relaxation.project(moved, self.budget, keep)
        return BilevelState(weights._replace(key=key), scores, outer_state), z, log

    def _follow(self, scores: Masks, before: Any, after: Any, scale: float) -> Masks:
        layers = self.steps.problem.layers
        old = masks.magnitude(before, layers, self.granularity)
        new = masks.magnitude(after, layers, self.granularity)
        return {n: s + (new[n] - old[n]) / scale for n, s in scores.items()}

    def many(
        self,
        state: BilevelState,
        fit: Batch,
        select: Batch,
        dual_batch: Batch | None,
        keep: dict[str, Array],
        progress: Float[Array, " steps"],
    ) -> tuple[BilevelState, StepLog]:
        """An outer step for each leading entry of the batches, in one loop.

        Args:
            state: start.
            fit: stacked batches of fit.
            select: stacked batches of select's half for the hypergradient.
            dual_batch: stacked batches of the half for the multipliers, one every
                ``violation_every`` steps; ``None`` leaves the multipliers as they are.
            keep: the budget's counts.
            progress: of each step, from 0 to 1 over the bilevel phase.
        """

        def body(carry: BilevelState, xs: Any) -> tuple[BilevelState, StepLog]:
            index, fit_batch, select_batch, now = xs
            carry, z, log = self(carry, fit_batch, select_batch, keep, now)
            if dual_batch is not None:
                weights = carry.weights
                duals = maybe_dual_step(
                    self.steps,
                    self.violation_every,
                    index,
                    weights.duals,
                    z,
                    weights.model_state,
                    dual_batch,
                )
                carry = carry._replace(weights=weights._replace(duals=duals))
            return carry, log

        index = jnp.arange(progress.shape[0])
        return _xla.scan(body, state, (index, fit, select, progress))
