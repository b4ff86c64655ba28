"""What a checkpoint is, and what becomes of it: the dense reference of a problem."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fairbilevel import models
from fairbilevel._trees import flatten_named
from fairbilevel.problem import FairPruningProblem, Network, Reference, predict

CLASSIFIER = "classifier/"
"""Where the last layer of every built-in model lies."""
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Weights of the squared norm beside the mean cross-entropy; tune chooses."""
_MOST_ITERATIONS = 500


@dataclass(frozen=True)
class Pretrained:
    """A network that was given, in the arrays of a problem's model.

    Attributes:
        network: parameters and state; zeros in the classifier where it is to be trained anew.
        notes: sentences a reader should know.
        new_head: whether the classifier is to be trained first.
    """

    network: Network
    notes: tuple[str, ...] = ()
    new_head: bool = False


def refer(problem: FairPruningProblem, given: Pretrained) -> Reference:
    """The dense reference of a network from elsewhere, its classifier trained on fit if it is new.

    Raises:
        ValueError: parameters of another model, or values that are not finite.
    """
    network = with_new_head(problem, given.network) if given.new_head else given.network
    reference = problem.refer(network)
    return dataclasses.replace(reference, warnings=(*given.notes, *reference.warnings))


class Checkpoint(ABC):
    """A file or folder of arrays that was opened.

    Attributes:
        path: where it lies.
        arrays: by the names they have there; float32 ``[...]`` but for counters.
    """

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]):
        self.path, self.arrays = path, arrays

    @abstractmethod
    def model(self, name: str = "auto", width: int | None = None) -> tuple[str, int | None]:
        """Name and width of the built-in model that it fits.

        Args:
            name: the model asked for, with options if any were given, or ``"auto"``.
            width: likewise; ``None`` leaves it to the checkpoint.

        Raises:
            ValueError: it is of another architecture, as far as names tell.
        """

    @abstractmethod
    def network(self, problem: FairPruningProblem) -> Pretrained:
        """Its arrays as the problem's model has them.

        Raises:
            ValueError: an array is missing, left over or of another shape, or of another model;
                the sentence names it.
        """

    def _filled(
        self,
        problem: FairPruningProblem,
        params: dict[str, Any],
        state: dict[str, Any],
        answers: int | None,
        notes: tuple[str, ...],
    ) -> Pretrained:
        """By our names; ``answers`` are the classes of a classifier that is not this problem's, 0
        where there is none, ``None`` where it stays."""
        if answers is not None:
            for name, leaf in flat_shapes(problem.shapes.params).items():
                if name.startswith(CLASSIFIER):
                    params[name] = np.zeros(leaf, np.float32)
            had = f"answers {answers:,} classes" if answers else "is not there"
            notes = (
                f"the classifier of {self.path} {had} and the data has "
                f"{len(problem.data.classes)}: it was replaced by a new one, trained on the "
                f"{len(problem.roles['fit']):,} rows of fit while all layers before it stayed as "
                "they are",
                *notes,
            )
        return Pretrained(problem.network((params, state)), notes, answers is not None)


def flat_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Of the leaves of a tree, by path name."""
    return {name: tuple(leaf.shape) for name, leaf in flatten_named(tree).items()}


def as_numbers(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """An array as float32, counters as they are; what is neither, or not finite, is refused."""
    if jnp.issubdtype(values.dtype, jnp.integer) and values.ndim == 0:
        return values
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{path} holds {name!r} as {values.dtype}: weights are floating numbers")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{path} holds values in {name!r} that are not finite")
    return values


def with_new_head(problem: FairPruningProblem, network: Network) -> Network:
    """The network of a built-in model with its classifier trained on fit, all else as it is.

    A multinomial logistic regression on what reaches the classifier in evaluation mode: a convex
    problem, whose solution depends on no step size and no seed. Rows have the problem's weights;
    the penalty is the one of ``PENALTIES`` with the least cross-entropy on tune.
    """
    fit, tune = problem.roles["fit"], problem.roles["tune"]
    features = _features(problem, network, network.params["classifier"]["kernel"].shape[0])
    seen = {name: features(problem.rows(problem.roles[name])) for name in ("fit", "tune")}
    mean, std = seen["fit"].mean(0), seen["fit"].std(0)
    std = np.where(std > 1e-6 * np.maximum(1, np.abs(mean)), std, 1.0)
    classes, best = len(problem.data.classes), None
    for penalty in PENALTIES:
        found = _regression(
            (seen["fit"] - mean) / std, problem.y[fit], problem.weight[fit], classes, penalty
        )
        loss = _cross_entropy((seen["tune"] - mean) / std, problem.y[tune], *found)
        if best is None or loss < best[0]:
            best = loss, *found
    assert best is not None
    weights = best[1] / std[:, None]
    head = {"kernel": weights, "bias": best[2] - mean @ weights}
    like = network.params["classifier"]
    new = {name: jnp.asarray(head[name], leaf.dtype) for name, leaf in like.items()}
    return dataclasses.replace(network, params={**network.params, "classifier": new})


def _features(problem: FairPruningProblem, network: Network, count: int) -> Any:
    """Rows to what reaches the classifier: the logits of the model whose classifier is the
    identity."""
    name, shape = problem.model.name, problem.inputs.shape[1:]
    model = models.build(name, shape, count, width=problem.width)
    identity = {"kernel": jnp.eye(count), "bias": jnp.zeros(count)}
    params = {**network.params, "classifier": identity}
    alone = Network(*jax.device_get((params, network.state)))
    return lambda rows: predict(model, problem.encoder, alone, rows).astype(np.float64)


def _cross_entropy(
    x: Float[np.ndarray, "rows features"],
    y: Int[np.ndarray, " rows"],
    kernel: Float[np.ndarray, "features classes"],
    bias: Float[np.ndarray, " classes"],
) -> float:
    logits = x @ kernel + bias
    top = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
    return float((total - logits[np.arange(len(y)), y]).mean())


def _regression(
    x: Float[np.ndarray, "rows features"],
    y: Int[np.ndarray, " rows"],
    weight: Float[np.ndarray, " rows"],
    classes: int,
    penalty: float,
) -> tuple[Float[np.ndarray, "features classes"], Float[np.ndarray, " classes"]]:
    """Kernel and bias."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    share = weight / weight.sum()
    machine = LogisticRegression(C=1 / penalty, max_iter=_MOST_ITERATIONS)
    with warnings.catch_warnings():
        # Cut short it is a little less fitted, which the choice on tune weighs.
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(x, y, sample_weight=share)
    kernel, bias = machine.coef_.T, machine.intercept_
    if classes == 2:  # one plane between them
        kernel, bias = np.hstack([-kernel, kernel]) / 2, np.hstack([-bias, bias]) / 2
    return kernel, bias
