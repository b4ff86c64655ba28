"""A network as named arrays: numpy's archive, and safetensors as torch users read them.

In bfloat16 parameters are; normalization statistics stay float32.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fairbilevel._npz import read_npz
from fairbilevel._trees import flatten_named, map_named
from fairbilevel.deploy._compact import Compact
from fairbilevel.deploy._format import NOT_OURS, About, Damaged, Format, Run, description, line
from fairbilevel.deploy._model import network_arrays
from fairbilevel.models import (
    NAMES,
    build,
    family_of,
    from_torch,
    in_precision,
    shapes_of,
    to_torch,
)
from fairbilevel.problem import Network
from fairbilevel.records import arrays_bytes


class Arrays(Format):
    """Weights alone, for code that has the model."""

    def convert(
        self, network: Compact, first: Callable[[Any], Any], shape: Any, dtype: Any, about: About
    ) -> dict[str, np.ndarray]:
        """``param/NAME`` and ``state/NAME``."""
        return network_arrays(Network(network.params, network.state))

    def digest(self, content: Mapping[str, np.ndarray]) -> str:
        """Of names, types, shapes and values."""
        whole = hashlib.sha256()
        for name in sorted(content):
            values = np.ascontiguousarray(content[name])
            whole.update(f"{name} {values.dtype.str} {values.shape};".encode())
            whole.update(values.tobytes())
        return whole.hexdigest()

    def run(self, content: Any, about: About, first: Any, model: Any) -> Run:
        """The model with these arrays."""
        try:
            name, shape = about["model"]["name"], tuple(about["model"]["input_shape"])
            width, classes = about["model"]["width"], len(about["classes"])
            if model is None:
                if not about["model"]["built_in"] or family_of(name) not in NAMES:
                    raise Damaged(f"it holds the weights of {name!r}, no built-in model: give it")
                model = build(name, shape, classes, width=width)
            model = in_precision(model, about.get("precision", "float32"))
            arrays = self.ours(content, about)
            like = shapes_of(model)
            trees = _filled(like[0], arrays, "param"), _filled(like[1], arrays, "state")
            apply = model.apply

            # Parameters are arguments: as constants they would be folded, which takes long.
            @jax.jit
            def function(params: Any, state: Any, x: Array) -> Array:
                logits, _ = apply(params, state, first(x), False, jax.random.key(0))
                return logits.astype(jnp.float32)

        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"its arrays are not those of its model ({error})") from None
        return lambda x: np.asarray(function(*trees, x))

    def ours(self, content: dict[str, np.ndarray], about: About) -> dict[str, np.ndarray]:
        """Content by our names."""
        return content


def _filled(tree: Any, arrays: Mapping[str, np.ndarray], part: str) -> Any:
    """A tree of arrays by name; they may be smaller than the whole model's."""
    names = {f"{part}/{name}" for name in flatten_named(tree)}
    if other := names ^ {name for name in arrays if name.startswith(f"{part}/")}:
        raise KeyError(min(other))
    return map_named(lambda name, _: jnp.asarray(arrays[f"{part}/{name}"]), tree)


class NPZ(Arrays):
    """numpy's archive, compressed: zeros take hardly any room.

    numpy has no bfloat16: its bits are kept as uint16, which are the upper half of the float32
    (``(bits.astype(np.uint32) << 16).view(np.float32)``); no array of a network is uint16 itself.
    """

    suffix = ".npz"

    def pack(self, content: Mapping[str, np.ndarray], about: About) -> bytes:
        """Arrays, and the description as one more."""
        text = np.array(json.dumps(about, ensure_ascii=False))
        arrays = {
            name: values.view(np.uint16) if values.dtype == jnp.bfloat16 else values
            for name, values in content.items()
        }
        return arrays_bytes({**arrays, "fairbilevel": text}, compressed=True)

    def holds(self, data: bytes) -> bool:
        """A zip."""
        return data[:2] == b"PK"

    def unpack(self, data: bytes) -> tuple[Any, About]:
        """What ``pack`` was given."""
        try:
            arrays = read_npz(io.BytesIO(data))
        except (OSError, ValueError) as error:
            raise Damaged(line(error)) from None
        text = arrays.pop("fairbilevel", None)
        if text is None:
            raise Damaged(NOT_OURS)
        content = {
            name: values.view(jnp.bfloat16) if values.dtype == np.uint16 else values
            for name, values in arrays.items()
        }
        return content, description(str(text))


class Safetensors(Arrays):
    """safetensors under torch's names and layouts, timm's where it has the family."""

    suffix = ".safetensors"
    writes_with = runs_with = ("safetensors",)

    def convert(
        self, network: Compact, first: Callable[[Any], Any], shape: Any, dtype: Any, about: About
    ) -> dict[str, np.ndarray]:
        """Arrays by torch's names."""
        arrays = super().convert(network, first, shape, dtype, about)
        content, made = to_torch(network.model.name, arrays)
        about["made_of"] = made
        return content

    def pack(self, content: dict[str, np.ndarray], about: About) -> bytes:
        """Arrays, the description in the header."""
        from safetensors.numpy import save

        return save(content, {"fairbilevel": json.dumps(about, ensure_ascii=False)})

    def holds(self, data: bytes) -> bool:
        """A header of JSON behind its length."""
        return data[8:9] == b"{"

    def unpack(self, data: bytes) -> tuple[Any, About]:
        """What ``pack`` was given."""
        from safetensors import SafetensorError, deserialize

        try:
            arrays = {
                name: np.frombuffer(view["data"], _type(view["dtype"])).reshape(view["shape"])
                for name, view in deserialize(data)
            }
            (length,) = struct.unpack("<Q", data[:8])
            text = json.loads(data[8 : 8 + length])["__metadata__"]["fairbilevel"]
        except (SafetensorError, struct.error, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"it is no such file, or without description ({line(error)})") from None
        return arrays, description(text)

    def ours(self, content: dict[str, np.ndarray], about: About) -> dict[str, np.ndarray]:
        """Back to our names."""
        return from_torch(about["model"]["name"], content, about["made_of"])


def _type(name: str) -> np.dtype:
    """What safetensors calls ``F32``, ``BF16``, ``I64``; its own reader of numpy arrays knows no
    bfloat16."""
    if name == "BF16":
        return np.dtype(jnp.bfloat16)
    return np.dtype(bool) if name == "BOOL" else np.dtype(f"{name[0].lower()}{int(name[1:]) // 8}")
