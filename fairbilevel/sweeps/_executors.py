"""Where jobs are done: in this process, one by one or side by side, in several of this machine, by
submitit or by Dask."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairbilevel import _options, devices
from fairbilevel.records import Attempted, Attempts
from fairbilevel.sweeps._sweep import Sweep

# By name: the extra of the package that brings it, and the module.
EXECUTORS: dict[str, str | None] = {
    "local": None,
    "vmap": None,
    "submitit": "submitit",
    "dask": "distributed",
}
_SLURM = "--slurm-"
_FOLDER = "submitit-"  # of a call: its jobs and what they print
_LISTS = ("setup", "teardown", "srun_args")  # submitit takes several
_MINUTES = 24 * 60  # of a job, where --slurm-time says nothing: submitit's own default is five


@dataclass(frozen=True)
class Engine:
    """What carries out the jobs of a sweep, by name.

    Attributes:
        name: ``local``, ``vmap`` (this process, its jobs computed as one), ``submitit`` (Slurm
            where there is one, else processes of this machine) or ``dask`` (the cluster at
            ``DASK_SCHEDULER_ADDRESS`` if that is set, else workers of this machine).
        processes: jobs at a time on this machine; clusters have their own limits.
        slurm: parameters of submitit's Slurm executor, by their names there.

    Raises:
        ValueError: an unknown name or parameter, or a package that is not installed.
    """

    name: str = "local"
    processes: int = 1
    slurm: Mapping[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _options.one_of("executor", self.name, EXECUTORS)
        if self.processes < 1:
            raise ValueError(f"processes must be at least 1, got {self.processes}")
        if self.slurm and self.name != "submitit":
            option = _SLURM + next(iter(self.slurm)).replace("_", "-")
            raise ValueError(
                f"{option} is for --executor submitit, and the executor here is {self.name}"
            )
        module = EXECUTORS[self.name]
        if module is not None:
            try:
                importlib.import_module(module)
            except ImportError:
                raise ValueError(
                    f"--executor {self.name} needs a package that is not installed: "
                    f"pip install 'fairbilevel[{self.name}]'"
                ) from None
        if self.slurm:
            self._check_slurm()

    def _check_slurm(self) -> None:
        from submitit import SlurmExecutor

        known = sorted(SlurmExecutor._valid_parameters() - {"additional_parameters"})
        names = [name.replace("_", "-") for name in known]
        for name in (n.replace("_", "-") for n in self.slurm):
            if name not in names:
                raise ValueError(f"{_SLURM}{name} is unknown: {_options.choose(name, names)}")
        if SlurmExecutor.affinity() < 0:
            option = _SLURM + next(iter(self.slurm)).replace("_", "-")
            raise ValueError(f"{option} is for Slurm, and this machine has no srun: leave it out")

    @property
    def is_here(self) -> bool:
        """Whether all jobs are done by the calling thread."""
        return self.name == "local" and self.processes == 1

    def check_devices(self, count: int) -> None:
        """Refuse runs side by side that would share several devices each.

        Raises:
            ValueError: by ``vmap``, on more than one device.
        """
        if self.name == "vmap" and count > 1:
            raise ValueError(
                f"--executor vmap computes its runs on one device, and {count} share each here: "
                "give --devices 1"
            )

    @contextlib.contextmanager
    def open(self, sweep: Sweep) -> Iterator[tuple[Any, int | None]]:
        """The executor, and how many jobs it is given at a time (``None``: all that are ready)."""
        if self.name == "dask":
            with self._dask() as executor:
                yield executor, None
        elif self.name == "submitit":
            folder = sweep.parts / f"{_FOLDER}{sweep.call}"
            attempts = Attempts(sweep.parts)
            attempt = attempts.begin(folder.name)
            assert attempt is not None  # calls have names of their own
            with attempt:
                yield self._submitit(folder)
                attempts.forget(folder.name)
        elif self.name == "vmap":
            side_by_side = SideBySide(self.processes)
            try:
                yield side_by_side, self.processes
            finally:
                side_by_side.shutdown(cancel_futures=True)
        elif self.is_here:
            yield Here(), 1
        else:
            workers = Workers(self.processes)
            try:
                yield workers, self.processes
            finally:
                workers.shutdown(cancel_futures=True)

    def _submitit(self, folder: Path) -> tuple[Any, int | None]:
        from submitit import AutoExecutor

        executor = AutoExecutor(folder)
        executor.update_parameters(
            name="fairbilevel",
            timeout_min=_MINUTES,
            **{
                f"slurm_{name}": [value] if name in _LISTS else value
                for name, value in self.slurm.items()
            },
        )
        return executor, self.processes if executor.cluster == "local" else None

    @contextlib.contextmanager
    def _dask(self) -> Iterator[Executor]:
        import dask
        from distributed import Client, LocalCluster

        with contextlib.ExitStack() as stack:
            cluster = dask.config.get("scheduler-address", None)
            if cluster is None:
                # A job is as wide as its process: its arrays are shared by the threads of XLA.
                cluster = stack.enter_context(
                    LocalCluster(
                        n_workers=self.processes,
                        threads_per_worker=1,
                        dashboard_address=None,
                        memory_limit=0,
                        silence_logs="ERROR",
                    )
                )
            client = stack.enter_context(Client(cluster))
            yield client.get_executor(pure=False)


def clean_up(sweep: Sweep) -> None:
    """Remove what submitit kept for calls that are over."""
    attempts = Attempts(sweep.parts)
    seen = attempts.all()
    for folder in sweep.parts.glob(f"{_FOLDER}*/"):
        if not seen.get(folder.name, Attempted()).running:
            shutil.rmtree(folder, ignore_errors=True)
            attempts.forget(folder.name)


class Here(Executor):
    """Does each job at once, in this process."""

    def submit(self, fn: Any, /, *args: Any, **options: Any) -> Future[Any]:
        """Done when it returns; what is raised goes straight to the caller, Ctrl-C too."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **options))
        return future


