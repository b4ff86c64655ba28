"""Hands jobs to an executor until all are done, by this call or by another one on the folder."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from fairbilevel.devices import use_cpu_threads
from fairbilevel.records import Attempted, Attempts, Interrupted
from fairbilevel.sweeps._sweep import Board, Job, NotReady, Refused, Sweep

TRIES = 2  # a job that fails is tried once more
_SHORTEST, _LONGEST = 0.02, 1.0  # seconds between two looks

_HERE: set[str] = set()


@dataclass(frozen=True)
class Landed:
    """What comes back from where a job was done: a line to tell the user, or why nothing of the
    sweep can be done. (Executors lose the types of exceptions.)"""

    line: str = ""
    refused: str | None = None


@dataclass(frozen=True)
class Task:
    """A job as an executor gets it: pickled, called once, in any process; with the attempts at it
    that are known to be over and that may be made, and the ticket of this hand-over."""

    sweep: Sweep
    name: str
    over: int
    most: int
    ticket: str

    def __call__(self) -> Landed:
        """Do the job, unless it is done or somebody is at it."""
        if not is_here(self.sweep):
            use_cpu_threads(self.sweep.threads)
        attempts = Attempts(self.sweep.parts)
        attempt = attempts.begin(self.name, most=self.most, over=self.over, ticket=self.ticket)
        if attempt is None:
            return Landed()
        with attempt:
            try:
                # Only now: before, another one may have been about to finish it.
                if not self.sweep.has(self.name):
                    part = self.sweep.run(self.name)
                    self.sweep.write_part(self.name, part)
                    attempts.forget(self.name)
                    return Landed(part.line)
                attempts.forget(self.name)
            except Refused as error:
                attempt.drop()
                return Landed(refused=str(error))
            except NotReady:
                attempt.drop()
            except Interrupted:
                attempt.drop()
                raise
            except Exception as error:
                why = " ".join(f"{type(error).__name__}: {error}".split())
                attempt.fail(why, traceback.format_exc())
                return Landed(f"{self.sweep.title(self.name)} failed: {why}")
            except BaseException:  # stopped, or about to be queued again
                attempt.drop()
                raise
        return Landed()

    def checkpoint(self) -> Any:
        """What submitit queues again when Slurm wants the node back: the same task, which another
        node begins anew."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def carry_out(
    sweep: Sweep,
    executor: Any,
    *,
    at_once: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Have every job done that is not, each by one process alone, whoever else is at the folder.

    A job that fails, or whose process dies, is tried once more; what then is not done is told by
    ``failures``, and another call begins it again.

    Args:
        sweep: what to do.
        executor: anything with the ``submit`` of ``concurrent.futures`` whose futures have ``done``
            and ``result``; where it has ``batch`` too (submitit), jobs are handed over in arrays;
            where it is ``alike`` (``vmap``), one kind of job after the other.
        at_once: jobs that the executor is given at a time; all that are ready by default.
        progress: receives a line for every job done here, and for what others did meanwhile.

    Raises:
        Refused: no job can be done.
    """
    _HERE.add(sweep.call)
    try:
        _carry_out(sweep, executor, at_once, progress)
    finally:
        _HERE.discard(sweep.call)


def is_here(sweep: Sweep) -> bool:
    """Whether this process is the one that carries the sweep out, and not one of an executor."""
    return sweep.call in _HERE


def _carry_out(
    sweep: Sweep, executor: Any, at_once: int | None, progress: Callable[[str], None]
) -> None:
    board = Board(sweep)
    flying: dict[str, tuple[Any, str]] = {}
    board.look()
    spent = {n: a.count - a.running for n, a in board.attempted.items()}
    pause, told, number = _SHORTEST, board.status(), 0
    while True:
        landed = [name for name, (future, _) in flying.items() if future.done()]
        lines = [_land(sweep, name, *flying.pop(name)) for name in landed]
        board.look()
        now = board.status()
        for line in filter(None, lines):
            progress(f"{line} ({now})")
        waiting, ready = _due(board, spent, flying)
        if not waiting and not flying:
            return
        if getattr(executor, "alike", False):
            ready = _alike(board, ready, flying)
        ready = ready[: None if at_once is None else at_once - len(flying)]
        if landed or ready:
            told, pause = now, _SHORTEST
        elif not flying and now != told:  # others are at it
            progress(str(now))
            told = now
        if ready:
            with getattr(executor, "batch", contextlib.nullcontext)():
                for name in ready:
                    number += 1
                    ticket = f"{sweep.call}-{number}"
                    over = board.attempted.get(name, Attempted()).count  # else it were not ready
                    task = Task(sweep, name, over, spent.get(name, 0) + TRIES, ticket)
                    flying[name] = executor.submit(task), ticket
        else:
            _wait([future for future, _ in flying.values()], pause)
            pause = min(1.5 * pause, _LONGEST)


def _alike(board: Board, ready: list[str], flying: Collection[str]) -> list[str]:
    """Those of the kind that is under way, or of the first one's. Jobs that others come after have
    none of their own, and are alike."""
    kinds = {job.name: job.kind for job in board.jobs}
    under_way = [kinds.get(name, "") for name in (*flying, *ready)]
    return [name for name in ready if kinds.get(name, "") == under_way[0]]


def _wait(futures: list[Any], seconds: float) -> None:
    """For the next job that comes back, no longer than some seconds."""
    known = [future for future in futures if isinstance(future, Future)]
    if known:
        concurrent.futures.wait(known, seconds, concurrent.futures.FIRST_COMPLETED)
    else:
        time.sleep(seconds)


def _due(
    board: Board, spent: dict[str, int], flying: dict[str, Any]
) -> tuple[list[Job], list[str]]:
    """The jobs that may still be done, and the names of those that can be handed over now, the ones
    they come after among them."""

    def over(name: str) -> bool:
        seen = board.attempted.get(name, Attempted())
        return not seen.running and seen.count >= spent.get(name, 0) + TRIES

    waiting: list[Job] = []
    ready: dict[str, None] = {}
    for job in board.jobs:
        if job.name in board.done or over(job.name):
            continue
        needed = job.name if job.after is None or job.after in board.done else job.after
        if over(needed):
            continue
        waiting.append(job)
        if needed not in flying and not board.attempted.get(needed, Attempted()).running:
            ready[needed] = None
    return waiting, list(ready)


def _land(sweep: Sweep, name: str, future: Any, ticket: str) -> str:
    """A line on a job that came back, or that never will."""
    try:
        landed = future.result()
    except Interrupted:
        raise
    except Exception as error:  # whatever an executor makes of a process that died
        why = str(error).strip().splitlines() or [""]  # with a trace, the last line says what
        said = f"its process died ({type(error).__name__}: {why[-1].strip()})"
        Attempts(sweep.parts).give_up(name, ticket, said)
        return f"{sweep.title(name)} failed: {said}"
    if landed.refused is not None:
        raise Refused(landed.refused)
    return str(landed.line)


@contextlib.contextmanager
def once_at_a_time(sweep: Sweep, name: str) -> Iterator[None]:
    """Held by one process alone, wherever the others are; waits for them."""
    attempts = Attempts(sweep.parts)
    while (attempt := attempts.begin(name)) is None:
        time.sleep(0.1)
    with attempt:
        try:
            yield
        finally:
            attempts.forget(name)
