"""What inputs become: columns of a table by what fit tells of each, all else by its moments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ._errors import DataError, did_you_mean
from ._stores import StoredRows, rows_at_once

if TYPE_CHECKING:
    import pandas as pd

MISSING_LEVEL = "(missing)"
Normalize = str | tuple[float | Sequence[float], float | Sequence[float]]
CONSTANTS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
"""Mean and deviation of red, green and blue that usual checkpoints were trained under, by name."""


@dataclass(frozen=True)
class NumericColumn:
    """Missing values become `median`; then standardized; `indicator` adds a 0/1 column."""

    type: ClassVar[str] = "numeric"

    name: str
    median: float
    mean: float
    std: float
    indicator: bool

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns it becomes."""
        return (self.name, f"{self.name} {MISSING_LEVEL}") if self.indicator else (self.name,)

    def raw(self, values: Any) -> np.ndarray:
        """Return float64 `[n]`, NaN where a value is missing."""
        return _as_numbers(values, self.name)

    def encode(self, raw: Any) -> Any:
        """Of `raw` numbers `[n, 1 or 2]`, on the host or inside a compiled function."""
        xp = raw.__array_namespace__()
        missing = xp.isnan(raw)
        scaled = (xp.where(missing, self.median, raw) - self.mean) / self.std
        columns = [scaled, missing.astype(scaled.dtype)] if self.indicator else [scaled]
        return xp.stack(columns, axis=1)


