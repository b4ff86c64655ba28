"""Primitives that move, cut or reduce axes: what becomes of the channels along them.

A rule gives the values of an equation's outputs, or ``None`` where it cannot follow them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fairbilevel.masks._axes import Axis, fixed, length, uniform
from fairbilevel.masks._record import Record, Value

REDUCTIONS = (
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin", "reduce_and",
    "reduce_or",
)  # fmt: skip
CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
POOLING = ("reduce_window_max", "reduce_window_sum", "reduce_window_min", "reduce_window")


def _transpose(record: Record, eqn: Any, values: list[Value], shapes: Any) -> list[Value]:
    permutation, value = eqn.params["permutation"], values[0]
    kernel = value.kernel and replace(
        value.kernel, order=tuple(value.kernel.order[p] for p in permutation)
    )
    axes = tuple(value.axes[p] for p in permutation)
    return [replace(value, axes=axes, kernel=kernel)]


def _broadcast(record: Record, eqn: Any, values: list[Value], shapes: Any) -> list[Value]:
    axes = [uniform(n) for n in shapes[0]]
    for own, there in enumerate(eqn.params["broadcast_dimensions"]):
        axis = values[0].axes[own]
        if length(axis) == shapes[0][there]:
            axes[there] = axis
    return [replace(values[0], axes=tuple(axes), kernel=None)]


def _reshape(record: Record, eqn: Any, values: list[Value], shapes: Any) -> list[Value] | None:
    if eqn.primitive.name == "reshape" and eqn.params["dimensions"] is not None:
        return None
    axes = record.nodes.regroup(list(values[0].axes), shapes[0])
    if axes is None:
        return None
    return [replace(values[0], axes=tuple(axes), kernel=None)]


def _reduce(record: Record, eqn: Any, values: list[Value], shapes: Any) -> list[Value]:
    gone, value = eqn.params["axes"], values[0]
    record.nodes.lock(*(value.axes[a] for a in gone))
    axes = tuple(axis for i, axis in enumerate(value.axes) if i not in gone)
    keeps = eqn.primitive.name in ("reduce_sum", "reduce_max", "reduce_min")
    return [Value(axes, value.zero if keeps else frozenset())]


def _accumulate(record: Record, eqn: Any, values: list[Value], shapes: Any) -> list[Value]:
    record.nodes.lock(values[0].axes[eqn.params["axis"]])
    keeps = eqn.primitive.name == "cumsum"
    return [Value(values[0].axes, values[0].zero if keeps else frozenset())]


def _pool(record: Record, eqn: Any, values: list[Value], shapes: Any) -> list[Value] | None:
    window = eqn.params.get("window_dimensions")
    if window is None or len(values[0].axes) != len(window):
        return None
    strides = eqn.params.get("window_strides", window)
    axes = list(values[0].axes)
    for i, (size, step) in enumerate(zip(window, strides, strict=True)):
        if size != 1 or step != 1 or length(axes[i]) != shapes[0][i]:
            record.nodes.lock(axes[i])
            axes[i] = fixed(shapes[0][i])
    # Padding is the identity of the operation, and never the only entry of a window.
    keeps = eqn.primitive.name != "reduce_window"
    return [Value(tuple(axes), values[0].zero if keeps else frozenset())]


def _slice(record: Record, eqn: Any, values: list[Value], shapes: Any) -> list[Value]:
    value, params = values[0], eqn.params
    strides = params["strides"] or (1,) * len(value.axes)
    axes = []
    for axis, start, stop, step in zip(
        value.axes, params["start_indices"], params["limit_indices"], strides, strict=True
    ):
        axes.append(_part(record, axis, start, stop) if step == 1 else _lost(record, axis, 0))
    axes = [
        axis if length(axis) == n else fixed(n) for axis, n in zip(axes, shapes[0], strict=True)
    ]
    return [Value(tuple(axes), value.zero, value.constant)]


def _part(record: Record, axis: Axis, start: int, stop: int) -> Axis:
    """Entries ``start`` to ``stop`` of an axis: whole, or one of several equal blocks."""
    total, size = length(axis), stop - start
    if size == total:
        return axis
    if size > 1 and total % size == 0 and start % size == 0:
        blocks = record.nodes.regroup([axis], (total // size, size))
        if blocks is not None:
            record.nodes.lock(blocks[0])
            return blocks[1]
    return _lost(record, axis, size)


def _lost(record: Record, axis: Axis, size: int) -> Axis:
    record.nodes.lock(axis)
    return fixed(size) if size else ()


def _split(record: Record, eqn: Any, values: list[Value], shapes: Any) -> list[Value]:
    value, at = values[0], eqn.params["axis"]
    outs, start = [], 0
    for shape in shapes:
        axes = list(value.axes)
        axes[at] = _part(record, axes[at], start, start + shape[at])
        start += shape[at]
        outs.append(Value(tuple(axes), value.zero, value.constant))
    return outs


def _dynamic_slice(record: Record, eqn: Any, values: list[Value], shapes: Any) -> list[Value]:
    value = values[0]
    axes = tuple(
        axis if length(axis) == n else _lost(record, axis, n)
        for axis, n in zip(value.axes, shapes[0], strict=True)
    )
    return [Value(axes, value.zero)]


def _gather(record: Record, eqn: Any, values: list[Value], shapes: Any) -> list[Value]:
    value, numbers = values[0], eqn.params["dimension_numbers"]
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [i for i in range(len(value.axes)) if i not in dropped]
    axes = [fixed(n) for n in shapes[0]]
    whole = set()
    for own, there in zip(kept, numbers.offset_dims, strict=True):
        if eqn.params["slice_sizes"][own] == length(value.axes[own]) == shapes[0][there]:
            axes[there] = value.axes[own]
            whole.add(own)
    record.nodes.lock(*(axis for i, axis in enumerate(value.axes) if i not in whole))
    for i in whole:
        record.write(value.axes[i])  # the rows of an embedding write its channels
    return [Value(tuple(axes), value.zero)]


def _concatenate(record: Record, eqn: Any, values: list[Value], shapes: Any) -> list[Value]:
    along = eqn.params["dimension"]
    axes = []
    for i, operands in enumerate(zip(*(v.axes for v in values), strict=True)):
        if i == along:
            record.nodes.lock(*operands)
            axes.append(fixed(shapes[0][i]))
            continue
        merged = operands[0]
        for axis in operands:
            record.write(axis)
            merged = record.nodes.unify(merged, axis)
        axes.append(merged)
    return [Value(tuple(axes), record.both(values))]


def _pad(record: Record, eqn: Any, values: list[Value], shapes: Any) -> list[Value]:
    value, filling = values
    axes = []
    for axis, n, config in zip(value.axes, shapes[0], eqn.params["padding_config"], strict=True):
        axes.append(axis if config == (0, 0, 0) else _lost(record, axis, n))
    return [Value(tuple(axes), value.zero if filling.constant == 0 else frozenset())]


def _reverse(record: Record, eqn: Any, values: list[Value], shapes: Any) -> list[Value]:
    record.nodes.lock(*(values[0].axes[i] for i in eqn.params["dimensions"]))
    return [replace(values[0], kernel=None)]


def _iota(record: Record, eqn: Any, values: list[Value], shapes: Any) -> list[Value]:
    along = eqn.params["dimension"]
    return [Value(tuple(fixed(n) if i == along else uniform(n) for i, n in enumerate(shapes[0])))]


Rule = Callable[[Record, Any, list[Value], Any], "list[Value] | None"]
RULES: dict[str, Rule] = {
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "slice": _slice,
    "split": _split,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "concatenate": _concatenate,
    "pad": _pad,
    "rev": _reverse,
    "iota": _iota,
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(CUMULATIVE, _accumulate),
    **dict.fromkeys(POOLING, _pool),
}
