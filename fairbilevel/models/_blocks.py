"""What built-in models share: batch normalization, padding, and blocks computed again."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from flax import nnx
from jaxtyping import Array


class BatchNorm(nnx.BatchNorm):
    """Flax's, whose result has the input's type.

    Statistics are float32 whatever comes in, and Flax's own would hand their type on, so that
    everything behind the first norm of a network in bfloat16 would be computed in float32.
    """

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Array:
        """Normalized channels."""
        return super().__call__(x, *args, **kwargs).astype(x.dtype)


# The field's usual value; Flax's 0.99 would still remember the dense network's statistics hundreds
# of steps after pruning changed them.
batch_norm = partial(BatchNorm, momentum=0.9)


Padding = Literal["same", "symmetric"]
"""Pixels around an image before a strided convolution: ``"same"`` as JAX and TensorFlow place them,
one fewer before than behind where their number is odd; ``"symmetric"`` as torch does, half of the
window on every side. They differ where the stride is 2 and the image's size even."""


def around(window: int, padding: Padding) -> str | tuple[tuple[int, int], tuple[int, int]]:
    """The padding of a window of odd size, as convolutions and poolings take it."""
    half = window // 2
    return "SAME" if padding == "same" else ((half, half), (half, half))


def run_block(
    block: Any, x: Array, remat: bool, run: Callable[[Any, Array], Array] = operator.call
) -> Array:
    """``run(block, x)``; with ``remat`` the backward pass keeps ``x`` alone and runs it again.

    ``block`` is a module, or a tree of modules that ``run`` knows how to call. The values are the
    same. A gradient costs up to a third more, and keeps one activation a block instead of all that
    are inside it (Chen et al. 2016, training deep nets with sublinear memory).
    """
    if not remat:
        return run(block, x)
    again: Callable[[Any, Array], Array] = nnx.remat(run)
    return again(block, x)
