"""A pruned network as it is served: channels cut out, zeros of dense layers not multiplied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core as jex_core
from jaxtyping import Array, Float, Int

from fairbilevel import masks, models
from fairbilevel._trees import flatten_named
from fairbilevel.deploy._model import ModelFiles
from fairbilevel.train import Solution

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


# Share of zeros from which a dense layer is multiplied by what is left alone: below, CPUs are
# faster with all of it (batches of 32: level at 0.9 with 256 neurons, near 0.85 with 1,024).
SPARSE_FROM = 0.9


class Compact(NamedTuple):
    """A network without what was pruned.

    Attributes:
        model: the pure functions; they take their widths from the arrays.
        params: parameters, removed channels cut out; removed single weights are zero.
        state: normalization statistics, cut likewise.
    """

    model: models.Model
    params: Any
    state: Any

    @property
    def module(self) -> nnx.Module:
        """The same as a ``flax.nnx`` module, in evaluation mode.

        Raises:
            ValueError: the model is not made of one.
        """
        if self.model.module is None:
            raise ValueError(f"{self.model.name!r} was not made of a flax.nnx module")
        return self.model.module(self.params, self.state)


def compact(source: Solution | ModelFiles) -> Compact:
    """The network that is left, to run or to train on as any other of its library.

    Args:
        source: what ``fb.solve`` or ``fb.load_run`` returned.

    Returns:
        Model, parameters, state. At granularity ``filter`` arrays are smaller and the logits those
        of the masked network (up to rounding); at granularity ``weight`` they are as they were:
        zeros of convolutions cannot be cut out. Of a removed block one zero channel stays, which
        is not computed where the network is exported or run by ``forward``. ``fb.masks.wrap``
        keeps zeros zero in training.

    Raises:
        ValueError: neither a solution nor a run.
    """
    given = ModelFiles.of(source)
    params, state = given.network.params, given.network.state
    if given.granularity != "weight":
        hard = given.masks
        if given.granularity == "block":
            hard = masks.filters_of(hard, given.layers)
        params, state = masks.compact(hard, params, state, given.layers)
    return Compact(given.model, params, state)


def in_bfloat16(network: Compact) -> Compact:
    """The same, parameters rounded to bfloat16 and multiplied in it; logits come out in float32."""
    model = models.in_precision(network.model, "bfloat16")
    return Compact(model, models.rounded(network.params), network.state)


Forward = Callable[[Array], Float[Array, "rows classes"]]


def forward(network: Compact, *, sparse_layers: bool = False) -> Forward:
    """Logits, float32, of rows as the model takes them, in evaluation mode: a pure function.

    Args:
        network: what runs; its parameters become constants of the function.
        sparse_layers: multiply dense layers that are mostly zeros (``SPARSE_FROM``) by what is left
            of them. A gain on CPUs; convolutions stay as they are.
    """
    model, params, state = network

    def logits(params: Any, x: Array) -> Array:
        out, _ = model.apply(params, state, x, False, jax.random.key(0))
        return out.astype(jnp.float32)

    leaves = flatten_named(params)
    zero = {name for name, leaf in leaves.items() if np.size(leaf) and not np.any(leaf)}
    names = mostly_zero(params) if sparse_layers else ()
    kernels = {name: SparseKernel.of(np.asarray(leaves[name])) for name in names}
    if not kernels and all(np.ndim(leaves[name]) < 2 for name in zero):
        return lambda x: logits(params, x)
    values = [
        _Zero(tuple(np.shape(leaf)), leaf.dtype)
        if name in zero
        else _Kernel(leaf, kernels.get(name))
        for name, leaf in leaves.items()
    ]

    def simplified(x: Array) -> Array:
        closed = jax.make_jaxpr(logits)(params, x)
        (out,) = _evaluate(closed.jaxpr, closed.consts, [*values, x])
        return _plain(out)

    return simplified


def mostly_zero(params: Any) -> tuple[str, ...]:
    """Names of the dense layers' kernels that ``sparse_layers`` multiplies by what is left."""
    return tuple(
        name
        for name, leaf in flatten_named(params).items()
        if np.ndim(leaf) == 2 and np.mean(np.asarray(leaf) == 0) >= SPARSE_FROM
    )


@dataclass(frozen=True)
class _Kernel:
    """A parameter on its way to what uses it."""

    dense: Any
    sparse: SparseKernel | None


@dataclass(frozen=True)
class _Zero:
    """Zeros that are not computed: of a removed block."""

    shape: tuple[Any, ...]
    dtype: Any


def _plain(value: Any) -> Any:
    if isinstance(value, _Zero):
        return jnp.zeros(value.shape, value.dtype)
    return value.dense if isinstance(value, _Kernel) else value


def _without_zeros(eqn: Any, given: list[Any]) -> list[Any] | None:
    """Results of an equation some of whose operands are zeros, where it need not be computed."""
    zeros = [isinstance(g, _Zero) for g in given]
    if not any(zeros):
        return None
    outs = [(tuple(v.aval.shape), v.aval.dtype) for v in eqn.outvars]
    if masks.stays_zero(eqn.primitive.name, zeros):
        return [_Zero(*out) for out in outs]
    if eqn.primitive.name in ("add", "add_any"):
        (other,) = (g for g, zero in zip(given, zeros, strict=True) if not zero)
        value = _plain(other)
        # Its attributes: a converter's ``jnp.shape`` gives an array.
        if (tuple(np.shape(value)), getattr(value, "dtype", None)) == outs[0]:
            return [other]
    return None


def _evaluate(jaxpr: Any, consts: Any, arguments: list[Any]) -> list[Any]:
    """The outputs of a program: sparse kernels used where they can be, zeros not computed."""
    names = [*jaxpr.constvars, *jaxpr.invars]
    known: dict[Any, Any] = dict(zip(names, [*consts, *arguments], strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, jex_core.Literal) else known[v]

    for eqn in jaxpr.eqns:
        given = [read(v) for v in eqn.invars]
        inner = next((p for p in eqn.params.values() if isinstance(p, jex_core.ClosedJaxpr)), None)
        reached = any(isinstance(g, _Kernel) and g.sparse is not None for g in given)
        worth = reached or any(isinstance(g, _Zero) for g in given)  # of a call: to be opened
        without = _without_zeros(eqn, given)
        if without is not None:
            out = without
        elif reached and _multiplies_rows(eqn):
            out = [_product(given[0], given[1].sparse)]
        elif eqn.primitive.name in _CALLS and inner is not None and worth:
            out = _evaluate(inner.jaxpr, inner.consts, given)
        else:
            how = eqn.primitive.get_bind_params(eqn.params)
            functions, options = how if isinstance(how, tuple) else ([], how)
            out = eqn.primitive.bind(*functions, *map(_plain, given), **options)
            out = list(out) if eqn.primitive.multiple_results else [out]
        known.update(zip(eqn.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]


_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "checkpoint",
)


def _multiplies_rows(eqn: Any) -> bool:
    """Whether an equation is ``x @ kernel``."""
    if eqn.primitive.name != "dot_general":
        return False
    (of_x, of_kernel), batches = eqn.params["dimension_numbers"]
    x = eqn.invars[0].aval
    return tuple(of_x) == (x.ndim - 1,) and tuple(of_kernel) == (0,) and batches == ((), ())


def _product(x: Any, kernel: SparseKernel) -> Array:
    x = _plain(x)
    found = kernel(x.reshape(-1, x.shape[-1]))
    return found.reshape(*x.shape[:-1], found.shape[-1])
