"""Networks of a problem's model, and the dense one that pruning is measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from fairbilevel import _display, _trees, models
from fairbilevel._numbers import counted, percent

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
