"""What a walk through a model's jaxpr keeps: arrays, their axes, what is zero, products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from fairbilevel.masks._axes import Axis, Nodes, fixed, length, uniform

_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_CALL_NAMES = {
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
    "custom_vjp_call_jaxpr", "remat", "checkpoint", "remat2",
}  # fmt: skip


def called(eqn: Any) -> tuple[Any, Any] | None:
    """The jaxpr that an equation does nothing but call, and its constants."""
    inner = next((eqn.params[p] for p in _CALLS if p in eqn.params), None)
    if eqn.primitive.name not in _CALL_NAMES or inner is None:
        return None
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product: ``repeats`` times one multiply-add for each entry of a grid.

    Attributes:
        repeats: output positions of a convolution (pixels, rows), one for a matrix product.
        axes: of the grid; an axis that two operands share stands there as both have it.
        kernel: path name of the parameter that multiplies, and is zero where it is removed.
        operands: axes of both operands; empty where it is one of several in a loop or a branch.
        eqn: the equation, likewise.
    """

    repeats: int
    axes: tuple[tuple[Axis, ...], ...] = ()
    kernel: str | None = None
    operands: tuple[tuple[Axis, ...], ...] = ()
    eqn: Any = None


def positions(eqn: Any) -> int:
    """How often a convolution applies each entry of its kernel to a batch.

    Padding counts as entries do, as is usual. A transposed convolution applies its kernel at the
    positions of its input, not to the zeros between them.
    """
    spec, params = eqn.params["dimension_numbers"], eqn.params
    lhs, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    rows = out[spec.out_spec[0]]
    if any(step > 1 for step in params["lhs_dilation"]):
        return rows * math.prod(lhs[i] for i in spec.lhs_spec[2:])
    return rows * math.prod(out[i] for i in spec.out_spec[2:])


def multiply_adds_of(eqn: Any) -> int:
    """Multiply-adds of one equation, by shapes alone: all steps of a loop of known length, one of
    any other, the dearest branch."""
    name, params = eqn.primitive.name, eqn.params
    shapes = [v.aval.shape for v in eqn.invars if hasattr(v.aval, "shape")]
    if name == "conv_general_dilated":
        return positions(eqn) * math.prod(shapes[1])
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        summed = math.prod(shapes[0][i] for i in contracted)
        return summed * math.prod(eqn.outvars[0].aval.shape)
    if name == "cond":
        return max(_sum(branch) for branch in params["branches"])
    if name == "while":
        return _sum(params["cond_jaxpr"]) + _sum(params["body_jaxpr"])
    inner = next((params[p] for p in _CALLS if p in params), None)
    return 0 if inner is None else params.get("length", 1) * _sum(inner)


def _sum(jaxpr: Any) -> int:
    return sum(multiply_adds_of(eqn) for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns)


@dataclass(frozen=True)
class Leaf:
    """One array of the parameters, or of the state."""

    name: str
    shape: tuple[int, ...]
    state: bool = False


@dataclass(frozen=True)
class Kernel:
    """A parameter of two or more axes; ``order`` maps its present axes to the stored ones."""

    leaf: str
    order: tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """What is known of one array.

    Attributes:
        axes: what each axis is made of.
        zero: leaf axes (node numbers) at whose removed channels this array is zero.
        constant: its value, where all entries are one known number.
        kernel: the parameter it is, up to the order of its axes.
    """

    axes: tuple[Axis, ...]
    zero: frozenset[int] = frozenset()
    constant: float | None = None
    kernel: Kernel | None = None


def known(value: Any) -> Value:
    """A number, or an array of the model's own that is no parameter: its entries must stay."""
    shape = tuple(np.shape(value))
    array = np.asarray(value) if isinstance(value, (int, float, np.ndarray, np.generic)) else None
    if array is None and hasattr(value, "dtype") and jnp.issubdtype(value.dtype, np.number):
        array = np.asarray(value)
    if array is not None and array.size and np.issubdtype(array.dtype, np.number):
        first = array.reshape(-1)[0]
        if (array == first).all():
            return Value(tuple(uniform(n) for n in shape), constant=float(np.real(first)))
    return Value(tuple(fixed(n) for n in shape))


