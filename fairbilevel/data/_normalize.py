"""What becomes of inputs: by the rows of fit, or as they were elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._errors import DataError, did_you_mean
from ._stores import StoredRows, rows_at_once

Normalize = str | tuple[float | Sequence[float], float | Sequence[float]]
CONSTANTS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
"""Mean and deviation of red, green and blue that usual checkpoints were trained under, by name."""


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
