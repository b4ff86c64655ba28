"""Decode many small image files into one uint8 array."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from ._archive import FileTree
from ._errors import DataError, reason
from ._source import Request, Rows

_MAX_PIXELS = 64 * 2**20


def decode_image(data: bytes, name: str, size: int | None = None) -> np.ndarray:
    """Decode one image file to uint8, `[h, w, 1]` if it is grey and `[h, w, 3]` else.

    Raises:
        DataError: what is wrong with the file, as a clause without a remedy.
    """
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


def image_rows(
    what: str, tree: FileTree, files: Sequence[str], attributes: Any, request: Request, **told: Any
) -> Rows:
    """Rows of image files, decoded when asked for, on a few threads (outside Python's lock).

    `told` are further fields of `Rows`. By default ids are file names, without folders where these
    are unique. Files that cannot be decoded are refused together, or left out if that was asked.
    """
    damaged: list[int] = []

    def decode(name: str) -> np.ndarray | DataError:
        try:
            return decode_image(tree.read(name), name, request.options.image_size)
        except DataError as error:
            return error

    def read(rows: np.ndarray) -> np.ndarray:
        errors: list[DataError] = []

        def sound(images: Iterable[np.ndarray | DataError]) -> Iterator[tuple[str, np.ndarray]]:
            for i, image in zip(rows.tolist(), images, strict=True):
                if isinstance(image, DataError):
                    errors.append(image)
                    damaged.append(i)
                else:
                    yield files[i], image

        # What Pillow finds odd in a file it decodes all the same is no concern of the reader.
        with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            warnings.simplefilter("ignore")
            pixels = stack_images(sound(pool.map(decode, [files[i] for i in rows])), len(rows))
        if errors and (pixels is None or not request.options.skip_damaged):
            raise DataError(_damaged(errors, len(rows)))
        assert pixels is not None
        return pixels

    base = [PurePosixPath(n).name for n in files]
    ids = np.array(base if len(set(base)) == len(base) else files, dtype=str)
    table = pd.DataFrame(attributes, index=range(len(files)))
    fields = {"ids": ids, "damaged": damaged, **told}
    return Rows(name=f"{what} ({tree.path.name})", attributes=table, read=read, **fields)


def _damaged(errors: Sequence[DataError], count: int) -> str:
    """What is wrong with how many of the image files, the first three of them by name."""
    told = "; ".join(str(e).rstrip(".") for e in errors[:3])
    told += f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
    several = "replace or remove them, or leave them out with skip_damaged (--skip-damaged)"
    remedy = several if len(errors) < count else "this may be no collection of images"
    return f"{len(errors)} of {count} image files cannot be used: {told}; {remedy}."


def stack_images(images: Iterable[tuple[str, np.ndarray]], most: int) -> np.ndarray | None:
    """Stack at most so many uint8 `[h, w, 1 or 3]` images, each with its name.

    Returns:
        `[n, h, w, c]`, with one channel if all are grey; None for no image.

    Raises:
        DataError: their sizes differ.
    """
    out: np.ndarray | None = None
    grey, count, first = True, 0, ""
    for name, image in images:
        if out is None:
            out, first = np.empty((most, *image.shape[:2], 3), dtype=np.uint8), name
        elif image.shape[:2] != out.shape[1:3]:
            raise DataError(
                f"images differ in size: {first} has {out.shape[2]} x {out.shape[1]} pixels, "
                f"{name} {image.shape[1]} x {image.shape[0]}; give an image size to resize to."
            )
        out[count] = image
        grey &= image.shape[2] == 1
        count += 1
    return None if out is None else np.ascontiguousarray(out[:count, ..., : 1 if grey else 3])