def spread_to(value: Value, shape: tuple[int, ...]) -> Value:
    """A value as an elementwise operation sees it: numbers and single entries fit everything."""
    if len(value.axes) != len(shape):
        return replace(value, axes=tuple(uniform(n) for n in shape))
    axes = tuple(
        uniform(n) if length(axis) == 1 else axis for axis, n in zip(value.axes, shape, strict=True)
    )
    return replace(value, axes=axes)


@dataclass
class Record:
    """All leaves and axes met so far.

    Attributes:
        nodes: the axes.
        leaves: parameters and state.
        leaf_axes: what each axis of each leaf is made of.
        owners: the leaf axis that a node number was made for.
        written: leaf axes whose entries make channels, and so are masked with them.
        found: kernels in the order in which data meets them: output axis and shape.
        products: convolutions and matrix products in the order in which they are computed.
    """

    nodes: Nodes = field(default_factory=Nodes)
    leaves: list[Leaf] = field(default_factory=list)
    leaf_axes: list[tuple[Axis, ...]] = field(default_factory=list)
    owners: dict[int, tuple[int, int]] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)
    found: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)

    def leaf(self, leaf: Leaf) -> Value:
        """The value of a parameter or state entry, with an axis of its own for each axis."""
        axes = tuple(self.nodes.new(n) for n in leaf.shape)
        ids = [(i, node) for i, axis in enumerate(axes) for _, node in axis]
        index = len(self.leaves)
        self.leaves.append(leaf)
        self.leaf_axes.append(axes)
        self.owners.update((node, (index, i)) for i, node in ids)
        if leaf.state:
            return Value(axes)
        kernel = Kernel(leaf.name, tuple(range(len(axes)))) if len(axes) >= 2 else None
        return Value(axes, frozenset(node for _, node in ids), kernel=kernel)

    def multiply(
        self, eqn: Any, repeats: int, axes: Sequence[tuple[Axis, ...]], operands: Sequence[Value]
    ) -> None:
        """A product over a grid of axes, of operands the second of which is a kernel if any is."""
        kernels = [v.kernel.leaf for v in reversed(operands) if v.kernel is not None and v.zero]
        whole = tuple(v.axes for v in operands)
        kernel = kernels[0] if kernels else None
        self.products.append(Product(repeats, tuple(axes), kernel, whole, eqn))

    def write(self, axis: Axis) -> None:
        """Entries along these leaf axes make channels."""
        self.written.update(
            node for _, node in axis if node in self.owners and not self.is_state(node)
        )

    def is_state(self, node: int) -> bool:
        """Whether a leaf axis belongs to the state."""
        return self.leaves[self.owners[node][0]].state

    def of(self, claim: int) -> frozenset[int]:
        """Standing nodes of the leaf axis that a claim names."""
        leaf, axis = self.owners[claim]
        return self.nodes.free_to_go(self.leaf_axes[leaf][axis])

    def silent(self, value: Value) -> frozenset[int]:
        """Nodes at whose removed entries a value is zero. Only what is masked can be relied on."""
        claims = [self.of(c) for c in value.zero if c in self.written]
        return frozenset().union(*claims)

    def both(self, values: Sequence[Value]) -> frozenset[int]:
        """Claims that hold for the sum of values."""
        values = [v for v in values if v.constant != 0]
        if not values:
            return frozenset()
        silent = [self.silent(v) for v in values]
        claims = frozenset().union(*(v.zero for v in values))
        if len(values) == 1:
            return claims
        return frozenset(c for c in claims if all(self.of(c) <= s for s in silent))

    def within(self, value: Value, axes: Sequence[Axis], less: Sequence[Axis]) -> frozenset[int]:
        """Claims of an operand that speak of ``axes``, not of the contracted ones."""
        gone = {node for axis in less for _, node in axis}
        kept = {node for axis in axes for _, node in axis}
        nodes = frozenset().union(*(self.nodes.free_to_go(a) for a in axes))
        return frozenset(
            c for c in value.zero if (c not in gone or c in kept) and self.of(c) & nodes
        )

    def read(self, operands: Sequence[Value], axes: Sequence[Axis]) -> None:
        """A contraction over axes that are the same: removed entries must be zero on one side."""
        joint: Axis = ()
        for axis in axes:
            joint = self.nodes.unify(joint, axis) if joint else axis
        silent = frozenset().union(*(self.silent(v) for v in operands))
        for node in self.nodes.free_to_go(joint) - silent:
            self.nodes.locked[node] = True
