"""One writer a folder: a lock that its holder's end, however sudden, releases."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from fairbilevel.records._files import RecordError

try:
    import fcntl
except ImportError:  # no such locks on this system: two runs on one folder go unnoticed
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder for writing.

    Args:
        folder: made if it is not there.
        name: of the lock, where a folder has several.
        patience: seconds to wait for another process.

    Raises:
        RecordError: another process holds it.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, end = folder / name, time.monotonic() + patience
    if fcntl is None:
        yield
        return
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() < end:
                os.close(handle)
                time.sleep(0.02)
                continue
            holder = os.read(handle, 20).decode("ascii", "replace").strip()
            os.close(handle)
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise RecordError(
                f"{who} is writing to {folder}: wait for it, stop it, or choose another folder"
            ) from None
        # The one before may have removed the file between our opening and locking it.
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            break
        os.close(handle)
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
    """Whether a process holds a lock on a file.

    Raises:
        OSError: the file is not there, or cannot be opened.
    """
    if fcntl is None:
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        # Shared: two that look at once do not take each other for the holder.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)
