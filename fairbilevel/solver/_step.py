"""The outer step of the bilevel solver, and the compiled loop of many of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from fairbilevel import masks
from fairbilevel.devices import Program
from fairbilevel.hypergrad import FirstOrder, Hypergradient, MaskedLoss, Unrolled, hypergradient
from fairbilevel.masks import Budget, Masks, Relaxation
from fairbilevel.problem import Numbers
from fairbilevel.train import (
    Batch,
    RunState,
    StepLog,
    Steps,
    Stretch,
    StretchLog,
    all_finite,
    at,
    masked,
    maybe_dual_step,
    repeated,
    scaled,
)


class OuterState(NamedTuple):
    """What the solver remembers beside weights and scores.

    Attributes:
        rule: state of the outer optimizer.
        method: state of the hypergradient method.
        spread: unit of the score step: the scores' standard deviation at their start.
        magnitude: units of scaled magnitudes by layer, where scores follow their weights.
    """

    rule: optax.OptState
    method: Any
    spread: Float[Array, ""]
    magnitude: dict[str, Float[Array, ""]]


class OuterStretch(NamedTuple):
    """What one compiled call does beside ``Stretch``, in numbers.

    Attributes:
        score_rates: of the scores' updates, one a step, in units of their spread.
        progress: of each step, from 0 to 1 over the phase.
        selects: which of the select batches each step takes; -1 for a plain weight step.
        keep: the budget's counts.
    """

    score_rates: Float[Any, " length"]
    progress: Float[Any, " length"]
    selects: Int[Any, " length"]
    keep: dict[str, Any]


class OuterLog(NamedTuple):
    """What an outer step says of its hypergradient: relative residual of the linear system, and a
    ``fb.hypergrad.Status``; -1 of a plain weight step."""

    residual: Float[Array, "..."]
    status: Int[Array, "..."]


def inner_steps(method: Hypergradient) -> int:
    """Batches of fit that one outer step takes."""
    return method.steps if isinstance(method, Unrolled) else 1


@dataclass(frozen=True)
class OuterStep:
    """One outer step: scores on select, weights on fit or both, multipliers on other rows.

    Hashable, and without a number that a run may change: rates, counts, shares and tolerances are
    arguments.

    Attributes:
        steps: the weight and dual steps.
        method: the hypergradient.
        outer: moves the scores: its updates times a rate.
        relaxation: between scores and masks.
        budget: what may be kept.
        granularity: ``"weight"`` or ``"filter"``.
        fit_rows: rows of a batch that an outer step takes of fit, the first of them.
        follows: which magnitudes (``fb.masks.MAGNITUDES``) scores follow: a weight that the inner
            problem grows gains as much score; or nothing.
        constrain_masks: whether constraints act on the scores.
        constrain_weights: whether they act on the weights.
        both: share of the weights' gradient that is the outer one's; 0 leaves it to fit.
        plain: whether there are weight steps between outer steps.
        relative: whether the scores' steps are in units of their spread.
    """

    steps: Steps
    method: Hypergradient
    outer: optax.GradientTransformation
    relaxation: Relaxation
    budget: Budget
    granularity: str
    fit_rows: int
    follows: str
    constrain_masks: bool = True
    constrain_weights: bool = True
    both: float = 0.0
    plain: bool = False
    relative: bool = True

    def init(self, scores: Masks, params: Any, keep: dict[str, Any]) -> tuple[Masks, OuterState]:
        """Scores where they may lie, and the state beside them."""
        magnitudes = masks.magnitude(params, self.steps.structure.layers, self.granularity)
        factors = jax.tree.map(jnp.ones_like, params)
        scores = self.relaxation.start(scores, self.budget, keep)
        # Of the scores that steps will move; constant starts have no spread of their own.
        spread = jnp.maximum(masks.spread(scores), 0.1) if self.relative else jnp.ones(())
        method = self._bound(factors, 1.0).init(scores, params)
        rule = self.outer.init(scores)
        units = masks.magnitude_scales(self.follows, magnitudes) if self.follows else {}
        return scores, OuterState(rule, method, spread, units)

    def _bound(self, factors: Any, rate: Any) -> Hypergradient:
        """The method, moving weights as the weight step does where it moves any itself."""
        if isinstance(self.method, (Unrolled, FirstOrder)):
            rule = masks.wrap(scaled(self.steps.optimizer, rate), factors)
            method = dataclasses.replace(self.method, optimizer=rule)
            if isinstance(method, Unrolled):  # each of its steps moves the statistics on
                return dataclasses.replace(method, threads=lambda aux: aux.model_state)
            return method
        return self.method

    def __call__(
        self,
        state: RunState,
        numbers: Numbers,
        fit: Batch,
        select: Batch,
        keep: dict[str, Any],
        progress: Float[Array, ""],
        rate: Float[Array, ""],
        score_rate: Float[Array, ""],
    ) -> tuple[RunState, Any, tuple[StepLog, OuterLog]]:
        """Hypergradient at the current weights and scores, then a step of both.

        Args:
            state: start.
            numbers: of the problem.
            fit: a batch, or one for each inner step of an unrolled method with a leading axis.
            select: a batch.
            keep: the budget's counts.
            progress: from 0 to 1 over the phase.
            rate: of the weights' update.
            score_rate: of the scores' update, in units of their spread.

        Returns:
            The state, the network ``z`` after the weight step, the logs.
        """
        steps, layers, weights = self.steps, self.steps.structure.layers, state.weights
        of_select, of_fit = (jax.random.fold_in(weights.draw, i) for i in range(2))
        fit_weights = steps.weigh(weights.duals, numbers, fit)
        select_weights = steps.weigh(weights.duals, numbers, select, "select")
        if not self.constrain_weights:
            fit_weights = jax.tree.map(jnp.zeros_like, fit_weights)
        if not self.constrain_masks:
            select_weights = jax.tree.map(jnp.zeros_like, select_weights)
        relaxed = self.relaxation.mask(state.scores, self.budget, keep, progress)
        factors = masks.expand(relaxed, weights.params, layers, self.granularity)

        # The mask of the current scores is taken once; the methods differentiate at these alone.
        def mask(scores: Masks) -> Any:
            return factors

        def mask_vjp(scores: Masks) -> Any:
            def pullback(entries: Any) -> Masks:
                of_masks = masks.collect(entries, layers, self.granularity)
                return self.relaxation.vjp(scores, relaxed, of_masks, progress)

            return factors, pullback

        def inner(z: Any, batch: Batch, key: Array, model_state: Any) -> Any:
            return steps.objective(z, model_state, batch, fit_weights, numbers, key)

        # Train mode on select, its statistics dropped: only fit moves the running ones.
        def outer(z: Any, batch: Batch, key: Array) -> Any:
            return steps.objective(z, weights.model_state, batch, select_weights, numbers, key)

        method = self._bound(factors, rate)
        if isinstance(method, Unrolled):
            of_fit = jax.random.split(of_fit, method.steps)
        gradient, info = hypergradient(
            MaskedLoss(outer, mask, mask_vjp),
            MaskedLoss(inner, mask, mask_vjp),
            state.scores,
            weights.params,
            method=method,
            outer_args=(select, of_select),
            inner_args=(fit, of_fit, weights.model_state),
            has_aux=True,
            state=state.outer.method,
        )
        if info.inner_var is None:
            step = info.inner_grad
            if self.both:
                step = optax.tree.add(
                    optax.tree.scale(1 - self.both, step),
                    optax.tree.scale(self.both, info.outer_grad),
                )
            params, optimizer = steps.update(step, weights.optimizer, weights.params, factors, rate)
        else:
            params, optimizer = info.inner_var, weights.optimizer
        aux = info.inner_aux
        moved = weights._replace(
            params=params, model_state=aux.model_state, optimizer=optimizer, drawn=weights.drawn + 1
        )
        updates, rule = self.outer.update(gradient, state.outer.rule, state.scores)
        size = score_rate * state.outer.spread
        scores = {n: s + (size * updates[n]).astype(s.dtype) for n, s in state.scores.items()}
        if self.follows:
            scores = self._follow(scores, weights.params, params, state.outer.magnitude)
        scores = self.relaxation.project(scores, self.budget, keep)
        beside = state.outer._replace(rule=rule, method=info.state)
        logs = (
            StepLog(aux.loss, aux.accuracy, fit_weights.bound),
            OuterLog(info.residual, info.status),
        )
        state = state._replace(weights=moved, kept=relaxed, scores=scores, outer=beside)
        return state, masked(factors, params), logs

    def _weights_alone(
        self, state: RunState, numbers: Numbers, batch: Batch, keep: Any, progress: Any, rate: Any
    ) -> tuple[RunState, Any, tuple[StepLog, OuterLog]]:
        """A weight step under the masks as they are."""
        layers, before = self.steps.structure.layers, state.weights
        relaxed = self.relaxation.mask(state.scores, self.budget, keep, progress)
        factors = masks.expand(relaxed, before.params, layers, self.granularity)
        weights, log = self.steps.weight_step(before, factors, numbers, batch, rate)
        scores = dict(state.scores)
        if self.follows:
            units = state.outer.magnitude
            scores = self._follow(scores, before.params, weights.params, units)
        state = state._replace(weights=weights, kept=relaxed, scores=scores)
        nothing = OuterLog(jnp.zeros(()), jnp.asarray(-1, jnp.int32))
        return state, masked(factors, weights.params), (log, nothing)

    def _follow(self, scores: Masks, before: Any, after: Any, units: Any) -> Masks:
        layers = self.steps.structure.layers
        old = masks.magnitude(before, layers, self.granularity)
        new = masks.magnitude(after, layers, self.granularity)
        return {n: s + (new[n] - old[n]) / units[n] for n, s in scores.items()}


def _outer_stretch(
    outer: OuterStep,
    state: RunState,
    numbers: Numbers,
    run: Stretch,
    own: OuterStretch,
    fit: Batch,
    select: Batch,
    dual_batches: Batch,
) -> tuple[RunState, Any, StretchLog]:
    """Outer steps, and plain weight steps between them: the state, the network ``z``, the log;
    batches of fit have an axis of inner steps behind the first where the method is unrolled."""
    axis = 1 if isinstance(outer.method, Unrolled) else 0

    def step(state: RunState, index: Array) -> tuple[RunState, tuple[StepLog, OuterLog]]:
        batch, progress = at(fit, index), own.progress[index]
        rate, which = run.rates[index], own.selects[index]

        def search(state: RunState) -> Any:
            rows = jax.tree.map(
                lambda leaf: jax.lax.slice_in_dim(leaf, 0, outer.fit_rows, axis=axis), batch
            )
            chosen, score_rate = at(select, which), own.score_rates[index]
            return outer(state, numbers, rows, chosen, own.keep, progress, rate, score_rate)

        if outer.plain:
            one = at(batch, 0) if axis else batch

            def plain(state: RunState) -> Any:
                return outer._weights_alone(state, numbers, one, own.keep, progress, rate)

            state, z, logs = jax.lax.cond(which >= 0, search, plain, state)
        else:
            state, z, logs = search(state)
        weights = state.weights
        duals = maybe_dual_step(
            outer.steps,
            run.measures[index],
            weights.duals,
            z,
            weights.model_state,
            dual_batches,
            numbers,
            run.dual_scale,
        )
        return state._replace(weights=weights._replace(duals=duals)), logs

    state, (log, more) = repeated(step, state, run.count, run.rates.shape[0])
    weights = state.weights
    z = masks.apply(state.kept, weights.params, outer.steps.structure.layers, outer.granularity)
    finite = all_finite((weights.params, weights.model_state, state.scores))
    violations = outer.steps.violations(weights.duals, numbers)
    return state, z, StretchLog(log, finite, violations, more)


outer_stretch = Program(
    _outer_stretch,
    donate=True,
    steers=lambda state, numbers, run, own, *batches: (run.count, run.measures, own.selects),
)
"""``(outer, state, numbers, stretch, outer_stretch, fit, select, dual_batches)``."""


def own_numbers(
    score_rates: Float[np.ndarray, " steps"],
    progress: Float[np.ndarray, " steps"],
    searches: Any,
    keep: dict[str, Any],
    length: int,
) -> OuterStretch:
    """The solver's numbers of a call, filled up to the program's length."""
    kind, count = jax.dtypes.canonicalize_dtype(float), len(progress)

    def filled(values: Any, kind: Any, rest: float) -> np.ndarray:
        whole = np.full(length, rest, kind)
        whole[:count] = values
        return whole

    which = np.where(searches, np.cumsum(searches) - 1, -1)
    return OuterStretch(
        filled(score_rates, kind, 0), filled(progress, kind, 0), filled(which, np.int32, -1), keep
    )
