"""What a network says of rows, in evaluation mode: losses, answers, nearness to the boundary."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from fairbilevel.analysis._rows import GroupedRows, Span, stream

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
