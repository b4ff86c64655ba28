"""Files of a folder or a zip behind one face; a zip is read in memory and never unpacked."""

from __future__ import annotations

import abc
import re
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from fairbilevel._npz import refuse_bombs

from ._errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# Deflate cannot pass about 1032:1, and tiny files of zeros come near it harmlessly.
_RATIO_MATTERS_FROM = 2**20


class FileTree(abc.ABC):
    """Named files: `names` are sorted relative paths with forward slashes."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self.path = path
        self.names = sorted(n for n in names if not _is_litter(n))

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """Return the bytes of one file.

        Raises:
            DataError: the file cannot be read.
        """

    def images(self) -> list[str]:
        """The names that end like an image."""
        return [n for n in self.names if n.lower().endswith(IMAGE_SUFFIXES)]

    def text(self, name: str) -> str:
        """Return a text file, UTF-8 with or without a byte order mark."""
        try:
            return self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise DataError(f"{name} in {self.path} is not UTF-8 text; save it as UTF-8.") from None


class _Folder(FileTree):
    def __init__(self, path: Path) -> None:
        files = (p for p in path.rglob("*") if p.is_file())
        super().__init__(path, [p.relative_to(path).as_posix() for p in files])

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.path / name} cannot be read: {error.strerror}.") from None


class _Zip(FileTree):
    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise DataError(f"{path} is not a readable zip ({error}); copy it again.") from None
        entries = self._zip.infolist()
        _refuse_unsafe(path, entries)
        self._entries = {e.filename.replace("\\", "/"): e for e in entries if not e.is_dir()}
        super().__init__(path, list(self._entries))

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(self._entries[name])
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise DataError(
                f"{name} in {self.path} cannot be read ({error}); copy the zip again."
            ) from None


def open_tree(path: Path) -> FileTree:
    """Open a folder or a zip.

    Raises:
        DataError: a broken zip, or one with absolute paths, `..`, links, encryption, the same name
            twice, or an uncompressed size that no image collection needs.
    """
    return _Folder(path) if path.is_dir() else _Zip(path)


def short_ids(names: list[str]) -> np.ndarray:
    """File names without folders where these are unique, else the relative paths."""
    base = [PurePosixPath(n).name for n in names]
    return np.array(base if len(set(base)) == len(base) else names, dtype=str)


def _is_litter(name: str) -> bool:
    # What operating systems leave behind is no part of the data and not worth counting.
    parts = name.split("/")
    return parts[0] == "__MACOSX" or parts[-1].startswith("._") or parts[-1] in _LITTER


_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}


def _refuse_unsafe(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    try:
        refuse_bombs(entries, _RATIO_MATTERS_FROM)
    except ValueError as error:
        raise DataError(f"{path}: {error}; this is no collection of images.") from None
    seen: set[str] = set()
    for entry in entries:
        # `filename` is cut at a NUL byte and rewritten on some systems; the original tells.
        for name in (entry.filename, entry.orig_filename):
            plain = name.replace("\\", "/")
            if plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or ".." in plain.split("/"):
                raise DataError(
                    f"{path} holds the entry {name!r}, which points outside the zip; "
                    "pack it again with relative paths."
                )
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise DataError(f"{path} holds the link {entry.filename!r}; pack the files themselves.")
        if entry.flag_bits & 1:
            raise DataError(f"{path} is encrypted ({entry.filename!r}); give a plain zip.")
        plain = entry.filename.replace("\\", "/")
        if plain in seen:
            raise DataError(f"{path} holds {plain!r} twice; pack it again.")
        seen.add(plain)
