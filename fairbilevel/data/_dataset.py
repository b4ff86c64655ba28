"""What a caller asks for (`Options`) and what every source yields (`Dataset`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt64

from fairbilevel import _display, _numbers

from ._errors import DataError, refuse_unknown
from ._parquet import StoredTable, row_hashes
from ._stores import StoredRows, select

if TYPE_CHECKING:
    import pandas as pd

_PART = 4096  # rows
_BY_ROW = ("y", "group", "ids", "weight", "unit", "role")
_WHOLE = re.compile("0|-?[1-9][0-9]{0,17}")  # what int64 holds


def require_whole(name: str, value: Any, least: int) -> None:
    """Raise `DataError` unless the value is a whole number that large."""
    if isinstance(value, bool) or int(value) != value or value < least:
        raise DataError(f"{name} is {value!r}; give a whole number of at least {least}.")


def hashes(keys: Iterable[bytes]) -> UInt64[np.ndarray, " rows"]:
    """One number per key; equal numbers mean equal keys, but for chance (2^-64)."""
    digests = (hashlib.blake2b(k, digest_size=8).digest() for k in keys)
    return np.fromiter((int.from_bytes(d, "little") for d in digests), np.uint64)


def as_hashed(inputs: np.ndarray) -> np.ndarray:
    """Images as they are, any other numbers as float32: 1 and 1.0 are one input."""
    return inputs if inputs.dtype == np.uint8 else inputs.astype("<f4", copy=False)


def head(label: str, dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """What goes into a fingerprint before the bytes of an array."""
    return f"{label} {dtype.str} {shape}\n".encode()


def first_equal(values: np.ndarray) -> np.ndarray:
    """Return int64 `[n]`: where the value of each row occurs first."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def as_labels(classes: Sequence[str]) -> np.ndarray:
    """Class names in the type that labels of such names come in, to be compared with them.

    Whole numbers where every name is one as Python writes it, truth values where every name is
    `True` or `False`, else text: NumPy finds no number equal to a text, and says nothing.

    Args:
        classes: names, in the order of the logits.

    Returns:
        int64, bool or str `[classes]`.
    """
    if classes and set(classes) <= {"True", "False"}:
        return np.array([name == "True" for name in classes])
    if classes and all(_WHOLE.fullmatch(name) for name in classes):
        return np.array([int(name) for name in classes], np.int64)
    return np.array(classes, dtype=str)


