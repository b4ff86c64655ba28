"""Following every channel of a model through its jaxpr.

Each value carries, for each of its axes, what the axis is made of (``_axes``), and which parameters
make it zero where their channel is removed. Two things decide whether a channel can go:

* *consistency*: whatever meets it entry by entry (the other side of a residual addition, a norm's
  scale and shift, a depthwise kernel, the other projections of an attention head) goes with it;
* *silence*: whatever reads it (the next kernel, an attention product) must read zeros. A channel
  that reaches its reader as a constant (after a sigmoid, say) must stay, and so must one that is
  mixed with others on the way (a mean over channels, as in layer normalization).

What this file does not know is locked, which costs units and never correctness.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from fairbilevel._trees import flatten_named
from fairbilevel.masks._axes import FIXED, FREE, Axis, fixed, length, uniform
from fairbilevel.masks._moves import RULES
from fairbilevel.masks._record import (
    Kernel,
    Leaf,
    Product,
    Record,
    Value,
    called,
    known,
    multiply_adds_of,
    positions,
    spread_to,
)

# Zero where their argument is zero.
ODD = {
    "convert_element_type", "sharding_constraint", "copy", "copy_p", "neg", "log1p", "expm1",
    "tanh", "sin", "tan", "asin", "atan", "sinh", "asinh", "atanh", "sqrt", "abs", "sign", "square",
    "erf", "erf_inv", "cbrt", "floor", "ceil", "round", "stop_gradient", "reduce_precision", "real",
    "imag", "integer_pow",
}  # fmt: skip
_UNARY = ODD | {
    "exp", "exp2", "log", "rsqrt", "logistic", "erfc", "cos", "cosh", "acos", "acosh", "lgamma",
    "digamma", "is_finite", "not",
}  # fmt: skip
_NARY = {
    "add", "sub", "mul", "div", "max", "min", "pow", "select_n", "add_any", "rem", "atan2", "clamp",
    "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "nextafter",
}  # fmt: skip
ENTRYWISE = _UNARY | _NARY


@dataclass
class Trace(Record):
    """The walk."""

    def follow(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        """Walk a jaxpr; the values of its outputs."""
        env: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        env.update((v, known(c)) for v, c in zip(jaxpr.constvars, consts, strict=True))

        def read(atom: Any) -> Value:
            return known(atom.val) if isinstance(atom, jex_core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            values = [read(v) for v in eqn.invars]
            outs = self._equation(eqn, values)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, values: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        shapes = [tuple(getattr(v.aval, "shape", ())) for v in eqn.outvars]
        if (inner := called(eqn)) is not None:
            return self.follow(*inner, values)
        if name in _UNARY:
            value = values[0]
            if name in ("convert_element_type", "sharding_constraint"):
                return [value]
            keeps = name in ODD and eqn.params.get("y", 1) > 0
            zero = value.zero if keeps else frozenset()
            constant = 0.0 if keeps and value.constant == 0 else None
            return [Value(value.axes, zero, constant, value.kernel)]
        if name == "optimization_barrier":
            return values
        if name in _NARY:
            return [self._elementwise(name, values, shapes[0])]
        if name == "dot_general":
            return [self._dot(eqn, values)]
        outs: list[Value] | None = None
        if name == "conv_general_dilated":
            outs = self._convolution(eqn, values, shapes)
        elif name in RULES:
            outs = RULES[name](self, eqn, values, shapes)
        if outs is None:
            for value in values:
                self.nodes.lock(*value.axes)
            if count := multiply_adds_of(eqn):
                self.products.append(Product(count))
            outs = [Value(tuple(fixed(n) for n in shape)) for shape in shapes]
        return outs

    def _elementwise(self, name: str, values: list[Value], shape: tuple[int, ...]) -> Value:
        spread = [spread_to(v, shape) for v in values]
        axes: list[Axis] = []
        for operands in zip(*(v.axes for v in spread), strict=True):
            labelled = [a for a in operands if any(node != FREE for _, node in a)]
            if len(labelled) > 1:
                for axis in labelled:
                    self.write(axis)
            merged: Axis = uniform(shape[len(axes)])
            for axis in labelled:
                merged = self.nodes.unify(merged, axis)
            # A whole axis keeps the numbers it came with, by which its reader is known.
            whole = [a for a in labelled if all(node not in (FREE, FIXED) for _, node in a)]
            axes.append(whole[0] if whole else merged)
        constants = [v.constant for v in spread]
        zero: frozenset[int] = frozenset()
        if name == "mul":
            zero = frozenset().union(*(v.zero for v in spread))
        elif name in ("add", "sub", "add_any"):
            zero = self.both(spread)
        elif name in ("div", "rem", "pow"):
            zero = spread[0].zero if name != "pow" or (constants[1] or 0) > 0 else frozenset()
        elif name == "select_n":
            zero = self.both(spread[1:])
        elif name in ("max", "min"):
            sign = 1 if name == "max" else -1
            if all(sign * c <= 0 for c in constants if c is not None):
                zero = self.both([v for v in spread if v.constant is None])
        elif name == "clamp":
            low, high = constants[0], constants[2]
            if low is not None and high is not None and low <= 0 <= high:
                zero = spread[1].zero
        constant = None
        if name in _ARITHMETIC and None not in constants:
            constant = _ARITHMETIC[name](*constants)
        return Value(tuple(axes), zero, constant)

    def _dot(self, eqn: Any, values: list[Value]) -> Value:
        contracted, batch = eqn.params["dimension_numbers"]
        for side in (1, 0):
            kernel = values[side].kernel
            if kernel is None or batch[side]:
                continue
            free = [i for i in range(len(values[side].axes)) if i not in contracted[side]]
            if free:
                self._layer(kernel, free[0], eqn.invars[side].aval.shape)
            break
        shared = (*zip(*contracted, strict=True), *zip(*batch, strict=True))
        grid: list[tuple[Axis, ...]] = [(values[0].axes[a], values[1].axes[b]) for a, b in shared]
        for side, value in enumerate(values):
            met = (*contracted[side], *batch[side])
            grid += [(axis,) for i, axis in enumerate(value.axes) if i not in met]
        self.multiply(eqn, 1, grid, values)
        axes: list[Axis] = []
        for a, b in zip(*batch, strict=True):
            one, other = values[0].axes[a], values[1].axes[b]
            self.write(one)
            self.write(other)
            joint = self.nodes.unify(one, other)
            axes.append(one if all(node != FREE for _, node in one) else joint)
        zero: frozenset[int] = frozenset()
        for side, value in enumerate(values):
            gone = [value.axes[i] for i in contracted[side]]
            free = [i for i in range(len(value.axes)) if i not in contracted[side]]
            for i in free:
                if i not in batch[side]:
                    self.write(value.axes[i])
                    axes.append(value.axes[i])
            zero |= self.within(value, [value.axes[i] for i in free], gone)
        for a, b in zip(*contracted, strict=True):
            self.read(values, (values[0].axes[a], values[1].axes[b]))
        # Where channels stand on both sides (as in a Gram matrix), zeros on one say nothing of the
        # other.
        roots = [node for axis in axes for node in self.nodes.free_to_go(axis)]
        for node in roots:
            if roots.count(node) > 1:
                self.nodes.locked[node] = True
        return Value(tuple(axes), zero)

    def _layer(self, kernel: Kernel, axis: int, shape: tuple[int, ...]) -> None:
        stored = [0] * len(shape)
        for now, then in enumerate(kernel.order):
            stored[then] = shape[now]
        self.found.setdefault(kernel.leaf, (kernel.order[axis], tuple(stored)))

    def _convolution(self, eqn: Any, values: list[Value], shapes: Any) -> list[Value] | None:
        spec, kernel = eqn.params["dimension_numbers"], values[1].kernel
        if kernel is not None:
            self._layer(kernel, spec.rhs_spec[0], eqn.invars[1].aval.shape)
        if eqn.params["batch_group_count"] != 1:
            return None
        lhs, rhs = values
        self.multiply(eqn, positions(eqn), [(axis,) for axis in rhs.axes], values)
        source = lhs.axes[spec.lhs_spec[1]]
        target, entry = (rhs.axes[i] for i in spec.rhs_spec[:2])
        self.nodes.lock(*(lhs.axes[i] for i in spec.lhs_spec[2:]))
        self.nodes.lock(*(rhs.axes[i] for i in spec.rhs_spec[2:]))
        self.write(target)
        groups = eqn.params["feature_group_count"]
        if groups == 1:
            self.read(values, (source, entry))
            zero = self.within(rhs, [target], [entry])
        else:
            # Input channels are (group, channel of the group), output channels (group, filter).
            # A group goes as a whole; depthwise, that is one channel.
            within = length(entry)
            group = self.nodes.new(groups)
            inside = self.nodes.new(within)
            self.nodes.unify(source, group + inside)
            self.nodes.unify(target, group + self.nodes.new(length(target) // groups))
            if within > 1:
                self.read(values, (inside, entry))
            zero = self.within(lhs, [group], [inside]) | self.within(rhs, [target], [entry])
        out: list[Axis] = [()] * len(lhs.axes)
        out[spec.out_spec[0]] = lhs.axes[spec.lhs_spec[0]]
        out[spec.out_spec[1]] = target
        for i in spec.out_spec[2:]:
            out[i] = fixed(shapes[0][i])
        return [Value(tuple(out), zero)]


def walk(
    apply: Callable[..., Any], params: Any, state: Any, sample: Any
) -> tuple[Trace, Any, list[Value]]:
    """The walk through a model in evaluation mode, its jaxpr, and the logits."""
    key = jax.random.key(0)

    def logits(p: Any, s: Any, x: Any) -> Any:
        return apply(p, s, x, False, key)[0]

    closed = jax.make_jaxpr(logits)(params, state, sample)
    trace = Trace()
    inputs = [trace.leaf(Leaf(n, jnp.shape(v))) for n, v in flatten_named(params).items()]
    inputs += [trace.leaf(Leaf(n, jnp.shape(v), True)) for n, v in flatten_named(state).items()]
    rest = [tuple(fixed(n) for n in v.aval.shape) for v in closed.jaxpr.invars[len(inputs) :]]
    outs = trace.follow(closed.jaxpr, closed.consts, inputs + [Value(axes) for axes in rest])
    return trace, closed, outs


_ARITHMETIC: dict[str, Callable[..., float]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "max": max, "min": min,
}  # fmt: skip
