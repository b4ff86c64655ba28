"""The ``model/`` folder: ``model.json``, ``sparse.npz``, ``dense.npz``.

``sparse.npz`` holds masks as packed bits and, of every masked kernel, the kept values only:

* ``mask/NAME``: uint8, bits of the mask of a layer, or of a set of coupled channels, in flat order
  (``numpy.packbits``);
* ``kept/KERNEL``: the kernel's values where its multiplier is one, in flat order;
* ``param/NAME``: every other parameter, whole;
* ``state/NAME``: normalization statistics.

``dense.npz`` holds ``param/NAME`` and ``state/NAME`` of the dense reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairbilevel import _display
from fairbilevel._trees import fill_named, flatten_named
from fairbilevel.data import Encoder
from fairbilevel.masks import Channels, Layer, Layers, Masks, Slice, expand
from fairbilevel.models import NAMES, Model, as_model, build, family_of, shapes_of
from fairbilevel.problem import FairPruningProblem, Network
from fairbilevel.records import RecordError, read_arrays, read_object, write_arrays, write_json
from fairbilevel.train import Solution


def network_arrays(network: Network) -> dict[str, np.ndarray]:
    """A network's arrays by name, as files hold them."""
    arrays = {f"param/{n}": np.asarray(v) for n, v in flatten_named(network.params).items()}
    arrays |= {f"state/{n}": np.asarray(v) for n, v in flatten_named(network.state).items()}
    return arrays


def save_network(path: Path, network: Network) -> None:
    """Write a network whole, as ``.npz``."""
    write_arrays(path, network_arrays(network))


