"""What a network takes where it is served, dense beside pruned: counts, and times of this machine.

Both are as ``forward`` runs them, in evaluation mode, on rows as the model takes them: the encoder
is left out. File sizes are those of the weights and statistics alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from fairbilevel import _display, _trees, masks
from fairbilevel._numbers import milliseconds, storage
from fairbilevel.deploy._artifact import FORMATS
from fairbilevel.deploy._compact import SPARSE_FROM, Compact, compact, forward, mostly_zero
from fairbilevel.deploy._format import line, require
from fairbilevel.deploy._model import ModelFiles
from fairbilevel.devices import Times, timed
from fairbilevel.records import arrays_bytes
from fairbilevel.train import Solution

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


_ENGINES = {"jax": "JAX", "onnxruntime": "ONNX Runtime"}


@dataclass(frozen=True)
class Footprint:
    """What one network takes.

    Attributes:
        file_bytes: its weights and normalization statistics in a file that is not compressed.
        compressed_bytes: the same in an ``.npz`` as ``fb.export`` writes it.
        onnx_bytes: its ONNX file, ``None`` where none could be made.
        parameters: entries of its arrays, zeros included.
        multiply_adds: of one row in convolutions and matrix products, those by zeros included.
        kept_parameters: without the weights that were removed.
        kept_multiply_adds: without those by weights that were removed.
        activation_bytes: most that one row's activations take at once
            (``fb.masks.peak_activations``).
    """

    file_bytes: int
    compressed_bytes: int
    onnx_bytes: int | None
    parameters: int
    multiply_adds: int
    kept_parameters: int
    kept_multiply_adds: int
    activation_bytes: int


@dataclass(frozen=True)
class Speed:
    """The time of one network.

    Attributes:
        engine: ``"jax"`` (on the present device) or ``"onnxruntime"`` (on the CPU).
        network: ``"dense"``, ``"pruned"``, or ``"sparse layers"``: the pruned one whose mostly zero
            dense layers are multiplied by what is left of them.
        batch: rows a call.
        times: of a call, in milliseconds.
    """

    engine: str
    network: str
    batch: int
    times: Times

    @property
    def rows_per_second(self) -> float:
        """Of calls one after another, by the median."""
        return 1e3 * self.batch / self.times.median

    def beside(self, dense: Speed) -> tuple[float, bool]:
        """How many times as fast as the dense network by the medians, and whether the middle halves
        of the rounds lie apart."""
        mine, other = self.times, dense.times
        return other.median / mine.median, mine.high < other.low or other.high < mine.low

    def to_json(self, dense: Speed) -> dict[str, Any]:
        """All of it, beside the dense network by the same engine at the same batch."""
        factor, clear = self.beside(dense)
        return {
            "engine": self.engine,
            "network": self.network,
            "batch": self.batch,
            "milliseconds": self.times.median,
            "low": self.times.low,
            "high": self.times.high,
            "rounds": self.times.rounds,
            "rows_per_second": self.rows_per_second,
            "times_as_fast": factor,
            "clear": clear,
        }


@dataclass(frozen=True)
class Profile:
    """What a pruned network takes beside the dense one it was made of.

    Attributes:
        model: name.
        granularity: of what was removed.
        dense: the dense network.
        pruned: the pruned one, removed channels cut out.
        sparse_layers: dense layers whose zeros ``deploy.forward(..., sparse_layers=True)`` skips.
        speeds: by engine, batch and network.
        notes: sentences that a reader of the numbers should know.
        made: machine, versions and the digest of a run's pruned network.
    """

    model: str
    granularity: str
    dense: Footprint
    pruned: Footprint
    sparse_layers: tuple[str, ...]
    speeds: tuple[Speed, ...]
    notes: tuple[str, ...]
    made: Mapping[str, Any]

    def __repr__(self) -> str:
        return _display.line("Profile", self.model, *(f"{n} {d} -> {p}" for n, d, p in self.rows()))

    def _repr_html_(self) -> str:
        head = ("", "dense", "pruned")
        return _display.table(
            f"Profile of {self.model}", self.rows(), head=head, below=" ".join(self.notes)
        )

    def dense_beside(self, speed: Speed) -> Speed:
        """The dense network's time by the same engine at the same batch."""
        return next(
            other
            for other in self.speeds
            if (other.engine, other.batch, other.network) == (speed.engine, speed.batch, "dense")
        )

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, dense, pruned: what a reader wants to know first."""
        one, two = self.dense, self.pruned
        rows = [
            ("file", storage(one.file_bytes), storage(two.file_bytes)),
            ("compressed", storage(one.compressed_bytes), storage(two.compressed_bytes)),
            ("parameters", f"{one.parameters:,}", f"{two.parameters:,}"),
            ("multiply-adds", f"{one.multiply_adds:,}", f"{two.multiply_adds:,}"),
            ("activations", storage(one.activation_bytes), storage(two.activation_bytes)),
        ]
        return rows + [
            (
                f"{_ENGINES[s.engine]}, batch {s.batch}",
                f"{milliseconds(self.dense_beside(s).times.median)} ms",
                f"{milliseconds(s.times.median)} ms",
            )
            for s in self.speeds
            if s.network == "pruned"
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers: bytes, counts, milliseconds, rows a second."""
        return {
            "model": self.model,
            "granularity": self.granularity,
            "dense": dataclasses.asdict(self.dense),
            "pruned": dataclasses.asdict(self.pruned),
            "sparse_layers": list(self.sparse_layers),
            "speeds": [speed.to_json(self.dense_beside(speed)) for speed in self.speeds],
            "notes": list(self.notes),
            **self.made,
        }


