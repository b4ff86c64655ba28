"""Decode many small image files into one uint8 array."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps

from ._errors import DataError

_MAX_PIXELS = 64 * 2**20
_DEEP_MODES = ("I", "F")


def decode_image(data: bytes, name: str, size: int | None = None) -> np.ndarray:
    """Decode one image file to uint8, `[h, w, 1]` if it is grey and `[h, w, 3]` else.

    Raises:
        DataError: no image, a truncated one, one of more than 8 bits or of an absurd size.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
            if width * height > _MAX_PIXELS:
                raise DataError(f"{name} has {width} x {height} pixels; shrink it first.")
            if opened.mode.split(";")[0] in _DEEP_MODES:
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
        reason = "is no image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise DataError(
            f"{name} cannot be decoded as an image ({reason}); replace the file or remove it."
        ) from None


def resize(image: Image.Image, size: int | None) -> np.ndarray:
    """Return uint8 `[h, w, c]`, resized to a square (bilinear, antialiased) if a size is given."""
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def read_images(
    names: Sequence[str], read: Callable[[str], bytes], size: int | None = None
) -> np.ndarray:
    """Decode files into one array, on a few threads (decoding runs outside Python's lock).

    uint8 `[n, h, w, c]`, one channel if every image is grey, else three; resized to `size` pixels
    on both sides if one is given.

    Raises:
        DataError: a file that cannot be decoded, or sizes that differ.
    """
    if not names:
        raise DataError("there are no images to read.")
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        decoded = pool.map(lambda n: decode_image(read(n), n, size), names)
        return stack_images(decoded, names)


def reader(
    files: Sequence[str], read: Callable[[str], bytes], size: int | None
) -> Callable[[np.ndarray], np.ndarray]:
    """From row numbers to the images of these rows."""
    return lambda rows: read_images([files[i] for i in rows], read, size)


def stack_images(images: Iterable[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Stack uint8 `[h, w, 1 or 3]` images into one array, as `read_images` describes."""
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
