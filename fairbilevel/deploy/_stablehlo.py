"""A network as a program of StableHLO, which JAX alone runs."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import jax
import jax.export  # not an attribute of jax until it is imported
import numpy as np

from fairbilevel.deploy._compact import Compact, forward
from fairbilevel.deploy._format import About, Damaged, Format, Run, description, line

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
        return data[:start], description(data[start : start + length])

    def digest(self, content: bytes) -> str:
        """Of the program."""
        return hashlib.sha256(content).hexdigest()

    def run(self, content: bytes, about: About, first: Any, model: Any) -> Run:
        """Compiled for the present device."""
        try:
            exported = jax.export.deserialize(bytearray(content))
        except Exception as error:  # whatever the flatbuffer's reader or the version check raises
            raise Damaged(f"JAX {jax.__version__} cannot read it ({line(error)})") from None
        call = jax.jit(exported.call)
        return lambda x: np.asarray(call(x))
