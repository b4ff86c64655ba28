"""Arrays: `from_arrays` for arrays in memory, and the source that reads a `.npz` file."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from fairbilevel._npz import read_npz

from ._dataset import Dataset, Options
from ._errors import DataError, listing, repeated
from ._raw import as_store, npz_rows
from ._source import Location, Request, Rows, Source, row_numbers
from ._stores import RowStore, StoredRows, held, select

if TYPE_CHECKING:
    import pandas as pd

_LARGEST = np.finfo(np.float32).max
_WHOLE = np.iinfo(np.int32)
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

    Args:
        x: uint8 `[n, h, w]` or `[n, h, w, c]` for images, else numbers `[n, ...]`, all finite. A
            memory map whose rows lie one behind the other, and a store of your own (`RowStore`), is
            read batch by batch and never held.
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
    if classes is None and y is not None:
        _refuse_measurements(np.asarray(y))
    aside = {"ids": ids, "unit": unit, "weight": weight, "role": role}
    arrays = {"y": y, "group": group, **aside}
    columns: dict[str, Any] = {k: k for k, v in aside.items() if v is not None}
    options = Options(id=columns.pop("ids", None), **columns)
    store = as_store(x)
    inputs = np.asarray(x) if store is None else store
    given = {k: np.asarray(v) for k, v in arrays.items() if v is not None}
    rows = array_rows(inputs, given, name, classes, groups, labelled)
    return assemble(rows, Request(options, classes, groups, labelled=labelled))


def _refuse_measurements(y: np.ndarray) -> None:
    """Refuse labels most of which are broken numbers and different."""
    known = y[np.isfinite(y)] if y.dtype.kind == "f" and y.ndim == 1 else y[:0]
    if y.size < 2 or not known.size:
        return
    if (known != np.floor(known)).mean() > 0.5 and len(np.unique(known)) > known.size / 2:
        raise DataError(
            "y holds numbers that are no classes; regression is not supported: cut them into "
            "classes, or give whole numbers."
        )


class Arrays(Source):
    """A `.npz` file with `x`, `y` and `group`, and whatever else `from_arrays` takes.

    Any other array of one value per row is an attribute that may be named as target or group.
    """

    forms = "a .npz file with arrays x, y and group"

    def matches(self, location: Location) -> bool:
        """An existing file with that suffix."""
        return location.is_file(".npz")

    def read(self, location: Location, request: Request) -> Rows:
        """Read every array, x only if it is to be held; pickled objects are refused."""
        path = location.path
        options = request.options
        try:
            stored = npz_rows(path, "x")
            if stored is not None and held(options.in_memory, stored.size):
                stored = None
            with path.open("rb") as opened:
                arrays = read_npz(
                    opened, lambda n, shape: stored is None if n == "x" else is_column(n, shape)
                )
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
            raise DataError(f"{path.name} is no readable .npz of plain arrays ({error}).") from None
        inputs: Any = arrays.pop("x", None) if stored is None else stored
        name = f"arrays ({path.name})"
        return named_rows(inputs, arrays, name, request)


def is_column(name: str, shape: tuple[int, ...]) -> bool:
    """Whether an array beside `x` can say anything of rows, or is named as if it should."""
    return len(shape) == 1 or name in (*_BY_ROW, "classes", "groups")


def named_rows(
    x: np.ndarray | RowStore | None,
    arrays: dict[str, np.ndarray],
    name: str,
    request: Request,
    table: pd.DataFrame | None = None,
) -> Rows:
    """Rows of arrays by their names in a file or folder (`name`), `classes` and `groups` among
    them; `x` is None where there are no inputs."""
    classes, groups = (
        _names(arrays.pop(k), k) if k in arrays else None for k in ("classes", "groups")
    )
    options, columns = request.options, [] if table is None else list(table.columns)
    there = [*(("x",) if x is not None else ()), *arrays, *map(str, columns)]
    chosen = {"y": bool(options.target), "group": bool(options.group)}
    for needed in ("x", "y", "group") if request.labelled else ("x",):
        if needed not in there and not chosen.get(needed):
            raise DataError(
                f"{name} has no array {needed!r}; it has {listing(there)}, "
                "and x, y and group are needed."
            )
    if request.labelled and classes is None and "y" in arrays and not options.target:
        _refuse_measurements(arrays["y"])
    assert x is not None
    return array_rows(x, arrays, name, classes, groups, request.labelled, table)


def array_rows(
    x: np.ndarray | RowStore,
    arrays: dict[str, np.ndarray],
    name: str,
    classes: tuple[str, ...] | None,
    groups: tuple[str, ...] | None,
    labelled: bool,
    table: pd.DataFrame | None = None,
) -> Rows:
    """Rows of an array or a store, of arrays with one value a row, and of a table."""
    import pandas as pd

    inputs = encodable(x)
    n = len(inputs)
    if table is not None and len(table) != n:
        raise DataError(f"the table of {name} has {len(table)} rows where x has {n}.")
    for key in _BY_ROW:
        if key in arrays:
            _refuse_shape(key, arrays[key], n)
    for key, names in (("y", classes), ("group", groups)) if labelled else ():
        if key in arrays and names is None:
            _refuse_missing_marks(key, arrays[key])
    columns = {key: _plain(values, key) for key, values in arrays.items() if values.shape == (n,)}
    orders = {}
    if table is not None and (twice := [str(c) for c in table.columns if str(c) in columns]):
        raise DataError(f"{name} has {twice[0]!r} as an array and in its table; keep one.")
    for key, names in (("y", classes), ("group", groups)):
        if names is not None and (twice := repeated(names)):
            what = "classes" if key == "y" else "groups"
            raise DataError(f"{what} names {twice[0]!r} twice; give every one a name of its own.")
        if names is not None and key in columns:
            columns[key] = _by_index(columns[key], names, key)
            orders[key] = tuple(names)
    beside = pd.DataFrame(columns, index=range(n))
    return Rows(
        name=name,
        attributes=beside if table is None else beside.join(table.set_axis(beside.index)),
        read=lambda rows: select(inputs, rows),
        ids=columns["ids"].astype(str) if "ids" in columns else row_numbers(n),
        target="y",
        group=("group",),
        orders=orders,
        numbered="ids" not in columns,
    )


def _refuse_shape(key: str, values: np.ndarray, n: int) -> None:
    if values.shape == (n,):
        return
    remedy = ""
    if key == "y" and values.ndim > 1:
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


def encodable(x: np.ndarray | RowStore) -> np.ndarray | StoredRows:
    """`as_inputs` of what is held, `stored_inputs` of what is not."""
    return as_inputs(x) if isinstance(x, np.ndarray) else stored_inputs(x)


def as_inputs(x: np.ndarray) -> np.ndarray:
    """Images as uint8 `[n, h, w, c]`, whole numbers as int32, any others as finite float32."""
    if _are_images(x.shape, x.dtype):
        return x[..., None] if x.ndim == 3 else x
    if x.dtype.kind in "iu" and x.min() >= _WHOLE.min and x.max() <= _WHOLE.max:
        return x.astype(np.int32)
    out = as_floats(x)
    refuse_not_finite(int(broken(out).sum()))
    return out


def stored_inputs(store: RowStore) -> StoredRows:
    """The same of a store, as its rows are read; that all are finite is found when all of them are
    passed through (`StoredRows.survey`)."""
    if isinstance(store, StoredRows):
        return store
    shape, dtype = tuple(store.shape), np.dtype(store.dtype)
    rows = StoredRows(store, shape, dtype)
    if _are_images(shape, dtype):
        if len(shape) == 4:
            return rows
        return rows.encoded(lambda x: x[..., None], (*shape[1:], 1), np.uint8)
    if dtype.kind in "iu" and (np.can_cast(dtype, np.int32) or _fit_int32(rows)):
        return rows.encoded(lambda x: x.astype(np.int32), shape[1:], np.int32)
    return rows.encoded(as_floats, shape[1:], np.float32)


def _are_images(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether rows are images rather than numbers; what is neither is refused."""
    if dtype == np.uint8 and len(shape) in (3, 4) and 0 not in shape:
        return True
    if len(shape) < 2 or dtype.kind not in "fiub" or 0 in shape:
        raise DataError(
            f"x has shape {shape} and type {dtype}; give uint8 images [n, h, w, c] or "
            "numbers [n, features]."
        )
    return False


