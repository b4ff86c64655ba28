"""Networks of a problem's model, the dense one that pruning is measured against, and rows through
them: what programs are made of, what they are told, and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from fairbilevel import _display, _trees, masks, models
from fairbilevel import data as fb_data
from fairbilevel._numbers import counted, percent
from fairbilevel.devices import Placement, Program

Inputs = Shaped[np.ndarray, "rows ..."] | fb_data.StoredRows
"""Encoded rows, held in memory or not."""
_EVALUATION_ROWS = 256  # of a compiled call
_LEAST_SKILL = 0.2  # of what lies between a constant answer and no error


@dataclass(frozen=True)
class Network:
    """Parameters and state of one network of a problem's model.

    Attributes:
        params: nested dictionary of arrays.
        state: normalization statistics and the like.
    """

    params: Any
    state: Any

    def __repr__(self) -> str:
        state = _trees.size(self.state)
        arrays = counted(len(jax.tree.leaves(self.params)), "array")
        return _display.line(
            "Network",
            f"{_trees.size(self.params):,} parameters in {arrays}",
            f"{state:,} numbers of state" if state else "no state",
        )


@dataclass(frozen=True)
class Reference:
    """The dense network and what it says of every row that may be looked at.

    Attributes:
        network: the dense network.
        correct: bool ``[rows]``, where it is right (False on certify rows, never evaluated).
        loss: float32 ``[rows]``, its cross-entropy in nats (0 on certify rows).
        logits: float32 ``[rows, classes]`` (0 on certify rows).
        gradient_evaluations: what its training cost, 0 if it was given.
        seed: of its training, where it was trained here: its initial weights can be had again.
        rollbacks: each time its training diverged and went back (``fb.Solution.rollbacks``).
        warnings: sentences a reader should know of a dense model that was given.
    """

    network: Network
    correct: Bool[np.ndarray, " rows"]
    loss: Float[np.ndarray, " rows"]
    logits: Float[np.ndarray, "rows classes"]
    gradient_evaluations: float = 0.0
    seed: int | None = None
    rollbacks: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        trained = f"trained with {self.gradient_evaluations:,.0f} gradient evaluations"
        return _display.line(
            "Reference",
            repr(self.network),
            f"outcomes of {counted(len(self.correct), 'row')}",
            trained if self.gradient_evaluations else "given",
        )


def as_network(given: Any, model: str, shapes: Network) -> Network:
    """``FairPruningProblem.network``, for the name and the shapes of a model."""
    if isinstance(given, nnx.Module):
        given = nnx.state(given)
    if isinstance(given, nnx.State):
        given = models.named_arrays(given)
    if isinstance(given, Network):
        given = given.params, given.state
    elif isinstance(given, Mapping):
        given = given, {}
    if not isinstance(given, tuple) or len(given) != 2:
        how = "give a fb.Network(params, state), or a flax.nnx module of the model's class"
        if isinstance(given, (str, PathLike)):
            how = "that of a run is fb.load_run(path).dense"
        raise ValueError(f"a {type(given).__name__} is no dense model: {how}")
    return Network(
        _fitting(model, "parameter tree", given[0], shapes.params),
        _fitting(model, "state", given[1], shapes.state),
    )


def _fitting(model: str, what: str, given: Any, like: Any) -> Any:
    have, said = _trees.flatten_named(given), f"is not of model {model!r}"
    try:
        filled = _trees.fill_named(like, have)
    except ValueError as error:
        raise ValueError(f"the dense model {said}: {error}") from None
    if more := have.keys() - _trees.flatten_named(like).keys():
        raise ValueError(f"the dense model {said}, whose {what} knows no {min(more)!r}")
    return jax.tree.map(lambda leaf, to: jnp.asarray(leaf, to.dtype), filled, like)


def check_finite(params: Any) -> None:
    """Refuse a dense model with values that are not finite."""
    for name, leaf in _trees.flatten_named(params).items():
        if not np.isfinite(_local(leaf)).all():
            raise ValueError(f"the dense model's parameter {name!r} holds values not finite")


def _local(leaf: Any) -> np.ndarray:
    """The entries of an array that this process can read."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf, np.float64)
    return np.concatenate([np.ravel(part.data) for part in leaf.addressable_shards])


