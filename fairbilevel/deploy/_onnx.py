"""A network as an ONNX model, and as one in eight bits by ONNX Runtime's static quantization.

There convolutions and dense layers multiply int8 weights, with one scale a channel, and uint8
inputs; all else (what the encoder does, sums, norms, attention's own products) stays float32.
Ranges of inputs are the smallest and the largest value on calibration rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export  # not an attribute of jax until it is imported
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core
from jax.interpreters import partial_eval

from fairbilevel.deploy._compact import Compact, Forward, forward
from fairbilevel.deploy._format import NOT_OURS, About, Damaged, Format, Run, description, line


class ONNX(Format):
    """ONNX through ``jax2onnx``, run by ONNX Runtime; any number of rows."""

    suffix = ".onnx"
    # ONNX Runtime has no kernels for convolutions and dense layers in bfloat16 on a CPU.
    precisions = ("float32", "int8")
    writes_with = ("jax2onnx", "onnxruntime")
    runs_with = ("onnx", "onnxruntime")

    def convert(
        self, network: Compact, first: Callable[[Any], Any], shape: Any, dtype: Any, about: About
    ) -> Any:
        """An ``onnx.ModelProto``."""
        with quiet(), _numpy_as_it_was():
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
            raise Damaged(NOT_OURS)
        del proto.metadata_props[:]
        return proto, description(found["fairbilevel"])

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
            raise Damaged(f"ONNX Runtime cannot load it ({line(error)})") from None
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
def _numpy_as_it_was() -> Iterator[None]:
    """The converter (0.17.1) leaves a ``jnp.cumsum`` behind that takes no axis by position."""
    before = dict(vars(jnp))
    try:
        yield
    finally:
        for name, value in before.items():
            if vars(jnp).get(name) is not value:
                setattr(jnp, name, value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what converter and quantizer say of their own doings."""
    logs = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir", "")]
    levels = [log.level for log in logs]
    # ``logging.warning`` gives the root a handler for good where it has none.
    nowhere = logging.NullHandler()
    logs[-1].addHandler(nowhere)
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logs[-1].removeHandler(nowhere)
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


FEWEST, MOST = 32, 1024  # calibration rows
# Beside layers what follows them, so that a range is that of what is left of their outputs.
_NODES = ["Conv", "Gemm", "MatMul", "Relu", "Clip"]
_BATCH = 64


def chosen(rows: int) -> np.ndarray:
    """Which of the rows at hand calibrate: at most 1,024, evenly spaced in their order, so that no
    group is left out because the data is sorted; 32 are needed."""
    if rows < FEWEST:
        raise ValueError(
            f"int8 needs at least {FEWEST} select rows to calibrate on, and there are {rows}: "
            "use bfloat16, or solve with more select rows"
        )
    return np.linspace(0, rows - 1, min(rows, MOST)).round().astype(np.int64)


def quantized(proto: Any, rows: np.ndarray) -> Any:
    """An ``onnx.ModelProto`` in int8, calibrated on rows as its one input takes them: with the same
    input and output, without properties."""
    with quiet():
        import onnx
        from onnxruntime.quantization import (
            CalibrationDataReader,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process

        name, starts = proto.graph.input[0].name, iter(range(0, len(rows), _BATCH))

        class Rows(CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> dict[str, np.ndarray] | None:
                start = next(starts, None)
                return None if start is None else {name: rows[start : start + _BATCH]}

        with tempfile.TemporaryDirectory() as place:
            given, folded, made = (Path(place) / f"{name}.onnx" for name in ("a", "b", "c"))
            onnx.save_model(proto, given)
            # Norms go into the convolutions before them, which then have one scale a channel.
            quant_pre_process(given, folded, skip_symbolic_shape=True)
            quantize_static(
                folded,
                made,
                Rows(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_NODES,
                per_channel=True,
                # Weights take seven bits of their eight: with all, processors without instructions
                # for dot products of bytes saturate, and the file that was certified on one
                # machine would answer otherwise on another.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                # What a dense layer gives is rounded only where the next one takes it: logits are
                # not. Convolutions without rounded outputs have no integer kernel.
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            )
            model = onnx.load_model(made)
    del model.metadata_props[:]
    used = {node.domain for node in model.graph.node}
    declared = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(declared)
    return model
