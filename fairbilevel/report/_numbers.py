"""Reading numbers that may be missing, and writing them for a reader.

Accuracies are fractions between 0 and 1 in the files; a reader sees percentages with one
decimal, and *points* for differences between two percentages.
"""

import math
from collections.abc import Mapping
from typing import Any

MISSING = "–"
"""Shown in the place of a number that the run does not have."""


def dig(tree: object, *path: str) -> Any:
    """The value under `path` in nested mappings, or `None` where any step is missing."""
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def number(tree: object, *path: str) -> float | None:
    """The finite number under `path`, or `None` where it is missing, null, NaN or infinite."""
    value = dig(tree, *path) if path else tree
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return found if math.isfinite(found) else None


def strings(tree: object, *path: str) -> list[str]:
    """The list under `path` as strings; empty where there is none."""
    value = dig(tree, *path)
    return [str(item) for item in value] if isinstance(value, list | tuple) else []


def mapping(tree: object, *path: str) -> dict[str, Any]:
    """The mapping under `path` with string keys; empty where there is none."""
    value = dig(tree, *path)
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def _fixed(value: float, decimals: int, *, signed: bool = False) -> str:
    text = f"{abs(value):,.{decimals}f}"
    if float(text.replace(",", "")) == 0.0:
        return text
    return ("−" if value < 0 else "+" if signed else "") + text


def percent(fraction: float | None) -> str:
    """`0.8721` as `87.2%`."""
    return MISSING if fraction is None else _fixed(100 * fraction, 1) + "%"


def points(fraction: float | None, *, signed: bool = False) -> str:
    """`0.0213` as `2.1`, to be followed by the word *points*."""
    return MISSING if fraction is None else _fixed(100 * fraction, 1, signed=signed)


def exact_points(fraction: float | None) -> str:
    """A tolerance as the user set it: `0.0025` as `0.25`, `0.02` as `2.0`."""
    if fraction is None:
        return MISSING
    text = _fixed(100 * fraction, 3).rstrip("0")
    return text + "0" if text.endswith(".") else text


def plain(value: float | None, decimals: int = 3, *, signed: bool = False) -> str:
    """A number without a unit; very large or very small ones with an exponent."""
    if value is None:
        return MISSING
    if value != 0 and not 10.0**-decimals / 2 <= abs(value) < 1e7:
        return f"{value:.1e}".replace("-", "−")
    return _fixed(value, decimals, signed=signed)


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return MISSING if value is None else _fixed(value, 0)


def counted(value: float | None, noun: str) -> str:
    """`1 row`, `2,371 rows`."""
    return f"{count(value)} {noun}" + ("" if value is not None and round(value) == 1 else "s")


def compact(value: float, largest: float) -> str:
    """A short label on an axis that ends at `largest`: `0`, `0.25`, `12k`, `3M`, `1e+30`."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value and max(unit, 1e4) <= abs(largest) < 1e12:
            return f"{value / unit:g}{name}".replace("-", "−")
    return f"{value:g}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """`42.0 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:,.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"
