"""Rows through a network: what programs are made of, what they are told, and predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from fairbilevel import data as fb_data
from fairbilevel import masks, models
from fairbilevel.devices import Placement, Program
from fairbilevel.problem._network import Network

Inputs = Shaped[np.ndarray, "rows ..."] | fb_data.StoredRows
"""Encoded rows, held in memory or not."""
_EVALUATION_ROWS = 256  # of a compiled call


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
