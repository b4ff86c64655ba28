"""The steps everything is made of: weights on one batch, multipliers on another.

All are pure functions of states and numbers that ``train`` and ``solver`` put inside one compiled
loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from fairbilevel import fairness, masks
from fairbilevel.fairness import Constraint, Custom, GroupStatistics, Outcomes, RowWeights
from fairbilevel.problem import Numbers, Structure
from fairbilevel.train._accumulate import accumulated, swept
from fairbilevel.train._batches import Batch
from fairbilevel.train._state import Aux, DualState, StepLog, WeightState

Logits = Float[Array, "rows classes"]
Scalar = Float[Array, ""] | float
Flag = Bool[Array, ""] | bool


def masked(factors: Any, params: Any) -> Any:
    """``z = m * theta``, leaf by leaf."""
    return jax.tree.map(lambda m, p: m * p, factors, params)


@dataclass(frozen=True)
class Steps:
    """The pure steps of problems of one structure under a choice of constraints and update rules.

    Hashable, and without a number: learning rates, tolerances, shares and the like are arguments.

    Attributes:
        structure: of the problem.
        constraints: felt by weights and masks where their multipliers are not zero; may be empty.
        optimizer: moves the weights: its updates times a rate.
        dual_rule: moves the multipliers; sees minus the violations.
        buffered: whether the multipliers see replay buffers, or what the last batch held alone.
        joint: whether they move on each training batch's own forward pass, before the weights.
    """

    structure: Structure
    constraints: tuple[Constraint, ...]
    optimizer: optax.GradientTransformation
    dual_rule: Callable[..., Any]
    buffered: bool = True
    joint: bool = False

    @property
    def _of_cells(self) -> bool:
        return any(c.of_cells for c in self.constraints)

    @property
    def _own(self) -> list[Custom]:
        return [c for c in self.constraints if isinstance(c, Custom)]

    def duals(
        self,
        rule: optax.GradientTransformation,
        buffer_size: int,
        rows: Int[np.ndarray, "groups classes"] | None = None,
    ) -> DualState:
        """Multipliers at zero, buffers empty.

        Args:
            rule: whose update is ``dual_rule``.
            buffer_size: rows a group in the buffers at most; 0 for none.
            rows: how many there are to move multipliers, by group and label.
        """
        groups = self.structure.groups
        multipliers = fairness.initial_multipliers(self.constraints, groups)
        buffers = fairness.empty_buffers(
            groups,
            max(buffer_size, 1),
            classes=self.structure.classes if self._of_cells else None,
            own=[c.name for c in self._own],
            rows=rows,
        )
        return DualState(multipliers, rule.init(multipliers), buffers)

    def statistics(self, duals: DualState, numbers: Numbers) -> GroupStatistics:
        """What the multipliers last saw: full buffers, weighed by the shares in select, shrunken
        where that is asked for."""
        cells = numbers.cells["select"] if self._of_cells else None
        return fairness.buffer_statistics(
            duals.buffers, numbers.share["select"], numbers.counted, cells
        ).shrunken(numbers.shrink)

    def violations(self, duals: DualState, numbers: Numbers) -> fairness.Multipliers:
        """Of what the multipliers last saw, one array a constraint."""
        stats = self.statistics(duals, numbers)
        return tuple(
            c.violations(stats, limit, now)
            for c, limit, now in zip(
                self.constraints, numbers.limits, duals.multipliers, strict=True
            )
        )

    def weigh(
        self, duals: DualState, numbers: Numbers, batch: Batch, role: str = "fit"
    ) -> RowWeights:
        """Guarded factors of the harms of a batch's rows, which are of a role."""
        stats = self.statistics(duals, numbers)
        cells = numbers.cells[role] if self._of_cells else None
        return fairness.row_weights(
            self.constraints,
            duals.multipliers,
            numbers.share[role],
            stats,
            cells,
            1 - jnp.max(batch.distill),
        )

    def objective(
        self,
        z: Any,
        model_state: Any,
        batch: Batch,
        weights: RowWeights,
        numbers: Numbers,
        key: Array,
    ) -> tuple[Array, Aux]:
        """``mean_i w_i ((1 - a_i) loss_i + a_i T^2 KL_i + sum_c term_c,i)`` in train mode.

        ``KL_i`` is the divergence of the row's classes from the dense model's, both at temperature
        ``T``, and ``a_i`` its share (Hinton et al. 2015); 0 is the plain loss.

        Differentiable with respect to ``z``, which is all that any method asks for. Where the
        problem accumulates, the rows are taken in micro-batches one after the other
        (``accumulated``): the same mean, each micro-batch normalized by itself where the
        model has batch normalization.
        """
        parts = self.structure.accumulate

        def part(z: Any, rows: Batch, key: Array) -> tuple[Array, Aux]:
            logits, moved = self.structure.forward(
                z, model_state, rows.x, numbers.moments, True, key
            )
            return self._lagrangian(logits, moved, rows, weights, numbers)

        if parts == 1:
            return part(z, batch, key)
        value, aux = accumulated(part, z, batch, key, parts)
        moved = jax.tree.map(
            lambda new, old: new.astype(jnp.result_type(old)), aux.model_state, model_state
        )
        return value, aux._replace(model_state=moved)

    def _logits(
        self, z: Any, model_state: Any, batch: Batch, numbers: Numbers, key: Array, train: bool
    ) -> Logits:
        """Logits of a batch, its micro-batches one after the other."""

        def part(rows: Batch, key: Array) -> Logits:
            forward = self.structure.forward
            return forward(z, model_state, rows.x, numbers.moments, train, key)[0]

        if self.structure.accumulate == 1:
            return part(batch, key)
        return swept(part, batch, key, self.structure.accumulate)

    def _lagrangian(
        self, logits: Logits, model_state: Any, batch: Batch, weights: RowWeights, numbers: Numbers
    ) -> tuple[Array, Aux]:
        v = fairness.margin(logits, batch.y)
        loss = fairness.cross_entropy(v)
        soft = distillation(batch.dense_logits, logits, numbers.temperature)
        total = loss + batch.distill * (soft - loss)
        for constraint, weight in zip(self.constraints, weights.harm, strict=True):
            total = total + constraint.term(weight, logits, v, batch.y, batch.group)
        aux = Aux(
            model_state, jnp.mean(batch.weight * loss), jnp.mean(logits.argmax(-1) == batch.y)
        )
        return jnp.mean(batch.weight * total), aux

    def weight_step(
        self, state: WeightState, factors: Any, numbers: Numbers, batch: Batch, rate: Scalar
    ) -> tuple[WeightState, StepLog]:
        """One step of the inner problem on a fit batch.

        Only weights whose factor is not zero move (and decay): removed ones are frozen where they
        were and can come back.
        """
        weights = self.weigh(state.duals, numbers, batch)
        gradient, aux = jax.grad(self.objective, has_aux=True)(
            masked(factors, state.params), state.model_state, batch, weights, numbers, state.draw
        )
        moved = self._moved(state, factors, gradient, aux, rate)
        return moved, StepLog(aux.loss, aux.accuracy, weights.bound)

    def joint_step(
        self,
        state: WeightState,
        factors: Any,
        numbers: Numbers,
        batch: Batch,
        rate: Scalar,
        moves: Flag = True,
        dual_scale: Scalar = 1.0,
    ) -> tuple[WeightState, StepLog]:
        """A dual step on the batch, then a weight step on it, in one pass.

        The order of CEAG (Hashemizadeh et al. 2024): the violations are measured on the logits that
        the loss is made of, in train mode, so that multipliers moved by training rows cost nothing.
        Micro-batches take a forward pass more: no row's weight is known before all logits are.

        Args:
            state: start.
            factors: the multiplier of every parameter.
            numbers: of the problem.
            batch: rows.
            rate: of the weights' update.
            moves: whether the multipliers move at all.
            dual_scale: of the multipliers' update.
        """
        dropout, z = state.draw, masked(factors, state.params)

        def ascended(logits: Logits) -> DualState:
            seen = self._outcomes(jax.lax.stop_gradient(logits), batch)
            new = self._ascended(state.duals, seen, batch.group, numbers, dual_scale)
            return jax.tree.map(lambda n, old: jnp.where(moves, n, old), new, state.duals)

        if self.structure.accumulate > 1:

            def looked(duals: DualState) -> DualState:
                return ascended(self._logits(z, state.model_state, batch, numbers, dropout, True))

            duals = jax.lax.cond(moves, looked, lambda duals: duals, state.duals)
            return self.weight_step(state._replace(duals=duals), factors, numbers, batch, rate)

        def objective(z: Any) -> tuple[Array, tuple[Aux, DualState, Array]]:
            logits, model_state = self.structure.forward(
                z, state.model_state, batch.x, numbers.moments, True, dropout
            )
            duals = ascended(logits)
            weights = self.weigh(duals, numbers, batch)
            value, aux = self._lagrangian(logits, model_state, batch, weights, numbers)
            return value, (aux, duals, weights.bound)

        gradient, (aux, duals, bound) = jax.grad(objective, has_aux=True)(z)
        moved = self._moved(state._replace(duals=duals), factors, gradient, aux, rate)
        return moved, StepLog(aux.loss, aux.accuracy, bound)

    def _moved(
        self, state: WeightState, factors: Any, gradient: Any, aux: Aux, rate: Any
    ) -> WeightState:
        """The state after an update along the gradient with respect to ``z``."""
        params, optimizer = self.update(
            masked(factors, gradient), state.optimizer, state.params, factors, rate
        )
        return state._replace(
            params=params, optimizer=optimizer, model_state=aux.model_state, drawn=state.drawn + 1
        )

    def update(
        self, gradient: Any, optimizer: optax.OptState, params: Any, factors: Any, rate: Any
    ) -> tuple[Any, optax.OptState]:
        """Weights, and the rule's state, after an update along their gradient."""
        rule = masks.wrap(scaled(self.optimizer, rate), factors)
        updates, optimizer = rule.update(gradient, optimizer, params)
        return optax.apply_updates(params, updates), optimizer

    def outcomes(self, z: Any, model_state: Any, batch: Batch, numbers: Numbers) -> Outcomes:
        """Paired outcomes of a batch in evaluation mode: one forward pass."""
        logits = self._logits(z, model_state, batch, numbers, jax.random.key(0), False)
        return self._outcomes(logits, batch)

    def _outcomes(self, logits: Logits, batch: Batch) -> Outcomes:
        def judged(logits: Logits) -> tuple[Array, Array]:
            loss = fairness.cross_entropy(fairness.margin(logits, batch.y))
            return (logits.argmax(-1) == batch.y).astype(loss.dtype), loss

        (correct, loss), (dense_correct, dense_loss) = map(judged, (logits, batch.dense_logits))
        answer = logits.argmax(-1)
        return Outcomes(
            correct,
            dense_correct,
            loss,
            dense_loss,
            label=batch.y if self._of_cells else None,
            answer=answer.astype(jnp.int32) if self._of_cells else None,
            own={c.name: c.quantity(c.true, logits, batch.y) for c in self._own},
        )

    def dual_step(
        self,
        duals: DualState,
        z: Any,
        model_state: Any,
        batch: Batch,
        numbers: Numbers,
        scale: Scalar = 1.0,
    ) -> DualState:
        """Measure the true violations on rows no gradient uses and move the multipliers."""
        seen = self.outcomes(z, model_state, batch, numbers)
        return self._ascended(duals, seen, batch.group, numbers, scale)

    def _ascended(
        self,
        duals: DualState,
        outcomes: Outcomes,
        group: Int[Array, " rows"],
        numbers: Numbers,
        scale: Any,
    ) -> DualState:
        # The batch's outcomes are all that buffers, violations and multipliers need of its rows.
        outcomes, group = self.structure.placement.whole((outcomes, group))
        add = fairness.write if self.buffered else fairness.only
        seen = duals._replace(buffers=add(duals.buffers, outcomes, group))
        stats = self.statistics(seen, numbers)
        measured = tuple(jnp.isfinite(c.distances(stats)) for c in self.constraints)
        multipliers, rule = fairness.ascend(
            self.constraints,
            duals.multipliers,
            self.violations(seen, numbers),
            optax.GradientTransformationExtraArgs(lambda params: params, self.dual_rule),
            duals.rule,
            measured,
            scale,
            numbers.units,
        )
        return DualState(multipliers, rule, seen.buffers)


def distillation(dense: Logits, logits: Logits, temperature: Scalar) -> Float[Array, " rows"]:
    """``T^2 KL(dense || logits)`` of every row at a temperature ``T``, in nats: its gradient is of
    the size of the loss's at any temperature (Hinton, Vinyals and Dean 2015, section 2)."""
    of_dense = jax.nn.log_softmax(dense.astype(logits.dtype) / temperature)
    own = jax.nn.log_softmax(logits / temperature)
    return temperature**2 * jnp.sum(jnp.exp(of_dense) * (of_dense - own), -1)


def scaled(rule: optax.GradientTransformation, rate: Any) -> optax.GradientTransformation:
    """``rule`` with its updates times ``rate``, its state as it is."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = rule.update(updates, state, params)
        return jax.tree.map(lambda u: (u * rate).astype(u.dtype), updates), state

    return optax.GradientTransformation(rule.init, update)
