"""Decode many small image files into one uint8 array."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from ._archive import FileTree
from ._errors import DataError, reason
from ._source import Request, Rows
from ._stores import StoredRows, held

_MAX_PIXELS = 64 * 2**20
_AT_ONCE = 1024  # images that are decoded before they are looked at
_TRIED = 8  # of the first images, for one that can be decoded


def decode_image(data: bytes, name: str, size: int | None = None) -> np.ndarray:
    """Decode one image file to uint8, `[h, w, 1]` if it is grey and `[h, w, 3]` else; a `DataError`
    says what is wrong with the file, as a clause without a remedy."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
            if width * height > _MAX_PIXELS:
                raise DataError(f"{name} has {width} x {height} pixels, more than any model takes")
            if opened.mode.split(";")[0] in ("I", "F"):
                raise DataError(f"{name} has more than 8 bits per pixel")
            opened.load()
            image = ImageOps.exif_transpose(opened)
            image = image.convert("L" if image.mode in ("1", "L") else "RGB")
            return resize(image, size)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{name} has too many pixels") from None
    except Exception as error:  # whatever damage makes the many decoders raise
        unknown = isinstance(error, Image.UnidentifiedImageError)
        why = "of no known format" if unknown else reason(error) or type(error).__name__
        raise DataError(f"{name} cannot be decoded as an image ({why})") from None


def resize(image: Image.Image, size: int | None) -> np.ndarray:
    """Return uint8 `[h, w, c]`, resized to a square (bilinear, antialiased) if a size is given."""
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


@functools.cache
def _decoders() -> ThreadPoolExecutor:
    """Threads that decode, which happens outside Python's lock."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="fairbilevel-images")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Rows of image files, resized to a size if there is one and decoded whenever they are read: a
    `RowStore`."""

    tree: FileTree
    files: Sequence[str]
    size: int | None
    shape: tuple[int, ...] = ()  # `(files, h, w, c)`

    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.files)

    def decoded(self, rows: np.ndarray) -> Iterator[np.ndarray | DataError]:
        """Each image, `[h, w, 1 or 3]`, or what is wrong with its file."""
        return _decoders().map(self._decode, [self.files[i] for i in rows.tolist()])

    def _decode(self, name: str) -> np.ndarray | DataError:
        try:
            return decode_image(self.tree.read(name), name, self.size)
        except DataError as error:
            return error

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        order = np.argsort(rows, kind="stable")  # neighbours lie together
        for i, image in zip(order.tolist(), self.decoded(rows[order]), strict=True):
            if isinstance(image, DataError):
                raise DataError(f"{image}: the file has changed while it was in use.")
            if image.shape[:2] != out.shape[1:3] or image.shape[2] > out.shape[3]:
                name = self.files[int(rows[i])]
                raise DataError(f"{name} has another size than before: it has changed.")
            out[i] = image
        return out

    def held(self, in_memory: str, count: int) -> bool:
        """Whether so many images are decoded once, and not whenever they are read, going by the
        first that can be decoded."""
        looked = self.decoded(np.arange(min(_TRIED, len(self))))
        size = next((image.nbytes for image in looked if isinstance(image, np.ndarray)), 0)
        return held(in_memory, count * size)


def image_rows(
    what: str, tree: FileTree, files: Sequence[str], attributes: Any, request: Request, **told: Any
) -> Rows:
    """Rows of image files, decoded when asked for, and held in memory where that is asked.

    `told` are further fields of `Rows`. By default ids are file names, without folders where these
    are unique. Files that cannot be decoded are refused together, or left out if that was asked.
    """
    damaged: list[int] = []
    store = ImageFiles(tree, files, request.options.image_size)

    def read(rows: np.ndarray) -> np.ndarray | StoredRows:
        errors: list[DataError] = []

        def sound() -> Iterator[tuple[str, np.ndarray]]:
            # Some at a time: what is decoded and not yet asked for takes memory.
            for start in range(0, len(rows), _AT_ONCE):
                some = rows[start : start + _AT_ONCE]
                for i, image in zip(some.tolist(), store.decoded(some), strict=True):
                    if isinstance(image, DataError):
                        errors.append(image)
                        damaged.append(i)
                    else:
                        yield files[i], image

        # What Pillow finds odd in a file it decodes all the same is no concern of the reader.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: np.ndarray | StoredRows | None = None
            if store.held(request.options.in_memory, len(rows)):
                found = stack_images(sound(), len(rows))
            else:
                shape = common_shape(sound())
                if shape is not None:
                    whole = dataclasses.replace(store, shape=(len(files), *shape))
                    stored = StoredRows(whole, whole.shape, whole.dtype)
                    found = stored.take(rows[~np.isin(rows, damaged)])
        if errors and (found is None or not request.options.skip_damaged):
            raise DataError(_damaged(errors, len(rows)))
        assert found is not None
        return found

    base = [PurePosixPath(n).name for n in files]
    ids = np.array(base if len(set(base)) == len(base) else files, dtype=str)
    table = pd.DataFrame(attributes, index=range(len(files)))
    fields = {"ids": ids, "damaged": damaged, "encoded": lambda row: tree.read(files[row]), **told}
    return Rows(name=f"{what} ({tree.path.name})", attributes=table, read=read, **fields)


def _damaged(errors: Sequence[DataError], count: int) -> str:
    """What is wrong with how many of the image files, the first three of them by name."""
    told = "; ".join(str(e).rstrip(".") for e in errors[:3])
    told += f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
    several = "replace or remove them, or leave them out with skip_damaged (--skip-damaged)"
    remedy = several if len(errors) < count else "this may be no collection of images"
    return f"{len(errors)} of {count} image files cannot be used: {told}; {remedy}."


def stack_images(images: Iterable[tuple[str, np.ndarray]], most: int) -> np.ndarray | None:
    """Stack at most so many uint8 `[h, w, 1 or 3]` images, each with its name: `[n, h, w, c]`, with
    one channel if all are grey; None for no image."""
    out: np.ndarray | None = None
    grey, count = True, 0
    for _, image in _of_one_size(images):
        if out is None:
            out = np.empty((most, *image.shape[:2], 3), dtype=np.uint8)
        out[count] = image
        grey &= image.shape[2] == 1
        count += 1
    return None if out is None else np.ascontiguousarray(out[:count, ..., : 1 if grey else 3])


def common_shape(images: Iterable[tuple[str, np.ndarray]]) -> tuple[int, ...] | None:
    """The shape that `stack_images` would give each of them, none being kept; None for no image."""
    shape: tuple[int, ...] | None = None
    for _, image in _of_one_size(images):
        shape = (*image.shape[:2], max(image.shape[2], shape[2] if shape else 1))
    return shape


def _of_one_size(images: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """The images, as long as all have the size of the first (`DataError`)."""
    first: tuple[str, tuple[int, ...]] | None = None
    for name, image in images:
        first = first or (name, image.shape)
        if image.shape[:2] != first[1][:2]:
            raise DataError(
                f"images differ in size: {first[0]} has {first[1][1]} x {first[1][0]} pixels, "
                f"{name} {image.shape[1]} x {image.shape[0]}; give an image size to resize to."
            )
        yield name, image
