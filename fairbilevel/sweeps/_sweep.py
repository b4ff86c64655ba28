"""What a sweep is: jobs by name, a file for what each leaves, and how far they have come."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from fairbilevel.devices import cpu_threads
from fairbilevel.records import (
    Attempted,
    Attempts,
    RecordError,
    file_stem,
    read_arrays,
    write_arrays,
)

PARTS = "parts"
_RECORD = "record"  # the array that holds a part's record


class Refused(ValueError):
    """Nothing of a sweep can be done: the user's mistake, in one sentence."""


class NotReady(Exception):
    """The part that a job reads has been taken away again: the job before it has to be redone."""


@dataclass(frozen=True)
class Job:
    """A piece of a sweep.

    Attributes:
        name: unique in its sweep; its files are named after it.
        after: the job whose part it reads, if any. That one is done only where it is needed.
        is_run: whether a user counts it.
        kind: what it has in common with those that are computed like it.
    """

    name: str
    after: str | None = None
    is_run: bool = True
    kind: str = ""


@dataclass(frozen=True)
class Part:
    """What a job leaves, in one file.

    Attributes:
        record: plain JSON.
        arrays: by name; none is called ``record``.
        line: what to tell the user, nothing where it is empty; not kept.
    """

    record: dict[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    line: str = ""


@dataclass(frozen=True)
class Sweep(ABC):
    """Jobs of one folder. It is pickled and sent to where its jobs are done.

    Attributes:
        folder: of the sweep; parts lie in ``parts`` below it until they are merged.
        call: names this call of the sweep: what a process keeps for it is kept under this name.
        threads: that a job's computations are split over on a CPU, wherever it is done: sums come
            out the same then.
    """

    folder: Path
    call: str = field(default_factory=lambda: uuid4().hex, kw_only=True)
    threads: int = field(default_factory=cpu_threads, kw_only=True)

    @property
    def parts(self) -> Path:
        """Where parts and attempts lie."""
        return self.folder / PARTS

    @abstractmethod
    def jobs(self) -> Sequence[Job]:
        """All jobs that are wanted, in the order in which they are best begun."""

    @abstractmethod
    def merged(self) -> Collection[str]:
        """Names of the jobs whose outcomes stand in the folder's own files."""

    @abstractmethod
    def run(self, name: str) -> Part:
        """Do a job.

        Raises:
            Refused: no job of the sweep can be done.
            NotReady: the part it reads is gone.
        """

    def title(self, name: str) -> str:
        """A job's name as users read it."""
        return name

    def part_path(self, name: str) -> Path:
        """The file of a job's part."""
        return self.parts / f"{file_stem(name)}.npz"

    def has(self, name: str) -> bool:
        """Whether a job is done. A part that is merged meanwhile is never missed: its outcome
        stands in the folder's files before it goes."""
        return self.part_path(name).is_file() or name in self.merged()

    def write_part(self, name: str, part: Part) -> None:
        """Keep what a job leaves, whole or not at all."""
        text = json.dumps(part.record, allow_nan=False).encode()
        arrays = {_RECORD: np.frombuffer(text, np.uint8), **part.arrays}
        write_arrays(self.part_path(name), arrays, compressed=True)

    def read_part(self, name: str) -> Part | None:
        """What a job left, ``None`` where it lies nowhere (any more).

        Raises:
            RecordError: the file is damaged.
        """
        path = self.part_path(name)
        try:
            arrays = read_arrays(path)
        except RecordError:
            if path.exists():
                raise
            return None
        try:
            record = json.loads(arrays.pop(_RECORD).tobytes())
        except (KeyError, ValueError) as error:
            raise RecordError(f"{path} is no part of a sweep: {error}") from None
        return Part(record, arrays)


@dataclass(frozen=True)
class Status:
    """How far a sweep has come.

    Attributes:
        runs: that are wanted.
        done: of them.
        running: jobs under way anywhere, dense models among them.
        failed: runs that ended without an outcome.
    """

    runs: int
    done: int
    running: int
    failed: int

    def __str__(self) -> str:
        said = [f"{self.done} of {self.runs} runs done"]
        said += [f"{self.running} running"] if self.running else []
        said += [f"{self.failed} failed"] if self.failed else []
        return ", ".join(said)


class Board:
    """What one process sees of a sweep, look by look: attempts by job name, jobs that are done."""

    def __init__(self, sweep: Sweep):
        self.sweep, self.attempts = sweep, Attempts(sweep.parts)
        self.jobs = list(sweep.jobs())
        names = [j.name for j in self.jobs] + [j.after for j in self.jobs if j.after]
        self._stems = {name: file_stem(name) for name in dict.fromkeys(names)}
        self.attempted: dict[str, Attempted] = {}
        self.done: set[str] = set()

    def look(self) -> None:
        """Look again. Attempts end after parts appear, and parts go after they are merged: in this
        order nothing that is done is taken for undone."""
        attempted = self.attempts.all()
        self.attempted = {
            name: attempted[stem] for name, stem in self._stems.items() if stem in attempted
        }
        try:
            present = set(os.listdir(self.sweep.parts))
        except FileNotFoundError:
            present = set()
        parts = {name for name, stem in self._stems.items() if f"{stem}.npz" in present}
        # What was done once stays so, but for parts that others only read.
        befores = {job.after for job in self.jobs}
        self.done = {n for n in self.done if n not in befores} | parts | set(self.sweep.merged())

    def error(self, job: Job) -> str | None:
        """What kept a job that is not done from it, so far."""
        for name in filter(None, (job.name, job.after)):
            if name in self.done:
                continue
            found = self.attempted.get(name, Attempted()).error
            if found is not None:
                return found if name == job.name else f"{self.sweep.title(name)}: {found}"
        return None

    def status(self) -> Status:
        """In numbers."""
        runs = [job for job in self.jobs if job.is_run]
        undone = [job for job in runs if job.name not in self.done]
        running = [n for n, a in self.attempted.items() if a.running and n not in self.done]
        failed = [j for j in undone if j.name not in running and self.error(j) is not None]
        return Status(len(runs), len(runs) - len(undone), len(running), len(failed))


def status(sweep: Sweep) -> Status:
    """How far a sweep has come, seen from anywhere."""
    board = Board(sweep)
    board.look()
    return board.status()


def failures(sweep: Sweep) -> dict[str, str]:
    """Names of the jobs that ended without an outcome, and what they came to."""
    board = Board(sweep)
    board.look()
    undone = [job for job in board.jobs if job.name not in board.done]
    return {job.name: error for job in undone if (error := board.error(job)) is not None}
