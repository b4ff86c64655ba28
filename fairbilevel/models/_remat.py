"""Rematerialization: activations inside a block are computed again instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array


def called(block: Callable[[Array], Array], x: Array) -> Array:
    """``block(x)``."""
    return block(x)


def run_block(
    block: Any, x: Array, remat: bool, run: Callable[[Any, Array], Array] = called
) -> Array:
    """``run(block, x)``; with ``remat`` the backward pass keeps ``x`` alone and runs it again.

    The values are the same. A gradient costs up to a third more, and keeps one activation a block
    instead of all that are inside it (Chen et al. 2016, training deep nets with sublinear memory).

    Args:
        block: a module, or a tree of modules that ``run`` knows how to call.
        x: what goes in.
        remat: whether to compute again.
        run: how the block is called.
    """
    if not remat:
        return run(block, x)
    again: Callable[[Any, Array], Array] = nnx.remat(run)
    return again(block, x)
