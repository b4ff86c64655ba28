"""Who is at work in a folder, over all processes and machines that see it.

A folder has one writer: a lock that its holder's end, however sudden, releases.

An attempt is a file ``NAME.attempt-N.json``. It appears whole, by a hard link, which of any number
of processes one alone can make, on network file systems too; so nobody works at the same piece as
another. An attempt ends with its process: on the same machine the kernel drops the lock on its file
at once (``flock``); from other machines, where such a lock may not be seen, it counts as dead once
its file has not been touched for ``SILENCE`` seconds by the watcher's own clock. Then the next
number may be taken, and never the same one twice: two that notice the same death do not both go on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fairbilevel.records._files import RecordError, json_text, read_object, write_json

try:
    import fcntl
except ImportError:  # no such locks here: two runs on one folder go unnoticed
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
# Network file systems show what others wrote up to a minute late, so several beats go into it.
BEAT, SILENCE = 20.0, 180.0
_NAME = re.compile(r"(?P<stem>.*)\.attempt-(?P<number>\d+)\.json")
_LONGEST = 150  # letters of a file name, which systems bound at 255 bytes


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
        if _lock(handle):
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
            raise RecordError(
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
    except OSError:
        return True
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        return False
    return True


def file_stem(name: str) -> str:
    """A name as one of files: letters that systems refuse are written as %XX."""
    stem = quote(name, safe="@=,+ ")
    if len(stem) <= _LONGEST:
        return stem
    return f"{stem[: _LONGEST - 20]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _kernel() -> str:
    """What has the same ``flock`` as this process: a running kernel, containers included."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


@dataclass
class Attempt:
    """One process at one piece of work; a context that says so until it is left."""

    path: Path  # of its file
    number: int  # from 1
    _handle: int
    _told: dict[str, Any]
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Attempt:
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def __exit__(self, *error: object) -> None:
        self._over.set()
        os.close(self._handle)

    def fail(self, why: str, trace: str = "") -> None:
        """Leave word of what went wrong; the attempt is spent."""
        write_json(self.path, {**self._told, "error": why, "trace": trace})

    def drop(self) -> None:
        """As if it had never begun."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Attempted:
    """What is known of the attempts at one piece of work.

    Attributes:
        count: number of the newest, 0 where there was none.
        running: whether it is under way.
        error: what the newest came to, if it is over.
    """

    count: int = 0
    running: bool = False
    error: str | None = None


class Attempts:
    """The attempts in a folder, as one process sees them.

    Args:
        folder: that holds their files; made when the first begins.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        # When a file of another machine was first seen as it is.
        self._seen: dict[Path, tuple[int, float]] = {}

    def all(self) -> dict[str, Attempted]:
        """Every piece of work with attempts, by the stem of its files (``file_stem``)."""
        newest: dict[str, int] = {}
        for stem, number in self._numbers():
            newest[stem] = max(number, newest.get(stem, 0))
        return {stem: self._state(stem, number) for stem, number in newest.items()}

    def begin(self, name: str, *, most: int | None = None, ticket: str = "") -> Attempt | None:
        """Begin the next attempt.

        Args:
            name: of the work.
            most: number of the last attempt that may be made.
            ticket: told in the file, so that ``give_up`` knows it.

        Returns:
            The attempt, ``None`` where one is under way, began first, or no more may be made.

        Raises:
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = file_stem(name)
        count = max((n for s, n in self._numbers() if s == stem), default=0)
        if count and self._state(stem, count).running:
            return None
        return None if most is not None and count >= most else self._make(stem, count + 1, ticket)

    def _make(self, stem: str, number: int, ticket: str) -> Attempt | None:
        path = self._path(stem, number)
        try:
            handle, draft = tempfile.mkstemp(dir=self.folder, prefix=".attempt-")
        except FileNotFoundError:  # whoever was last has just removed the empty folder
            return None
        told = {"kernel": _kernel(), "node": platform.node(), "process": os.getpid()}
        told |= {"ticket": ticket, "locked": _lock(handle)}
        try:
            os.write(handle, json_text(told).encode())
            os.fsync(handle)
            os.link(draft, path)
        except FileExistsError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        finally:
            os.unlink(draft)
        return Attempt(path, number, handle, told)

    def give_up(self, name: str, ticket: str, why: str) -> None:
        """Spend the attempt of a ticket whose process is known to be gone, begun or not."""
        stem = file_stem(name)
        for number in sorted((n for s, n in self._numbers() if s == stem), reverse=True):
            path = self._path(stem, number)
            with contextlib.suppress(RecordError):
                told = read_object(path)
                if told.get("ticket") == ticket:
                    if "error" not in told:
                        write_json(path, {**told, "error": why})
                    return
        attempt = self.begin(name, ticket=ticket)
        if attempt is not None:
            with attempt:
                attempt.fail(why)

    def forget(self, name: str) -> None:
        """Remove all of a piece of work that is done."""
        stem = file_stem(name)
        for found, number in self._numbers():
            if found == stem:
                self._path(stem, number).unlink(missing_ok=True)

    def _path(self, stem: str, number: int) -> Path:
        return self.folder / f"{stem}.attempt-{number}.json"

    def _numbers(self) -> list[tuple[str, int]]:
        try:
            found = [_NAME.fullmatch(entry) for entry in os.listdir(self.folder)]
        except FileNotFoundError:
            return []
        return [(m["stem"], int(m["number"])) for m in found if m]

    def _state(self, stem: str, number: int) -> Attempted:
        path = self._path(stem, number)
        try:
            changed = path.stat().st_mtime_ns
            told = read_object(path)
        except (OSError, RecordError):  # gone meanwhile: the work is done, or was dropped
            return Attempted()
        if "error" in told:
            return Attempted(number, error=str(told["error"]))
        if told.get("locked") and told.get("kernel") == _kernel():
            try:
                alive = is_held(path)
            except FileNotFoundError:
                return Attempted()
        else:
            now = time.monotonic()
            before, since = self._seen.setdefault(path, (changed, now))
            if before != changed:
                since = now
                self._seen[path] = (changed, now)
            alive = now - since < SILENCE
        if alive:
            return Attempted(number, running=True)
        where = f"process {told.get('process')} on {told.get('node')}"
        return Attempted(number, error=f"{where} ended without a word")
