"""A comparison as jobs: a dense model of each repetition, then every method at every sparsity from
it; and the two files a repetition becomes."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairbilevel import devices, sweeps
from fairbilevel._numbers import duration, percent
from fairbilevel.comparison._design import Comparison, run_key
from fairbilevel.comparison._files import (
    FLOOR,
    Record,
    Rows,
    has_floor,
    pack_folder,
    read_design,
    read_repetition,
    runs_of,
    stem_of,
    write_design,
)
from fairbilevel.comparison._repetition import (
    build_problem,
    describe_dense,
    read_once,
    run_method,
    run_seed,
    train,
)
from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.records import file_stem, write_arrays, write_json
from fairbilevel.run import read_reference, write_reference
from fairbilevel.sweeps import Job, NotReady, Part, Refused, Sweep

_DENSE = "dense"
_REFERENCE = "reference/"  # arrays of a dense part that its repetition does not keep


@dataclass(frozen=True)
class ComparisonSweep(Sweep):
    """The jobs of a comparison.

    A job's name is its repetition and what it does there: ``0-3_dense``, ``0-3_snip@0.9``; or
    ``dense-seeds_2``, of the second noise floor. ``repetitions/0-3.json`` and ``.npz`` hold all
    runs of a repetition that is complete, and are all that is left of it then, until all are
    packed. The dense model is trained again where later runs are asked for, and must be the one of
    the files.

    """

    comparison: Comparison

    def jobs(self) -> list[Job]:
        """Repetition by repetition, the noise floor behind."""
        found = [
            Job(f"{r}-{f}_{run_key(*run)}", after=f"{r}-{f}_{_DENSE}", kind=run[0])
            for r, f in self.comparison.repetitions
            for run in self.comparison.runs
        ]
        return found + [Job(name, is_run=False) for name in self._floor()]

    def _floor(self) -> list[str]:
        seeds = self.comparison.dense_seeds
        return [f"{FLOOR}_{i}" for i in range(seeds)] if seeds > 1 else []

    def merged(self) -> set[str]:
        """Runs in the repetitions' files, and the noise floor's models."""
        found = set(self._floor()) if has_floor(self.folder) else set()
        for r, f in self.comparison.repetitions:
            found |= {f"{r}-{f}_{key}" for key in runs_of(self.folder, r, f)}
        return found

    def title(self, name: str) -> str:
        """``round 0 fold 3: snip@0.9``."""
        where, _, what = name.partition("_")
        if where == FLOOR:
            return f"noise floor: dense model {int(what) + 1} of {self.comparison.dense_seeds}"
        return "round {} fold {}: {}".format(*where.split("-"), what)

    def run(self, name: str) -> Part:
        """Do one job; refused where the data or the dense model cannot be had, or that is another
        one than in the folder's files (other data, versions or machine)."""
        if not sweeps.is_here(self):
            devices.compile_cache(self.comparison.config.compile_cache)
        where, _, what = name.partition("_")
        try:
            if where == FLOOR:
                return self._floor_model(name, int(what))
            round_, fold = map(int, where.split("-"))
            problem = _kept(self, _problem, self.comparison, round_, fold)
            _kept(self, _check_rows, self, problem.data.fingerprint)
            if what == _DENSE:
                return self._dense(name, problem, round_, fold)
            reference = _kept(self, _reference, self, round_, fold)
        except ValueError as error:
            raise Refused(str(error)) from error
        seed = run_seed(self.comparison, round_, fold)
        method, sparsity = next(run for run in self.comparison.runs if run_key(*run) == what)
        entry, rows = run_method(self.comparison, problem, reference, method, sparsity, seed)
        how = entry.get("failed") or duration(entry["seconds"])
        said = f"{self.title(name)} {percent(entry['test']['performance']['accuracy'], 2)}, {how}"
        return Part(entry, {f"{role}/{what}": correct for role, correct in rows.items()}, said)

    def _dense(self, name: str, problem: FairPruningProblem, round_: int, fold: int) -> Part:
        seed = run_seed(self.comparison, round_, fold)
        reference, costs = train(self.comparison, problem, seed)
        record, rows = describe_dense(problem, reference, costs, seed)
        before, known = read_repetition(self.folder, round_, fold)
        if before and not np.array_equal(known["test/dense"], rows["test/dense"]):
            raise ValueError(
                f"{self.folder} holds another dense model than these data, versions and machine "
                "make: compare into a new --out"
            )
        numbers, arrays = write_reference(reference)
        accuracy = percent(record["dense"]["test"]["accuracy"], 2)
        return Part(
            {"repetition": record, "reference": numbers},
            rows | {_REFERENCE + n: v for n, v in arrays.items()},
            "" if before else f"{self.title(name)} {accuracy}",
        )

    def _floor_model(self, name: str, i: int) -> Part:
        """A dense model on the first fold that differs from the others in nothing but its seed."""
        problem = _kept(self, _problem, self.comparison, 0, 0)
        _kept(self, _check_rows, self, problem.data.fingerprint)
        reference, _ = train(self.comparison, problem, 1000 + i)
        test = problem.roles["test"]
        rows = {"group": problem.group[test], "counted": problem.counted}
        return Part({}, {**rows, "correct": reference.correct[test]}, self.title(name))

    def gathered(self, round_: int, fold: int) -> tuple[Record, Rows]:
        """A repetition's record and rows, of its files and of parts; empty where there is none."""
        where = f"{round_}-{fold}_"
        # Parts first: one that goes meanwhile has been merged before.
        parts = {
            key: self.read_part(where + key) for key in (run_key(*r) for r in self.comparison.runs)
        }
        dense = self.read_part(where + _DENSE)
        record, rows = read_repetition(self.folder, round_, fold)
        if not record:
            if dense is None:
                return {}, {}
            record = dense.record["repetition"]
            rows = {n: v for n, v in dense.arrays.items() if not n.startswith(_REFERENCE)}
        for key, part in parts.items():
            if part is not None and key not in record["runs"]:
                record["runs"][key] = part.record
                rows |= part.arrays
        return record, rows

    def merge(self) -> None:
        """Put the parts of every complete repetition into its two files. Nothing is lost by ending
        in its midst: a part goes after the files that hold it are there."""
        if not self.parts.is_dir():
            return
        with sweeps.once_at_a_time(self, "merge"):
            for repetition in self.comparison.repetitions:
                self._merge(*repetition)
            self._merge_floor()
        self._leave()

    def pack(self, *, beside: bool) -> None:
        """Put the files of all repetitions into one."""
        with sweeps.once_at_a_time(self, "merge"):
            pack_folder(self.folder, beside=beside)
        self._leave()

    def _leave(self) -> None:
        # What is left is under way, has failed, or belongs to another comparison.
        with contextlib.suppress(OSError):
            self.parts.rmdir()

    def _merge(self, round_: int, fold: int) -> None:
        where = f"{round_}-{fold}_"
        names = [where + run_key(*run) for run in self.comparison.runs]
        paths = [path for name in names if (path := self.part_path(name)).is_file()]
        if paths:
            record, rows = self.gathered(round_, fold)
            if not all(run_key(*run) in record.get("runs", {}) for run in self.comparison.runs):
                return
            stem = stem_of(self.folder, round_, fold)
            stem.parent.mkdir(parents=True, exist_ok=True)
            # The record names what the arrays hold, so it comes last.
            write_arrays(stem.with_suffix(".npz"), rows, compressed=True)
            write_json(stem.with_suffix(".json"), record)
            for path in paths:
                path.unlink()
        # Another comparison of the folder, with more methods, may still start from it.
        others = [e for e in os.listdir(self.parts) if e.startswith(file_stem(where))]
        dense = self.part_path(where + _DENSE)
        if others == [dense.name]:
            dense.unlink()

    def _merge_floor(self) -> None:
        parts = [self.read_part(name) for name in self._floor()]
        found = [part.arrays for part in parts if part is not None]
        if found and len(found) == len(parts):
            rows = {name: found[0][name] for name in ("group", "counted")}
            rows |= {f"dense-{i}": arrays["correct"] for i, arrays in enumerate(found)}
            write_arrays(self.folder / f"{FLOOR}.npz", rows, compressed=True)
        if has_floor(self.folder):
            for name in self._floor():
                self.part_path(name).unlink(missing_ok=True)

    def unfinished(self) -> Iterator[dict[str, Any]]:
        """The jobs that ended without an outcome: ``job``, ``method``, ``sparsity``, ``error``."""
        named = {run_key(*run): run for run in self.comparison.runs}
        for name, error in sweeps.failures(self).items():
            method, sparsity = named.get(name.partition("_")[2], ("dense", 0.0))
            about = {"method": method, "sparsity": sparsity}
            yield {"job": self.title(name), **about, "error": error}


