"""Source image folder: any images with a CSV of labels and attributes, or one folder per class."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from ._archive import FileTree
from ._csv import read_csv
from ._errors import DataError, listing, repeated
from ._images import image_rows
from ._source import Location, Request, Rows, Source

FILE_COLUMNS = ("file", "filename", "image", "path", "image_id")
TARGET_COLUMNS = ("label", "target", "class", "y")


class ImageFolder(Source):
    """Folder or zip of images; the fallback for both."""

    forms = "a folder or zip of images with labels.csv, or with one sub-folder per class"
    has_image_files = True
    may_be_damaged = True

    def matches(self, location: Location) -> bool:
        """Any folder or zip."""
        return location.holds_files

    def read(self, location: Location, request: Request) -> Rows:
        """Read the CSV if there is one; else every image's own folder names its class."""
        tree = location.files
        if not tree.names:
            raise DataError(f"{tree.path} holds no files.")
        tables = [n for n in tree.names if n.lower().endswith(".csv")]
        if not tables:
            return _read_class_folders(tree, request)
        # The labels lie at the top; labels.csv goes before other tables there.
        rank = {n: (n.count("/"), PurePosixPath(n).name != "labels.csv") for n in tables}
        return _read_csv_folder(tree, min(tables, key=rank.__getitem__), request)


def _read_csv_folder(tree: FileTree, path: str, request: Request) -> Rows:
    read = read_csv(tree.text(path), path)
    table = read.table
    if table.empty:
        raise DataError(f"{path} has no rows.")
    column = first_column(table, FILE_COLUMNS)
    if column is None:
        raise DataError(
            f"{path} has no column of file names; call it one of {', '.join(FILE_COLUMNS)} "
            f"(its columns are {listing(table.columns)})."
        )
    if (missing := table[column].isna().to_numpy()).any():
        first = read.lines[int(missing.argmax())]
        raise DataError(
            f"{path} lacks the file name in {int(missing.sum())} rows (the first is line {first})."
        )
    names = table[column].astype(str).str.strip().to_numpy(dtype=object)
    if twice := repeated(names):
        raise DataError(f"{path} names {twice[0]} twice; give one row each.")
    files = _resolve(tree, PurePosixPath(path).parent, names, path)
    unlisted = set(tree.images()) - set(files)
    table = table.drop(columns=column)
    group = first_column(table, ("group",))
    return image_rows(
        "images",
        tree,
        files,
        table,
        request,
        ids=names.astype(str),
        target=first_column(table, TARGET_COLUMNS),
        group=(group,) if group else (),
        notes=list(read.notes),
        skipped={f"image without a row in {PurePosixPath(path).name}": len(unlisted)},
    )


def first_column(table: pd.DataFrame, names: tuple[str, ...]) -> str | None:
    """The first column that is called one of these, however that is capitalized."""
    return next((c for c in table.columns if c.lower() in names), None)


def _resolve(tree: FileTree, folder: PurePosixPath, names: np.ndarray, table: str) -> list[str]:
    """Find each file beside the CSV, from the top, or by its bare name where that is unique."""
    known = {name: [name] for name in tree.names}
    by_base: dict[str, list[str]] = {}
    for path in tree.names:
        by_base.setdefault(PurePosixPath(path).name, []).append(path)
    files, missing = [], []
    for name in names:
        plain = str(PurePosixPath(name.replace("\\", "/")))
        found = known.get(str(folder / plain)) or known.get(plain) or by_base.get(plain, [])
        files += found
        missing += [] if len(found) == 1 else [name]
    if missing:
        raise DataError(
            f"{table} names {len(missing)} files that are not in {tree.path} "
            f"(the first is {missing[0]}); add them or remove their rows."
        )
    return files


def _read_class_folders(tree: FileTree, request: Request) -> Rows:
    images = tree.images()
    parents = [PurePosixPath(n).parent.name for n in images]
    labels = set(parents)
    if not images:
        raise DataError(f"{tree.path} holds no images; it may be the wrong folder.")
    # Without labels wanted, a folder name is a label only if a former run knew it as one.
    unlabelled = not request.labelled and not labels <= set(request.classes or ())
    if not unlabelled and len(labels - {""}) < 2 and request.classes is None:
        raise DataError(
            f"{tree.path} gives no labels: it has no CSV and no two sub-folders of images; "
            "add labels.csv with the columns file and label, or one folder per class."
        )
    files = [n for n, p in zip(images, parents, strict=True) if p or unlabelled]
    skipped = {
        "image outside any class folder": len(images) - len(files),
        "not an image file": len(tree.names) - len(images),
    }
    columns = {} if unlabelled else {"label": [p for p in parents if p]}
    return image_rows(
        "images", tree, files, columns, request, target="label", group=("label",), skipped=skipped
    )
