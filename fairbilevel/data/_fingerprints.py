"""Fingerprints of rows: how a later program tells that it has met a row before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from ._dataset import Dataset, as_hashed, hashes


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
    """Fingerprints of rows as read; the same in any order, on any machine and from any file."""
    if isinstance(data.inputs, np.ndarray):
        content = hashes(row.tobytes() for row in np.ascontiguousarray(as_hashed(data.inputs)))
    else:
        from ._attributes import as_text

        columns = [as_text(data.inputs[c]) for c in data.inputs.columns]
        lines = zip(*columns, strict=True) if columns else ([] for _ in range(len(data)))
        content = hashes("\x1f".join(map(str, line)).encode() for line in lines)
    row = content
    if not data.is_image:
        keys = zip(content.tolist(), data.ids, strict=True)
        row = hashes(f"{c} {i}".encode() for c, i in keys)
    unit = np.zeros(len(data), np.uint64)
    if data.unit is not None:
        unit = hashes(f"unit {u}".encode() for u in data.unit)
    return RowFingerprints(content, row, unit)