@dataclass(frozen=True)
class Options:
    """How a source is read; every field is optional.

    Attributes:
        target: attribute or column to predict; each source but a table has a default.
        group: one or several attributes, crossed into groups ("White x Male"); the target itself
            may be named, and then the groups are the classes.
        image_size: resize images to this many pixels on both sides (bilinear, antialiased).
        positive: this value of the target against the rest: classes `("not V", "V")`.
        exclude_feature: table columns that the model must not see.
        weight: column of row weights, not negative; scaled to mean one.
        unit: column that names the person; rows of one unit share a role.
        role: column that says fit, select, tune, certify or test.
        id: column of unique row ids; default the file name or the row number.
        missing_groups: "error", "own" (a group named "missing") or "drop" (counted as skipped).
        bins: edges for numeric attributes, as "age=25,45": "age<25", "25<=age<45", "age>=45".
        skip_damaged: leave out image files that cannot be decoded, and count them.
        max_rows: a random subset of at most this many rows, always the same one.
        in_memory: whether inputs are held in memory: "yes", "no" (they are read batch by batch from
            where they lie) or "auto", which holds up to 512 MiB.
        split: split of a TensorFlow data set, default "train".
        data_dir: folder where TensorFlow data sets were prepared.
        download: let TensorFlow Datasets download and prepare what is not there yet.
    """

    target: str | None = None
    group: Sequence[str] = ()
    image_size: int | None = None
    positive: str | None = None
    exclude_feature: Sequence[str] = ()
    weight: str | None = None
    unit: str | None = None
    role: str | None = None
    id: str | None = None
    missing_groups: str = "error"
    bins: Sequence[str] = ()
    skip_damaged: bool = False
    max_rows: int | None = None
    in_memory: str = "auto"
    split: str | None = None
    data_dir: str | None = None
    download: bool = False

    def __post_init__(self) -> None:
        # JSON knows lists only, and one name is easily written without its tuple.
        for name in ("group", "exclude_feature", "bins"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if len(set(self.group)) != len(self.group):
            raise DataError(f"group names an attribute twice: {', '.join(self.group)}.")
        said = f"missing_groups is {self.missing_groups!r}"
        refuse_unknown(said, self.missing_groups, ("error", "own", "drop"))
        said = f"in_memory is {self.in_memory!r}"
        refuse_unknown(said, self.in_memory, ("auto", "yes", "no"))
        for name in ("image_size", "max_rows"):
            if (value := getattr(self, name)) is not None:
                require_whole(name, value, 1)

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON values; `from_json` reads them back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Options:
        """Read options written by `to_json`; an unknown name is a `DataError`."""
        known = [f.name for f in dataclasses.fields(Options)]
        for name in values:
            refuse_unknown(f"there is no option {name!r}", name, known)
        return Options(**values)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows as read: inputs not yet encoded, labels and groups as indices into their names.

    Attributes:
        name: what was read.
        inputs: images uint8 `[n, h, w, c]`, arrays float32 or int32 `[n, ...]`, or a table of
            features; `StoredRows` and `StoredTable` for what is not held in memory.
        y: int32 `[n]`, index into `classes`; -1 where the label is missing (unlabelled rows only).
        group: int32 `[n]`, index into `groups`; -1 likewise.
        ids: str `[n]`, unique.
        numbered: whether the ids are mere row numbers, which say nothing of who is who.
        classes: class names; with a positive value, class 1 is the positive one.
        groups: group names.
        weight: float32 `[n]` with mean one, or None.
        unit: str `[n]`, the person behind a row, or None.
        role: str `[n]`, the role that the file asks for, or None.
        skipped: reason -> number of rows left out.
        notes: sentences that belong beside every result from these rows.
        merged: names of the groups that were pooled into "other (merged)".
        merged_classes: names of the classes that were pooled into "other (merged)".
        dropped_classes: names of the classes whose rows were left out.
        target: the attribute that `y` holds, or None where rows have none.
        attributes: the attributes that `group` crosses.

    Raises:
        DataError: the arrays do not belong together.
    """

    name: str
    inputs: np.ndarray | pd.DataFrame | StoredRows | StoredTable
    y: np.ndarray
    group: np.ndarray
    ids: np.ndarray
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    weight: np.ndarray | None = None
    unit: np.ndarray | None = None
    role: np.ndarray | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()
    merged_classes: tuple[str, ...] = ()
    dropped_classes: tuple[str, ...] = ()
    target: str | None = None
    attributes: tuple[str, ...] = ()
    numbered: bool = False

    def __post_init__(self) -> None:
        n = len(self.inputs)
        for name, value in self._by_row.items():
            if np.shape(value) != (n,):
                raise DataError(f"{name} has shape {np.shape(value)} where {n} rows were read.")

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        if isinstance(self.inputs, (np.ndarray, StoredRows)):
            inputs = f"inputs {self.inputs.dtype} {list(self.inputs.shape[1:])}"
        else:
            inputs = f"columns {_display.listed([str(c) for c in self.inputs.columns])}"
        return _display.line(
            "Dataset",
            f"{self.name}, {_numbers.counted(len(self), 'row')}",
            inputs,
            f"{len(self.classes)} classes: {_display.listed(self.classes)}",
            f"{len(self.groups)} groups: {_display.listed(self.groups)}",
        )

    @property
    def _by_row(self) -> dict[str, np.ndarray]:
        values = {name: getattr(self, name) for name in _BY_ROW}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def is_table(self) -> bool:
        """Whether the inputs are columns of a table rather than one array."""
        return not isinstance(self.inputs, (np.ndarray, StoredRows))

    @property
    def is_image(self) -> bool:
        """Whether equal inputs are one thing; two people may look alike in ten columns."""
        return not self.is_table and len(self.inputs.shape) >= 3

    def take(self, rows: np.ndarray) -> Dataset:
        """Return the rows with these indices, in this order, with the same names."""
        rows = np.asarray(rows, dtype=np.int64)
        present: dict[str, Any] = {k: values[rows] for k, values in self._by_row.items()}
        return dataclasses.replace(self, inputs=select(self.inputs, rows), **present)

    @cached_property
    def content(self) -> np.ndarray:
        """int64 `[n]`: equal numbers for rows with identical inputs, numbered by first row."""
        if isinstance(self.inputs, StoredRows):
            return first_equal(self.inputs.survey.content)
        if isinstance(self.inputs, np.ndarray):
            return first_equal(hashes(row.tobytes() for row in as_hashed(self.inputs)))
        table = self.inputs
        return first_equal(table.content if isinstance(table, StoredTable) else row_hashes(table))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex over inputs, labels, groups, their names and the ids: a run records it."""
        digest = hashlib.sha256()

        def add(label: str, values: np.ndarray) -> None:
            little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
            digest.update(head(label, little.dtype, little.shape))
            digest.update(memoryview(little).cast("B") if little.size else b"")

        def add_text(label: str, values: Any) -> None:
            # Part by part: a Python object for every row at once would outweigh all columns.
            length = sum(len(str(v)) for v in values) + max(len(values) - 1, 0)
            digest.update(f"{label} {length}\n".encode())
            for start in range(0, len(values), _PART):
                text = "\x1f".join(str(v) for v in values[start : start + _PART])
                digest.update((b"\x1f" if start else b"") + text.encode())

        if isinstance(self.inputs, StoredRows):
            digest = self.inputs.survey.digest.copy()
        elif isinstance(self.inputs, np.ndarray):
            add("inputs", as_hashed(self.inputs))
        else:
            from ._attributes import as_text, is_numeric

            for column in self.inputs.columns:
                values = self.inputs[column]
                if is_numeric(values):
                    add(str(column), values.to_numpy(dtype=np.float64, na_value=np.nan))
                else:
                    add_text(str(column), as_text(values))
        add("y", self.y)
        add("group", self.group)
        for name in ("classes", "groups", "ids"):
            add_text(name, getattr(self, name))
        return digest.hexdigest()
