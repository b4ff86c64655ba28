"""What a checkpoint is, and what becomes of it: the dense reference of a problem."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fairbilevel._trees import flatten_named
from fairbilevel.pretrained._head import with_new_head
from fairbilevel.problem import FairPruningProblem, Network, Reference

CLASSIFIER = "classifier/"
"""Where the last layer of every built-in model lies."""


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
    """An array as float32, counters as they are.

    Raises:
        ValueError: it is neither, or not finite.
    """
    if jnp.issubdtype(values.dtype, jnp.integer) and values.ndim == 0:
        return values
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{path} holds {name!r} as {values.dtype}: weights are floating numbers")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{path} holds values in {name!r} that are not finite")
    return values
