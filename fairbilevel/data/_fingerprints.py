"""Fingerprints of rows: how a later program tells that it has met a row before."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from ._dataset import Dataset


@dataclass(frozen=True)
class RowFingerprints:
    """One number per row and question; equal numbers mean equal rows, but for chance (2^-64).

    Attributes:
        content: of the inputs alone.
        row: of what makes it this row: of an image its content, elsewhere inputs and id, since two
            people may look alike in ten columns.
        unit: of the person behind it; zero where no unit is known.
    """

    content: UInt64[np.ndarray, " rows"]
    row: UInt64[np.ndarray, " rows"]
    unit: UInt64[np.ndarray, " rows"]


def row_fingerprints(data: Dataset) -> RowFingerprints:
    """Fingerprints of all rows; the same whatever the order, the machine or the file they are in.

    Arguments:
        data: rows as read, not encoded.
    """
    if isinstance(data.inputs, np.ndarray):
        kind = "<f4" if data.inputs.dtype.kind == "f" else data.inputs.dtype.newbyteorder("<")
        inputs = np.ascontiguousarray(data.inputs, dtype=kind)
        content = _numbers([row.tobytes() for row in inputs])
    else:
        from ._attributes import as_text

        columns = [as_text(data.inputs[c]) for c in data.inputs.columns]
        lines = zip(*columns, strict=True) if columns else ([] for _ in range(len(data)))
        content = _numbers(["\x1f".join(map(str, line)).encode() for line in lines])
    row = content
    if data.is_table or np.ndim(data.inputs) < 3:
        keys = zip(content.tolist(), data.ids, strict=True)
        row = _numbers([f"{c} {i}".encode() for c, i in keys])
    unit = np.zeros(len(data), np.uint64)
    if data.unit is not None:
        unit = _numbers([f"unit {u}".encode() for u in data.unit])
    return RowFingerprints(content, row, unit)


def _numbers(keys: list[bytes]) -> UInt64[np.ndarray, " rows"]:
    raw = b"".join(hashlib.blake2b(k, digest_size=8).digest() for k in keys)
    return np.frombuffer(raw, "<u8").astype(np.uint64)
