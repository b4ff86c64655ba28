"""From inputs to numbers, with everything learnt from the rows of fit alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._columns import (
    CategoricalColumn,
    Normalize,
    NumericColumn,
    column_from_json,
    expect,
    fit_column,
    given_moments,
    image_moments,
    is_number,
    parse_normalize,
)
from ._dataset import Dataset
from ._errors import DataError, listing
from ._parquet import StoredTable
from ._stores import Moments, StoredRows, select

_FORMAT = 1


def standardize(kind: str, x: jax.Array, moments: tuple[Any, ...]) -> jax.Array:
    """Rows that `Encoder.transform` gave as models take them, of the same shape: float32, or int32
    where they are whole numbers that mean themselves.

    `Encoder.moments` are an argument of what is compiled, so that rows standardized by other
    numbers need no other program.
    """
    if kind == "integer":
        return x
    x = x.astype(jnp.float32)
    if moments:
        x = (x / (255.0 if kind == "image" else 1.0) - moments[0]) / moments[1]
    return x


@dataclass(frozen=True)
class Encoder:
    """How inputs become numbers.

    Attributes:
        kind: "image", "vector", "table", or "integer": whole numbers that stay what they are.
        input_shape: shape of one row after `transform`.
        mean: per channel (images, on the scale 0..1) or per entry of the last axis (vectors), to be
            subtracted on the device; None for tables, which `transform` standardizes itself, and
            where the numbers stay as they are (images: 0..255).
        std: likewise, to divide by; 1 where fit holds a constant.
        columns: the columns of a table, in order; empty otherwise.
    """

    kind: str
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    columns: tuple[NumericColumn | CategoricalColumn, ...] = ()

    @staticmethod
    def fit(
        data: Dataset, rows: np.ndarray, normalize: Normalize = "fit", *, whole: bool = False
    ) -> Encoder:
        """Learn from these row numbers and no others.

        Args:
            data: labelled rows.
            rows: row numbers of fit.
            normalize: "fit" standardizes by these rows, "none" leaves numbers as they are, and a
                pair of mean and deviation standardizes by those: numbers, or one a channel (of
                images, on the scale 0..1) or entry of the last axis; "MEAN,STD" as text, or a name
                of `CONSTANTS`.
            whole: whether the model takes whole numbers, which stay what they are.

        Raises:
            DataError: no rows, or a `normalize` that does not fit them.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if not rows.size:
            raise DataError("an encoder needs at least one row of fit.")
        given = parse_normalize(normalize)
        if data.is_table:
            if not isinstance(given, str):
                raise DataError(
                    "a table is standardized column by column; normalize is fit or none for it."
                )
            table: Any = select(data.inputs, rows)
            columns = tuple(fit_column(table[c], str(c), given == "fit") for c in table.columns)
            width = sum(len(c.feature_names) for c in columns)
            return Encoder("table", (width,), columns=columns)
        inputs: Any = data.inputs
        shape = tuple(int(s) for s in inputs.shape[1:])
        image = inputs.dtype == np.uint8 and len(inputs.shape) == 4
        kind = "integer" if whole else "image" if image else "vector"
        if not isinstance(given, str):
            return Encoder(kind, shape, *given_moments(given, kind, shape[-1]))
        if whole or given == "none":
            return Encoder(kind, shape)
        if image:
            mean, std = image_moments(inputs, rows)
        elif isinstance(inputs, StoredRows):
            moments = Moments(shape[-1])
            for _, part in inputs.take(rows).passed("moments of fit"):
                moments.add(part.reshape(-1, shape[-1]).astype(np.float64))
            mean, std = moments.mean, moments.std
        else:
            values = inputs[rows].reshape(-1, shape[-1]).astype(np.float64)
            mean, std = values.mean(axis=0), values.std(axis=0)
        std = np.where(std > 1e-6 * np.maximum(1, np.abs(mean)), std, 1.0)
        return Encoder(kind, shape, tuple(mean.tolist()), tuple(std.tolist()))

    @property
    def dtype(self) -> np.dtype:
        """Of rows as models take them."""
        return np.dtype(np.int32 if self.kind == "integer" else np.float32)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the encoded columns of a table; "x0", ... of a vector; none of an image."""
        if self.kind == "table":
            return tuple(name for c in self.columns for name in c.feature_names)
        flat = len(self.input_shape) == 1
        return tuple(f"x{i}" for i in range(self.input_shape[0])) if flat else ()

    def transform(self, inputs: Any) -> np.ndarray | StoredRows:
        """Encode `Dataset.inputs`; a table may have further columns, which are ignored.

        Returns:
            Tables float32 `[n, d]`, standardized; images uint8 `[n, h, w, c]`, vectors float32 and
            whole numbers int32 `[n, ...]` as they are: `mean` and `std` are applied on the device.
            Rows that are not held in memory are encoded as they are read.

        Raises:
            DataError: another kind or shape than the encoder was fitted on, a missing column, text
                in a numeric column, or numbers that overflow.
        """
        if self.kind != "table":
            from ._arrays import as_floats, encodable
            from ._raw import as_store

            if hasattr(inputs, "columns"):
                raise DataError(f"this run reads {self.kind} inputs, not a table.")
            store = as_store(inputs)
            inputs = encodable(np.asarray(inputs) if store is None else store)
            if self.kind == "vector" and inputs.dtype == np.int32:
                if isinstance(inputs, StoredRows):
                    inputs = inputs.encoded(as_floats, inputs.shape[1:], np.float32)
                else:
                    inputs = as_floats(inputs)
            dtype = np.dtype(np.uint8) if self.kind == "image" else self.dtype
            if inputs.dtype != dtype or inputs.shape[1:] != self.input_shape:
                raise DataError(
                    f"rows have shape {inputs.shape[1:]} and type {inputs.dtype}; this run was "
                    f"fitted on {self.kind} inputs of shape {self.input_shape} and of type {dtype}."
                )
            return inputs
        self._require_columns(inputs)
        if isinstance(inputs, StoredTable):
            return inputs.encoded(self._encode, self.input_shape)
        return self._encode(inputs)

    def _encode(self, table: Any) -> np.ndarray:
        """Float32 `[n, d]` of a table in memory."""
        encoded = []
        for column in self.columns:
            with np.errstate(over="ignore"):
                numbers = column.encode(column.raw(table[column.name])).astype(np.float32)
            if not np.isfinite(numbers).all():
                raise DataError(
                    f"column {column.name!r} holds numbers too far from those that the run was "
                    "fitted on for any model to take."
                )
            encoded.append(numbers)
        return np.concatenate(encoded, axis=1)

    def raw(self, inputs: Any) -> np.ndarray:
        """`Dataset.inputs` as one array that still means what was read: what `traced` takes.

        Returns:
            Arrays as `transform` gives them; of a table float32 `[n, columns]` in the order of
            `columns`: numbers as they are (NaN: missing), of text the index of its level (-1:
            never seen).

        Raises:
            DataError: as `transform`.
        """
        encoded = np.asarray(self.transform(inputs))
        if self.kind != "table":
            return encoded
        columns = [column.raw(inputs[column.name]) for column in self.columns]
        return np.stack(columns, axis=1).astype(np.float32)

    def traced(self, raw: jax.Array) -> jax.Array:
        """Rows as models take them, of rows as `raw` gives them, inside a compiled function."""
        if self.kind != "table":
            return self.normalize(raw)
        parts = [column.encode(raw[:, i]) for i, column in enumerate(self.columns)]
        return jnp.concatenate(parts, axis=1)

    def normalize(self, x: jax.Array) -> jax.Array:
        """Rows as `transform` gives them, standardized on the device: float32, of their shape."""
        return standardize(self.kind, x, self.moments)

    @property
    def moments(self) -> tuple[np.ndarray, ...]:
        """What `standardize` subtracts and divides by, float32; empty for tables."""
        if self.mean is None or self.std is None:
            return ()
        return np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)

    def unseen(self, inputs: Any) -> dict[str, int]:
        """Count, per categorical column, the rows whose level fit never held (encoded as zeros)."""
        if self.kind != "table":
            return {}
        self._require_columns(inputs)
        texts = [c for c in self.columns if isinstance(c, CategoricalColumn)]
        counts = {c.name: int((c.index(inputs[c.name]) < 0).sum()) for c in texts}
        return {name: count for name, count in counts.items() if count}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back exactly."""
        columns = [{"type": c.type, **asdict(c)} for c in self.columns]
        return json.loads(json.dumps({"format": _FORMAT, **asdict(self), "columns": columns}))

    @staticmethod
    def from_json(values: Any) -> Encoder:
        """Read what `to_json` wrote.

        Raises:
            DataError: anything that `to_json` would not have written.
        """
        keys = {"format", "kind", "input_shape", "mean", "std", "columns"}
        expect(isinstance(values, Mapping) and set(values) == keys, "its fields")
        expect(values["format"] == _FORMAT, f"format {values['format']!r}")
        kind, shape, columns = values["kind"], values["input_shape"], values["columns"]
        mean, std = values["mean"], values["std"]
        expect(kind in ("image", "vector", "table", "integer"), f"kind {kind!r}")
        whole = isinstance(shape, list) and all(type(s) is int and s > 0 for s in shape)
        expect(whole and len(shape) > 0, f"input_shape {shape!r}")
        expect(isinstance(columns, list), "columns")
        if kind != "table" and mean is None and std is None:
            expect(not columns, "columns")
            return Encoder(kind, tuple(shape))
        expect(kind != "integer", "mean and std")
        if kind != "table":
            for name, numbers in (("mean", mean), ("std", std)):
                fits = isinstance(numbers, list) and len(numbers) == shape[-1]
                expect(fits and all(map(is_number, numbers)), name)
            expect(all(s > 0 for s in std) and not columns, "std")
            return Encoder(kind, tuple(shape), tuple(map(float, mean)), tuple(map(float, std)))
        expect(mean is None and std is None, "mean and std")
        encoder = Encoder(kind, tuple(shape), columns=tuple(column_from_json(c) for c in columns))
        names = [c.name for c in encoder.columns]
        expect(len(set(names)) == len(names), "column names")
        expect(tuple(shape) == (len(encoder.feature_names),), f"input_shape {shape!r}")
        return encoder

    def _require_columns(self, inputs: Any) -> None:
        if not hasattr(inputs, "columns"):
            raise DataError(f"this run reads a table, and was given a {type(inputs).__name__}.")
        if missing := [c.name for c in self.columns if c.name not in inputs.columns]:
            told = listing(missing)
            raise DataError(f"the table lacks columns that the run was fitted on: {told}.")
