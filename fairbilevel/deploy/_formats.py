"""The formats that a network can ship in."""

from __future__ import annotations

from fairbilevel.deploy._arrays import NPZ, Safetensors
from fairbilevel.deploy._format import Format
from fairbilevel.deploy._onnx import ONNX
from fairbilevel.deploy._stablehlo import StableHLO

FORMATS: dict[str, Format] = {
    "stablehlo": StableHLO(),
    "onnx": ONNX(),
    "safetensors": Safetensors(),
    "npz": NPZ(),
}
"""All formats by name."""
