"""The precision a model computes in, apart from that its parameters are kept in; and the numbers it
asks for: any, or whole ones, as tokens of a text are."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from jax.extend import core as jex_core
from jaxtyping import Array

from fairbilevel.models._model import Model, shapes_of

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


def refusal(model: Model, shape: tuple[int, ...], dtype: Any) -> str | None:
    """Why a model does not take rows of a shape and type, in a line; ``None`` if it does."""
    try:
        jax.eval_shape(*_call(model, shape, dtype))
    except (TypeError, ValueError, IndexError, FlaxError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None


def rounds_inputs(model: Model, shape: tuple[int, ...]) -> bool:
    """Whether a model turns its inputs into whole numbers, before any parameter touches them: ids
    that it looks up in a table would be other ones once inputs are standardized."""
    function, params, state, x = _call(model, shape, jnp.float32)
    closed = jax.make_jaxpr(function)(params, state, x)
    return _rounds(closed.jaxpr, {closed.jaxpr.invars[-1]})


def _call(model: Model, shape: tuple[int, ...], dtype: Any) -> tuple[Any, ...]:
    """A forward pass in evaluation mode, and shapes to trace it with."""
    params, state = shapes_of(model)

    def logits(params: Any, state: Any, x: Any) -> Any:
        return model.apply(params, state, x, False, jax.random.key(0))[0]

    return logits, params, state, jax.ShapeDtypeStruct((2, *shape), dtype)


def _rounds(jaxpr: Any, of_inputs: set[Any]) -> bool:
    """Whether values made of inputs and literals alone are converted to a whole number's type."""
    for eqn in jaxpr.eqns:
        known = [isinstance(v, jex_core.Literal) or v in of_inputs for v in eqn.invars]
        touched = [not isinstance(v, jex_core.Literal) and v in of_inputs for v in eqn.invars]
        for called in eqn.params.values():
            inner = called.jaxpr if isinstance(called, jex_core.ClosedJaxpr) else called
            if isinstance(inner, jex_core.Jaxpr) and len(inner.invars) == len(touched):
                given = {v for v, t in zip(inner.invars, touched, strict=True) if t}
                if _rounds(inner, given):
                    return True
        if not any(touched) or not all(known):
            continue
        if eqn.primitive.name == "convert_element_type":
            before, after = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
            if jnp.issubdtype(before, jnp.floating) and jnp.issubdtype(after, jnp.integer):
                return True
        of_inputs.update(eqn.outvars)
    return False
