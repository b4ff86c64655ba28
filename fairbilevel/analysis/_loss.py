"""Rows sorted by group and streamed in batches, so that a group's means take one batch's memory;
and what a network says of them in evaluation mode: losses, answers, nearness to the boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from fairbilevel import _xla


class Stored(NamedTuple):
    """Rows on the device: inputs, targets and weights (not negative) in the caller's order, and the
    row numbers group by group."""

    x: Shaped[Array, "rows ..."]
    y: Shaped[Array, "rows ..."]
    weight: Float[Array, " rows"]
    order: Int[Array, " rows"]


class Span(NamedTuple):
    """One group's rows: positions ``start`` to ``stop`` of ``stored.order``."""

    stored: Stored
    start: Any
    stop: Any


@dataclass(frozen=True, eq=False)
class GroupedRows:
    """Rows of several groups, ready to be streamed.

    Attributes:
        stored: on the device.
        groups: names.
        size: rows of each group.
        share: of each group in the sum of all row weights.
        batch_size: rows a batch; the last batch of a group is filled up with rows of weight zero.
    """

    stored: Stored
    groups: tuple[str, ...]
    size: Int[np.ndarray, " groups"]
    share: Float[np.ndarray, " groups"]
    batch_size: int

    @staticmethod
    def of(
        x: Any,
        y: Any,
        group: Any,
        *,
        groups: Sequence[str] | None = None,
        weight: Any = None,
        batch_size: int = 256,
    ) -> GroupedRows:
        """Sort rows by group; arguments as of ``sensitivity``.

        Raises:
            ValueError: no rows, lengths that differ, a group out of range, weights that are
                negative, not finite or zero over a whole group, a batch size below one.
        """
        group = np.asarray(group)
        rows = len(group)
        if rows == 0:
            raise ValueError("there are no rows to analyze")
        if len(x) != rows or len(y) != rows:
            raise ValueError(
                f"x, y and group speak of the same rows; they have {len(x)}, {len(y)} and {rows}"
            )
        if not np.issubdtype(group.dtype, np.integer):
            raise ValueError(
                f"group holds the number of each row's group, got values of type {group.dtype}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        names = (
            tuple(str(g) for g in range(int(group.max()) + 1)) if groups is None else tuple(groups)
        )
        if group.min() < 0 or group.max() >= len(names):
            raise ValueError(
                f"group {int(group.min() if group.min() < 0 else group.max())} does not exist: "
                f"there are {len(names)}, counted from 0"
            )
        size = np.bincount(group, minlength=len(names))
        given = np.ones(rows) if weight is None else np.asarray(weight, np.float64)
        if given.shape != (rows,) or not np.isfinite(given).all() or (given < 0).any():
            raise ValueError("weight holds one finite number of at least 0 for each row")
        total = np.bincount(group, weights=given, minlength=len(names))
        if (total[size > 0] == 0).any():
            empty = names[int(np.flatnonzero((size > 0) & (total == 0))[0])]
            raise ValueError(f"the rows of group {empty!r} all have weight 0")
        order = np.argsort(group, kind="stable")
        stored = Stored(*(jnp.asarray(part) for part in (x, y, given, order)))
        return GroupedRows(stored, names, size, total / total.sum(), int(batch_size))

    def span(self, group: int) -> Span:
        """A group's rows."""
        stop = int(self.size[: group + 1].sum())
        return Span(self.stored, stop - int(self.size[group]), stop)

    @property
    def filled(self) -> list[int]:
        """Numbers of the groups that have rows."""
        return [int(g) for g in np.flatnonzero(self.size)]

    def each_group(self, function: Callable[[Span], Any]) -> dict[int, Any]:
        """``function(span)`` of every group with rows, results on the host."""
        return {g: jax.device_get(function(self.span(g))) for g in self.filled}

    def means(self, function: Callable[[Span], Any]) -> Float[np.ndarray, " groups"]:
        """A number a group, NaN for groups without rows."""
        return self.spread(self.each_group(function))

    def spread(self, found: dict[int, Any]) -> Float[np.ndarray, " groups"]:
        """Numbers of the groups with rows among those of all groups."""
        values = np.full(len(self.groups), np.nan)
        for g, value in found.items():
            values[g] = float(value)
        return values


