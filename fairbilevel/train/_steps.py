"""The steps everything is made of: weights on one batch, multipliers on another, statistics.

All are pure functions of states that ``train`` and ``solver`` put inside one compiled loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from fairbilevel import fairness
from fairbilevel.fairness import (
    Buffers,
    Constraint,
    Custom,
    GroupStatistics,
    Outcomes,
    RowWeights,
)
from fairbilevel.problem import FairPruningProblem
from fairbilevel.train._accumulate import accumulated, swept
from fairbilevel.train._batches import Batch


class DualState(NamedTuple):
    """Multipliers, and what moves them.

    Attributes:
        multipliers: one array a constraint.
        rule: state of their update rule.
        buffers: rows their violations are measured on.
        slack: one number a constraint, allowed beyond its tolerance: one compiled program then
            serves many tolerances.
    """

    multipliers: fairness.Multipliers
    rule: optax.OptState
    buffers: Buffers
    slack: tuple[Float[Array, ""], ...]


class WeightState(NamedTuple):
    """Everything a weight step reads and writes.

    Attributes:
        params: dense weights ``theta``; the network computes with ``m * theta``.
        model_state: normalization statistics.
        optimizer: state of the inner optimizer.
        duals: multipliers and buffers.
        key: random key (dropout).
    """

    params: Any
    model_state: Any
    optimizer: optax.OptState
    duals: DualState
    key: Array


class StepLog(NamedTuple):
    """What one step reports.

    Attributes:
        loss: cross-entropy on the fit batch, in nats.
        accuracy: accuracy on the fit batch.
        guard: whether the guard against negative weights changed one.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    guard: Bool[Array, ""]


class Aux(NamedTuple):
    """What the objective says beside its value.

    Attributes:
        model_state: normalization statistics after the pass.
        loss: cross-entropy, in nats.
        accuracy: share of rows that are right.
    """

    model_state: Any
    loss: Float[Array, ""]
    accuracy: Float[Array, ""]


