"""Files of a folder or a zip behind one face; a zip is read in memory and never unpacked."""

from __future__ import annotations

import codecs
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fairbilevel._npz import refuse_more, refuse_odd

from ._errors import DataError, reason, repeated

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# What operating systems leave behind is no part of the data and not worth counting.
_LITTER = re.compile(r"__MACOSX/.*|(.*/)?(\._[^/]*|\.DS_Store|Thumbs\.db|desktop\.ini)", re.DOTALL)

# Deflate cannot pass about 1032:1, and tiny files of zeros come near it harmlessly.
_RATIO_MATTERS_FROM = 2**20


@dataclass(frozen=True)
class FileTree:
    """Files of a folder or a zip.

    `read` gives the bytes of a file by its name; where it cannot be read its `DataError` says so
    without a remedy.
    """

    path: Path
    names: list[str]  # sorted relative paths with forward slashes
    read: Callable[[str], bytes]

    def images(self) -> list[str]:
        """The names that end like an image."""
        return [n for n in self.names if n.lower().endswith(IMAGE_SUFFIXES)]

    def text(self, name: str) -> str:
        """Return a text file; see `decode_text`."""
        try:
            data = self.read(name)
        except DataError as error:
            raise DataError(f"{str(error).rstrip('.')}; copy it again.") from None
        return decode_text(data, f"{name} in {self.path}")


def decode_text(data: bytes, name: str) -> str:
    """Return a file's text: UTF-8, or UTF-16 that begins with a byte order mark."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    code = "UTF-16" if wide else "UTF-8"
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("latin-1" if not wide else "utf-16", "ignore")
        what = f"is not {code} text: line {_line(before)} holds the byte 0x{data[error.start]:02x}"
        raise DataError(f"{name} {what} (number {error.start + 1}); save it as UTF-8.") from None
    if "\0" in text:
        what = f"holds a zero byte in line {_line(text[: text.index(chr(0))])}"
        raise DataError(f"{name} is no plain text: it {what}; save it as UTF-8.")
    return text


def _line(before: str) -> int:
    """The line, counted from 1, that what follows this text is in."""
    return 1 + len(re.findall(r"\r\n|\r|\n", before))


def read_file(path: Path) -> bytes:
    """Return the bytes of a file; `DataError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def open_tree(path: Path) -> FileTree:
    """Open a folder, or a zip in which nothing is broken or could do harm."""
    if path.is_dir():
        files = [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()]
        return FileTree(path, _tidy(files), lambda name: read_file(path / name))
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # whatever a damaged directory makes zipfile raise
        raise DataError(f"{path} is not a readable zip ({reason(error)}); copy it again.") from None
    _refuse_unsafe(path, archive.infolist())
    entries = {_plain(e.filename): e for e in archive.infolist() if not e.is_dir()}

    def read(name: str) -> bytes:
        try:
            return archive.read(entries[name])
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise DataError(f"{name} in {path} cannot be read ({reason(error)})") from None

    return FileTree(path, _tidy(entries), read)


def _tidy(names: Iterable[str]) -> list[str]:
    return sorted(n for n in names if not _LITTER.fullmatch(n))


def _plain(name: str) -> str:
    return name.replace("\\", "/")


def _refuse_unsafe(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    try:
        refuse_odd(entries, _RATIO_MATTERS_FROM)
        for entry in entries:  # read one by one: all of them may be more than fits in memory
            refuse_more(entry.file_size, repr(entry.filename))
    except ValueError as error:
        raise DataError(f"{path}: {error}; pack it again as an ordinary zip.") from None
    if twice := repeated(_plain(e.filename) for e in entries):
        raise DataError(f"{path} holds {twice[0]!r} twice; pack it again.")
    for entry in entries:
        # `filename` is cut at a NUL byte and rewritten on some systems; the original tells.
        for name in (entry.filename, entry.orig_filename):
            if re.match(r"/|[A-Za-z]:", _plain(name)) or ".." in _plain(name).split("/"):
                raise DataError(
                    f"{path} holds the entry {name!r}, which points outside the zip; "
                    "pack it again with relative paths."
                )
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise DataError(f"{path} holds the link {entry.filename!r}; pack the files themselves.")
        if entry.flag_bits & 1:
            raise DataError(f"{path} is encrypted ({entry.filename!r}); give a plain zip.")
