"""Several processes as one computation: ``jax.distributed``, started or left alone; and how many
threads share a computation on the CPU, which the last bits of its sums depend on."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

TIMEOUT = 300  # seconds that processes wait for each other at the start
_LATER = 60  # seconds after which JAX would give up by itself
_SILENT = 45  # seconds after which a process that says nothing counts as dead

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """How the processes of one run find each other.

    Without an address JAX asks the cluster that it runs in (Slurm, Kubernetes, Open MPI, TPU
    pods). Nothing has to be given where one process runs alone.

    Attributes:
        coordinator: ``host:port`` of the first process, reachable from the others.
        count: how many processes.
        index: of this one, from 0.
        timeout: seconds to wait for the others.

    Raises:
        ValueError: an address without count and index, or the other way round, or an index outside
            the count.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    timeout: int = TIMEOUT

    def __post_init__(self) -> None:
        given = [v is not None for v in (self.coordinator, self.count, self.index)]
        if any(given) and not all(given):
            raise ValueError(
                "give the coordinator's address, the number of processes and this process's index "
                "together, or none of them where JAX can ask the cluster"
            )
        if self.coordinator is None or self.count is None or self.index is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"a coordinator is written host:port, got {self.coordinator!r}")
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"the index of a process lies in [0, {self.count}) for {self.count} processes, got "
                f"{self.index}"
            )
        if self.timeout < 1:
            raise ValueError(f"a timeout is at least 1 second, got {self.timeout}")

    def start(self) -> None:
        """Join the others; before the first array is made. A second call does nothing.

        Where the others do not come in time the process ends with one sentence and exit code 2:
        JAX's runtime waits outside Python, and would abort with a stack trace.

        Raises:
            ValueError: no cluster was found, or the processes could not be joined.
        """
        if jax.distributed.is_initialized():
            return
        # The only collectives that CPU devices of several processes have; others ignore it.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        watch = threading.Timer(self.timeout, self._give_up)
        watch.daemon = True
        watch.start()
        try:
            jax.distributed.initialize(
                self.coordinator,
                self.count,
                self.index,
                initialization_timeout=self.timeout + _LATER,
                heartbeat_timeout_seconds=_SILENT,
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(self._reason(error)) from error
        finally:
            watch.cancel()

    def _give_up(self) -> None:
        where = "" if self.coordinator is None else f" at {self.coordinator}"
        sys.stderr.write(
            f"fairbilevel: error: the processes did not find each other{where} within "
            f"{self.timeout} seconds: start all of them, with the same address and count\n"
        )
        sys.stderr.flush()
        os._exit(2)

    def _reason(self, error: Exception) -> str:
        if self.coordinator is None and isinstance(error, ValueError):
            return (
                "no cluster was found to ask for the other processes (Slurm, Kubernetes, Open MPI "
                "or a TPU pod): give the coordinator's address, the number of processes and this "
                "process's index"
            )
        return f"the processes could not be joined: {' '.join(str(error).split())}"


def on_first(action: Callable[[], Result]) -> Result | None:
    """Run ``action`` in the process that writes and prints; where it fails, all processes fail.

    Returns:
        What the action returns, ``None`` in the other processes.

    Raises:
        ValueError: in the other processes, if the action raised one in the first.
    """
    if jax.process_count() == 1:
        return action()
    failure: Exception | None = None
    result = None
    if is_first():
        try:
            result = action()
        except (ValueError, OSError) as error:
            failure = error
    if not multihost_utils.broadcast_one_to_all(np.asarray(failure is None)):
        if failure is not None:
            raise failure
        raise ValueError("the first process stopped: what it printed says why")
    return result


def told_by_first(action: Callable[[], Any]) -> Any:
    """What ``action`` returns in the first process, plain JSON, in every process.

    Raises:
        ValueError: in all processes, if the action raised one in the first.
    """
    result = on_first(action)
    if jax.process_count() == 1:
        return result
    text = json.dumps(result).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.asarray(len(text))))
    padded = np.frombuffer(text.ljust(length)[:length], np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))


def all_say(yes: bool) -> bool:
    """Whether every process says yes; each of them asks."""
    if jax.process_count() == 1:
        return yes
    return bool(np.all(multihost_utils.process_allgather(np.asarray(yes))))


def lost_others(error: BaseException) -> bool:
    """Whether an error says that another process of this run is gone. JAX and what stands on it
    raise it as whatever they like; the words are those of Gloo, NCCL and the coordinator."""
    words = ("Gloo", "NCCL", "heartbeat", "coordination service", "UNAVAILABLE")
    return jax.process_count() > 1 and any(word in str(error) for word in words)


def leave(code: int) -> None:
    """End one of several processes that has failed, at once; do nothing in one that runs alone.

    At the barrier of an orderly end it would wait for others, which wait for it.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def is_first() -> bool:
    """Whether this process is the one that prints and writes files."""
    return jax.process_index() == 0


_THREADS = "NPROC"  # what XLA reads when its CPU client begins


def cpu_threads() -> int:
    """Threads that computations of this process are split over, on its CPU."""
    told = os.environ.get(_THREADS, "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    if hasattr(os, "sched_getaffinity"):  # Linux alone has it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_cpu_threads(threads: int) -> None:
    """Split computations as a process with so many threads does, whatever cores this one has; so
    that both compute the same numbers. Without effect once JAX has begun to compute."""
    os.environ[_THREADS] = str(threads)