def check_profile(batch_sizes: Sequence[Any], seconds: Any) -> None:
    """Refuse what cannot be measured.

    Raises:
        ValueError: which argument, what was given, what would do.
    """
    sizes = list(batch_sizes)
    if not sizes or any(type(b) is not int or b < 1 for b in sizes) or len(set(sizes)) < len(sizes):
        said = ", ".join(map(str, sizes)) or "none"
        raise ValueError(f"batch_sizes must be different whole numbers of at least 1, got {said}")
    if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValueError(f"seconds must be a number of at least 0, got {seconds}")


def measure(
    source: Solution | ModelFiles,
    batch_sizes: Sequence[int] = (1, 32),
    seconds: float = 10.0,
    more: Mapping[str, Any] | None = None,
) -> Profile:
    """Count and time a pruned network beside the dense one.

    Args:
        source: a solution or a run.
        batch_sizes: rows a call.
        seconds: of timing, compiling apart; five rounds at least.
        more: the profile's ``made``.

    Raises:
        ValueError: neither solution nor run, or other arguments out of range.
    """
    check_profile(batch_sizes, seconds)
    given = ModelFiles.of(source)
    networks = {
        "dense": Compact(given.model, *jax.device_get((given.dense.params, given.dense.state))),
        "pruned": Compact(given.model, *jax.device_get(compact(source)[1:])),
    }
    zero = mostly_zero(networks["pruned"].params) if given.granularity == "weight" else ()
    notes = [_gain(given.granularity, zero)]
    rows = some_rows(given, max(batch_sizes))
    calls = jax_calls(networks, zero, rows, batch_sizes)
    served, sizes, note = onnx_calls(networks, rows, batch_sizes)
    notes += [note] if note else []
    times = timed_calls(calls | served, seconds)
    notes.append(_setting(min(t.rounds for t in times.values()), bool(served)))
    footprints = _footprints(given, networks, rows, sizes)
    return Profile(
        given.model.name,
        given.granularity,
        *footprints,
        zero,
        tuple(Speed(*key, spent) for key, spent in times.items()),
        tuple(notes),
        dict(more or {}),
    )


def layer_times(
    source: Solution | ModelFiles,
    batch: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> masks.LatencyTable:
    """Time the layers of the dense network on the present device.

    Args:
        source: a solution or a run; of its network only the shapes matter.
        batch: rows a call.
        progress: is told of every layer.

    Raises:
        ValueError: neither solution nor run.
    """
    given = ModelFiles.of(source)
    sample = jax.ShapeDtypeStruct((batch, *given.encoder.input_shape), given.encoder.dtype)
    dense = given.dense
    return masks.measure_latency(
        given.model.apply, dense.params, dense.state, sample, given.layers, progress
    )


def _gain(granularity: str, zero: tuple[str, ...]) -> str:
    """What can be gained at all."""
    smaller = "the pruned network is a smaller one for every runtime."
    if granularity == "filter":
        return f"Removed filters are cut out: {smaller}"
    if granularity == "block":
        return f"Removed blocks are left out of what is computed: {smaller}"
    layers = ", ".join(name.removesuffix("/kernel") for name in zero) or "none"
    return (
        "Removed single weights are zeros in arrays as large as before: they make the compressed "
        "file smaller and nothing faster by themselves. In convolutions no runtime skips them; "
        "fb.deploy.forward(network, sparse_layers=True) does in dense layers with a share of zeros "
        f"of {SPARSE_FROM:g} or more, here in {layers}."
    )


def _setting(rounds: int, with_onnx: bool) -> str:
    """What was timed, and where."""
    cores, device = f"{os.cpu_count()} cores", jax.devices()[0].device_kind
    where = f"{device} ({platform.machine()}, {cores})" if device == "cpu" else device
    onnx = ""
    if with_onnx:
        onnx = f", ONNX Runtime on the CPU ({platform.machine()}, {cores})"
    return (
        f"Times are of this one machine, JAX on {where}{onnx}: medians of {rounds:,} rounds and "
        "more that take each network once, in any order. The encoder is left out, and rows lie on "
        "the device."
    )


def _footprints(
    given: ModelFiles, networks: Mapping[str, Compact], rows: np.ndarray, onnx: Mapping[str, int]
) -> tuple[Footprint, Footprint]:
    """Of the dense and of the pruned network."""
    dense = networks["dense"]
    cost = masks.cost(
        given.model.apply,
        dense.params,
        dense.state,
        rows,
        given.layers,
        given.masks,
        given.granularity,
    )
    whole, needed = cost.dense_multiply_adds, cost.multiply_adds

    def footprint(name: str, parameters: int, every: int, needed: int) -> Footprint:
        network = networks[name]
        arrays = FORMATS["npz"].convert(network, lambda x: x, rows.shape[1:], rows.dtype, {})
        logits = forward(network)
        return Footprint(
            file_bytes=len(arrays_bytes(arrays)),
            compressed_bytes=len(arrays_bytes(arrays, compressed=True)),
            onnx_bytes=onnx.get(name),
            parameters=_trees.size(network.params),
            multiply_adds=every,
            kept_parameters=parameters,
            kept_multiply_adds=needed,
            activation_bytes=masks.peak_activations(
                lambda params, state, x, train, key: (logits(x), state), {}, {}, rows
            ),
        )

    every = whole if given.granularity == "weight" else needed  # others are not computed any more
    return (
        footprint("dense", cost.dense_parameters, whole, whole),
        footprint("pruned", cost.parameters, every, needed),
    )
