"""The model of a problem: built once, placed on devices, its layers found, or refused."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fairbilevel import data as fb_data
from fairbilevel import devices, masks, models
from fairbilevel._numbers import storage
from fairbilevel.devices import Placement, Program


def checked(model: Any, width: int | None, remat: bool) -> models.Model | str:
    """A model of one's own, or the name of a built-in one; options of these alone are refused."""
    if isinstance(model, str):
        return model
    model = models.as_model(model)
    if remat:
        raise ValueError(
            "remat is for built-in models, given by name: put jax.checkpoint or nnx.remat around "
            "the blocks of your own"
        )
    if width is not None:
        raise ValueError("width is for built-in models, given by name: yours has its own")
    return model


@functools.lru_cache(maxsize=64)
def built_in(
    name: str, shape: tuple[int, ...], classes: int, width: int | None, remat: bool, kind: Any
) -> models.Model:
    """A built-in model with parameters of a floating type, the same object every time: programs go
    by the identity of its functions."""
    model = models.build(name, shape, classes, width=width, remat=remat)

    def init(key: Array) -> tuple[Any, Any]:
        return jax.tree.map(
            lambda leaf: leaf.astype(kind) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            model.init(key),
        )

    return dataclasses.replace(model, init=init)


@functools.lru_cache(maxsize=64)
def placed(model: models.Model, placement: Placement) -> models.Model:
    """The same model: its rows stay where their devices are, and split parameters are gathered
    where rows pass through them."""

    def apply(params: Any, state: Any, x: Array, train: bool, key: Array) -> tuple[Array, Any]:
        if placement.shard_params:
            params = placement.whole(params)
        logits, state = model.apply(params, state, placement.split(x), train, key)
        return logits, placement.whole(state)

    return dataclasses.replace(model, apply=apply)


def takes_whole(model: models.Model | str, data: fb_data.Dataset, normalize: Any) -> bool:
    """Whether whole numbers stay what they are: where the model takes nothing else, or nothing is
    to be done to them. A model that would round what has been standardized is refused."""
    if isinstance(model, str) or data.is_table:
        return False
    inputs: Any = data.inputs
    shape = tuple(inputs.shape[1:])
    given = inputs.dtype == np.int32
    any_number = models.refusal(model, shape, jnp.float32) is None
    if given and (normalize == "none" or not any_number):
        return models.refusal(model, shape, jnp.int32) is None
    if normalize == "fit" and any_number and models.rounds_inputs(model, shape):
        raise ValueError(
            f"model {model.name!r} turns its inputs into whole numbers, and they would be "
            "standardized before: give normalize='none', and x as integers"
        )
    return False


@functools.lru_cache(maxsize=64)
def layers_of(
    model: models.Model,
    shape: tuple[int, ...],
    dtype: np.dtype,
    prune_classifier: bool,
    keep: tuple[str, ...],
) -> masks.Layers:
    """What can be pruned. Shapes decide it: no array of a large model is made for it."""
    params, state = models.shapes_of(model)
    sample = jax.ShapeDtypeStruct((2, *shape), dtype)
    found = masks.find_layers(model.apply, params, state, sample)
    return masks.select_layers(found, prune_classifier=prune_classifier, keep=keep)


def _started(model: models.Model, seed: Array) -> tuple[Any, Any]:
    return model.init(jax.random.key(seed))


START = Program(_started, once=True)


def check_size(model: models.Model) -> None:
    """Refuse a model that cannot be trained here, before any array of it is made."""
    params, _ = models.shapes_of(model)
    leaves = jax.tree.leaves(params)
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    # Weights, their gradient, an optimizer's moment and the mask's scores.
    needed = 4 * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    there = devices.memory()
    if needed > there:
        raise ValueError(
            f"model {model.name!r} has {count:,} parameters, which take "
            f"{storage(needed)} to train, and {storage(there)} are there: make "
            "it narrower (width), or the rows smaller"
        )


def check_logits(
    model: models.Model, shape: tuple[int, ...], dtype: np.dtype, classes: int
) -> None:
    """Refuse a model that takes other rows, or gives other logits, than a problem has."""
    name = model.name
    why = models.refusal(model, shape, dtype)
    if why is not None:
        said = f"model {name!r} does not take rows of shape {list(shape)}: {why}"
        if models.refusal(model, shape, jnp.int32) is None:
            said += "; it takes whole numbers alone: give x as int32"
        raise ValueError(said)
    params, state = models.shapes_of(model)
    x = jax.ShapeDtypeStruct((2, *shape), dtype)
    out = jax.eval_shape(
        lambda p, s, x: model.apply(p, s, x, False, jax.random.key(0))[0],
        params,
        state,
        x,
    )
    given = getattr(out, "shape", None)
    if given is None or len(given) != 2:
        said = "several arrays" if given is None else f"an array of shape {list(given)}"
        raise ValueError(f"model {name!r} gives {said} for 2 rows, not logits [2, classes]")
    if given != (2, classes):
        raise ValueError(
            f"model {name!r} gives {given[-1]} logits a row, the data has {classes} classes"
        )
