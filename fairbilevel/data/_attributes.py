"""From attribute columns to named classes and named groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from ._errors import DataError, listing

MISSING_GROUP = "missing"


def is_numeric(values: pd.Series) -> bool:
    """Whether a column holds numbers (truth values count as 0 and 1)."""
    return bool(pd.api.types.is_numeric_dtype(values.dtype))


def as_text(values: pd.Series) -> np.ndarray:
    """Return object `[n]` of stripped text, None where missing or blank; 1.0 and 1 are both "1"."""
    levels: Any
    if is_numeric(values) and not pd.api.types.is_bool_dtype(values.dtype):
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        place, levels = pd.factorize(numbers)
        text = [str(int(v)) if v.is_integer() else repr(v) for v in levels.tolist()]
    elif isinstance(values.dtype, pd.StringDtype):
        place, levels = pd.factorize(values)
        text = [v.strip() for v in levels]
    else:  # equal objects (1 and True) may be different text
        text = [str(v).strip() for v in values.to_list()]
        place = np.where(values.isna().to_numpy(dtype=bool), -1, np.arange(len(text)))
    # One text for all rows of a value, so that a row costs a pointer; the last is for what misses.
    out = np.empty(len(text) + 1, dtype=object)
    out[:-1] = [t or None for t in text]
    return out[place]


def natural_order(text: np.ndarray, order: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the values present, in the given order, else by number, else by letter."""
    present = {t for t in text if t is not None}
    if order is not None and present <= set(order):
        return tuple(v for v in order if v in present)
    try:
        # The text itself breaks ties such as "1" and "01", which a set holds in any order.
        return tuple(sorted(present, key=lambda v: (float(v), v)))
    except ValueError:
        return tuple(sorted(present))


def parse_bins(bins: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """Read "age=25,45" into edges per attribute; they increase."""
    out: dict[str, tuple[float, ...]] = {}
    for item in bins:
        name, _, edges = item.partition("=")
        try:
            values = tuple(float(e) for e in edges.split(","))
        except ValueError:
            values = ()
        increasing = all(a < b for a, b in pairwise(values))
        if not name.strip() or not values or not increasing or not np.isfinite(values).all():
            raise DataError(f"bins are {item!r}; give a name and growing edges, as age=25,45.")
        out[name.strip()] = values
    return out


def binned(name: str, values: pd.Series, edges: tuple[float, ...]) -> tuple[np.ndarray, tuple]:
    """Cut numbers into "age<25", "25<=age<45", "age>=45"; return text `[n]` and the names."""
    if not is_numeric(values):
        raise DataError(f"bins were given for {name!r}, which does not hold numbers.")
    marks = [f"{e:g}" for e in edges]
    inner = [f"{a}<={name}<{b}" for a, b in pairwise(marks)]
    names = (f"{name}<{marks[0]}", *inner, f"{name}>={marks[-1]}")
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    text = np.array(names, dtype=object)[np.searchsorted(edges, numbers, side="right") % len(names)]
    text[np.isnan(numbers)] = None
    return text, names


def cross(
    columns: Sequence[np.ndarray], orders: Sequence[tuple[str, ...]], own_missing: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Cross attributes into groups such as "White x Male".

    From text `[n]` and all values in their order, per attribute, to group names `[n]` and the names
    present in their order. A missing value is one named "missing" if it is a value of its own
    (`own_missing`); else the group is missing, None.
    """
    rank = np.zeros((len(columns), len(columns[0])), dtype=np.int64)
    for i, (text, order) in enumerate(zip(columns, orders, strict=True)):
        index = {v: k for k, v in enumerate(order)}
        rank[i] = [index.get(t, len(order)) for t in text]
    absent = (rank == np.array([[len(o)] for o in orders])).any(axis=0)
    keep = np.ones_like(absent) if own_missing else ~absent
    names = [(*o, MISSING_GROUP) for o in orders]
    sizes = [len(n) for n in names]
    crossed = np.asarray(np.ravel_multi_index(tuple(rank), sizes))
    combos, inverse = np.unique(crossed[keep], return_inverse=True)
    each = zip(*np.unravel_index(combos, sizes), strict=True)
    labels = [" x ".join(names[i][k] for i, k in enumerate(c)) for c in each]
    out = np.full(len(absent), None, dtype=object)
    out[keep] = np.array(labels, dtype=object)[inverse.reshape(-1)] if labels else None
    return out, tuple(dict.fromkeys(labels))


def codes(
    text: np.ndarray,
    names: tuple[str, ...],
    what: str,
    rows: np.ndarray,
    where: Callable[[int], str],
) -> np.ndarray:
    """Return int32 `[len(rows)]`: indices into names of these rows' text, -1 where missing."""
    index = {None: -1} | {name: i for i, name in enumerate(names)}
    out = np.array([index.get(t, -2) for t in text[rows]], dtype=np.int32)
    outside = rows[out == -2]
    if outside.size:
        raise DataError(
            f"{where(int(outside[0]))} has the {what} {text[outside[0]]!r}, which is outside "
            f"{listing(names)} ({outside.size} such rows)."
        )
    return out
