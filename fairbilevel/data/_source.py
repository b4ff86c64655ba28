"""The face of a source: say whether a location is yours, and read its rows.

To add a source, write one file with one `Source` and name it in `_registry.py`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ._archive import FileTree, open_tree
from ._dataset import Options

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Location:
    """Where the user points: the text as given, and the path if one is there."""

    text: str

    @cached_property
    def path(self) -> Path | None:
        """The existing file or folder of that name, or None."""
        path = Path(self.text).expanduser()
        return path if self.text and path.exists() else None

    @cached_property
    def files(self) -> FileTree | None:
        """The files below a folder or in a zip, or None for anything else."""
        path = self.path
        if path is None or not (path.is_dir() or path.suffix.lower() == ".zip"):
            return None
        return open_tree(path)

    @property
    def file(self) -> Path:
        """The path, of a source that said yes to it."""
        assert self.path is not None
        return self.path

    @property
    def tree(self) -> FileTree:
        """The files, of a source that said yes to them."""
        assert self.files is not None
        return self.files


@dataclass(frozen=True)
class Request:
    """What is wanted of a source: the options, and the names of a former run if there was one."""

    options: Options
    classes: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    merged: tuple[str, ...] = ()
    labelled: bool = True

    @staticmethod
    def of(
        options: Options,
        classes: Sequence[str] | None,
        groups: Sequence[str] | None,
        merged: Sequence[str] = (),
        labelled: bool = True,
    ) -> Request:
        """With names in any sequence."""
        names = [None if given is None else tuple(given) for given in (classes, groups)]
        return Request(options, names[0], names[1], tuple(merged), labelled)


@dataclass
class Rows:
    """Rows as a source finds them, before targets and groups are chosen.

    Attributes:
        name: what was read.
        attributes: one column per attribute that may be a target, a group, an id, a weight, ...
        read: row numbers -> inputs of these rows, in that order.
        ids: str `[n]`.
        target: the attribute predicted when the user names none.
        group: the attributes crossed when the user names none.
        orders: attribute -> its values in their natural order.
        numbers: attribute -> its numbers, where `attributes` holds names for them.
        skipped: reason -> rows left out.
        notes: sentences for the reader.
    """

    name: str
    attributes: pd.DataFrame
    read: Callable[[np.ndarray], np.ndarray | pd.DataFrame]
    ids: np.ndarray
    target: str | None = None
    group: tuple[str, ...] = ()
    orders: dict[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: dict[str, pd.Series] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Source(abc.ABC):
    """One kind of data. `matches` is asked in the order of the registry; the first yes reads."""

    forms: str
    """How a user names this source, for the message about an unknown data set."""

    known: tuple[str, ...] = ()
    """Names (not paths) that it answers to, for the nearest match."""

    has_features: bool = False
    """Whether the inputs are named columns, which a user may exclude."""

    @abc.abstractmethod
    def matches(self, location: Location) -> bool:
        """Whether this source reads that location."""

    @abc.abstractmethod
    def read(self, location: Location, request: Request) -> Rows:
        """Read the attributes of all rows; inputs may wait until `Rows.read` is called.

        Raises:
            DataError: the files are not what this source expects.
        """
