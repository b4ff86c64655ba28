"""Which rows a run has used, for what: ``rows.npz``, fingerprints and roles of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8, UInt32

from fairbilevel.data import (
    ROLES,
    Dataset,
    RowFingerprints,
    coarse_fingerprints,
    coarse_scale,
    row_fingerprints,
)
from fairbilevel.problem import FairPruningProblem
from fairbilevel.records import ROWS, RecordError, read_arrays, write_arrays

USED = ("fit", "select", "tune")
"""Roles whose rows moved weights, masks, multipliers or settings."""


@dataclass(frozen=True)
class Alike:
    """How many rows of some data are like rows that a run has used, by inputs alone.

    Attributes:
        count: rows with the inputs of a used one, or with nearly these.
        usual: how many there would be of as many rows that are surely others, going by the run's
            own certify and test rows, with four standard deviations to spare.
        copied: whether more than half of the rows are beyond what is usual.
    """

    count: int
    usual: float
    copied: bool

    @property
    def unusual(self) -> bool:
        """Whether there are more than among rows that are surely others."""
        return self.count > self.usual


def _alike(found: Bool[np.ndarray, " n"], others: Bool[np.ndarray, " m"]) -> Alike:
    rate, n = float(others.mean()) if len(others) else 0.0, len(found)
    count = int(found.sum())
    usual = n * rate + 4 * (n * rate * (1 - rate)) ** 0.5
    return Alike(count, usual, count - usual > (n - usual) / 2)


@dataclass(frozen=True)
class UsedRows:
    """The rows of a run: index into ``ROLES``, fingerprints, coarse ones and the width of the cells
    of these."""

    role: UInt8[np.ndarray, " rows"]
    prints: RowFingerprints
    coarse: UInt32[np.ndarray, "rows slots"]
    scale: Float32[np.ndarray, " columns"]

    def of(self, roles: tuple[str, ...]) -> Bool[np.ndarray, " rows"]:
        """Which rows have one of these roles."""
        return np.isin(self.role, [ROLES.index(r) for r in roles])

    def met(self, data: Dataset, roles: tuple[str, ...] = USED) -> Bool[np.ndarray, " n"]:
        """Which rows of ``data`` the run has surely used in these roles: the same image, inputs
        under the same id, or the same person."""
        mine, other = self.of(roles), row_fingerprints(data)
        persons = self.prints.unit[mine & (self.prints.unit > 0)]
        known = np.isin(other.unit, persons)
        if data.numbered and not data.is_image:
            return known
        return known | np.isin(other.row, self.prints.row[mine])

    def equal(self, data: Dataset) -> Alike:
        """Rows of ``data`` whose inputs are those of a row used, under whatever id."""
        mine, others = self.of(USED), self.of(("certify", "test"))
        used = self.prints.content[mine]
        content = row_fingerprints(data).content
        return _alike(np.isin(content, used), np.isin(self.prints.content[others], used))

    def near(self, data: Dataset) -> Alike:
        """Rows of ``data`` that are nearly a row used."""
        mine, others = self.of(USED), self.of(("certify", "test"))
        new = coarse_fingerprints(data, self.scale)
        found, usual = np.zeros(len(new), bool), np.zeros(int(others.sum()), bool)
        for slot in range(new.shape[1]):
            used = self.coarse[mine, slot]
            found |= np.isin(new[:, slot], used)
            usual |= np.isin(self.coarse[others, slot], used)
        return _alike(found, usual)

    def same(self, data: Dataset, role: str) -> bool:
        """Whether ``data`` are the rows of a role, in any order."""
        mine = np.sort(self.prints.content[self.of((role,))])
        return np.array_equal(mine, np.sort(row_fingerprints(data).content))


def write_rows(path: Path, problem: FairPruningProblem) -> None:
    """Write ``rows.npz`` into a run folder."""
    data = problem.data
    role = np.zeros(len(data), np.uint8)
    for i, name in enumerate(ROLES):
        role[problem.roles[name]] = i
    prints, scale = row_fingerprints(data), coarse_scale(data)
    arrays = {
        "role": role,
        "content": prints.content,
        "row": prints.row,
        "unit": prints.unit,
        "coarse": coarse_fingerprints(data, scale),
        "scale": scale,
    }
    write_arrays(path / ROWS, arrays)


def read_rows(path: Path) -> UsedRows:
    """Read ``rows.npz`` of a run folder, refusing what ``write_rows`` would not write."""
    if not (path / ROWS).exists():
        raise RecordError(
            f"{path} has no {ROWS}, so nobody can tell which rows it has used: make the run again"
        )
    arrays = read_arrays(path / ROWS)
    like = {
        "role": (np.uint8, 1),
        "content": (np.uint64, 1),
        "row": (np.uint64, 1),
        "unit": (np.uint64, 1),
        "coarse": (np.uint32, 2),
    }
    for name in (*like, "scale"):
        if name not in arrays:
            raise RecordError(f"{path / ROWS} has no {name!r}: make the run again")
    rows, scale = arrays["role"].size, arrays["scale"]
    for name, (kind, axes) in like.items():
        value = arrays[name]
        if value.dtype != kind or value.ndim != axes or len(value) != rows:
            raise RecordError(f"{path / ROWS} is damaged: {name!r} does not hold {rows} rows")
    if arrays["role"].max(initial=0) >= len(ROLES):
        raise RecordError(f"{path / ROWS} is damaged: it knows more than {len(ROLES)} roles")
    if scale.dtype != np.float32 or scale.ndim != 1 or not (np.isfinite(scale) & (scale > 0)).all():
        raise RecordError(f"{path / ROWS} is damaged: 'scale' holds no widths")
    prints = RowFingerprints(arrays["content"], arrays["row"], arrays["unit"])
    return UsedRows(arrays["role"], prints, arrays["coarse"], scale)