def doubts(
    correct: Bool[np.ndarray, " n"], y: Int[np.ndarray, " n"], classes: Sequence[str]
) -> tuple[str, ...]:
    """A sentence on a given dense model that is hardly better than one constant answer: it may
    have been trained on rows of another form."""
    right = float(correct.mean())
    share = np.bincount(y, minlength=len(classes)) / len(y)
    most = int(share.argmax())
    if right - share[most] >= _LEAST_SKILL * (1 - share[most]):
        return ()
    return (
        f"the given dense model is right on {percent(right)} of the rows, where always "
        f"answering {classes[most]!r} would be on {percent(share[most])}: if it was better "
        "where it was trained, its inputs were normalized in another way (normalize) or its "
        f"classes stand in another order than {', '.join(classes[:10])}"
        f"{', ...' * (len(classes) > 10)}",
    )


@dataclass(frozen=True)
class Structure:
    """What decides the programs of a problem, and no number of it: hashable, equal for problems
    that differ in rows, tolerances and seeds alone.

    Attributes:
        model: the pure functions, as rows pass through them on the placement's devices.
        kind: of the encoder, which says how rows are standardized.
        layers: what can be pruned.
        shape: of an encoded row.
        groups: how many.
        classes: how many.
        precision: of the passes of training.
        accumulate: micro-batches of each gradient.
        placement: the devices that share the work.
    """

    model: models.Model
    kind: str
    layers: masks.Layers
    shape: tuple[int, ...]
    groups: int
    classes: int
    precision: str
    accumulate: int
    placement: Placement

    def forward(
        self, params: Any, state: Any, x: Array, moments: Any, train: bool, key: Array
    ) -> tuple[Float[Array, "rows classes"], Any]:
        """Logits of encoded rows, at least float32, and the state after them: in train mode in the
        precision of training."""
        model = models.in_precision(self.model, self.precision) if train else self.model
        x = fb_data.standardize(self.kind, x, moments)
        logits, state = model.apply(params, state, x, train, key)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), state


class Numbers(NamedTuple):
    """What programs are told of a problem: arguments, so that none of it is compiled in.

    Attributes:
        moments: what inputs are standardized by.
        share: the groups' shares in ``"fit"`` and ``"select"``.
        cells: shares of the cells (group and label) in both, where a constraint counts answers.
        counted: groups that claims speak of.
        limits: one array a constraint: what is bounded from above, for each multiplier.
        temperature: that logits are divided by where they are matched to the dense model's.
        shrink: how far what moves the multipliers is shrunken (``GroupStatistics.shrunken``).
        units: one array a constraint: what a step of one moves each multiplier by.
    """

    moments: tuple[Float[Any, "..."], ...]
    share: dict[str, Float[Any, " groups"]]
    cells: dict[str, Float[Any, "groups classes"]]
    counted: Bool[Any, " groups"]
    limits: tuple[Float[Any, " _"], ...]
    temperature: Float[Any, ""]
    shrink: Float[Any, ""]
    units: tuple[Float[Any, " _"], ...]


def _logits(
    structure: tuple[models.Model, str], params: Any, state: Any, x: Array, moments: Any
) -> Array:
    model, kind = structure
    x = fb_data.standardize(kind, x, moments)
    return model.apply(params, state, x, False, jax.random.key(0))[0]


_LOGITS = Program(_logits)


def predict(
    model: models.Model,
    encoder: fb_data.Encoder,
    network: Network,
    inputs: Inputs,
    placement: Placement | None = None,
) -> Float[np.ndarray, "rows classes"]:
    """Logits of encoded rows in evaluation mode, on the host.

    A fixed number of rows at a time, so that one program serves every set of rows; they are split
    over the devices of a placement.
    """
    spread = None if placement is None or placement.alone else placement
    size = _EVALUATION_ROWS
    params, state, moments = network.params, network.state, encoder.moments
    if spread is not None:
        size = -(-size // spread.count) * spread.count
        params, state, moments = spread.place((params, state, moments))
    chunks = []
    starts = range(0, max(len(inputs), 1), size)
    parts: Any = (inputs[start : start + size] for start in starts)
    if isinstance(inputs, fb_data.StoredRows):  # read while the rows before are computed with
        parts = fb_data.ahead(lambda start: inputs[start : start + size], starts)
    for x in parts:
        padded: Any = np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)])
        if spread is not None:
            padded = spread.rows(padded.__getitem__, np.arange(size))
        logits = _LOGITS((model, encoder.kind), params, state, padded, moments, placement=spread)
        chunks.append(np.asarray(logits)[: len(x)])
    return np.concatenate(chunks)


def probabilities(logits: Float[np.ndarray, "rows classes"]) -> Float[np.ndarray, "rows classes"]:
    """The softmax of logits, in double precision: each row sums to one."""
    raised = np.exp(np.subtract(logits, logits.max(-1, keepdims=True), dtype=np.float64))
    return raised / raised.sum(-1, keepdims=True)
