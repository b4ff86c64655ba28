"""A fair pruning problem: a model, rows in five roles, groups, constraints, a dense reference."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from fairbilevel import _display, fairness, masks, models
from fairbilevel import data as fb_data
from fairbilevel.devices import Placement
from fairbilevel.fairness import Constraint, Custom, Evaluation, Measurement, Outcomes
from fairbilevel.problem import _model
from fairbilevel.problem._facts import facts
from fairbilevel.problem._network import (
    Inputs,
    Network,
    Numbers,
    Reference,
    Structure,
    as_network,
    check_finite,
    doubts,
    predict,
)

REPORTED_ROLES = ("fit", "select", "tune", "test")
# Rows of tune that a run is judged by after every stage: they know an accuracy to a third of a
# point, and all of a million would take longer than the steps between two looks.
WATCHED_ROWS = 20_000


class FairPruningProblem:
    """Given a model, data with groups and fairness tolerances, what there is to solve.

    Args:
        model: a ``fb.models.Model``, a ``flax.nnx.Module`` or the name of a built-in model.
        x: rows ``[rows, ...]``: uint8 images, numbers, a memory map or ``fb.data.RowStore`` of
            them (which is never held in memory), or a ``fb.data.Dataset`` that brings labels
            and groups with it. Whole numbers (tokens of a text) stay what they are for a model
            that takes nothing else, or with ``normalize="none"``.
        y: int ``[rows]``, class of each row.
        group: int or str ``[rows]``, group of each row.
        constraints: fairness constraints, each at most once, or a single one; none means accuracy
            alone.
        normalize: what becomes of inputs: fit (standardized by the rows of fit), none, or by mean
            and deviation as a dense model from elsewhere was trained: imagenet, or MEAN,STD, one
            number or one a channel (of images, on the scale 0 to 1).
        roles: row indices by role (``fb.data.split_roles``); drawn from ``seed`` by default.
        counted: bool ``[groups]``, groups that claims speak of; all by default.
        role_fractions: shares of the five roles where ``roles`` is not given.
        width: channels of the first stage, neurons of the first hidden layer, or entries of a token
            of a built-in model.
        prune_classifier: prune the classifier's weights too; its outputs are never removed as
            filters.
        keep_layer: names of layers that stay whole, as in ``problem.layers``; ``*`` stands for
            anything (``blocks/0/*``). They do not count among what sparsity is a share of.
        precision: float32, or bfloat16 for the passes of training: parameters, statistics and
            everything that is reported stay float32 (``fb.models.in_precision``).
        accumulate: micro-batches that each gradient is summed over, one after the other: a batch
            then takes the memory of one of them (``Steps.objective``).
        remat: a built-in model keeps one activation a block for the backward pass.
        seed: of the roles.
        placement: the devices that share the work; all of them by default.

    Attributes:
        inputs: encoded rows; images stay uint8 and are normalized on the device. Of a store
            ``fb.data.StoredRows``, which are read as they are indexed.
        layers: prunable layers of the model, and its coupled channels.
        placement: where rows, weights and scores lie.
        built_in: whether the model was given by name, and so can be rebuilt from a file.
        normalization: ``normalize`` as text.
        share: float32 ``[groups]`` by role: the groups' shares among that role's rows.

    Raises:
        ValueError: rows, labels and groups of different lengths, values that are not finite, a
            group or class without rows in a role, roles that overlap, a model that is none, is too
            large, or whose logits do not match the classes.
    """

    def __init__(
        self,
        model: Any,
        x: Any,
        y: Any = None,
        group: Any = None,
        *,
        constraints: Constraint | Sequence[Constraint] = (),
        normalize: fb_data.Normalize = "fit",
        roles: Mapping[str, Int[np.ndarray, " n"]] | None = None,
        counted: Bool[np.ndarray, " groups"] | None = None,
        role_fractions: Mapping[str, float] | None = None,
        width: int | None = None,
        prune_classifier: bool = False,
        keep_layer: tuple[str, ...] = (),
        precision: Literal["float32", "bfloat16"] = "float32",
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
        if (data.y < 0).any() or (data.group < 0).any():
            missing = int(((data.y < 0) | (data.group < 0)).sum())
            raise ValueError(f"{missing} rows have no label or no group: leave them out")
        self.data = data
        self.constraints = self.bound(constraints)
        names = [c.name for c in self.constraints]
        if len(set(names)) < len(names):
            raise ValueError(
                f"each constraint can be given once, got {', '.join(names)}: a tolerance may "
                "differ by group"
            )
        self.counted = fb_data.check_counted(counted, data.groups)
        if roles is None:
            fractions = fb_data.FRACTIONS if role_fractions is None else role_fractions
            roles = fb_data.split_roles(data, fractions, seed, self.counted)
        self.roles = fb_data.check_roles(data, roles, self.counted)
        self.select_outer, self.select_duals = fb_data.role_halves(self.roles["select"], data, seed)
        self.built_in, self.width = isinstance(model, str), width
        model = _model.checked(model, width, remat)
        self.encoder = fb_data.Encoder.fit(
            data, self.roles["fit"], normalize, whole=_model.takes_whole(model, data, normalize)
        )
        self.normalization = fb_data.write_normalize(normalize)
        self.inputs = self.encoder.transform(data.inputs)
        held = isinstance(self.inputs, np.ndarray)  # of a store it was seen with the fingerprints
        if held and self.inputs.dtype != np.uint8 and not np.isfinite(self.inputs).all():
            raise ValueError("the inputs hold values that are not finite (NaN or infinity)")
        self.y = np.asarray(data.y, np.int32)
        self.group = np.asarray(data.group, np.int32)
        weight = np.ones(len(self.y)) if data.weight is None else data.weight
        self.weight = np.asarray(weight, np.float32)
        row = self.inputs.shape[1:], self.encoder.dtype
        if isinstance(model, str):
            kind = jnp.dtype(jax.dtypes.canonicalize_dtype(float))
            model = _model.built_in(model, row[0], len(data.classes), width, remat, kind)
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1 micro-batch, got {accumulate}")
        self.model = model
        self.precision, self.accumulate = models.check_precision(precision), accumulate
        self.share = {
            name: _shares(self.group[rows], len(data.groups)) for name, rows in self.roles.items()
        }
        _model.check_size(model)
        _model.check_logits(model, *row, len(data.classes))
        self.keep_layer = (keep_layer,) if isinstance(keep_layer, str) else tuple(keep_layer)
        self.layers = _model.layers_of(model, *row, prune_classifier, self.keep_layer)
        params, _ = models.shapes_of(model)
        shapes = {tuple(leaf.shape) for leaf in jax.tree.leaves(params)}
        self.placement = (placement or Placement.over()).splitting(shapes)
        if not self.placement.alone:
            self.model = _model.placed(model, self.placement)

    def __repr__(self) -> str:
        said = (f"{name} {fact}" for name, fact in facts(self))
        return _display.line("FairPruningProblem", *said)

    def _repr_html_(self) -> str:
        return _display.table("Fair pruning problem", facts(self))

    def cell_share(self, role: str) -> Float[np.ndarray, "groups classes"]:
        """Shares of the cells (group and label) among a role's rows."""
        rows, shape = self.roles[role], (len(self.data.groups), len(self.data.classes))
        return _shares(self.group[rows] * shape[1] + self.y[rows], math.prod(shape)).reshape(shape)

    def measure_latency(self, batch: int = 1) -> masks.LatencyTable:
        """How long each layer of the model takes on the present device, by the channels it keeps:
        what ``sparsity_of="latency"`` is a share of. A minute or two for a ResNet-18.

        Args:
            batch: rows a call.
        """
        params, state = _model.START(self.model, np.uint32(0))
        return masks.measure_latency(
            self.model.apply,
            params,
            state,
            jax.ShapeDtypeStruct((batch, *self.inputs.shape[1:]), self.encoder.dtype),
            self.layers,
        )

    def cost_model(self, granularity: str = "weight") -> masks.CostModel:
        """Parameters and multiply-adds of one row by how much each layer keeps."""
        sample = jax.ShapeDtypeStruct((1, *self.inputs.shape[1:]), self.encoder.dtype)
        return masks.CostModel(
            self.model.apply, *models.shapes_of(self.model), sample, self.layers, granularity
        )

    @property
    def structure(self) -> Structure:
        """What decides the programs of this problem."""
        return Structure(
            self.model,
            self.encoder.kind,
            self.layers,
            self.inputs.shape[1:],
            len(self.data.groups),
            len(self.data.classes),
            self.precision,
            self.accumulate,
            self.placement,
        )

    def numbers(
        self,
        constraints: Sequence[Constraint] | None = None,
        *,
        temperature: float = 1.0,
        shrink: bool = False,
        row_weights: bool = False,
    ) -> Numbers:
        """What programs are told.

        Args:
            constraints: in place of the problem's own.
            temperature: that logits are divided by where they are matched to the dense model's.
            shrink: whether what moves the multipliers is shrunken.
            row_weights: whether multipliers move in units of what they add to the weight of a
                group's row, and not of its mean.
        """
        constraints = self.constraints if constraints is None else constraints
        limits = tuple(c.limits(len(self.groups)) for c in constraints)
        share = self.share["select"] if row_weights else np.ones(len(self.groups), np.float32)
        kind = jax.dtypes.canonicalize_dtype(float)
        names = ("fit", "select")
        of_cells = any(c.of_cells for c in constraints)
        return Numbers(
            self.encoder.moments,
            {name: self.share[name] for name in names},
            {name: self.cell_share(name) for name in names} if of_cells else {},
            self.counted,
            limits,
            np.asarray(temperature, kind),
            np.asarray(shrink, kind),
            # The groups are the fastest index of a constraint's multipliers.
            tuple(np.resize(share, len(limit)).astype(kind) for limit in limits),
        )

    @functools.cached_property
    def watched(self) -> Int[np.ndarray, " n"]:
        """The rows of tune that judge a run on its way: all, or a draw of 20,000."""
        rows = self.roles["tune"]
        if len(rows) <= WATCHED_ROWS:
            return rows
        return np.sort(np.random.default_rng(0).choice(rows, WATCHED_ROWS, replace=False))

    @property
    def shapes(self) -> Network:
        """A network's parameters and state as shapes and types alone."""
        return Network(*models.shapes_of(self.model))

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups."""
        return self.data.groups

    def normalize(self, x: Array) -> Shaped[Array, "rows ..."]:
        """Encoded rows as the model takes them: float32 and standardized, or whole numbers as they
        are. Parameters of a wider type widen what follows."""
        return self.encoder.normalize(x)

    def rows(self, rows: Int[np.ndarray, " n"]) -> Inputs:
        """Encoded rows of these numbers; of a store they are not read yet."""
        return fb_data.select(self.inputs, rows)

    def logits(self, network: Network, inputs: Inputs) -> Float[np.ndarray, "rows classes"]:
        """Logits of encoded rows, in evaluation mode."""
        return predict(self.model, self.encoder, network, inputs, self.placement)

    def judge(
        self, network: Network, rows: Int[np.ndarray, " n"]
    ) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Correctness and cross-entropy (nats) of a network on rows of this problem."""
        return fairness.judge(self.logits(network, self.rows(rows)), self.y[rows])

    def initial_network(self, seed: int = 0) -> Network:
        """The model's own start: the parameters of a module that was given, else random ones.

        Of a built-in model they are drawn in one program; where parameters are split, none is ever
        whole on one device.
        """
        if self.built_in or self.placement.shard_params:
            placed = self.placement.place(np.uint32(seed))
            return Network(*_model.START(self.model, placed, placement=self.placement))
        return Network(*self.placement.place(self.model.init(jax.random.key(seed))))

    def network(self, given: Any) -> Network:
        """Parameters and state as a network of this problem's model.

        Args:
            given: a ``Network``, a pair of parameters and state, parameters alone where the model
                has no state, a ``flax.nnx`` module of the model's class, or its state.

        Raises:
            ValueError: none of these, or of another model.
        """
        return as_network(given, self.model.name, self.shapes)

    def refer(self, network: Network, gradient_evaluations: float = 0.0) -> Reference:
        """The dense reference of a network: its outcome on every row except those of certify.

        Raises:
            ValueError: parameters of another model, or values that are not finite.
        """
        network = self.network(network)
        network = Network(*self.placement.place((network.params, network.state)))
        check_finite(network.params)
        correct = np.zeros(len(self.y), bool)
        loss = np.zeros(len(self.y), np.float32)
        logits = np.zeros((len(self.y), len(self.data.classes)), np.float32)
        for name in REPORTED_ROLES:
            rows = self.roles[name]
            logits[rows] = self.logits(network, self.rows(rows))
            correct[rows], loss[rows] = fairness.judge(logits[rows], self.y[rows])
        seen = np.concatenate([self.roles[name] for name in REPORTED_ROLES])
        given = not gradient_evaluations
        warnings = doubts(correct[seen], self.y[seen], self.data.classes) if given else ()
        return Reference(network, correct, loss, logits, gradient_evaluations, warnings=warnings)

    def outcomes(
        self, network: Network, reference: Reference | None, rows: Int[np.ndarray, " n"]
    ) -> Outcomes:
        """Outcomes of a network beside the dense one's (zeros without a reference), on the host."""
        dense = np.zeros(len(rows), bool), np.zeros(len(rows), np.float32)
        if reference is not None:
            dense = reference.correct[rows], reference.loss[rows]
        own = [c for c in self.constraints if isinstance(c, Custom)]
        logits, y = self.logits(network, self.rows(rows)), self.y[rows]
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

    def bound(self, constraints: Constraint | Sequence[Constraint]) -> tuple[Constraint, ...]:
        """Constraints with their tolerances in the order of this problem's groups.

        Raises:
            ValueError: no constraints, tolerances for other groups, or not for all of them.
        """
        given: tuple[Any, ...] = (
            tuple(constraints) if isinstance(constraints, (tuple, list)) else (constraints,)
        )
        for c in given:
            if not isinstance(c, Constraint):
                raise ValueError(
                    "constraints are objects such as fb.fairness.ExcessAccuracyGap(0.02), got "
                    f"{c!r}; fb.fairness.parse_constraint makes one of text"
                )
        return tuple(c.bound_to(self.data.groups, self.data.classes) for c in given)

    def own_or(self, constraint: Constraint) -> Constraint:
        """This problem's own constraint of that kind if it has one, else the one given."""
        own = (c for c in self.constraints if c.name == constraint.name)
        return next(own, self.bound((constraint,))[0])

    def measure(self, outcomes: Outcomes, rows: Int[np.ndarray, " n"]) -> list[Measurement]:
        """What outcomes on ``rows`` say of each constraint."""
        about = self.group[rows], self.groups, self.counted, len(self.data.classes)
        return fairness.measure(self.constraints, outcomes, *about)

    def evaluate(
        self, outcomes: Outcomes, rows: Int[np.ndarray, " n"], role: str = ""
    ) -> Evaluation:
        """What outcomes on ``rows`` say of every group and constraint."""
        return fairness.evaluate(
            outcomes,
            self.group[rows],
            self.groups,
            self.counted,
            classes=self.data.classes,
            constraints=self.constraints,
            role=role,
        )


def _shares(index: Int[np.ndarray, " n"], size: int) -> Float[np.ndarray, " size"]:
    count = np.bincount(index, minlength=size)
    return (count / max(count.sum(), 1)).astype(np.float32)
