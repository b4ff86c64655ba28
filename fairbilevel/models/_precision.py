"""The precision a model computes in, apart from the precision its parameters are kept in."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fairbilevel.models._model import Model

PRECISIONS = ("float32", "bfloat16")


def check_precision(precision: str) -> str:
    """The precision itself.

    Raises:
        ValueError: it is none of ``PRECISIONS``.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {' or '.join(PRECISIONS)}, got {precision!r}")
    return precision


def in_precision(model: Model, precision: str) -> Model:
    """The same model, its layers computed in ``precision``.

    With ``"bfloat16"`` parameters and inputs are rounded to bfloat16 as they enter, so that
    products and activations take half the memory and the matrix units of an accelerator; logits
    come back in float32. The parameters themselves stay what they are (float32 masters): gradients
    go back through the rounding and arrive in their dtype, and small updates are not lost. State
    (normalization statistics) is never rounded: Flax's norms also take their means and variances in
    float32. (Micikevicius et al. 2018, mixed precision training; bfloat16 has float32's range, so
    the loss needs no scaling.)

    A model of one's own is computed in bfloat16 as far as its layers hand the type on: behind a
    norm that answers in float32 (as Flax's batch normalization does without a cast) it is not.

    Args:
        model: any model.
        precision: ``"float32"`` gives the model itself, ``"bfloat16"`` the rounded one.

    Raises:
        ValueError: another precision.
    """
    if check_precision(precision) == "float32":
        return model

    def apply(params: Any, state: Any, x: Array, train: bool, key: Array) -> tuple[Array, Any]:
        logits, moved = model.apply(rounded(params), state, rounded(x), train, key)
        # A bare function may have made its new state of rounded activations.
        moved = jax.tree.map(lambda new, old: new.astype(jnp.result_type(old)), moved, state)
        return logits.astype(jnp.float32), moved

    return dataclasses.replace(model, apply=apply)


def rounded(tree: Any) -> Any:
    """A tree's floating-point leaves in bfloat16, the others as they are."""

    def leaf(x: Array) -> Array:
        return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(leaf, tree)
