"""The formats that a network can ship in: how each is made, written, read and run.

A format turns a network into content, content and a description into the bytes of one file, and
these back into a function on rows. Content is what the description's digest speaks of.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import struct
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import jax
import jax.export  # not an attribute of jax until it is imported
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core
from jax.interpreters import partial_eval
from jaxtyping import Float

from fairbilevel._npz import read_npz
from fairbilevel._trees import flatten_named, map_named
from fairbilevel.deploy._compact import Compact, Forward, forward
from fairbilevel.deploy._torch import from_torch, to_torch
from fairbilevel.models import NAMES, build
from fairbilevel.records import arrays_bytes

About = dict[str, Any]
Run = Callable[[np.ndarray], Float[np.ndarray, "rows classes"]]


class Damaged(Exception):
    """What a file holds is not what its format says; the text says what."""


class Format(ABC):
    """One format.

    Attributes:
        suffix: of its files.
        writes_with: packages that write it, beside this one's dependencies.
        runs_with: packages that read and run it, likewise.
    """

    suffix: ClassVar[str]
    writes_with: ClassVar[tuple[str, ...]] = ()
    runs_with: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def convert(
        self, network: Compact, first: Callable[[Any], Any], shape: Any, dtype: Any, about: About
    ) -> Any:
        """The network as content.

        Args:
            network: what is left.
            first: what is done to rows before the model takes them.
            shape: of a row.
            dtype: of rows.
            about: the description, to which the format may add.
        """

    @abstractmethod
    def pack(self, content: Any, about: About) -> bytes:
        """The bytes of a file."""

    @abstractmethod
    def holds(self, data: bytes) -> bool:
        """Whether bytes look like this format, where a file's ending does not tell."""

    @abstractmethod
    def unpack(self, data: bytes) -> tuple[Any, About]:
        """Content and description.

        Raises:
            Damaged: they are not there.
        """

    @abstractmethod
    def digest(self, content: Any) -> str:
        """SHA-256 of the content, hexadecimal."""

    @abstractmethod
    def run(self, content: Any, about: About, first: Callable[[Any], Any], model: Any) -> Run:
        """Content as a function of rows on this machine.

        Args:
            content: as ``unpack`` gives it.
            about: the description.
            first: what is done to rows, where the content does not do it.
            model: where the content does not hold it and it is no built-in one.

        Raises:
            Damaged: it cannot be loaded.
        """


def require(what: str, name: str, packages: Sequence[str]) -> None:
    """That packages of a format are installed.

    Raises:
        ValueError: how to install them.
    """
    if missing := [p for p in packages if find_spec(p) is None]:
        raise ValueError(f"{what} needs {' and '.join(missing)}: pip install 'fairbilevel[{name}]'")


def _description(text: str | bytes) -> About:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise Damaged("its description is no JSON") from None
    if not isinstance(found, dict):
        raise Damaged("its description is no JSON object")
    return found


_NOT_OURS = "it has no description: was it made by fairbilevel export?"
_END = b"FBILEVEL"
PLATFORMS = ("cpu", "cuda", "tpu")