def as_floats(x: np.ndarray) -> np.ndarray:
    """Float32; numbers beyond it become infinite."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def _fit_int32(rows: StoredRows) -> bool:
    parts = rows.passed("reading whole numbers")
    return all(part.min() >= _WHOLE.min and part.max() <= _WHOLE.max for _, part in parts)


def broken(x: np.ndarray) -> np.ndarray:
    """Which rows hold numbers that are not finite: bool `[n]`."""
    return (~np.isfinite(x)).reshape(len(x), -1).any(axis=1)


def refuse_not_finite(rows: int) -> None:
    """Raise `DataError` where any rows do."""
    if rows:
        raise DataError(
            f"x holds missing or infinite numbers in {rows} rows (or such beyond {_LARGEST:.1g}); "
            "fill or remove them."
        )


def _names(values: np.ndarray, key: str) -> tuple[str, ...]:
    """Names of classes or groups, in order."""
    if values.ndim != 1 or values.dtype.kind not in "USiu":
        raise DataError(
            f"{key} has shape {values.shape} and type {values.dtype}; give a name each."
        )
    return tuple(_plain(values, key).astype(str).tolist())


def _plain(values: np.ndarray, key: str) -> np.ndarray:
    """One value a row as text or numbers of one part."""
    if values.dtype.kind in "cV":
        raise DataError(f"{key} holds values of type {values.dtype}; give numbers or text.")
    if values.dtype.kind != "S":
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    try:
        return np.char.decode(values, "utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{key} holds bytes that are not UTF-8 text; give text.") from None


def _by_index(values: np.ndarray, names: tuple[str, ...], key: str) -> np.ndarray:
    """Replace indices by names; text must be names already."""
    broken = values.dtype.kind == "f" and (values != np.floor(values)).any()
    if broken or values.dtype.kind not in "iuf":
        text = values.astype(str)
        strange = np.flatnonzero(~np.isin(np.char.strip(text), names))
        if strange.size:
            label = "label" if key == "y" else key
            raise DataError(
                f"row {strange[0]} has the {label} {str(text[strange[0]])!r}, which is outside "
                f"{listing(names)} ({strange.size} such rows)."
            )
        return text
    outside = np.flatnonzero((values < -1) | (values >= len(names)))
    if outside.size:
        raise DataError(
            f"{key} is {values[outside[0]]} in row {outside[0]}, outside the {len(names)} "
            f"{'classes' if key == 'y' else 'groups'} ({outside.size} such rows)."
        )
    # -1 picks the appended None: missing.
    return np.array([*names, None], dtype=object)[values.astype(np.int64)]