def stream(quantity: Callable[..., Any], span: Span, batch_size: int) -> Any:
    """The weighted mean over a span of rows, batch by batch. Pure.

    ``quantity(x, y, weight)`` of a batch is a pytree of sums over its rows, each row counted
    ``weight`` times. One compiled program serves every span, and what it needs beside the rows
    themselves does not grow with them.
    """
    stored, start, stop = span

    def batch(index: Any) -> tuple[Array, Array, Array]:
        at = start + index * batch_size + jnp.arange(batch_size)
        # Positions behind the end repeat a real row, whose gradient is finite, with weight zero.
        rows = stored.order[jnp.minimum(at, stop - 1)]
        return stored.x[rows], stored.y[rows], jnp.where(at < stop, stored.weight[rows], 0)

    def part(index: Any) -> Any:
        x, y, weight = batch(index)
        return quantity(x, y, weight), jnp.sum(weight)

    def body(index: Any, total: Any) -> Any:
        return jax.tree.map(jnp.add, total, part(index))

    zero = optax.tree.zeros_like(jax.eval_shape(lambda: part(0)))
    batches = (stop - start + batch_size - 1) // batch_size
    total, weight = lax.fori_loop(0, batches, _xla.canonical_convolutions(body), zero)
    return jax.tree.map(lambda leaf: (leaf / weight).astype(leaf.dtype), total)


Apply = Callable[[Any, Any], Any]
"""``apply(params, x) -> outputs`` of a batch, in evaluation mode."""

Loss = Callable[[Any, Any], Any]
"""``loss(outputs, y) -> float [rows]``."""


def cross_entropy(
    logits: Float[Array, "rows classes"], y: Int[Array, " rows"]
) -> Float[Array, " rows"]:
    """Cross-entropy of each row, in nats."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(wide, y)


def boundary_closeness(logits: Float[Array, "rows classes"]) -> Float[Array, " rows"]:
    """``1 - sum_c p_c^2`` of each row: 0 where the answer is certain, ``1 - 1/C`` on the boundary.

    For two classes it is twice the ``p (1 - p)`` of Tran et al. 2022, section 5, which it extends
    to many classes.
    """
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return 1 - jnp.sum(jax.nn.softmax(wide) ** 2, -1)


def portable(apply: Apply) -> Any:
    """``apply`` as a pytree, so that a compiled program can take it as an argument.

    A ``jax.tree_util.Partial`` of a function and arrays (normalization statistics, say) then
    shares one program with every other Partial of that function.
    """
    # A Partial of a Partial would hide the inner one's arrays: constants of a program of their own.
    if isinstance(apply, jax.tree_util.Partial):
        return apply
    return jax.tree_util.Partial(apply)


def total_loss(apply: Apply, loss: Loss, params: Any, x: Array, y: Array, weight: Array) -> Array:
    """``sum_i w_i loss_i`` of a batch."""
    return jnp.sum(weight * loss(apply(params, x), y))


@partial(jax.jit, static_argnames=("loss", "batch_size", "classifies"))
def _outcome(
    apply: Any, params: Any, span: Span, *, loss: Loss, batch_size: int, classifies: bool
) -> dict[str, Array]:
    def quantity(x: Array, y: Array, weight: Array) -> dict[str, Array]:
        outputs = apply(params, x)
        found = {"loss": jnp.sum(weight * loss(outputs, y))}
        if classifies:
            found["accuracy"] = jnp.sum(weight * (outputs.argmax(-1) == y))
            found["closeness"] = jnp.sum(weight * boundary_closeness(outputs))
        return found

    return stream(quantity, span, batch_size)


def outcomes(
    apply: Apply, loss: Loss, params: Any, rows: GroupedRows
) -> dict[str, Float[np.ndarray, " groups"]]:
    """Mean ``loss``, ``accuracy`` and boundary ``closeness`` of every group.

    NaN for groups without rows; accuracy and closeness are NaN too where the outputs are no logits
    of classes (``y`` not of integers, or outputs not ``[rows, classes]``).
    """
    applied = portable(apply)
    outputs = jax.eval_shape(applied, params, rows.stored.x[:1])
    classifies = outputs.ndim == 2 and bool(jnp.issubdtype(rows.stored.y.dtype, jnp.integer))
    fixed = {"loss": loss, "batch_size": rows.batch_size, "classifies": classifies}
    found = rows.each_group(partial(_outcome, applied, params, **fixed))
    return {
        name: rows.spread({g: values[name] for g, values in found.items() if name in values})
        for name in ("loss", "accuracy", "closeness")
    }


def overall(
    means: Float[np.ndarray, "*points groups"], rows: GroupedRows
) -> Float[np.ndarray, "*points"]:
    """The mean over all rows, from the groups' means."""
    filled = rows.filled
    return np.asarray(means[..., filled] @ rows.share[filled])
