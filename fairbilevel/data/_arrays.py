"""Arrays: `from_arrays` for arrays in memory, and the source that reads a `.npz` file."""

from __future__ import annotations

from typing import Any

import numpy as np

from fairbilevel._npz import read_npz

from ._dataset import Dataset, Options
from ._errors import DataError, listing
from ._source import Location, Request, Rows, Source

_BY_ROW = ("y", "group", "ids", "unit", "weight", "role")


def from_arrays(
    x: Any,
    y: Any,
    group: Any,
    *,
    classes: tuple[str, ...] | None = None,
    groups: tuple[str, ...] | None = None,
    ids: Any = None,
    unit: Any = None,
    weight: Any = None,
    role: Any = None,
    name: str = "arrays",
    labelled: bool = True,
) -> Dataset:
    """Make a data set of arrays.

    Arguments:
        x: uint8 `[n, h, w]` or `[n, h, w, c]` for images, else numbers `[n, ...]`, all finite.
        y: `[n]` labels: whole numbers that index `classes` if those are given, else any values,
            each of which is a class. None for rows without labels.
        group: `[n]` groups, likewise. None for rows without groups.
        classes, groups: their names, in order.
        ids: `[n]` unique names of rows; default their numbers.
        unit: `[n]` the person behind each row.
        weight: `[n]` row weights, not negative.
        role: `[n]` fit, select, tune, certify or test.
        name: for messages and reports.
        labelled: whether `y` and `group` must be there; without, missing ones are -1.

    Returns:
        The data set; images stay uint8, whole numbers become int32, others float32.

    Raises:
        DataError: arrays that do not belong together, labels outside the classes, numbers that are
            not finite, a single group, and all else that `load` refuses.
    """
    from ._assemble import assemble

    if labelled and (y is None or group is None):
        raise DataError("labelled rows need y and group; give both or set labelled to False.")
    if x is None:
        raise DataError("x is None; give uint8 images [n, h, w, c] or numbers [n, features].")
    aside = {"ids": ids, "unit": unit, "weight": weight, "role": role}
    arrays = {"x": x, "y": y, "group": group, **aside}
    columns: dict[str, Any] = {k: k for k, v in aside.items() if v is not None}
    options = Options(id=columns.pop("ids", None), **columns)
    given = {k: np.asarray(v) for k, v in arrays.items() if v is not None}
    rows = _rows(given, name, classes, groups, labelled)
    return assemble(rows, Request(options, classes, groups, labelled=labelled))


class Arrays(Source):
    """A `.npz` file with `x`, `y` and `group`, and whatever else `from_arrays` takes.

    Any other array of one value per row is an attribute that may be named as target or group.
    """

    forms = "a .npz file with arrays x, y and group"

    def matches(self, location: Location) -> bool:
        """An existing file with that suffix."""
        return location.is_file(".npz")

    def read(self, location: Location, request: Request) -> Rows:
        """Read every array; pickled objects are refused."""
        path = location.path
        try:
            with path.open("rb") as opened:
                arrays = read_npz(opened)
        except (OSError, ValueError) as error:
            raise DataError(f"{path.name} is no readable .npz of plain arrays ({error}).") from None
        classes, groups = (
            tuple(arrays.pop(k).astype(str).tolist()) if k in arrays else None
            for k in ("classes", "groups")
        )
        options = request.options
        chosen = {"y": bool(options.target), "group": bool(options.group)}
        for name in ("x", "y", "group") if request.labelled else ("x",):
            if name not in arrays and not chosen.get(name):
                raise DataError(
                    f"{path.name} has no array {name!r}; it has {listing(arrays)}, "
                    "and x, y and group are needed."
                )
        return _rows(arrays, f"arrays ({path.name})", classes, groups, request.labelled)


def _rows(
    arrays: dict[str, np.ndarray],
    name: str,
    classes: tuple[str, ...] | None,
    groups: tuple[str, ...] | None,
    labelled: bool,
) -> Rows:
    import pandas as pd

    inputs = as_inputs(arrays["x"])
    n = len(inputs)
    for key in _BY_ROW:
        if key in arrays:
            _refuse_shape(key, arrays[key], n)
    for key, names in (("y", classes), ("group", groups)) if labelled else ():
        if key in arrays and names is None:
            _refuse_missing_marks(key, arrays[key])
    columns = {
        key: values.astype(str) if values.dtype.kind == "S" else values
        for key, values in arrays.items()
        if key != "x" and values.shape == (n,)
    }
    orders = {}
    for key, names in (("y", classes), ("group", groups)):
        if names is not None and key in columns:
            columns[key] = _by_index(columns[key], names, key)
            orders[key] = tuple(names)
    return Rows(
        name=name,
        attributes=pd.DataFrame(columns, index=range(n)),
        read=lambda rows: inputs[rows],
        ids=columns["ids"].astype(str) if "ids" in columns else np.arange(n).astype(str),
        target="y",
        group=("group",),
        orders=orders,
    )


def _refuse_shape(key: str, values: np.ndarray, n: int) -> None:
    if values.shape == (n,):
        return
    remedy = ""
    if key == "y" and values.ndim == 2 and len(values) == n:
        remedy = (
            ": a row has one label; several labels a row are not supported, and one-hot labels "
            "are given as y.argmax(1)"
        )
    raise DataError(f"{key} has shape {values.shape} where x has {n} rows{remedy}.")


def _refuse_missing_marks(key: str, values: np.ndarray) -> None:
    """-1 beside 0, 1, ... marks what is missing; beside 1 alone it is a sign."""
    missing = int((values == -1).sum()) if values.dtype.kind in "if" else 0
    if missing and not np.isin(values, (-1, 1)).all():
        raise DataError(
            f"{key} is -1 in {missing} of {len(values)} rows, which marks a missing value: leave "
            "these rows out, or give names as text if it is a value like the others."
        )


def as_inputs(x: np.ndarray) -> np.ndarray:
    """Images as uint8 `[n, h, w, c]`, whole numbers as int32, any others as finite float32."""
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        return x[..., None] if x.ndim == 3 else x
    if x.ndim < 2 or x.dtype.kind not in "fiub" or 0 in x.shape:
        raise DataError(
            f"x has shape {x.shape} and type {x.dtype}; give uint8 images [n, h, w, c] or "
            "numbers [n, features]."
        )
    limits = np.iinfo(np.int32)
    if x.dtype.kind in "iu" and limits.min <= x.min() and x.max() <= limits.max:
        return x.astype(np.int32)
    out = x.astype(np.float32)
    bad = int((~np.isfinite(out)).reshape(len(out), -1).any(axis=1).sum())
    if bad:
        raise DataError(f"x holds missing or infinite numbers in {bad} rows; fill or remove them.")
    return out


def _by_index(values: np.ndarray, names: tuple[str, ...], key: str) -> np.ndarray:
    """Replace indices by names; text passes, to be checked against the names later."""
    if values.dtype.kind not in "iu":
        return values.astype(str)
    outside = np.flatnonzero((values < -1) | (values >= len(names)))
    if outside.size:
        raise DataError(
            f"{key} is {values[outside[0]]} in row {outside[0]}, outside the {len(names)} "
            f"{'classes' if key == 'y' else 'groups'} ({outside.size} such rows)."
        )
    # -1 picks the appended None: missing.
    return np.array([*names, None], dtype=object)[values]
