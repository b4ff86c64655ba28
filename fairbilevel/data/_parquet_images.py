"""Source Parquet images: a column of encoded image files, and their attributes beside it."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from ._archive import FileTree
from ._errors import DataError, listing
from ._folder import TARGET_COLUMNS, first_column
from ._images import image_rows
from ._parquet import PARQUET, ParquetFile
from ._source import Location, Request, Rows, Source, row_numbers

_LOOKED_AT = 8  # of the first values of a column, for one that is an image


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
    if isinstance(value, dict):
        value = value.get("bytes")
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
