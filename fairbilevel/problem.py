"""A fair pruning problem: a model, rows in five roles, groups, constraints, a dense reference."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from fairbilevel import _trees, fairness, masks, models
from fairbilevel import data as fb_data
from fairbilevel.devices import Placement
from fairbilevel.fairness import Constraint, Custom, Measurement, Outcomes

REPORTED_ROLES = ("fit", "select", "tune", "test")
_EVALUATION_ROWS = 512


@dataclass(frozen=True)
class Network:
    """Parameters and state of one network of a problem's model.

    Attributes:
        params: nested dictionary of arrays.
        state: normalization statistics and the like.
    """

    params: Any
    state: Any


def predictor(
    model: models.Model, encoder: fb_data.Encoder, placement: Placement | None = None
) -> Callable[[Network, np.ndarray], np.ndarray]:
    """A function from a network and encoded rows to logits, in evaluation mode on the host.

    It is compiled once, for a fixed number of rows at a time, which are split over the devices of a
    placement.
    """

    def forward(params: Any, state: Any, x: Array) -> Array:
        return model.apply(params, state, encoder.normalize(x), False, jax.random.key(0))[0]

    spread = None if placement is None or placement.alone else placement
    if spread is None:
        compiled, multiple = jax.jit(forward), 1
    else:
        compiled = jax.jit(forward, out_shardings=spread.everywhere)
        multiple = spread.count

    def predict(network: Network, inputs: np.ndarray) -> np.ndarray:
        size = min(_EVALUATION_ROWS, max(len(inputs), 1))
        size = -(-size // multiple) * multiple
        params, state = network.params, network.state
        if spread is not None:
            params, state = spread.place((params, state))
        chunks = []
        for start in range(0, max(len(inputs), 1), size):
            x = inputs[start : start + size]
            padded: Any = np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)])
            if spread is not None:
                padded = spread.rows(padded.__getitem__, np.arange(size))
            chunks.append(np.asarray(compiled(params, state, padded))[: len(x)])
        return np.concatenate(chunks)

    return predict


def _of_default_type(model: models.Model) -> models.Model:
    """The model with parameters of JAX's default float type: float64 where that is enabled."""

    def init(key: Array) -> tuple[Any, Any]:
        kind = jnp.zeros(()).dtype
        return jax.tree.map(
            lambda leaf: leaf.astype(kind) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            model.init(key),
        )

    return dataclasses.replace(model, init=init)


def _placed(model: models.Model, placement: Placement) -> models.Model:
    """The same model: its rows stay where their devices are, and split parameters are gathered
    where rows pass through them."""

    def apply(params: Any, state: Any, x: Array, train: bool, key: Array) -> tuple[Array, Any]:
        if placement.shard_params:
            params = placement.whole(params)
        logits, state = model.apply(params, state, placement.split(x), train, key)
        return logits, placement.whole(state)

    return dataclasses.replace(model, apply=apply)


@dataclass(frozen=True)
class Reference:
    """The dense network and what it says of every row that may be looked at.

    Attributes:
        network: the dense network.
        correct: bool ``[rows]``, where it is right (False on certify rows, never evaluated).
        loss: float32 ``[rows]``, its cross-entropy in nats (0 on certify rows).
        gradient_evaluations: what its training cost, 0 if it was given.
        seed: of its training, where it was trained here: its initial weights can be had again.
        rollbacks: each time its training diverged and went back (``fb.Solution.rollbacks``).
    """

    network: Network
    correct: Bool[np.ndarray, " rows"]
    loss: Float[np.ndarray, " rows"]
    gradient_evaluations: float = 0.0
    seed: int | None = None
    rollbacks: tuple[dict[str, Any], ...] = ()


