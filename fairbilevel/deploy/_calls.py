"""How a network is called where it is timed: by JAX, by ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fairbilevel.deploy._compact import Compact, forward
from fairbilevel.deploy._format import line, require
from fairbilevel.deploy._formats import FORMATS
from fairbilevel.deploy._model import ModelFiles
from fairbilevel.devices import Times, timed

_LEAST_ROUNDS = 5
Calls = dict[tuple[str, str, int], Callable[[], Any]]


def some_rows(given: ModelFiles, count: int) -> np.ndarray:
    """Rows as the model takes them, whose values no time depends on."""
    shape, dtype = (count, *given.encoder.input_shape), given.encoder.dtype
    if np.issubdtype(dtype, np.integer):
        return np.zeros(shape, dtype)  # whole numbers may index something: zero always can
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def timed_calls(calls: Calls, seconds: float) -> dict[tuple[str, str, int], Times]:
    """Of all calls; those of one engine and one batch size beside each other."""
    places = list(dict.fromkeys((engine, batch) for engine, _, batch in calls))
    found: dict[tuple[str, str, int], Times] = {}
    for place in places:
        some = {key: call for key, call in calls.items() if (key[0], key[2]) == place}
        found |= timed(some, rounds=_LEAST_ROUNDS, seconds=seconds / len(places))
    return found


def jax_calls(
    networks: Mapping[str, Compact],
    zero: tuple[str, ...],
    rows: np.ndarray,
    batch_sizes: Sequence[int],
) -> Calls:
    """Calls on the present device, the rows lying there."""
    functions = {name: jax.jit(forward(network)) for name, network in networks.items()}
    if zero:
        functions["sparse layers"] = jax.jit(forward(networks["pruned"], sparse_layers=True))

    def call(function: Any, x: jax.Array) -> None:
        function(x).block_until_ready()

    given = {batch: jax.device_put(rows[:batch]) for batch in batch_sizes}
    return {
        ("jax", name, batch): functools.partial(call, function, x)
        for batch, x in given.items()
        for name, function in functions.items()
    }


def onnx_calls(
    networks: Mapping[str, Compact], rows: np.ndarray, batch_sizes: Sequence[int]
) -> tuple[Calls, dict[str, int], str]:
    """Calls of ONNX Runtime on the CPU and the sizes of its files; or why there are none."""
    kind, runs, sizes = FORMATS["onnx"], {}, {}
    try:
        require("timing by ONNX Runtime", "onnx", kind.writes_with)
    except ValueError as error:
        return {}, {}, f"Not timed by ONNX Runtime: {error}."
    for name, network in networks.items():
        about: dict[str, Any] = {}
        try:
            content = kind.convert(network, lambda x: x, rows.shape[1:], rows.dtype, about)
            runs[name] = kind.run(content, about, lambda x: x, None)
            runs[name](rows[:1])
        except Exception as error:  # the converter and the runtime have their own
            why = f"Not timed by ONNX Runtime, which does not take this model: {line(error)}"
            return {}, {}, why
        sizes[name] = len(kind.pack(content, about))
    calls: Calls = {
        ("onnxruntime", name, batch): functools.partial(run, rows[:batch])
        for batch in batch_sizes
        for name, run in runs.items()
    }
    return calls, sizes, ""
