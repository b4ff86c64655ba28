"""Source folder of encoded images: image files as records, as `convert` keeps them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ._archive import FileTree
from ._errors import DataError
from ._images import image_rows
from ._raw import ABOUT, RecordFile
from ._row_folder import check_counts, read_about, read_columns, told_columns, whole
from ._source import Location, Request, Rows, Source


class EncodedFolder(Source):
    """A folder that `convert` wrote with `keep_encoded`: each record is an image file."""

    forms = "a folder that convert wrote"
    has_image_files = True
    may_be_damaged = True

    def matches(self, location: Location) -> bool:
        """Its `rows.json` says so; one that cannot be read is the row folder's to refuse."""
        path = location.path
        try:
            return path.is_dir() and read_about(path / ABOUT).get("encoded") is True
        except DataError:
            return False

    def read(self, location: Location, request: Request) -> Rows:
        """Read the columns; images are decoded as those of a folder are."""
        folder = location.path
        about, table = read_about(folder / ABOUT), read_columns(folder)
        with whole(folder):
            parts = [RecordFile(folder / name) for name in about["shards"]]
            check_counts(folder, about, sum(map(len, parts)), len(table))
            attributes, told = told_columns(about, table)
            tree = _as_files(folder, parts, told["ids"].tolist())
            rows = image_rows("images", tree, tree.names, attributes, request, **told)
            return dataclasses.replace(rows, name=about["name"])


def _as_files(folder: Path, parts: list[RecordFile], ids: list[str]) -> FileTree:
    """The records as files that are called by the ids of their rows."""
    starts = np.cumsum([0, *map(len, parts)])
    row_of = {name: row for row, name in enumerate(ids)}
    if len(row_of) < len(ids):
        raise DataError(f"{folder} names rows twice; convert it again.")

    def read(name: str) -> bytes:
        row = row_of[name]
        part = int(np.searchsorted(starts, row, side="right")) - 1
        return parts[part].records(np.array([row - starts[part]]))[0]

    return FileTree(folder, ids, read)
