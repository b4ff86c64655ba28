"""A model as a pure function, and the adapters that make one from Flax or from a bare function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jaxtyping import Array

Params = Any
ModelState = Any


@dataclass(frozen=True)
class Model:
    """A classifier as two pure functions.

    Attributes:
        init: ``init(key) -> (params, state)``: nested dictionaries of arrays. ``state`` holds what
            is not trained (normalization statistics) and may be empty.
        apply: ``apply(params, state, x, train, key) -> (logits, state)`` with ``x`` float
            ``[rows, ...]``, ``train`` a Python bool, ``key`` a JAX random key (dropout) and
            ``logits`` ``[rows, classes]``.
        name: what reports call it.
        module: ``module(params, state)`` is the same as a ``flax.nnx`` module in evaluation mode,
            where the model is made of one.
    """

    init: Callable[[Array], tuple[Params, ModelState]]
    apply: Callable[[Params, ModelState, Array, bool, Array], tuple[Array, ModelState]]
    name: str = "model"
    module: Callable[[Params, ModelState], nnx.Module] | None = None


def shapes_of(model: Model) -> tuple[Params, ModelState]:
    """Shapes and types of parameters and state; no array is made."""
    # Of the floating type that arrays have now, which JAX's configuration may change.
    return jax.tree.map(lambda leaf: leaf, _shapes_of(model, jnp.zeros(()).dtype))


@functools.lru_cache(maxsize=64)
def _shapes_of(model: Model, kind: Any) -> tuple[Params, ModelState]:
    return jax.eval_shape(lambda: model.init(jax.random.key(0)))


def as_model(given: Any) -> Model:
    """A model, or a ``flax.nnx`` module as one.

    Raises:
        ValueError: anything else, with the adapter that it wants.
    """
    if isinstance(given, Model):
        return given
    if isinstance(given, nnx.Module):
        return from_nnx(given)
    if isinstance(given, linen.Module):
        how = "give fb.models.from_linen(module, x[:1]), whose sample shows the shape of a row"
    elif callable(given):
        how = (
            "give fb.models.from_nnx(f) of a function rngs -> module, or fb.models.from_function("
            "f, params) of a function (params, x) -> logits"
        )
    else:
        how = "give a flax.nnx module, a fb.models.Model or the name of a built-in one"
    raise ValueError(f"a {type(given).__name__} is no model yet: {how}")


def named_arrays(state: Any) -> tuple[Params, ModelState]:
    """Trained parameters, and everything else but random streams, of an ``nnx.State``."""
    params, _, rest = nnx.split_state(state, nnx.Param, nnx.RngState, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def _parts(module: nnx.Module) -> Any:
    """Structure, trained parameters, random streams, everything else."""
    return nnx.split(module, nnx.Param, nnx.RngState, ...)


def from_nnx(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module], *, name: str | None = None
) -> Model:
    """A ``Model`` from a ``flax.nnx`` module, or from a function that builds one from ``Rngs``.

    Args:
        module: a built module, whose parameters become the start of every ``init``, or a
            constructor ``rngs -> module``, called with the key of each ``init``.
        name: what reports call it; by default the class name.

    Train and evaluation mode are set through ``module.train()`` and ``module.eval()``.
    """
    built = module if isinstance(module, nnx.Module) else None

    def build(key: Array) -> nnx.Module:
        return built if built is not None else module(nnx.Rngs(key))  # type: ignore[operator]

    # Only structure is needed here: two graph definitions, one a mode. ``clone`` leaves the
    # caller's module in the mode it was in.
    template = (
        nnx.clone(built) if built is not None else nnx.eval_shape(lambda: build(jax.random.key(0)))
    )
    template.train()
    train_graph, params_like, rngs_like, state_like = _parts(template)
    template.eval()
    eval_graph = nnx.graphdef(template)

    def init(key: Array) -> tuple[Params, ModelState]:
        params, state = named_arrays(nnx.state(build(key)))
        return jax.tree.map(jnp.array, params), jax.tree.map(jnp.array, state)

    def rng_leaf(leaf: Any, key: Array) -> Any:
        return key if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros((), leaf.dtype)

    def states(params: Params, state: ModelState, key: Array) -> tuple[Any, ...]:
        leaves, structure = jax.tree.flatten(rngs_like)
        keys = jax.random.split(key, max(len(leaves), 1))
        rngs = jax.tree.unflatten(structure, map(rng_leaf, leaves, keys))
        return _restore(params_like, params), rngs, _restore(state_like, state)

    def apply(
        params: Params, state: ModelState, x: Array, train: bool, key: Array
    ) -> tuple[Array, ModelState]:
        merged = nnx.merge(train_graph if train else eval_graph, *states(params, state, key))
        logits = merged(x)
        return logits, named_arrays(nnx.state(merged))[1] if train else state

    def rebuilt(params: Params, state: ModelState) -> nnx.Module:
        copied = jax.tree.map(jnp.array, (params, state))
        return nnx.merge(eval_graph, *states(copied[0], copied[1], jax.random.key(0)))

    return Model(init, apply, name or type(template).__name__, rebuilt)


def _restore(like: Any, pure: Any) -> Any:
    """An ``nnx.State`` shaped as ``like`` holding the arrays of the nested dictionary ``pure``."""
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(pure))


def from_linen(module: Any, sample_input: Any, *, name: str | None = None) -> Model:
    """A ``Model`` from a ``flax.linen`` module.

    Args:
        module: a ``flax.linen.Module`` whose ``__call__`` takes the input and, if it behaves
            differently in training, one of ``train``, ``training``, ``is_training`` or
            ``deterministic``.
        sample_input: array ``[rows, ...]``, only its shape and dtype matter.
        name: what reports call it; by default the class name.
    """
    accepted = inspect.signature(module.__call__).parameters
    modes = ("train", "training", "is_training", "deterministic")
    mode = next((m for m in modes if m in accepted), None)

    def mode_argument(train: bool) -> dict[str, bool]:
        if mode is None:
            return {}
        return {mode: not train if mode == "deterministic" else train}

    def init(key: Array) -> tuple[Params, ModelState]:
        keys = {"params": key, "dropout": key}
        variables = dict(module.init(keys, sample_input, **mode_argument(False)))
        return variables.pop("params", {}), variables

    def apply(
        params: Params, state: ModelState, x: Array, train: bool, key: Array
    ) -> tuple[Array, ModelState]:
        variables = {"params": params, **state}
        if not train:
            return module.apply(variables, x, **mode_argument(False)), state
        logits, updated = module.apply(
            variables, x, **mode_argument(True), mutable=list(state), rngs={"dropout": key}
        )
        return logits, {**state, **updated}

    return Model(init, apply, name or type(module).__name__)


def from_function(
    function: Callable[..., Any],
    params: Params | Callable[[Array], Params],
    state: ModelState | None = None,
    *,
    name: str = "function",
) -> Model:
    """A ``Model`` from a bare function.

    Args:
        function: ``function(params, x) -> logits``, or the full form
            ``function(params, state, x, train, key) -> (logits, state)``.
        params: a pytree of arrays to start from, or ``init(key) -> params``.
        state: start of what is not trained; the full form only.
        name: what reports call it.

    Raises:
        ValueError: the function takes neither two nor five positional arguments.
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    count = sum(
        p.kind in kinds and p.default is p.empty
        for p in inspect.signature(function).parameters.values()
    )
    if count not in (2, 5):
        raise ValueError(
            "a model function takes (params, x) or (params, state, x, train, key); "
            f"{getattr(function, '__name__', 'this one')!r} takes {count} arguments"
        )
    start = {} if state is None else state

    def init(key: Array) -> tuple[Params, ModelState]:
        return params(key) if callable(params) else params, start

    def apply(
        values: Params, model_state: ModelState, x: Array, train: bool, key: Array
    ) -> tuple[Array, ModelState]:
        if count == 5:
            return function(values, model_state, x, train, key)
        return function(values, x), model_state

    return Model(init, apply, name)
