"""Pytrees by name: nested dictionaries of arrays seen as flat ``{"block1/conv/kernel": array}``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def key_name(entry: Any) -> str:
    """The bare name of one step of a JAX key path (a dict key, an index or an attribute)."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def path_name(path: Iterable[Any]) -> str:
    """A key path as ``"a/b/0"``."""
    return "/".join(key_name(entry) for entry in path)


def flatten_named(tree: Any) -> dict[str, Any]:
    """All leaves of ``tree`` by path name, in the tree's own order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(function: Any, tree: Any) -> Any:
    """``function(name, leaf)`` over ``tree``, structure kept."""
    return jax.tree_util.tree_map_with_path(lambda p, leaf: function(path_name(p), leaf), tree)


def fill_named(tree: Any, values: Mapping[str, Any]) -> Any:
    """``tree`` with its leaves replaced by ``values[name]``.

    Raises:
        ValueError: a name is missing, or a shape differs from the leaf it replaces.
    """

    def replace(name: str, leaf: Any) -> Any:
        if name not in values:
            raise ValueError(f"the stored parameters have no entry {name!r}")
        value = values[name]
        if np.shape(value) != np.shape(leaf):
            raise ValueError(
                f"stored parameter {name!r} has shape {np.shape(value)}, "
                f"the model wants {np.shape(leaf)}"
            )
        return value

    return map_named(replace, tree)


def copy(tree: Any) -> Any:
    """A device copy of every leaf: what is donated to a compiled call is gone afterwards."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def size(tree: Any) -> int:
    """Number of entries in all leaves."""
    return int(sum(np.size(leaf) for leaf in jax.tree.leaves(tree)))
