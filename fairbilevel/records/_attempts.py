"""Who is at work in a folder, over all processes and machines that see it.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fairbilevel._files import is_held, take_lock
from fairbilevel.records._files import RecordError, json_text, read_object, write_json

# Network file systems show what others wrote up to a minute late, so several beats go into it.
BEAT, SILENCE = 20.0, 180.0
_NAME = re.compile(r"(?P<stem>.*)\.attempt-(?P<number>\d+)\.json")
_LONGEST = 150  # letters of a file name, which systems bound at 255 bytes


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

    def begin(
        self, name: str, *, most: int | None = None, over: int = 0, ticket: str = ""
    ) -> Attempt | None:
        """Begin the next attempt.

        Args:
            name: of the work.
            most: number of the last attempt that may be made.
            over: number up to which attempts are known to be over, by whoever has watched them for
                long enough; this object may see their files for the first time.
            ticket: told in the file, so that ``give_up`` knows it.

        Returns:
            The attempt, ``None`` where one is under way, began first, or no more may be made.

        Raises:
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = file_stem(name)
        count = max((n for s, n in self._numbers() if s == stem), default=0)
        if count > over and self._state(stem, count).running:
            return None
        return None if most is not None and count >= most else self._make(stem, count + 1, ticket)

    def _make(self, stem: str, number: int, ticket: str) -> Attempt | None:
        path = self._path(stem, number)
        try:
            handle, draft = tempfile.mkstemp(dir=self.folder, prefix=".attempt-")
        except FileNotFoundError:  # whoever was last has just removed the empty folder
            return None
        told = {"kernel": _kernel(), "node": platform.node(), "process": os.getpid()}
        told |= {"ticket": ticket, "locked": bool(take_lock(handle))}
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
