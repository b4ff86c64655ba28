"""The face of a source: say whether a location is yours, and read its rows.

To add a source, write one file with one `Source` and name it in `_registry.py`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ._archive import FileTree, open_tree
from ._dataset import Options
from ._parquet import StoredTable
from ._stores import StoredRows

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Location:
    """Where the user points: the text as given, and what it is as a path."""

    text: str

    @property
    def path(self) -> Path:
        """The path, whether something is there or not."""
        return Path(self.text).expanduser()

    def is_file(self, *suffixes: str) -> bool:
        """Whether it is an existing file with one of these suffixes."""
        return self.path.suffix.lower() in suffixes and self.path.is_file()

    @property
    def holds_files(self) -> bool:
        """Whether it is a folder or a zip."""
        return bool(self.text) and (self.path.is_dir() or self.is_file(".zip"))

    @cached_property
    def files(self) -> FileTree:
        """The files below a folder or in a zip."""
        return open_tree(self.path)


@dataclass(frozen=True)
class Request:
    """What is wanted of a source: the options, and the names of a former run if there was one."""

    options: Options
    classes: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    merged: tuple[str, ...] = ()
    merged_classes: tuple[str, ...] = ()
    dropped_classes: tuple[str, ...] = ()
    labelled: bool = True


@dataclass
class Rows:
    """Rows as a source finds them, before targets and groups are chosen.

    Attributes:
        name: what was read.
        attributes: one column per attribute that may be a target, a group, an id, a weight, ...
        read: row numbers -> inputs of these rows, in that order, or where they are read from.
        ids: str `[n]`.
        target: the attribute predicted when the user names none.
        group: the attributes crossed when the user names none.
        orders: attribute -> its values in their natural order.
        numbers: attribute -> its numbers, where `attributes` holds names for them.
        skipped: reason -> rows left out.
        damaged: rows that `read` had to leave out, where that was asked.
        piece: what a row is read from and may be damaged.
        lines: first line in the file of each row, counted from 1; None where rows have no lines.
        encoded: row number -> the bytes of its image file; None where rows are no such files.
        notes: sentences for the reader.
        numbered: whether the ids are mere row numbers.
    """

    name: str
    attributes: pd.DataFrame | StoredTable
    read: Callable[[np.ndarray], np.ndarray | pd.DataFrame | StoredRows | StoredTable]
    ids: np.ndarray
    target: str | None = None
    group: tuple[str, ...] = ()
    orders: dict[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: dict[str, pd.Series] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    damaged: list[int] = field(default_factory=list)
    piece: str = "image file"
    lines: np.ndarray | None = None
    encoded: Callable[[int], bytes] | None = None
    notes: list[str] = field(default_factory=list)
    numbered: bool = False

    def where(self, row: int) -> str:
        """Where a row is, for a message: the line that an editor shows, or its id."""
        return f"row {self.ids[row]}" if self.lines is None else f"line {self.lines[row]}"


def row_numbers(count: int) -> np.ndarray:
    """The numbers of rows as their ids: str `[count]`, no wider than the last."""
    return np.arange(count).astype(f"U{len(str(max(count - 1, 0)))}")


class Source(abc.ABC):
    """One kind of data. `matches` is asked in the order of the registry; the first yes reads."""

    forms: str
    """How a user names this source, for the message about an unknown data set."""

    known: tuple[str, ...] = ()
    """Names (not paths) that it answers to, for the nearest match."""

    has_features: bool = False
    """Whether the inputs are named columns, which a user may exclude."""

    has_image_files: bool = False
    """Whether the inputs are image files, of any size."""

    has_splits: bool = False
    """Whether it has named splits, and is prepared or downloaded somewhere."""

    may_be_damaged: bool = False
    """Whether inputs may be damaged row by row, so that such rows can be left out."""

    @abc.abstractmethod
    def matches(self, location: Location) -> bool:
        """Whether this source reads that location."""

    @abc.abstractmethod
    def read(self, location: Location, request: Request) -> Rows:
        """Read the attributes of all rows; inputs may wait until `Rows.read` is called.

        Files that are not what this source expects are a `DataError`.
        """
