"""Sources of images: with a CSV of attributes, one folder per class, or as a column of Parquet."""

from __future__ import annotations

import io
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ._archive import FileTree
from ._errors import DataError, listing, repeated
from ._images import image_rows
from ._parquet import PARQUET, ParquetFile
from ._source import Location, Request, Rows, Source, row_numbers
from ._table import read_csv

FILE_COLUMNS = ("file", "filename", "image", "path", "image_id")
TARGET_COLUMNS = ("label", "target", "class", "y")
_LOOKED_AT = 8  # of the first values of a column, for one that is an image


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


class ParquetImages(Source):
    """A `.parquet` file with one column of bytes of image files, or of structs that hold them under
    `bytes` (as Hugging Face's data sets do); its other columns are attributes."""

    forms = "a .parquet file with a column of images"
    has_image_files = True
    may_be_damaged = True

    def matches(self, location: Location) -> bool:
        """A Parquet file with such a column; one that cannot be read is a table's to refuse."""
        if not location.is_file(*PARQUET):
            return False
        try:
            return bool(_image_columns(ParquetFile(location.path)))
        except DataError:
            return False

    def read(self, location: Location, request: Request) -> Rows:
        """Read the attributes; images are decoded as those of a folder are."""
        path = location.path
        file = ParquetFile(path)
        images = _image_columns(file)
        if len(images) > 1:
            raise DataError(f"{path.name} has several columns of images ({listing(images)}).")
        table = file.table([name for name in file.names if name not in images])
        ids = row_numbers(len(file))
        group = first_column(table, ("group",))
        return image_rows(
            "images",
            FileTree(path, [f"row {i}" for i in ids], lambda name: _read(file, images[0], name)),
            [f"row {i}" for i in ids],
            table,
            request,
            ids=ids,
            target=first_column(table, TARGET_COLUMNS),
            group=(group,) if group else (),
            numbered=True,
            piece="image",
        )


def _read(file: ParquetFile, column: str, name: str) -> bytes:
    """The bytes of a row's image; where there are none a `DataError` without a remedy."""
    found = _bytes(file.value(int(name.removeprefix("row ")), column))
    if found is None:
        raise DataError(f"{name} holds no image")
    return found


def _bytes(value: Any) -> bytes | None:
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if isinstance(value, bytes) else None


def _image_columns(file: ParquetFile) -> list[str]:
    """The columns that hold bytes one of the first of which begins as an image does."""
    import pyarrow.types as kinds

    def binary(kind: Any) -> bool:
        if kinds.is_struct(kind):
            return any(f.name == "bytes" and binary(f.type) for f in kind)
        return kinds.is_binary(kind) or kinds.is_large_binary(kind)

    return [
        name
        for name, raw in file.names.items()
        if binary(file.schema.field(raw).type)
        and any(map(_is_image, map(_bytes, file.first(name, _LOOKED_AT))))
    ]


def _is_image(data: bytes | None) -> bool:
    try:
        with Image.open(io.BytesIO(data or b"")):
            return True
    except Exception:  # whatever the many decoders raise
        return False
