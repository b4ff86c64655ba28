"""Files that appear whole or not at all, and locks that end with whoever holds them."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks here: two that write to one folder go unnoticed
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # others: a file system without locks


class HeldError(ValueError):
    """Another process writes to a folder."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the place of ``path`` only once it is complete."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as stream:
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder for writing; where its file system has no locks, two go unnoticed.

    Args:
        folder: made if it is not there.
        name: of the lock, where a folder has several.
        patience: seconds to wait for another process.

    Raises:
        HeldError: another process holds it.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, end = folder / name, time.monotonic() + patience
    if fcntl is None:
        yield
        return
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        taken = take_lock(handle)
        if taken is None:
            break
        if taken:
            # The one before may have removed the file between our opening and locking it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    break
            os.close(handle)
            continue
        holder = os.read(handle, 20).decode("ascii", "replace").strip()
        os.close(handle)
        if time.monotonic() >= end:
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise HeldError(
                f"{who} is writing to {folder}: wait for it, stop it, or choose another folder"
            )
        time.sleep(0.02)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder."""
    try:
        return is_held(folder / LOCK)
    except OSError:
        return False


def is_held(path: Path) -> bool:
    """Whether a process holds a lock on a file; ``OSError`` where that cannot be opened."""
    if fcntl is None:
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        # Shared: two that look at once do not take each other for the holder.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return error.errno in _HELD
    finally:
        os.close(handle)


def take_lock(handle: int) -> bool | None:
    """Whether the lock on an open file is ours from now on; ``None`` where there are none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _HELD else None
    return True