def _fill(model: Model, params: Mapping[str, Any], state: Mapping[str, Any]) -> Network:
    like = shapes_of(model)
    try:
        return Network(
            jax.tree.map(jnp.asarray, fill_named(like[0], params)),
            jax.tree.map(jnp.asarray, fill_named(like[1], state)),
        )
    except ValueError as error:
        raise RecordError(f"the stored network does not fit the model: {error}") from None


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a network, all finite: the largest of logits that are not is the first."""
    arrays = read_arrays(path)
    for name, values in arrays.items():
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            raise RecordError(
                f"{path} holds no network: {name.split('/', 1)[-1]} has values that are not finite"
            )
    return arrays


def load_network(path: Path, model: Model) -> Network:
    """Read a network written by ``save_network`` into a model.

    Raises:
        RecordError: missing or damaged file, parameters of another model, or not finite.
    """
    return network_of(_read(path), model)


def network_of(arrays: Mapping[str, np.ndarray], model: Model) -> Network:
    """The network of ``network_arrays``; other arrays beside them do not matter.

    Raises:
        RecordError: parameters of another model.
    """
    return _fill(model, _part(arrays, "param/"), _part(arrays, "state/"))


def model_description(problem: FairPruningProblem, granularity: str) -> dict[str, Any]:
    """What ``model.json`` says of a network of a problem, pruned at a granularity."""
    return {
        "name": problem.model.name,
        "width": problem.width,
        "built_in": problem.built_in,
        "input_shape": list(problem.inputs.shape[1:]),
        "classes": list(problem.data.classes),
        "groups": list(problem.groups),
        "counted": [bool(c) for c in problem.counted],
        "merged": list(problem.data.merged),
        "merged_classes": list(problem.data.merged_classes),
        "dropped_classes": list(problem.data.dropped_classes),
        "target": problem.data.target,
        "group": list(problem.data.attributes),
        "granularity": granularity,
        "layers": [asdict(layer) for layer in problem.layers.kernels],
        "channels": [asdict(channels) for channels in problem.layers.channels],
        "blocks": [asdict(block) for block in problem.layers.blocks],
        "encoder": problem.encoder.to_json(),
    }


def save_model(folder: Path, solution: Solution) -> None:
    """Write the ``model/`` folder of a solution; ``folder`` exists."""
    problem = solution.problem
    arrays, granularity = network_arrays(solution.network), solution.granularity
    every = expand(solution.masks, solution.network.params, problem.layers, granularity)
    factors = flatten_named(every)
    for unit in problem.layers.units(granularity):
        arrays[f"mask/{unit.name}"] = np.packbits(np.asarray(solution.masks[unit.name]) != 0)
    for kernel in _masked(problem.layers, granularity):
        whole = arrays.pop(f"param/{kernel}")
        kept = np.broadcast_to(np.asarray(factors[kernel]) != 0, whole.shape)
        arrays[f"kept/{kernel}"] = whole[kept]
    write_arrays(folder / "sparse.npz", arrays)
    save_network(folder / "dense.npz", solution.reference.network)
    write_json(folder / "model.json", model_description(problem, granularity))


@dataclass(frozen=True)
class ModelFiles:
    """A ``model/`` folder in memory.

    Attributes:
        model: the pure functions.
        network: the sparse network; removed weights are exactly zero.
        dense: the dense reference.
        masks: hard 0/1 masks by layer name.
        encoder: from inputs as read to what the model takes.
        description: contents of ``model.json``.
    """

    model: Model
    network: Network
    dense: Network
    masks: Masks
    encoder: Encoder
    description: dict[str, Any]

    @staticmethod
    def of(source: Solution | ModelFiles) -> ModelFiles:
        """What ``save_model`` would write of a solution.

        Raises:
            ValueError: neither a solution nor a run.
        """
        if isinstance(source, ModelFiles):
            return source
        if not isinstance(source, Solution):
            raise ValueError(
                f"a {type(source).__name__} is no pruned network: give what fb.solve or "
                "fb.load_run returned"
            )
        problem, dense = source.problem, source.reference.network
        description = model_description(problem, source.granularity)
        return ModelFiles(
            problem.model, source.network, dense, source.masks, problem.encoder, description
        )

    def __repr__(self) -> str:
        name = self.description["name"]
        return _display.line(
            "ModelFiles", name, repr(self.network), f"masks of {self.granularity}s"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return tuple(self.description["classes"])

    @property
    def groups(self) -> tuple[str, ...]:
        """Group names."""
        return tuple(self.description["groups"])

    @property
    def granularity(self) -> str:
        """What was removed: ``"weight"``, ``"filter"`` or ``"block"``."""
        return self.description["granularity"]

    @property
    def layers(self) -> Layers:
        """What the masks belong to."""
        return _layers(self.description)


def _masked(layers: Layers, granularity: str) -> tuple[str, ...]:
    """Kernels that masks multiply."""
    units = layers.units(granularity)
    kernels = (unit.kernels if isinstance(unit, Channels) else (unit.kernel,) for unit in units)
    return tuple(kernel for some in kernels for kernel in some)


def _layers(description: Mapping[str, Any]) -> Layers:
    def channels(entry: Mapping[str, Any]) -> Channels:
        slices = {n: tuple(Slice(**s) for s in entry[n]) for n in ("members", "readers")}
        return Channels(**{**entry, **slices, "kernels": tuple(entry["kernels"])})

    return Layers(
        tuple(Layer(**{**la, "shape": tuple(la["shape"])}) for la in description["layers"]),
        tuple(channels(entry) for entry in description["channels"]),
        # Former versions knew none.
        tuple(channels(entry) for entry in description.get("blocks", ())),
    )


def _unpacked(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The bits of a mask, as many as its shape has entries."""
    count = math.prod(shape)
    if packed.ndim != 1 or packed.dtype != np.uint8 or len(packed) != -(-count // 8):
        raise ValueError(f"a mask of shape {shape} does not have {packed.size} bytes")
    return np.unpackbits(packed, count=count)


def _check(description: Mapping[str, Any]) -> None:
    """Refuse values of other kinds than ``save_model`` writes, by the name of the first; layers and
    encoder check their own."""

    def whole(value: Any) -> bool:
        return type(value) is int and 0 < value < 2**31

    def names(value: Any) -> bool:
        texts = isinstance(value, list) and all(isinstance(v, str) for v in value)
        return texts and len(set(value)) == len(value) > 0

    groups, counted = description["groups"], description["counted"]
    shape, width = description["input_shape"], description["width"]
    good = {
        "name": isinstance(description["name"], str),
        "classes": names(description["classes"]),
        "groups": names(groups),
        "counted": isinstance(counted, list) and all(type(c) is bool for c in counted),
        "input_shape": isinstance(shape, list) and all(map(whole, shape)),
        "width": width is None or whole(width),
        "granularity": isinstance(description["granularity"], str),
    }
    for name, fits in good.items():
        if not fits:
            raise ValueError(repr(name))
    if len(counted) != len(groups):
        raise ValueError("'counted'")


def load_model(folder: Path, model: Any = None) -> ModelFiles:
    """Read a ``model/`` folder.

    Args:
        folder: the folder.
        model: needed where the run's model was the user's own: a ``Model`` or ``flax.nnx`` module.

    Raises:
        ValueError: ``model`` is none.
        RecordError: missing or damaged files, values that are not finite, or a model of the user's
            own that was not given.
    """
    description = read_object(folder / "model.json")
    try:
        _check(description)
        layers, granularity = _layers(description), description["granularity"]
        name, shape = description["name"], description["input_shape"]
        classes = len(description["classes"])
        built_in, width = description["built_in"], description["width"]
        encoder = Encoder.from_json(description["encoder"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{folder / 'model.json'} lacks or distorts {error}") from None
    if model is None:
        if not built_in or family_of(name) not in NAMES:
            raise RecordError(
                f"the run's model {name!r} is not a built-in one: pass it as model=... to "
                "fb.load_run in Python, commands know built-in models alone"
            )
        try:
            model = build(name, shape, classes, width=width)
        except ValueError as error:
            raise RecordError(f"{folder / 'model.json'} names no model: {error}") from None
    model = as_model(model)
    # First what says how large the model really is: nothing of a size is made that no file holds.
    dense = load_network(folder / "dense.npz", model)
    arrays = _read(folder / "sparse.npz")
    params = _part(arrays, "param/")
    like = shapes_of(model)[0]
    masks: Masks = {}
    try:
        for unit in layers.units(granularity):
            bits = _unpacked(arrays[f"mask/{unit.name}"], unit.shape)
            masks[unit.name] = jnp.asarray(bits.reshape(unit.shape), jnp.float32)
        shapes = flatten_named(like)
        empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
        factors = flatten_named(expand(masks, empty, layers, granularity))
        for kernel in _masked(layers, granularity):
            values = arrays[f"kept/{kernel}"]
            whole = np.zeros(shapes[kernel].shape, values.dtype)
            whole[np.broadcast_to(np.asarray(factors[kernel]) != 0, whole.shape)] = values
            params[kernel] = whole
    except (KeyError, ValueError, TypeError) as error:
        raise RecordError(f"{folder / 'sparse.npz'} is damaged: {error}") from None
    network = _fill(model, params, _part(arrays, "state/"))
    return ModelFiles(model, network, dense, masks, encoder, description)