@dataclass(frozen=True)
class CategoricalColumn:
    """One column per level seen in fit; a level not seen there is all zeros."""

    type: ClassVar[str] = "categorical"

    name: str
    levels: tuple[str, ...]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns it becomes."""
        return tuple(f"{self.name}={level}" for level in self.levels)

    def index(self, values: Any) -> np.ndarray:
        """Return int64 `[n]` indices into the levels, -1 for an unseen one."""
        from ._attributes import as_text

        known = {level: i for i, level in enumerate(self.levels)}
        text = as_text(values)
        return np.array([known.get(MISSING_LEVEL if t is None else t, -1) for t in text], np.int64)

    def raw(self, values: Any) -> np.ndarray:
        """Return float64 `[n]`: `index`."""
        return self.index(values).astype(np.float64)

    def encode(self, raw: Any) -> Any:
        """Of `raw` indices `[n, levels]`, on the host or inside a compiled function."""
        levels = np.arange(len(self.levels), dtype=raw.dtype)
        return (raw[:, None] == levels).astype(raw.dtype)


def fit_column(
    values: pd.Series, name: str, standardized: bool
) -> NumericColumn | CategoricalColumn:
    """Learn what a column becomes from its values in fit; numbers may stay as they are."""
    from ._attributes import as_text, is_numeric, natural_order

    if not is_numeric(values):
        text = as_text(values)
        seen = natural_order(text)
        missing = any(t is None for t in text) and MISSING_LEVEL not in seen
        return CategoricalColumn(name, (*seen, MISSING_LEVEL) if missing else seen)
    numbers = _as_numbers(values, name)
    missing = np.isnan(numbers)
    # A column without any value in fit carries only the fact that it is missing.
    median = 0.0 if missing.all() else float(np.median(numbers[~missing]))
    filled = np.where(missing, median, numbers)
    mean, std = (float(filled.mean()), float(filled.std())) if standardized else (0.0, 1.0)
    if not std > 1e-9 * max(1.0, abs(mean)):
        std = 1.0
    return NumericColumn(name, median, mean, std, bool(missing.any()))


def _as_numbers(values: pd.Series, name: str) -> np.ndarray:
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.flatnonzero((np.isnan(numbers) & values.notna().to_numpy()) | np.isinf(numbers))
    if wrong.size:
        told = f"{values.iloc[wrong[0]]!r} where a finite number was expected ({wrong.size} rows)"
        raise DataError(f"column {name!r} holds {told}.")
    return numbers


def expect(good: bool, what: str) -> None:
    """Raise `DataError` unless a part of a saved encoder is good."""
    if not good:
        raise DataError(f"the saved encoder is malformed ({what}); the run must be made again.")


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def column_from_json(values: Any) -> NumericColumn | CategoricalColumn:
    """Read what `Encoder.to_json` wrote of a column; `DataError` for anything else."""
    expect(isinstance(values, Mapping) and isinstance(values.get("name"), str), "a column")
    name, said = values["name"], f"column {values['name']!r}"
    column: NumericColumn | CategoricalColumn
    if values.get("type") == "categorical":
        levels = values.get("levels")
        texts = isinstance(levels, list) and all(isinstance(v, str) for v in levels)
        expect(texts and len(set(levels)) == len(levels), f"levels of {name!r}")
        column = CategoricalColumn(name, tuple(levels))
    else:
        numbers = [values.get(k) for k in ("median", "mean", "std")]
        expect(all(map(is_number, numbers)) and numbers[2] > 0, said)
        expect(isinstance(values.get("indicator"), bool), said)
        median, mean, std = map(float, numbers)
        column = NumericColumn(name, median, mean, std, values["indicator"])
    expect(values.get("type") == column.type and set(values) == {"type", *asdict(column)}, said)
    return column


def parse_normalize(given: Any) -> str | tuple[Any, Any]:
    """ "fit", "none", or a pair of mean and deviation, which text writes as "MEAN,STD" (all means,
    then all deviations) or as a name of `CONSTANTS`.

    Raises:
        DataError: anything else.
    """
    pair = given
    if isinstance(given, str):
        if given in ("fit", "none"):
            return given
        if given in CONSTANTS:
            return CONSTANTS[given]
        try:
            numbers = [float(word) for word in given.split(",")]
        except ValueError:
            numbers = []
        half = len(numbers) // 2
        pair = (numbers[:half], numbers[half:]) if numbers and 2 * half == len(numbers) else None
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        named = ("fit", "none", *CONSTANTS)
        near = did_you_mean(given, named) if isinstance(given, str) else ""
        raise DataError(
            f"normalize is {given!r}{near}; give fit, none, or mean and deviation as "
            f"MEAN,STD or by name ({', '.join(CONSTANTS)})."
        )
    return pair[0], pair[1]


def write_normalize(given: Any) -> str:
    """What `parse_normalize` reads back, the same text for the same numbers."""
    parsed = parse_normalize(given)
    if isinstance(parsed, str):
        return parsed
    numbers = np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in parsed])
    return ",".join(map(repr, numbers.tolist()))


def given_moments(
    given: tuple[Any, Any], kind: str, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if kind == "integer":
        raise DataError(
            "the model takes whole numbers, which are not standardized; leave normalize out."
        )
    found = []
    for name, values in zip(("mean", "deviation"), given, strict=True):
        try:
            numbers = np.asarray(values, np.float64).reshape(-1)
        except (TypeError, ValueError):
            numbers = np.array([np.nan])
        if not np.isfinite(numbers).all() or (name == "deviation" and (numbers <= 0).any()):
            raise DataError(
                f"normalize has the {name} {values!r}; give finite numbers, deviations above 0."
            )
        if numbers.size not in (1, channels):
            what = "channels" if kind == "image" else "entries"
            raise DataError(
                f"normalize has {numbers.size} numbers as {name} for {channels} {what}; give one, "
                "or one for each."
            )
        if kind == "image" and np.abs(numbers).max() > 1:
            raise DataError(
                f"normalize has the {name} {values!r}, and images are on the scale 0 to 1 there; "
                "divide by 255."
            )
        found.append(tuple(np.resize(numbers, channels).tolist()))
    return found[0], found[1]


def image_moments(
    images: np.ndarray | StoredRows, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per channel on the scale 0..1, exact from counts of grey levels."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), dtype=np.int64)
    size = rows_at_once(images.shape, images.dtype)
    starts = range(0, len(rows), size)
    parts: Any = (images[rows[start : start + size]] for start in starts)
    if isinstance(images, StoredRows):
        parts = (part for _, part in images.take(rows).passed("moments of fit"))
    for chunk in parts:
        for c in range(channels):
            counts[c] += np.bincount(chunk[..., c].ravel(), minlength=256)
    level = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ level
    return mean, np.sqrt((share * (level - mean[:, None]) ** 2).sum(axis=1))
