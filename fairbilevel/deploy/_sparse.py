"""Products with a dense layer's kernel that is mostly zeros: by what is left of it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Entries of an output that are summed in one pass: more of them no longer stay in registers.
_AT_ONCE = 6
# What a line beyond an output's first costs where lines are added up, in entries.
_LINE_COST = 24


class SparseKernel(NamedTuple):
    """What is left of a kernel, in lines of one length (the ELLPACK format, long rows folded).

    Every output has a line; what does not fit into it stands in further lines behind them. XLA
    makes one loop over vectors of rows of it, on all cores. With 2,048 neurons and a twentieth of
    their weights it takes two thirds of the time of ``jax.experimental.sparse`` at 32 rows, and a
    sixth at one.

    Attributes:
        inputs: uint16 or int32 ``[length / 6, 6, lines]``, what an entry takes; 0 where a line
            is not full.
        weights: ``[length / 6, 6, lines]``, what it is multiplied by, likewise.
        owner: int32 ``[lines - outputs]``, the output of each further line.
    """

    inputs: Int[np.ndarray, "passes 6 lines"]
    weights: Float[np.ndarray, "passes 6 lines"]
    owner: Int[np.ndarray, " further"]

    @staticmethod
    def of(kernel: Float[np.ndarray, "inputs outputs"]) -> SparseKernel:
        """The nonzero entries of a kernel, in lines as long as costs least."""
        count = np.count_nonzero(kernel, axis=0)
        lengths = np.arange(_AT_ONCE, max(count.max(), 1) + _AT_ONCE, _AT_ONCE)

        def cost(length: int) -> int:
            further = np.maximum(-(-count // length) - 1, 0).sum()
            return (len(count) + further) * length + _LINE_COST * further

        length = int(min(lengths, key=cost))
        output, entry = np.nonzero(kernel.T)
        place = np.arange(len(output)) - (np.cumsum(count) - count)[output]  # within the output
        turn = place // length
        further, owner = np.unique(
            np.stack([output, turn], 1)[turn > 0], axis=0, return_inverse=True
        )
        line = output.copy()
        line[turn > 0] = kernel.shape[1] + owner
        shape = length, kernel.shape[1] + len(further)
        narrow = np.uint16 if len(kernel) <= 2**16 else np.int32  # less to read: a tenth quicker
        index, value = np.zeros(shape, narrow), np.zeros(shape, kernel.dtype)
        index[place % length, line], value[place % length, line] = entry, kernel[entry, output]
        passes = (-1, _AT_ONCE, shape[1])
        return SparseKernel(
            index.reshape(passes), value.reshape(passes), further[:, 0].astype(np.int32)
        )

    def __call__(self, x: Float[Array, "rows inputs"]) -> Float[Array, "rows outputs"]:
        """``x @ kernel``."""
        columns = x.T
        lines = self.inputs.shape[-1]

        def more(total: Array, entries: tuple[Array, Array]) -> tuple[Array, None]:
            for index, value in zip(*entries, strict=True):
                total += value[:, None] * columns.at[index].get(mode="promise_in_bounds")
            return total, None

        start = jnp.zeros((lines, len(x)), jnp.result_type(x, self.weights))
        total, _ = jax.lax.scan(more, start, (jnp.asarray(self.inputs), jnp.asarray(self.weights)))
        outputs = lines - len(self.owner)
        return total[:outputs].at[self.owner].add(total[outputs:]).T