class StableHLO(Format):
    """``jax.export``: one program for CPU, CUDA and TPU, any number of rows.

    The description stands behind the program, where ``jax.export.deserialize`` does not look: the
    file is read by JAX alone.
    """

    suffix = ".stablehlo"

    def convert(
        self, network: Compact, first: Callable[[Any], Any], shape: Any, dtype: Any, about: About
    ) -> bytes:
        """A serialized ``jax.export.Exported``."""
        function = forward(network)
        (rows,) = jax.export.symbolic_shape("rows")
        row = jax.ShapeDtypeStruct((rows, *shape), dtype)
        exported = jax.export.export(jax.jit(lambda x: function(first(x))), platforms=PLATFORMS)
        about["platforms"] = list(PLATFORMS)
        return bytes(exported(row).serialize())

    def pack(self, content: bytes, about: About) -> bytes:
        """Program, description, its length, a mark."""
        text = json.dumps(about, ensure_ascii=False).encode()
        return content + text + struct.pack("<Q", len(text)) + _END

    def holds(self, data: bytes) -> bool:
        """The mark is at its end."""
        return data.endswith(_END)

    def unpack(self, data: bytes) -> tuple[bytes, About]:
        """What ``pack`` was given."""
        tail = len(_END) + 8
        if not data.endswith(_END) or len(data) < tail:
            raise Damaged("it does not end as such a file does")
        (length,) = struct.unpack("<Q", data[-tail : -len(_END)])
        if length + tail > len(data):
            raise Damaged("its description is longer than the file")
        start = len(data) - tail - length
        return data[:start], _description(data[start : start + length])

    def digest(self, content: bytes) -> str:
        """Of the program."""
        return hashlib.sha256(content).hexdigest()

    def run(self, content: bytes, about: About, first: Any, model: Any) -> Run:
        """Compiled for the present device."""
        try:
            exported = jax.export.deserialize(bytearray(content))
        except Exception as error:  # whatever the flatbuffer's reader or the version check raises
            raise Damaged(f"JAX {jax.__version__} cannot read it ({_line(error)})") from None
        call = jax.jit(exported.call)
        return lambda x: np.asarray(call(x))


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class ONNX(Format):
    """ONNX through ``jax2onnx``, run by ONNX Runtime; any number of rows."""

    suffix = ".onnx"
    writes_with = ("jax2onnx", "onnxruntime")
    runs_with = ("onnx", "onnxruntime")

    def convert(
        self, network: Compact, first: Callable[[Any], Any], shape: Any, dtype: Any, about: About
    ) -> Any:
        """An ``onnx.ModelProto``."""
        with _quiet():
            import jax2onnx

            function = forward(network)
            whole = _without_dead(lambda x: function(first(x)))
            row = jax.ShapeDtypeStruct((jax.export.symbolic_shape("rows")[0], *shape), dtype)
            proto = jax2onnx.to_onnx(
                whole, [row], model_name=network.model.name, input_names=["rows"],
                output_names=["logits"],
            )  # fmt: skip
        # Its shapes of what lies between are not always right; a runtime infers them itself.
        del proto.graph.value_info[:]
        return proto

    def pack(self, content: Any, about: About) -> bytes:
        """The model, the description among its properties."""
        import onnx

        whole = onnx.ModelProto()
        whole.CopyFrom(content)
        onnx.helper.set_model_props(whole, {"fairbilevel": json.dumps(about, ensure_ascii=False)})
        return whole.SerializeToString(deterministic=True)

    def holds(self, data: bytes) -> bool:
        """Its first field is the version."""
        return data[:1] == b"\x08"

    def unpack(self, data: bytes) -> tuple[Any, About]:
        """The model without its properties, and the description."""
        import onnx
        from google.protobuf.message import DecodeError

        try:
            proto = onnx.load_model_from_string(data)
        except DecodeError:
            raise Damaged("it is no ONNX model") from None
        found = {p.key: p.value for p in proto.metadata_props}
        if "fairbilevel" not in found:
            raise Damaged(_NOT_OURS)
        del proto.metadata_props[:]
        return proto, _description(found["fairbilevel"])

    def digest(self, content: Any) -> str:
        """Of the model without its properties."""
        return hashlib.sha256(_serialized(content)).hexdigest()

    def run(self, content: Any, about: About, first: Any, model: Any) -> Run:
        """A session on the CPU."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        data, where = _serialized(content), ["CPUExecutionProvider"]
        try:
            session = onnxruntime.InferenceSession(data, options, providers=where)
        except Exception as error:  # its own hierarchy, which is not exported
            raise Damaged(f"ONNX Runtime cannot load it ({_line(error)})") from None
        (rows,) = session.get_inputs()
        return lambda x: session.run(None, {rows.name: x})[0]


def _serialized(proto: Any) -> bytes:
    return proto.SerializeToString(deterministic=True)


def _without_dead(function: Forward) -> Forward:
    """The same function without operations whose results are not used, such as the keys of dropout
    in evaluation mode, which no converter knows."""

    def alive(x: Any) -> Any:
        closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(x.shape, x.dtype))
        jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True], instantiate=True)
        return jex_core.jaxpr_as_fun(jex_core.ClosedJaxpr(jaxpr, closed.consts))(x)[0]

    return alive


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the converter says of its own plugins."""
    logs = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


