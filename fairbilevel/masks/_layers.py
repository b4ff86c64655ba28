"""Prunable layers, found by following the channels of every kernel through the model's jaxpr.

No naming convention is trusted: a kernel is what a convolution or matrix product multiplies
features by, and its companions (bias, scale and shift of the following norm) are the vectors later
combined with its output channels before those meet another layer's. So the same code serves
``flax.nnx``, ``flax.linen`` and bare functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from fairbilevel._trees import flatten_named


@dataclass(frozen=True)
class Layer:
    """A convolution or dense layer that can be pruned.

    Attributes:
        name: path of the kernel without its last part (``"blocks/0/conv1"``).
        kernel: path name of the kernel in the parameters.
        out_axis: axis of the kernel that holds output channels (filters, neurons).
        shape: shape of the kernel.
        companions: path names of the vectors (bias, norm scale and shift) that act on this layer's
            output channels alone; at granularity ``filter`` the mask multiplies them too, so that
            a removed filter outputs exactly zero.
        classifier: its outputs are the logits.
        essential: without this layer the logits no longer depend on the input, so at least one of
            its units is always kept.
    """

    name: str
    kernel: str
    out_axis: int
    shape: tuple[int, ...]
    companions: tuple[str, ...] = ()
    classifier: bool = False
    essential: bool = False


@dataclass(frozen=True)
class _Vector:
    """A value made of channel vectors of parameters; ``axis`` is where the channels lie."""

    leaves: frozenset[str]
    axis: int | None


@dataclass(frozen=True)
class _Kernel:
    """A parameter of two or more axes; ``order`` maps its present axes to the stored ones."""

    leaf: str
    order: tuple[int, ...]


@dataclass(frozen=True)
class _Feature:
    """Activations whose ``axis`` holds the output channels of ``layers``."""

    layers: frozenset[str]
    axis: int


@dataclass
class _Trace:
    found: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    companions: dict[str, list[str]] = field(default_factory=dict)

    def layer(self, kernel: _Kernel, axis: int, shape: tuple[int, ...]) -> None:
        self.found.setdefault(kernel.leaf, (kernel.order[axis], shape))
        self.companions.setdefault(kernel.leaf, [])

    def attach(self, layers: frozenset[str], leaves: frozenset[str]) -> None:
        # Channels shared by several layers (after a residual addition) belong to none of them.
        if len(layers) == 1:
            known = self.companions[next(iter(layers))]
            known.extend(sorted(leaves - set(known)))


_ELEMENTWISE_PASS = {
    "convert_element_type", "copy", "copy_p", "neg", "exp", "log", "log1p", "expm1", "tanh", "sqrt",
    "rsqrt", "logistic", "abs", "sign", "square", "integer_pow", "erf", "cbrt", "floor", "ceil",
    "stop_gradient", "reduce_precision", "optimization_barrier",
}  # fmt: skip
_ELEMENTWISE_JOIN = {"add", "sub", "mul", "div", "max", "min", "pow", "select_n", "add_any"}
_POOLING = {"reduce_window_max", "reduce_window_sum", "reduce_window_min", "reduce_window"}


def _moved_axis(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """Where ``axis`` of shape ``before`` lies after a reshape to ``after``, if it stays whole."""
    ahead = 1
    for n in before[:axis]:
        ahead *= n
    product = 1
    for i, n in enumerate(after):
        if product == ahead and n == before[axis]:
            return i
        product *= n
    return None


def _remap(value: Any, eqn: Any, shape: Sequence[int]) -> Any:
    """Follow one traced value through an axis-moving primitive, or lose it (``None``)."""
    name, params = eqn.primitive.name, eqn.params
    if name in _ELEMENTWISE_PASS:
        return value
    if name == "transpose":
        permutation = params["permutation"]
        if isinstance(value, _Kernel):
            return _Kernel(value.leaf, tuple(value.order[p] for p in permutation))
        if value.axis is None:
            return value
        return _at(value, permutation.index(value.axis))
    if isinstance(value, _Kernel):
        return None
    axis = value.axis
    if name == "broadcast_in_dim":
        return value if axis is None else _at(value, params["broadcast_dimensions"][axis])
    if axis is None:
        return None
    if name in ("reshape", "squeeze", "expand_dims"):
        new = _moved_axis(shape, eqn.outvars[0].aval.shape, axis)
    elif name in ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin"):
        axes = params["axes"]
        new = None if axis in axes else axis - sum(a < axis for a in axes)
    elif name in _POOLING or name in ("pad", "slice", "rev", "cumsum"):
        new = axis if eqn.outvars[0].aval.shape[axis] == shape[axis] else None
    else:
        new = None
    return None if new is None else _at(value, new)


def _at(value: Any, axis: int) -> Any:
    if isinstance(value, _Vector):
        return _Vector(value.leaves, axis)
    return _Feature(value.layers, axis)


def _join(trace: _Trace, values: list[Any]) -> Any:
    """Follow an elementwise combination, attaching vectors to the channels they act on."""
    features = [v for v in values if isinstance(v, _Feature)]
    vectors = [v for v in values if isinstance(v, _Vector)]
    if features:
        axis = features[0].axis
        if any(f.axis != axis for f in features):
            return None
        layers = frozenset().union(*(f.layers for f in features))
        for vector in vectors:
            if vector.axis == axis:
                trace.attach(layers, vector.leaves)
        return _Feature(layers, axis)
    if vectors and all(v.axis == vectors[0].axis for v in vectors):
        return _Vector(frozenset().union(*(v.leaves for v in vectors)), vectors[0].axis)
    return None


def _contract(trace: _Trace, eqn: Any, values: list[Any]) -> Any:
    """A convolution or matrix product: a new layer if one side is a kernel."""
    shapes = [v.aval.shape for v in eqn.invars]
    if eqn.primitive.name == "conv_general_dilated":
        spec, kernel = eqn.params["dimension_numbers"], values[1]
        if not isinstance(kernel, _Kernel):
            return None
        trace.layer(kernel, spec.rhs_spec[0], shapes[1])
        return _Feature(frozenset({kernel.leaf}), spec.out_spec[1])
    (contracted, batched) = eqn.params["dimension_numbers"]
    for side in (1, 0):
        kernel = values[side]
        if not isinstance(kernel, _Kernel) or batched[side]:
            continue
        free = [a for a in range(len(shapes[side])) if a not in contracted[side]]
        if len(free) != 1:
            return None
        other = len(shapes[1 - side]) - len(contracted[1 - side])
        trace.layer(kernel, free[0], shapes[side])
        return _Feature(frozenset({kernel.leaf}), other if side == 1 else 0)
    return None


def _follow(trace: _Trace, jaxpr: Any, inputs: Sequence[Any]) -> list[Any]:
    env: dict[Any, Any] = {v: i for v, i in zip(jaxpr.invars, inputs, strict=True) if i is not None}

    def read(atom: Any) -> Any:
        return None if isinstance(atom, jex_core.Literal) else env.get(atom)

    for eqn in jaxpr.eqns:
        values = [read(v) for v in eqn.invars]
        if all(v is None for v in values):
            continue
        name = eqn.primitive.name
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        outs: list[Any]
        if inner is not None and name not in ("scan", "while"):
            outs = _follow(trace, getattr(inner, "jaxpr", inner), values)
        elif name in ("conv_general_dilated", "dot_general"):
            outs = [_contract(trace, eqn, values)]
        elif name in _ELEMENTWISE_JOIN:
            outs = [_join(trace, [_expand(v, eqn, i) for i, v in enumerate(values)])]
        elif values[0] is not None:
            outs = [_remap(values[0], eqn, eqn.invars[0].aval.shape)] * len(eqn.outvars)
        else:
            outs = [None] * len(eqn.outvars)
        env.update((v, o) for v, o in zip(eqn.outvars, outs, strict=True) if o is not None)
    return [read(v) for v in jaxpr.outvars]


def _expand(value: Any, eqn: Any, index: int) -> Any:
    """A one-entry channel axis (broadcast by the elementwise operation) carries no channels."""
    if isinstance(value, (_Vector, _Feature)) and value.axis is not None:
        out, own = eqn.outvars[0].aval.shape, eqn.invars[index].aval.shape
        if len(own) == len(out) and own[value.axis] != out[value.axis]:
            return None
    return value


def _leaf(name: str, shape: tuple[int, ...]) -> Any:
    if len(shape) >= 2:
        return _Kernel(name, tuple(range(len(shape))))
    return _Vector(frozenset({name}), 0) if len(shape) == 1 else None


def find_layers(
    apply: Callable[..., Any], params: Any, state: Any, sample: Any
) -> tuple[Layer, ...]:
    """The convolution and dense layers of a model, in the order in which data meets them.

    Args:
        apply: ``apply(params, state, x, train, key) -> (logits, state)``.
        params: nested dictionary of arrays.
        state: normalization statistics and the like.
        sample: float ``[rows, ...]`` with at least two different rows; decides which layers the
            logits cannot do without.

    Returns:
        One ``Layer`` per kernel, classifier included (``classifier=True``).

    Raises:
        ValueError: no layer was found (the model multiplies its input by no parameter).
    """
    key = jax.random.key(0)

    def logits(p: Any, s: Any, x: Any) -> Any:
        return apply(p, s, x, False, key)[0]

    closed = jax.make_jaxpr(logits)(params, state, sample)
    named = flatten_named(params)
    inputs = [_leaf(name, jnp.shape(leaf)) for name, leaf in named.items()]
    inputs += [None] * (len(closed.jaxpr.invars) - len(inputs))
    trace = _Trace()
    (out,) = _follow(trace, closed.jaxpr, inputs)
    if not trace.found:
        raise ValueError(
            "no prunable layer found: the model multiplies its input by no parameter of two or "
            "more axes through a convolution or matrix product"
        )
    heads = out.layers if isinstance(out, _Feature) and out.axis == 1 else frozenset()
    essential = _essential(logits, params, state, sample, tuple(trace.found))
    return tuple(
        Layer(
            name=kernel.rsplit("/", 1)[0] if "/" in kernel else kernel,
            kernel=kernel,
            out_axis=axis,
            shape=tuple(shape),
            companions=tuple(c for c in trace.companions[kernel] if jnp.size(named[c]) > 1),
            classifier=kernel in heads,
            essential=kernel in essential,
        )
        for kernel, (axis, shape) in trace.found.items()
    )


def _essential(
    logits: Callable[..., Any], params: Any, state: Any, sample: Any, kernels: tuple[str, ...]
) -> frozenset[str]:
    """Kernels whose removal makes the logits the same for every row."""
    leaves, structure = jax.tree.flatten(params)
    where = {name: i for i, name in enumerate(flatten_named(params))}

    def depends_on_input(removed: Any) -> Any:
        changed = [jnp.where(removed == i, 0, leaf) for i, leaf in enumerate(leaves)]
        out = logits(jax.tree.unflatten(structure, changed), state, sample)
        return jnp.any(out != out[:1])

    check = jax.jit(depends_on_input)
    return frozenset(kernel for kernel in kernels if not bool(check(where[kernel])))


def select_layers(layers: Sequence[Layer], *, prune_classifier: bool = False) -> tuple[Layer, ...]:
    """The layers that pruning touches: all but the classifier unless asked.

    Raises:
        ValueError: nothing is left to prune (a linear model without ``prune_classifier``).
    """
    chosen = tuple(layer for layer in layers if prune_classifier or not layer.classifier)
    if not chosen:
        raise ValueError(
            "nothing to prune: the classifier is the model's only layer; ask for it with "
            "prune_classifier"
        )
    return chosen
