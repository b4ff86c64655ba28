"""Eight bits in place of float32: ONNX Runtime's static quantization of an ONNX model.

Convolutions and dense layers multiply int8 weights, with one scale a channel, and uint8 inputs;
all else (what the encoder does, sums, norms, attention's own products) stays float32. Ranges of
inputs are the smallest and the largest value on calibration rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fairbilevel.deploy._onnx import quiet

FEWEST, MOST = 32, 1024  # calibration rows
# Beside layers what follows them, so that a range is that of what is left of their outputs.
_NODES = ["Conv", "Gemm", "MatMul", "Relu", "Clip"]
_BATCH = 64


def chosen(rows: int) -> np.ndarray:
    """Which of the rows at hand calibrate: at most 1,024, evenly spaced in their order, so that no
    group is left out because the data is sorted.

    Raises:
        ValueError: there are fewer than 32.
    """
    if rows < FEWEST:
        raise ValueError(
            f"int8 needs at least {FEWEST} select rows to calibrate on, and there are {rows}: "
            "use bfloat16, or solve with more select rows"
        )
    return np.linspace(0, rows - 1, min(rows, MOST)).round().astype(np.int64)


def quantized(proto: Any, rows: np.ndarray) -> Any:
    """The model in int8.

    Args:
        proto: an ``onnx.ModelProto`` with one input.
        rows: as its input takes them; they calibrate.

    Returns:
        An ``onnx.ModelProto`` with the same input and output, without properties.
    """
    with quiet():
        import onnx
        from onnxruntime.quantization import (
            CalibrationDataReader,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Rows(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.batches = _batches(proto.graph.input[0].name, rows)

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.batches, None)

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


def _batches(name: str, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(rows), _BATCH):
        yield {name: rows[start : start + _BATCH]}
