"""Named arrays out of an ``.npz`` that anybody may have made: nothing in it is believed.

numpy's own reader takes a header's word for the size of an array and allocates it.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

MOST = 16 * 2**30  # bytes unpacked
_RATIO = 1000  # deflate cannot pass about 1032:1 ...
_RATIO_MATTERS_FROM = 64 * 2**20  # ... and arrays of zeros come near it harmlessly
_HEADER = 2**16


def read_npz(
    stream: io.BufferedIOBase,
    wanted: Callable[[str, tuple[int, ...]], bool] = lambda name, shape: True,
) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz``.

    Args:
        stream: open for reading in binary, seekable.
        wanted: whether an array is read, by its name and shape.

    Raises:
        ValueError: not such a file, damaged, with pickled objects, with text that is none, with an
            array of another size than its header says, or larger unpacked than any data needs.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            _check(entries)
            found, size = {}, 0
            for entry in entries:
                with archive.open(entry) as member:
                    header = read_header(member, repr(entry.filename))
                    if wanted(_name(entry), header[0]):
                        size += entry.file_size
                        refuse_more(size, "it")
                        found[_name(entry)] = _read(member, entry, *header)
            return found
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, KeyError) as e:
        raise ValueError(str(e) or type(e).__name__) from None
    except RuntimeError as error:  # zipfile's word for an encrypted member
        raise ValueError(str(error)) from None


def _name(entry: zipfile.ZipInfo) -> str:
    return entry.filename.removesuffix(".npy")


def _check(entries: list[zipfile.ZipInfo]) -> None:
    names = [_name(entry) for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError("an array is in it twice")
    refuse_odd(entries, _RATIO_MATTERS_FROM)


def refuse_odd(entries: list[zipfile.ZipInfo], harmless: int) -> None:
    """Refuse members of a zip without a name, packed in rare ways or as no data needs.

    Args:
        entries: all members.
        harmless: bytes unpacked up to which a member may be packed as tightly as it likes.

    Raises:
        ValueError: names the member.
    """
    for entry in entries:
        if not entry.filename:
            raise ValueError("an entry has no name")
        # Other methods have no bound on what they unpack to, nor on the memory that takes.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{entry.filename!r} is packed in an unusual way")
        if entry.file_size > max(harmless, _RATIO * entry.compress_size):
            raise ValueError(f"{entry.filename!r} would grow more than {_RATIO}-fold")


def refuse_more(size: int, name: str) -> None:
    """Refuse to read what is larger unpacked than any data needs (``ValueError``)."""
    if size > MOST:
        raise ValueError(f"{name} would hold {size / 2**30:.0f} GiB unpacked")


def read_header(stream: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is stored column by column, and type of an array written by numpy; leaves
    the stream where its numbers begin.

    Args:
        stream: open for reading in binary, at the array's first byte.
        name: of the array, for messages.

    Raises:
        ValueError: no such header, a version that is not known, or pickled objects.
    """
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"{name} has the unknown format version {version}")
    try:
        shape, fortran, dtype = readers[version](stream, max_header_size=_HEADER)
    except Exception as error:  # whatever a parser makes of what is no header
        raise ValueError(f"{name} has no readable header: {error}") from None
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects")
    if any(n < 0 for n in shape):
        raise ValueError(f"{name} has the shape {shape}")
    return shape, fortran, dtype


def _read(
    member: Any, entry: zipfile.ZipInfo, shape: tuple[int, ...], fortran: bool, dtype: np.dtype
) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize  # Python integers: no overflow
    # One byte more than asked: what says too little is noticed as what says too much.
    data = member.read(size + 1) if size < entry.file_size else b""
    if len(data) != size:
        raise ValueError(f"{entry.filename!r} is not as long as its header says")
    array = np.frombuffer(bytearray(data), dtype)
    if dtype.kind == "U" and size:
        letters = array.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if (letters > 0x10FFFF).any() or ((letters >= 0xD800) & (letters < 0xE000)).any():
            raise ValueError(f"{entry.filename!r} holds text that is none")
    return array.reshape(shape, order="F" if fortran else "C")