class Arrays(Format):
    """Weights alone, for code that has the model."""

    def convert(
        self, network: Compact, first: Callable[[Any], Any], shape: Any, dtype: Any, about: About
    ) -> dict[str, np.ndarray]:
        """``param/NAME`` and ``state/NAME``."""
        parts = {"param": network.params, "state": network.state}
        return {
            f"{part}/{name}": np.asarray(leaf)
            for part, tree in parts.items()
            for name, leaf in flatten_named(tree).items()
        }

    def digest(self, content: Mapping[str, np.ndarray]) -> str:
        """Of names, types, shapes and values."""
        whole = hashlib.sha256()
        for name in sorted(content):
            values = np.ascontiguousarray(content[name])
            whole.update(f"{name} {values.dtype.str} {values.shape};".encode())
            whole.update(values.tobytes())
        return whole.hexdigest()

    def run(self, content: Any, about: About, first: Any, model: Any) -> Run:
        """The model with these arrays.

        Raises:
            Damaged: the model is not a built-in one and was not given, or other arrays.
        """
        try:
            name, shape = about["model"]["name"], tuple(about["model"]["input_shape"])
            width, classes = about["model"]["width"], len(about["classes"])
            if model is None:
                if not about["model"]["built_in"] or name not in NAMES:
                    raise Damaged(f"it holds the weights of {name!r}, no built-in model: give it")
                model = build(name, shape, classes, width=width)
            arrays = self.ours(content, about)
            like = jax.eval_shape(model.init, jax.random.key(0))
            trees = _filled(like[0], arrays, "param"), _filled(like[1], arrays, "state")
            # Parameters are arguments: as constants they would be folded, which takes long.
            function = jax.jit(
                lambda params, state, x: forward(Compact(model, params, state))(first(x))
            )
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
    """numpy's archive, compressed: zeros take hardly any room."""

    suffix = ".npz"

    def pack(self, content: Mapping[str, np.ndarray], about: About) -> bytes:
        """Arrays, and the description as one more."""
        text = np.array(json.dumps(about, ensure_ascii=False))
        return arrays_bytes({**content, "fairbilevel": text}, compressed=True)

    def holds(self, data: bytes) -> bool:
        """A zip."""
        return data[:2] == b"PK"

    def unpack(self, data: bytes) -> tuple[Any, About]:
        """What ``pack`` was given."""
        try:
            arrays = read_npz(io.BytesIO(data))
        except (OSError, ValueError) as error:
            raise Damaged(_line(error)) from None
        text = arrays.pop("fairbilevel", None)
        if text is None:
            raise Damaged(_NOT_OURS)
        return arrays, _description(str(text))


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
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(data)
            (length,) = struct.unpack("<Q", data[:8])
            text = json.loads(data[8 : 8 + length])["__metadata__"]["fairbilevel"]
        except (SafetensorError, struct.error, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"it is no such file, or without description ({_line(error)})") from None
        return arrays, _description(text)

    def ours(self, content: dict[str, np.ndarray], about: About) -> dict[str, np.ndarray]:
        """Back to our names."""
        return from_torch(about["model"]["name"], content, about["made_of"])


FORMATS: dict[str, Format] = {
    "stablehlo": StableHLO(),
    "onnx": ONNX(),
    "safetensors": Safetensors(),
    "npz": NPZ(),
}
"""All formats by name."""