class FairPruningProblem:
    """Given a model, data with groups and fairness tolerances, what there is to solve.

    Args:
        model: a ``fb.models.Model``, a ``flax.nnx.Module`` or the name of a built-in model.
        x: rows ``[rows, ...]``: uint8 images, float features, or a ``fb.data.Dataset`` that brings
            labels and groups with it.
        y: int ``[rows]``, class of each row.
        group: int or str ``[rows]``, group of each row.
        constraints: fairness constraints, each at most once; none means accuracy alone.
        roles: row indices by role (``fb.data.split_roles``); drawn from ``seed`` by default.
        counted: bool ``[groups]``, groups that claims speak of; all by default.
        role_fractions: shares of the five roles where ``roles`` is not given.
        width: of a built-in model.
        prune_classifier: prune the classifier's weights too; its outputs are never removed as
            filters.
        precision: ``"float32"``, or ``"bfloat16"`` for the passes of training: parameters,
            statistics and everything that is reported stay float32 (``fb.models.in_precision``).
        accumulate: micro-batches that each gradient is summed over, one after the other: a batch
            then takes the memory of one of them (``Steps.objective``).
        remat: a built-in model keeps one activation a block for the backward pass.
        seed: of the roles.
        placement: the devices that share the work; all of them by default.

    Attributes:
        inputs: encoded rows; images stay uint8 and are normalized on the device.
        layers: prunable layers of the model, and its coupled channels.
        placement: where rows, weights and scores lie.
        built_in: whether the model was given by name, and so can be rebuilt from a file.
        share: float32 ``[groups]`` by role: the groups' shares among that role's rows.

    Raises:
        ValueError: rows, labels and groups of different lengths, values that are not finite, a
            group or class without rows in a role, a model whose logits do not match the classes.
    """

    def __init__(
        self,
        model: models.Model | nnx.Module | str,
        x: Any,
        y: Any = None,
        group: Any = None,
        *,
        constraints: Sequence[Constraint] = (),
        roles: Mapping[str, Int[np.ndarray, " n"]] | None = None,
        counted: Bool[np.ndarray, " groups"] | None = None,
        role_fractions: Mapping[str, float] | None = None,
        width: int | None = None,
        prune_classifier: bool = False,
        precision: str = "float32",
        accumulate: int = 1,
        remat: bool = False,
        seed: int = 0,
        placement: Placement | None = None,
    ):
        if not isinstance(x, fb_data.Dataset):
            if y is None or group is None:
                raise ValueError("arrays need x, y and group; a fb.data.Dataset brings all three")
            x = fb_data.from_arrays(x, y, group)
        data: fb_data.Dataset = x
        self.data = data
        self.constraints = self.bound(constraints)
        names = [c.name for c in self.constraints]
        if len(set(names)) < len(names):
            raise ValueError(
                f"each constraint can be given once, got {', '.join(names)}: a tolerance may "
                "differ by group"
            )
        self.counted = (
            np.ones(len(data.groups), bool) if counted is None else np.asarray(counted, bool)
        )
        if roles is None:
            fractions = fb_data.FRACTIONS if role_fractions is None else role_fractions
            roles = fb_data.split_roles(data, fractions, seed, self.counted)
        self.roles = {name: np.asarray(roles[name]) for name in fb_data.ROLES}
        self.select_outer, self.select_duals = fb_data.role_halves(self.roles["select"], data, seed)
        self.encoder = fb_data.Encoder.fit(data, self.roles["fit"])
        self.inputs = self.encoder.transform(data.inputs)
        if self.inputs.dtype != np.uint8 and not np.isfinite(self.inputs).all():
            raise ValueError("the inputs hold values that are not finite (NaN or infinity)")
        self.y = np.asarray(data.y, np.int32)
        self.group = np.asarray(data.group, np.int32)
        self.weight = (
            np.ones(len(self.y), np.float32)
            if data.weight is None
            else np.asarray(data.weight, np.float32)
        )
        self.built_in, self.width = isinstance(model, str), width
        if isinstance(model, str):
            shape, classes = self.inputs.shape[1:], len(data.classes)
            model = _of_default_type(models.build(model, shape, classes, width=width, remat=remat))
        elif remat:
            raise ValueError(
                "remat is for built-in models, given by name: put jax.checkpoint or nnx.remat "
                "around the blocks of your own"
            )
        elif isinstance(model, nnx.Module):
            model = models.from_nnx(model)
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1 micro-batch, got {accumulate}")
        self.model = model
        self.precision, self.accumulate = models.check_precision(precision), accumulate
        self.share = {name: self._shares(rows) for name, rows in self.roles.items()}
        self._check_logits()
        # Shapes decide what can be pruned: no array of a large model is made for it.
        params, state = jax.eval_shape(model.init, jax.random.key(0))
        sample = jax.ShapeDtypeStruct((2, *self.inputs.shape[1:]), jnp.float32)
        self.layers = masks.select_layers(
            masks.find_layers(model.apply, params, state, sample),
            prune_classifier=prune_classifier,
        )
        shapes = {tuple(leaf.shape) for leaf in jax.tree.leaves(params)}
        self.placement = (placement or Placement.over()).splitting(shapes)
        if not self.placement.alone:
            self.model = _placed(model, self.placement)
        self._predict = predictor(self.model, self.encoder, self.placement)

    def _shares(self, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, " groups"]:
        count = np.bincount(self.group[rows], minlength=len(self.data.groups))
        return (count / max(count.sum(), 1)).astype(np.float32)

    def cell_share(self, role: str) -> Float[np.ndarray, "groups classes"]:
        """Shares of the cells (group and label) among a role's rows."""
        rows, shape = self.roles[role], (len(self.data.groups), len(self.data.classes))
        cell = self.group[rows] * shape[1] + self.y[rows]
        count = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
        return (count / max(count.sum(), 1)).astype(np.float32)

    def _check_logits(self) -> None:
        params, state = jax.eval_shape(self.model.init, jax.random.key(0))
        x = jax.ShapeDtypeStruct((2, *self.inputs.shape[1:]), jnp.float32)
        try:
            out, _ = jax.eval_shape(
                lambda p, s, x: self.model.apply(p, s, x, False, jax.random.key(0)),
                params,
                state,
                x,
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"model {self.model.name!r} does not take rows of shape "
                f"{list(self.inputs.shape[1:])}: {str(error).splitlines()[0]}"
            ) from error
        if out.shape != (2, len(self.data.classes)):
            raise ValueError(
                f"model {self.model.name!r} gives {out.shape[-1]} logits a row, the data has "
                f"{len(self.data.classes)} classes"
            )

    @property
    def training_model(self) -> models.Model:
        """The model in the precision that it is trained in."""
        return models.in_precision(self.model, self.precision)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups."""
        return self.data.groups

    def normalize(self, x: Array) -> Float[Array, "rows ..."]:
        """Encoded rows as the model takes them: float32, standardized by the fit rows. Parameters
        of a wider type widen what follows."""
        return self.encoder.normalize(x)

    def logits(
        self, network: Network, inputs: Shaped[np.ndarray, "rows ..."]
    ) -> Float[np.ndarray, "rows classes"]:
        """Logits of encoded rows, in evaluation mode."""
        return self._predict(network, inputs)

    def judge(
        self, network: Network, rows: Int[np.ndarray, " n"]
    ) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Correctness and cross-entropy (nats) of a network on rows of this problem."""
        return fairness.judge(self.logits(network, self.inputs[rows]), self.y[rows])

    def initial_network(self, seed: int = 0) -> Network:
        """The model's own start: the parameters of a module that was given, else random ones."""
        return Network(*self.start(jax.random.key(seed)))

    def start(self, key: Array) -> tuple[Any, Any]:
        """``model.init`` with its arrays where they belong; where parameters are split, none is
        ever whole on one device."""
        if not self.placement.shard_params:
            return self.placement.place(self.model.init(key))
        where = self.placement.outputs(self.model.init, key)
        return jax.jit(self.model.init, out_shardings=where)(key)

    def refer(self, network: Network, gradient_evaluations: float = 0.0) -> Reference:
        """The dense reference of a network: its outcome on every row except those of certify."""
        network = Network(*self.placement.place((network.params, network.state)))
        for name, leaf in _trees.flatten_named(network.params).items():
            if not bool(jnp.isfinite(leaf).all()):
                raise ValueError(f"the dense model's parameter {name!r} holds values not finite")
        correct = np.zeros(len(self.y), bool)
        loss = np.zeros(len(self.y), np.float32)
        for name in REPORTED_ROLES:
            rows = self.roles[name]
            correct[rows], loss[rows] = self.judge(network, rows)
        return Reference(network, correct, loss, gradient_evaluations)

    def outcomes(
        self, network: Network, reference: Reference | None, rows: Int[np.ndarray, " n"]
    ) -> Outcomes:
        """Outcomes of a network beside the dense one's (zeros without a reference), on the host."""
        nothing = np.zeros(len(rows), np.float32)
        dense = (
            (nothing > 0, nothing)
            if reference is None
            else (reference.correct[rows], reference.loss[rows])
        )
        own = [c for c in self.constraints if isinstance(c, Custom)]
        if not own and not any(c.of_cells for c in self.constraints):
            correct, loss = self.judge(network, rows)
            return Outcomes(correct, dense[0], loss, dense[1])
        logits, y = self.logits(network, self.inputs[rows]), self.y[rows]
        correct, loss = fairness.judge(logits, y)
        measured = {
            c.name: np.asarray(c.quantity(c.true, jnp.asarray(logits), jnp.asarray(y))) for c in own
        }
        answer = logits.argmax(-1).astype(np.int32)
        return Outcomes(correct, dense[0], loss, dense[1], y, answer, measured)

    def under(self, constraints: Sequence[Constraint]) -> FairPruningProblem:
        """The same problem under other constraints, to measure what a method enforces."""
        return self._changed("constraints", self.bound(constraints))

    def weighing(self, weight: Float[np.ndarray, " rows"]) -> FairPruningProblem:
        """The same problem with other row weights, which act on training losses alone."""
        return self._changed("weight", np.asarray(weight, np.float32))

    def _changed(self, name: str, value: Any) -> FairPruningProblem:
        other = copy.copy(self)
        setattr(other, name, value)
        return other

    def bound(self, constraints: Sequence[Constraint]) -> tuple[Constraint, ...]:
        """Constraints with their tolerances in the order of this problem's groups.

        Raises:
            ValueError: tolerances for other groups, or not for all of them.
        """
        return tuple(c.bound_to(self.data.groups, self.data.classes) for c in constraints)

    def own_or(self, constraint: Constraint) -> Constraint:
        """This problem's own constraint of that kind if it has one, else the one given."""
        own = (c for c in self.constraints if c.name == constraint.name)
        return next(own, self.bound((constraint,))[0])

    def measure(self, outcomes: Outcomes, rows: Int[np.ndarray, " n"]) -> list[Measurement]:
        """What outcomes on ``rows`` say of each constraint."""
        return fairness.measure(
            self.constraints,
            outcomes,
            self.group[rows],
            self.groups,
            self.counted,
            len(self.data.classes),
        )

    def summarize(self, outcomes: Outcomes, rows: Int[np.ndarray, " n"]) -> dict[str, Any]:
        """Performance, gaps, and the constraints' values and violations on ``rows``."""
        group = self.group[rows]
        correct, dense = np.asarray(outcomes.correct), np.asarray(outcomes.dense_correct)
        measured = self.measure(outcomes, rows)
        return {
            "performance": fairness.performance(
                correct, np.asarray(outcomes.loss), group, self.groups
            ),
            "gaps": fairness.gaps(dense, correct, group, self.groups, self.counted),
            "values": [m.value for m in measured],
            "violations": [m.violation for m in measured],
        }
