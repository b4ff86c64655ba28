"""Decode many small image files into one uint8 array."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from ._archive import FileTree
from ._errors import DataError
from ._source import Request, Rows

_MAX_PIXELS = 64 * 2**20


def decode_image(data: bytes, name: str, size: int | None = None) -> np.ndarray:
    """Decode one image file to uint8, `[h, w, 1]` if it is grey and `[h, w, 3]` else."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
            if width * height > _MAX_PIXELS:
                raise DataError(f"{name} has {width} x {height} pixels; shrink it first.")
            if opened.mode.split(";")[0] in ("I", "F"):
                raise DataError(f"{name} has more than 8 bits per pixel; save it with 8.")
            opened.load()
            image = ImageOps.exif_transpose(opened)
            image = image.convert("L" if image.mode in ("1", "L") else "RGB")
            return resize(image, size)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{name} has too many pixels; shrink it first.") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        why = "is no image" if isinstance(error, Image.UnidentifiedImageError) else error
        told = f"{name} cannot be decoded as an image ({why}); replace the file or remove it."
        raise DataError(told) from None


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
    are unique.
    """

    def decode(name: str) -> np.ndarray:
        return decode_image(tree.read(name), name, request.options.image_size)

    def read(rows: np.ndarray) -> np.ndarray:
        names = [files[i] for i in rows]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return stack_images(pool.map(decode, names), names)

    base = [PurePosixPath(n).name for n in files]
    ids = np.array(base if len(set(base)) == len(base) else files, dtype=str)
    table = pd.DataFrame(attributes, index=range(len(files)))
    fields = {"ids": ids, **told}
    return Rows(name=f"{what} ({tree.path.name})", attributes=table, read=read, **fields)


def stack_images(images: Iterable[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Stack uint8 `[h, w, 1 or 3]` images into `[n, h, w, c]`; one channel if all are grey."""
    out: np.ndarray | None = None
    grey = True
    for i, image in enumerate(images):
        if out is None:
            out = np.empty((len(names), *image.shape[:2], 3), dtype=np.uint8)
        elif image.shape[:2] != out.shape[1:3]:
            raise DataError(
                f"images differ in size: {names[0]} has {out.shape[2]} x {out.shape[1]} pixels, "
                f"{names[i]} {image.shape[1]} x {image.shape[0]}; give an image size to resize to."
            )
        out[i] = image
        grey &= image.shape[2] == 1
    assert out is not None
    return np.ascontiguousarray(out[..., :1]) if grey else out