def frozen(rule: optax.GradientTransformation, factors: Any) -> optax.GradientTransformation:
    """``rule`` on the weights whose factor is not zero; the others stay, decay and momentum too."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = rule.update(updates, state, params)
        kept = jax.tree.map(lambda m, u: jnp.where(m != 0, u, 0).astype(u.dtype), factors, updates)
        return kept, state

    return optax.GradientTransformation(rule.init, update)


@dataclass(frozen=True, eq=False)
class Steps:
    """The pure steps of one problem under a choice of constraints and update rules.

    Attributes:
        problem: the problem.
        optimizer: moves the weights.
        dual_rule: moves the multipliers; sees minus the violations.
        constraints: bounds felt by weights and masks; may be empty.
        buffer_size: rows a group in the replay buffers; 0 for none: the multipliers then see the
            groups that the last batch held, and nothing else.
        share: shares of the groups in the rows the weights are fitted to.
    """

    problem: FairPruningProblem
    optimizer: optax.GradientTransformation
    dual_rule: optax.GradientTransformation
    constraints: Sequence[Constraint]
    buffer_size: int
    share: Float[Array, " groups"]

    def init(self, params: Any, model_state: Any, key: Array) -> WeightState:
        """A state at ``params``, multipliers at zero, buffers empty."""
        multipliers = fairness.initial_multipliers(self.constraints, len(self.problem.groups))
        none = tuple(jnp.zeros(()) for _ in self.constraints)
        rule = self.dual_rule.init(multipliers)
        duals = DualState(multipliers, rule, self._empty_buffers(), none)
        return WeightState(params, model_state, self.optimizer.init(params), duals, key)

    @property
    def _of_cells(self) -> bool:
        return any(c.of_cells for c in self.constraints)

    @property
    def _own(self) -> list[Custom]:
        return [c for c in self.constraints if isinstance(c, Custom)]

    def _empty_buffers(self) -> Buffers:
        problem = self.problem
        classes = len(problem.data.classes) if self._of_cells else None
        own = [c.name for c in self._own]
        return fairness.empty_buffers(
            len(problem.groups), max(self.buffer_size, 1), classes=classes, own=own
        )

    def _cell_share(self, role: str) -> Float[Array, "groups classes"] | None:
        return jnp.asarray(self.problem.cell_share(role)) if self._of_cells else None

    def statistics(self, duals: DualState) -> GroupStatistics:
        """What the multipliers last saw: full buffers, weighed by the shares in select."""
        return fairness.buffer_statistics(
            duals.buffers,
            jnp.asarray(self.problem.share["select"]),
            jnp.asarray(self.problem.counted),
            self._cell_share("select"),
        )

    def weigh(
        self, duals: DualState, share: Float[Array, " groups"], role: str = "fit"
    ) -> RowWeights:
        """Guarded factors of the rows' harms in a role with these shares of the groups."""
        stats, cells = self.statistics(duals), self._cell_share(role)
        return fairness.row_weights(self.constraints, duals.multipliers, share, stats, cells)

    def objective(
        self, z: Any, model_state: Any, batch: Batch, weights: RowWeights, key: Array
    ) -> tuple[Float[Array, ""], Aux]:
        """``mean_i w_i (loss_i + sum_c term_c,i)`` in train mode.

        Differentiable with respect to ``z``, which is all that any method asks for. Where the
        problem accumulates, the rows are taken in micro-batches one after the other
        (``fb.train.accumulated``): the same mean, each micro-batch normalized by itself where the
        model has batch normalization.
        """

        def part(z: Any, rows: Batch, key: Array) -> tuple[Float[Array, ""], Aux]:
            logits, moved = self._forward(z, model_state, rows, key)
            return self._lagrangian(logits, moved, rows, weights)

        if self.problem.accumulate == 1:
            return part(z, batch, key)
        value, aux = accumulated(part, z, batch, key, self.problem.accumulate)
        moved = jax.tree.map(
            lambda new, old: new.astype(jnp.result_type(old)), aux.model_state, model_state
        )
        return value, aux._replace(model_state=moved)

    def _forward(
        self, z: Any, model_state: Any, batch: Batch, key: Array, train: bool = True
    ) -> tuple[Float[Array, "rows classes"], Any]:
        x = self.problem.normalize(batch.x)
        logits, model_state = self.problem.training_model.apply(z, model_state, x, train, key)
        # At least: a model in float64 keeps its loss in float64.
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), model_state

    def _logits(
        self, z: Any, model_state: Any, batch: Batch, key: Array, train: bool
    ) -> Float[Array, "rows classes"]:
        """Logits of a batch, its micro-batches one after the other."""

        def part(rows: Batch, key: Array) -> Float[Array, "rows classes"]:
            return self._forward(z, model_state, rows, key, train)[0]

        if self.problem.accumulate == 1:
            return part(batch, key)
        return swept(part, batch, key, self.problem.accumulate)

    def _lagrangian(
        self,
        logits: Float[Array, "rows classes"],
        model_state: Any,
        batch: Batch,
        weights: RowWeights,
    ) -> tuple[Float[Array, ""], Aux]:
        v = fairness.margin(logits, batch.y)
        loss = total = fairness.cross_entropy(v)
        for constraint, weight in zip(self.constraints, weights.harm, strict=True):
            total = total + constraint.term(weight, logits, v, batch.y, batch.group)
        aux = Aux(
            model_state,
            jnp.mean(batch.weight * loss),
            jnp.mean(logits.argmax(-1) == batch.y),
        )
        return jnp.mean(batch.weight * total), aux

    def weight_step(
        self, state: WeightState, factors: Any, batch: Batch
    ) -> tuple[WeightState, StepLog]:
        """One step of the inner problem on a fit batch.

        Only weights whose factor is not zero move (and decay): removed ones are frozen where they
        were and can come back.
        """
        key, dropout = jax.random.split(state.key)
        weights = self.weigh(state.duals, self.share)
        z = jax.tree.map(lambda m, p: m * p, factors, state.params)
        gradient, aux = jax.grad(self.objective, has_aux=True)(
            z, state.model_state, batch, weights, dropout
        )
        moved = self._moved(state._replace(key=key), factors, gradient, aux)
        return moved, StepLog(aux.loss, aux.accuracy, weights.bound)

    def joint_step(
        self, state: WeightState, factors: Any, batch: Batch
    ) -> tuple[WeightState, StepLog]:
        """A dual step on the batch, then a weight step on it, in one pass.

        The order of CEAG (Hashemizadeh et al. 2024): the violations are measured on the logits that
        the loss is made of, in train mode, so that multipliers moved by training rows cost nothing.
        Micro-batches take a forward pass more: no row's weight is known before all logits are.
        """
        key, dropout = jax.random.split(state.key)
        z = jax.tree.map(lambda m, p: m * p, factors, state.params)
        if self.problem.accumulate > 1:
            logits = self._logits(z, state.model_state, batch, dropout, True)
            duals = self._ascended(state.duals, self._outcomes(logits, batch), batch.group)
            weights = self.weigh(duals, self.share)
            gradient, aux = jax.grad(self.objective, has_aux=True)(
                z, state.model_state, batch, weights, dropout
            )
            moved = self._moved(state._replace(key=key, duals=duals), factors, gradient, aux)
            return moved, StepLog(aux.loss, aux.accuracy, weights.bound)

        def objective(z: Any) -> tuple[Float[Array, ""], tuple[Aux, DualState, Array]]:
            logits, model_state = self._forward(z, state.model_state, batch, dropout)
            seen = self._outcomes(jax.lax.stop_gradient(logits), batch)
            duals = self._ascended(state.duals, seen, batch.group)
            weights = self.weigh(duals, self.share)
            value, aux = self._lagrangian(logits, model_state, batch, weights)
            return value, (aux, duals, weights.bound)

        gradient, (aux, duals, bound) = jax.grad(objective, has_aux=True)(z)
        moved = self._moved(state._replace(key=key, duals=duals), factors, gradient, aux)
        return moved, StepLog(aux.loss, aux.accuracy, bound)

    def _moved(self, state: WeightState, factors: Any, gradient: Any, aux: Aux) -> WeightState:
        """The state after an update along the gradient with respect to ``z``."""
        inner = jax.tree.map(lambda m, q: m * q, factors, gradient)
        rule = frozen(self.optimizer, factors)
        updates, optimizer = rule.update(inner, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return WeightState(params, aux.model_state, optimizer, state.duals, state.key)

    def outcomes(self, z: Any, model_state: Any, batch: Batch) -> Outcomes:
        """Paired outcomes of a batch in evaluation mode: one forward pass."""
        logits = self._logits(z, model_state, batch, jax.random.key(0), False)
        return self._outcomes(logits, batch)

    def _outcomes(self, logits: Float[Array, "rows classes"], batch: Batch) -> Outcomes:
        loss = fairness.cross_entropy(fairness.margin(logits, batch.y))
        answer = logits.argmax(-1)
        correct = (answer == batch.y).astype(loss.dtype)
        return Outcomes(
            correct,
            batch.dense_correct,
            loss,
            batch.dense_loss,
            label=batch.y if self._of_cells else None,
            answer=answer.astype(jnp.int32) if self._of_cells else None,
            own={c.name: c.quantity(c.true, logits, batch.y) for c in self._own},
        )

    def dual_step(self, duals: DualState, z: Any, model_state: Any, batch: Batch) -> DualState:
        """Measure the true violations on rows no gradient uses and move the multipliers."""
        return self._ascended(duals, self.outcomes(z, model_state, batch), batch.group)

    def _ascended(
        self, duals: DualState, outcomes: Outcomes, group: Int[Array, " rows"]
    ) -> DualState:
        # The batch's outcomes are all that buffers, violations and multipliers need of its rows.
        outcomes, group = self.problem.placement.whole((outcomes, group))
        if self.buffer_size:
            buffers = fairness.write(duals.buffers, outcomes, group)
        else:
            buffers = fairness.only(duals.buffers, outcomes, group)
        stats = self.statistics(duals._replace(buffers=buffers))
        measured = tuple(jnp.isfinite(c.distances(stats)) for c in self.constraints)
        violations = tuple(
            c.violations(stats, slack)
            for c, slack in zip(self.constraints, duals.slack, strict=True)
        )
        multipliers, rule = fairness.ascend(
            self.constraints, duals.multipliers, violations, self.dual_rule, duals.rule, measured
        )
        return DualState(multipliers, rule, buffers, duals.slack)

    def emptied(self, duals: DualState) -> DualState:
        """The same multipliers with empty buffers: the network just changed."""
        return duals._replace(buffers=self._empty_buffers())