class SideBySide(ThreadPoolExecutor):
    """Does jobs in threads of this process whose compiled calls are computed as one.

    Attributes:
        alike: wants jobs of one kind at a time.
    """

    alike = True

    def __init__(self, width: int):
        super().__init__(width)
        self._lanes = devices.Lanes(width)

    def submit(self, fn: Any, /, *args: Any, **options: Any) -> Future[Any]:
        """To the next lane that is free."""
        return super().submit(self._in_lane, fn, *args, **options)

    def _in_lane(self, fn: Any, /, *args: Any, **options: Any) -> Any:
        with self._lanes.lane():
            return fn(*args, **options)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the lanes, each at its next compiled call."""
        self._lanes.stop()
        super().shutdown(wait, cancel_futures=cancel_futures)


class Workers(ThreadPoolExecutor):
    """Processes of this machine that share its cores out: threads of two networks on one core slow
    both.

    Each has a pool of its own: a pool whose process dies ends all others that are in it.
    """

    def __init__(self, processes: int):
        super().__init__(processes)
        # A fork would take the locks of JAX's threads along.
        self._spawn = multiprocessing.get_context("spawn")
        self._own = threading.local()
        self._pools: list[ProcessPoolExecutor] = []
        self._shares = _shares(processes)

    def submit(self, fn: Any, /, *args: Any, **options: Any) -> Future[Any]:
        """To the next process that is free."""
        return super().submit(self._pass_on, fn, *args, **options)

    def _pass_on(self, fn: Any, /, *args: Any, **options: Any) -> Any:
        own = self._own
        if not hasattr(own, "share"):
            own.share, own.pool = self._shares.pop(), None
        if own.pool is None:
            own.pool = ProcessPoolExecutor(1, self._spawn, _settle, (own.share,))
            self._pools.append(own.pool)
        try:
            return own.pool.submit(fn, *args, **options).result()
        except BrokenProcessPool:
            own.pool = None
            raise

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, each after the job that it is at."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        for pool in self._pools:
            pool.shutdown(wait, cancel_futures=cancel_futures)


def _shares(processes: int) -> list[list[int]]:
    """The cores of each process."""
    if not hasattr(os, "sched_getaffinity"):  # Linux alone has it
        return [[]] * processes
    cores = sorted(os.sched_getaffinity(0))
    return [cores[place::processes] or cores for place in range(processes)]


def _settle(cores: list[int]) -> None:
    """Begin a worker: on its cores, for as long as its parent lives."""
    if cores:
        os.sched_setaffinity(0, cores)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # The pipe that jobs come through is open on this side too: nothing else would end the process.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def engine_of(words: Sequence[str], name: str, processes: int) -> tuple[Engine, list[str]]:
    """The engine that a command line asks for, and the words that are none of ``--slurm-*``.

    Raises:
        ValueError: as ``Engine``, or an option without a value.
    """
    slurm: dict[str, int | str] = {}
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if not word.startswith(_SLURM):
            rest.append(word)
            continue
        option, _, value = word.partition("=")
        value = value or next(remaining, "")
        if not value or value.startswith("--"):
            raise ValueError(f"{option} wants a value")
        slurm[option.removeprefix(_SLURM).replace("-", "_")] = (
            int(value) if value.isdecimal() else value
        )
    return Engine(name, processes, slurm), rest
