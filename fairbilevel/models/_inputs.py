"""What numbers a model asks for: any, or whole ones, as tokens of a text are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from jax.extend import core as jex_core

from fairbilevel.models._model import Model, shapes_of


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
        for inner in _inner(eqn.params):
            if len(inner.invars) == len(touched):
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


def _inner(params: Mapping[str, Any]) -> list[Any]:
    """The programs that an equation calls."""
    closed = [p.jaxpr for p in params.values() if isinstance(p, jex_core.ClosedJaxpr)]
    return closed + [p for p in params.values() if isinstance(p, jex_core.Jaxpr)]
