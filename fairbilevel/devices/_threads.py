"""How many threads share a computation on the CPU: the last bits of its sums depend on that."""

from __future__ import annotations

import os

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
