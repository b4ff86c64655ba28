"""The batch normalization of all built-in models."""

from __future__ import annotations

from functools import partial
from typing import Any

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
