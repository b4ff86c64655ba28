"""Fingerprints of rows: how a later program tells that it has met a row before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt32, UInt64

from ._dataset import Dataset, as_hashed, hashes, head
from ._parquet import table_parts
from ._stores import Moments, StoredRows, rows_at_once

if TYPE_CHECKING:
    import pandas as pd

# Of the coarse picture of a row: columns it is reduced to, the width of a cell in standard
# deviations, and the parts one of which may be anything.
_COLUMNS, _CELL, _PARTS = 48, 0.5, 4
_SIDE = 4


@dataclass(frozen=True)
class RowFingerprints:
    """One number per row and question; equal numbers mean equal rows, but for chance (2^-64).

    Attributes:
        content: of the inputs alone.
        row: of what makes it this row: of an image its content; elsewhere inputs and id, since two
            people may look alike in ten columns; without ids inputs and how often they came before,
            so that the order of rows says nothing.
        unit: of the person behind it; zero where no unit is known.
    """

    content: UInt64[np.ndarray, " rows"]
    row: UInt64[np.ndarray, " rows"]
    unit: UInt64[np.ndarray, " rows"]


@dataclass(frozen=True)
class Survey:
    """What one pass over rows tells that are not held in memory."""

    content: UInt64[np.ndarray, " rows"]  # fingerprints of their inputs
    digest: Any  # SHA-256 of all of them, as `Dataset.fingerprint` begins
    scale: Float32[np.ndarray, " columns"]  # `coarse_scale`


def survey(rows: StoredRows) -> Survey:
    """Pass through all rows once."""
    from ._arrays import broken, refuse_not_finite

    content, bad = np.empty(len(rows), np.uint64), 0
    dtype = np.dtype(np.uint8 if rows.dtype == np.uint8 else "<f4")
    digest, moments = hashlib.sha256(head("inputs", dtype, rows.shape)), None
    for start, part in rows.passed("fingerprints"):
        plain = np.ascontiguousarray(as_hashed(part))
        digest.update(memoryview(plain).cast("B"))
        content[start : start + len(part)] = hashes(row.tobytes() for row in plain)
        if rows.dtype == np.float32:
            bad += int(broken(part).sum())
        if not bad:
            numbers = _coarse_numbers(part)
            moments = moments or Moments(numbers.shape[1])
            moments.add(numbers)
    refuse_not_finite(bad)
    return Survey(content, digest, _cell(moments.std if moments else np.ones(0)))


def row_fingerprints(data: Dataset) -> RowFingerprints:
    """Fingerprints of rows as read; the same in any order, on any machine and from any file."""
    if isinstance(data.inputs, StoredRows):
        content = data.inputs.survey.content
    elif isinstance(data.inputs, np.ndarray):
        content = hashes(row.tobytes() for row in np.ascontiguousarray(as_hashed(data.inputs)))
    else:
        from ._attributes import as_text

        found = []
        for part in table_parts(data.inputs, "fingerprints"):
            columns = [as_text(part[c]) for c in sorted(part.columns, key=str)]
            lines = zip(*columns, strict=True) if columns else ([] for _ in range(len(data)))
            found.append(hashes("\x1f".join(map(str, line)).encode() for line in lines))
        content = np.concatenate(found)
    row = content
    if not data.is_image:
        names = _occurrence(content).tolist() if data.numbered else data.ids
        row = hashes(f"{c} {i}".encode() for c, i in zip(content.tolist(), names, strict=True))
    unit = np.zeros(len(data), np.uint64)
    if data.unit is not None:
        unit = hashes(f"unit {u}".encode() for u in data.unit)
    return RowFingerprints(content, row, unit)


def _occurrence(values: np.ndarray) -> np.ndarray:
    """How often the value of each row came in rows before it."""
    order = np.argsort(values, kind="stable")
    new = np.append(True, values[order][1:] != values[order][:-1])
    start = np.flatnonzero(new)
    found = np.empty(len(values), np.int64)
    found[order] = np.arange(len(values)) - np.repeat(start, np.diff(np.append(start, len(values))))
    return found


def _coarse_numbers(
    values: Shaped[np.ndarray, "rows ..."],
) -> Float[np.ndarray, "rows columns"]:
    """Numbers as they are; images are reduced to the brightness of four by four fields."""
    if values.ndim >= 3:
        high, wide = (max(size // _SIDE, 1) for size in values.shape[1:3])
        values = _brightness(values[:, : high * _SIDE, : wide * _SIDE])
        fields = len(values), values.shape[1] // high, high, values.shape[2] // wide, wide
        values = values.reshape(fields).mean((2, 4))
    return values.reshape(len(values), -1).astype(np.float64)


def _brightness(values: Shaped[np.ndarray, "rows ..."]) -> Float[np.ndarray, "rows ..."]:
    """The mean over the last axis. Sums of bytes are exact in any order, and channel by channel
    they take a fifth of the time."""
    if values.dtype != np.uint8:
        return values.mean(-1, dtype=np.float64)
    total = values[..., 0].astype(np.uint32)
    for channel in range(1, values.shape[-1]):
        total += values[..., channel]
    return total / float(values.shape[-1])


def _parts(data: Dataset) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """What a coarse picture of rows is made of, some of them at a time: numbers, float64 `[n,
    columns]`, and columns of text."""
    if isinstance(data.inputs, StoredRows):
        for _, part in data.inputs.passed("near duplicates"):
            yield _coarse_numbers(part), []
    elif isinstance(data.inputs, np.ndarray):
        size = rows_at_once(data.inputs.shape, data.inputs.dtype)
        for start in range(0, max(len(data), 1), size):
            yield _coarse_numbers(data.inputs[start : start + size]), []
    else:
        from ._attributes import as_text, is_numeric

        for table in table_parts(data.inputs, "near duplicates"):
            columns = [table[c] for c in sorted(table.columns, key=str)]
            numbers = [_filled(v) for v in columns if is_numeric(v)]
            text = [as_text(v).astype(str) for v in columns if not is_numeric(v)]
            yield np.stack(numbers, 1) if numbers else np.zeros((len(table), 0)), text


def _filled(values: pd.Series) -> Float[np.ndarray, " rows"]:
    """Numbers of a column, what is missing far from all others."""
    return np.nan_to_num(values.to_numpy(dtype=np.float64, na_value=np.nan), nan=1e9)


def coarse_scale(data: Dataset) -> Float32[np.ndarray, " columns"]:
    """The width of a cell of each number, as these rows spread."""
    if isinstance(data.inputs, StoredRows):
        return data.inputs.survey.scale
    if data.is_table:  # column by column, so that one of a file takes no more memory
        from ._attributes import is_numeric

        table: Any = data.inputs
        columns = (table[c] for c in sorted(table.columns, key=str))
        spread = [_filled(v).std() if len(v) else 1.0 for v in columns if is_numeric(v)]
        return _cell(np.array(spread, np.float64))
    numbers = np.concatenate([numbers for numbers, _ in _parts(data)])
    return _cell(numbers.std(0) if len(numbers) else np.ones(numbers.shape[1]))


def _cell(spread: Float[np.ndarray, " columns"]) -> Float32[np.ndarray, " columns"]:
    return np.where(spread > 0, _CELL * spread, 1.0).astype(np.float32)


def coarse_fingerprints(
    data: Dataset, scale: Float32[np.ndarray, " columns"]
) -> UInt32[np.ndarray, "rows slots"]:
    """Numbers one of which two rows share, in the same slot, where they are nearly the same.

    Numbers are rounded to cells, on two grids shifted by half a cell, and each fingerprint leaves
    out one quarter of the columns: a row is met again though a little was added to all numbers, or
    anything to one. Rows that are only alike may share one as well, so it takes more of them than
    among rows that are surely different to mean anything.

    Raises:
        ValueError: another number of columns than the scale has.
    """
    found = np.empty((len(data), 2 * _PARTS), np.uint32)
    start = 0
    for numbers, text in _parts(data):
        if numbers.shape[1] != len(scale):
            raise ValueError(f"rows of {numbers.shape[1]} numbers where {len(scale)} were expected")
        found[start : start + len(numbers)] = _slots(numbers / scale, text)
        start += len(numbers)
    return found


def _slots(
    cells: Float[np.ndarray, "rows columns"], text: list[np.ndarray]
) -> UInt32[np.ndarray, "rows slots"]:
    if cells.shape[1] > _COLUMNS:  # neighbours together: fewer edges for a little noise to cross
        parts = np.array_split(np.arange(cells.shape[1]), _COLUMNS)
        cells = np.stack([cells[:, part].mean(1) for part in parts], 1)
    told = []
    for column in text:
        level, place = np.unique(column, return_inverse=True)
        told.append(hashes(str(v).encode() for v in level).astype(np.int64)[place])
    slots = []
    for shift in (0.0, 0.5):
        whole = np.floor(np.clip(cells + shift, -1e15, 1e15)).astype(np.int64)
        columns = np.column_stack([whole, *told]) if told else whole
        place = np.arange(columns.shape[1]) % _PARTS
        for part in range(_PARTS):
            kept = columns if columns.shape[1] < 2 else columns[:, place != part]
            slots.append(hashes(row.tobytes() for row in np.ascontiguousarray(kept, "<i8")))
    return np.stack(slots, 1).astype(np.uint32)