_ONE = threading.Lock()


def _kept(sweep: ComparisonSweep, make: Callable[..., Any], *asked: Any) -> Any:
    """What is read or built once, by whichever of the jobs side by side comes first."""
    with _ONE, devices.apart():
        _begin(sweep.call)
        return make(*asked)


@functools.lru_cache(maxsize=1)
def _begin(call: str) -> None:
    """Forget what this process kept of another call: its files may have been other ones."""
    for kept in (read_once, _problem, _reference, _check_rows):
        kept.cache_clear()


@functools.lru_cache(maxsize=1)
def _check_rows(sweep: ComparisonSweep, fingerprint: str) -> None:
    """Refuse rows that are not those of the jobs before: their folds would be others."""
    with sweeps.once_at_a_time(sweep, "rows"):
        design = read_design(sweep.folder)
        if "rows" not in design:
            write_design(sweep.folder, {**design, "rows": fingerprint})
        elif design["rows"] != fingerprint:
            raise ValueError(
                f"{sweep.folder} holds a comparison on other rows: the data have changed; compare "
                "into a new --out"
            )


# Jobs come repetition by repetition: a process mostly stays with one, and meets the next.
@functools.lru_cache(maxsize=2)
def _problem(comparison: Comparison, round_: int, fold: int) -> FairPruningProblem:
    data, counted = read_once(comparison.config)
    return build_problem(comparison, data, counted, round_, fold)


@functools.lru_cache(maxsize=2)
def _reference(sweep: ComparisonSweep, round_: int, fold: int) -> Reference:
    part = sweep.read_part(f"{round_}-{fold}_{_DENSE}")
    if part is None:
        raise NotReady
    arrays = {n.removeprefix(_REFERENCE): v for n, v in part.arrays.items()}
    problem = _problem(sweep.comparison, round_, fold)
    return read_reference(part.record["reference"], arrays, problem)
