"""Which rows a run has used, for what: ``rows.npz``, fingerprints and roles of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from fairbilevel.data import ROLES, Dataset, RowFingerprints, row_fingerprints
from fairbilevel.problem import FairPruningProblem
from fairbilevel.records import ROWS, RecordError, read_arrays, write_arrays

USED = ("fit", "select", "tune")
"""Roles whose rows moved weights, masks, multipliers or settings."""


@dataclass(frozen=True)
class UsedRows:
    """The rows of a run.

    Attributes:
        role: index into ``ROLES``.
        prints: fingerprints.
    """

    role: UInt8[np.ndarray, " rows"]
    prints: RowFingerprints

    def met(self, data: Dataset, roles: tuple[str, ...] = USED) -> Bool[np.ndarray, " n"]:
        """Which rows of ``data`` the run has used in these roles: the same row, or its person."""
        mine = np.isin(self.role, [ROLES.index(r) for r in roles])
        other = row_fingerprints(data)
        same = np.isin(other.row, self.prints.row[mine])
        persons = self.prints.unit[mine & (self.prints.unit > 0)]
        return same | np.isin(other.unit, persons)

    def twins(self, data: Dataset) -> int:
        """Rows of ``data`` whose inputs, not ids, equal those of a row used."""
        mine = np.isin(self.role, [ROLES.index(r) for r in USED])
        return int(np.isin(row_fingerprints(data).content, self.prints.content[mine]).sum())


def write_rows(path: Path, problem: FairPruningProblem) -> None:
    """Write ``rows.npz`` into a run folder."""
    role = np.zeros(len(problem.data), np.uint8)
    for i, name in enumerate(ROLES):
        role[problem.roles[name]] = i
    prints = row_fingerprints(problem.data)
    arrays = {"role": role, "content": prints.content, "row": prints.row, "unit": prints.unit}
    write_arrays(path / ROWS, arrays)


def read_rows(path: Path) -> UsedRows:
    """Read ``rows.npz`` of a run folder.

    Raises:
        RecordError: it is missing or damaged, or does not hold what ``write_rows`` writes.
    """
    if not (path / ROWS).exists():
        raise RecordError(
            f"{path} has no {ROWS}, so nobody can tell which rows it has used: make the run again"
        )
    arrays = read_arrays(path / ROWS)
    for name in ("role", "content", "row", "unit"):
        if name not in arrays:
            raise RecordError(f"{path / ROWS} has no {name!r}")
        kind = np.uint8 if name == "role" else np.uint64
        if arrays[name].dtype != kind or arrays[name].shape != (arrays["role"].size,):
            raise RecordError(f"{path / ROWS} is damaged: {name!r} is no number for every row")
    if arrays["role"].max(initial=0) >= len(ROLES):
        raise RecordError(f"{path / ROWS} is damaged: it knows more than {len(ROLES)} roles")
    prints = RowFingerprints(arrays["content"], arrays["row"], arrays["unit"])
    return UsedRows(arrays["role"], prints)
