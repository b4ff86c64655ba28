"""The five disjoint roles of rows: fit, select, tune, certify, test.

Fit trains weights, select moves masks and multipliers, tune chooses settings, certify bounds gaps
on rows that nothing touched, test reports. Certify and test are drawn at random within group, so
that they are samples of it; fit, select and tune are stratified by label and group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ._dataset import Dataset, first_equal, require_whole
from ._errors import DataError, listing, refuse_unknown

ROLES = ("fit", "select", "tune", "certify", "test")
FRACTIONS: Mapping[str, float] = MappingProxyType(
    {"fit": 0.45, "select": 0.2, "tune": 0.1, "certify": 0.1, "test": 0.15}
)
FOLD_FRACTIONS: Mapping[str, float] = MappingProxyType(
    {"fit": 0.6, "select": 0.25, "tune": 0.15, "certify": 0.0}
)

# Separate random streams for the separate draws of one seed.
_HOLD_OUT, _DEVELOP, _FOLD, _HALVES = 1, 2, 3, 4


def split_roles(
    data: Dataset,
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    counted: np.ndarray | None = None,
    min_per_role: int = 1,
) -> dict[str, np.ndarray]:
    """Give every row a role.

    Rows with identical images, and rows of one unit, share a role. A role column in the data
    overrides the fractions.

    Args:
        data: labelled rows.
        fractions: role -> share of the rows, summing to one; certify, select and tune may be 0.
        seed: the same seed gives the same roles on every platform.
        counted: bool `[G]`, groups that must occur in every role; default all.
        min_per_role: rows that each class and counted group must have in each role.

    Returns:
        role -> sorted int64 row numbers; disjoint, and together all rows.

    Raises:
        DataError: bad fractions, rows without label or group, a role column that separates
            identical images or one unit, or a class or counted group without rows in some role.
    """
    _check(data, seed)
    atom = atoms(data)
    if data.role is not None:
        roles = _from_column(data, atom)
        used = {r for r in ROLES if roles[r].size} | {"fit", "test"}
    else:
        share = _shares(fractions, ROLES)
        roles = _draw(data, np.arange(len(data)), atom, share, (seed,))
        used = {r for r in ROLES if share[r] > 0}
    return _covered(data, roles, used, counted, min_per_role)


def fold_roles(
    data: Dataset,
    fold: int,
    folds: int = 5,
    seed: int = 0,
    fractions: Mapping[str, float] = FOLD_FRACTIONS,
    counted: np.ndarray | None = None,
    min_per_role: int = 1,
) -> dict[str, np.ndarray]:
    """Give every row a role, with fold `fold` of `folds` as test.

    Over the folds of one seed every row is tested exactly once; the other roles are drawn anew from
    the rest.

    Args:
        data, counted, min_per_role: as of `split_roles`.
        fold: 0 .. folds - 1.
        folds: at least 2.
        seed: one seed makes one round of folds.
        fractions: role -> share of the rest, summing to one; certify may be 0.

    Returns:
        As `split_roles`.

    Raises:
        DataError: as `split_roles`; also a fold out of range, or a role column in the data.
    """
    _check(data, seed)
    if folds < 2 or not 0 <= fold < folds:
        raise DataError(f"fold {fold} of {folds} does not exist; count folds from 0, at least 2.")
    if data.role is not None:
        raise DataError("folds draw their own test rows; leave out the role column.")
    share = _shares(fractions, ROLES[:4])
    atom, rows = atoms(data), np.arange(len(data))
    tests = _partition(rows, atom, data.group, np.full(folds, 1 / folds), (seed, _FOLD))
    rest = np.setdiff1d(rows, tests[fold])
    roles = _draw(data, rest, atom, {**share, "test": 0.0}, (seed, folds, fold))
    roles["test"] = tests[fold]
    used = {"test", *(r for r in share if share[r] > 0)}
    return _covered(data, roles, used, counted, min_per_role)


def check_counted(given: np.ndarray | None, groups: Sequence[str]) -> np.ndarray:
    """Groups that claims speak of.

    Args:
        given: bool `[G]`; default all.
        groups: their names.

    Raises:
        ValueError: not one truth value for each group, or none true.
    """
    if given is None:
        return np.ones(len(groups), bool)
    counted = np.asarray(given)
    if counted.shape != (len(groups),) or counted.dtype != bool or not counted.any():
        raise ValueError(
            f"counted holds one truth value for each of the {len(groups)} groups "
            f"({', '.join(groups)}), some of them true, got {given!r}"
        )
    return counted


def check_roles(
    data: Dataset, roles: Mapping[str, np.ndarray], counted: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Roles that were drawn elsewhere.

    Args:
        data: labelled rows.
        roles: role -> row numbers, of all five roles; tune and certify may be empty.
        counted: bool `[G]`, groups that must occur in every role that has rows; default all.

    Returns:
        role -> int64 row numbers, as given.

    Raises:
        DataError: a role that is missing or unknown, rows that do not exist or have two roles, or a
            class or counted group without rows in some role.
    """
    if not isinstance(roles, Mapping):
        raise DataError(
            f"roles map {', '.join(ROLES)} to row numbers (fb.data.split_roles draws them); "
            f"given: {type(roles).__name__}."
        )
    for name in roles:
        refuse_unknown(f"roles name {name!r}", str(name), ROLES)
    if missing := [name for name in ROLES if name not in roles]:
        raise DataError(f"roles lack {listing(missing)}; give an empty list for a role unused.")
    found: dict[str, np.ndarray] = {}
    taken = np.full(len(data), -1)
    for i, name in enumerate(ROLES):
        given = np.asarray(roles[name])
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise DataError(
                f"role {name} has shape {given.shape} and type {given.dtype}; give row numbers."
            )
        rows = found[name] = given.astype(np.int64, copy=False)
        outside = rows[(rows < 0) | (rows >= len(data))]
        if outside.size:
            raise DataError(f"role {name} has row {outside[0]}, outside the {len(data)} rows.")
        twice = rows[taken[rows] >= 0]
        if twice.size:
            raise DataError(
                f"{twice.size} rows have the roles {ROLES[taken[twice[0]]]} and {name}, row "
                f"{twice[0]} first: a row has one role."
            )
        taken[rows] = i
        if len(np.unique(rows)) < len(rows):
            raise DataError(f"role {name} has a row more than once.")
    _check(data, 0)
    used = {r for r in ROLES if found[r].size} | {"fit", "test"}
    return _covered(data, found, used, counted, 1)


def role_halves(rows: np.ndarray, data: Dataset, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cut rows of select into two fixed halves, stratified by label and group.

    Args:
        rows: row numbers of `data`, at least two.

    Returns:
        Sorted rows for the hypergradient, and sorted rows for the multipliers; rows with identical
        images or of one unit lie in one half. The same seed gives the same halves.

    Raises:
        DataError: fewer than two rows that may be separated.
    """
    _check(data, seed)
    rows = np.sort(np.asarray(rows, dtype=np.int64))
    half, strata = np.array([0.5, 0.5]), _label_by_group(data)
    first, second = _partition(rows, atoms(data), strata, half, (seed, _HALVES))
    if not first.size or not second.size:
        raise DataError(f"{rows.size} rows cannot be cut into two halves; give select more rows.")
    return first, second


def shuffled(rows: np.ndarray, bits: np.random.PCG64) -> np.ndarray:
    """Rows in random order; raw bits are stable over numpy versions, which shuffling is not."""
    return rows[np.argsort(bits.random_raw(len(rows)), kind="stable")]


def atoms(data: Dataset) -> np.ndarray:
    """Return int64 `[n]`: the first row of the set of rows that this row may not be parted from.

    Rows are tied by identical image content, by a common unit, and by chains of both. Equal rows of
    a table are no copies of one thing: two people may look alike in ten columns.
    """
    n = len(data)
    ties = []
    if data.is_image:
        ties.append(data.content)
    if data.unit is not None:
        ties.append(first_equal(data.unit))
    if len(ties) < 2:
        return ties[0] if ties else np.arange(n)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.concatenate(ties)
    edges = coo_array((np.ones(2 * n, dtype=bool), (np.tile(np.arange(n), 2), ends)), shape=(n, n))
    _, component = connected_components(edges, directed=False)
    return first_equal(component)


def _draw(
    data: Dataset, rows: np.ndarray, atom: np.ndarray, share: dict[str, float], key: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Draw certify and test within group, then fit, select and tune by label and group."""
    held = np.array([share["certify"], share["test"]])
    parts = _partition(rows, atom, data.group, np.append(held, 1 - held.sum()), (*key, _HOLD_OUT))
    rest = np.array([share["fit"], share["select"], share["tune"]])
    strata = _label_by_group(data)
    fit, select, tune = _partition(parts[2], atom, strata, rest / rest.sum(), (*key, _DEVELOP))
    return {"fit": fit, "select": select, "tune": tune, "certify": parts[0], "test": parts[1]}


def _partition(
    rows: np.ndarray,
    atom: np.ndarray,
    stratum: np.ndarray,
    shares: np.ndarray,
    key: tuple[int, ...],
) -> list[np.ndarray]:
    """Cut sorted rows into parts, stratum by stratum, atoms whole; return sorted rows per part."""
    _, first, inverse, size = np.unique(
        atom[rows], return_index=True, return_inverse=True, return_counts=True
    )
    atom_stratum = stratum[rows[first]]
    part = np.zeros(len(size), dtype=np.int64)
    carry = np.zeros(len(shares))
    for value in np.unique(atom_stratum):
        members = np.flatnonzero(atom_stratum == value)
        members = shuffled(members, np.random.PCG64([*key, int(value)]))
        quota, carry = _quota(int(size[members].sum()), shares, carry)
        # An atom belongs where its middle falls, so that no part is off by more than one atom.
        middle = np.cumsum(size[members]) - size[members] / 2
        part[members] = np.searchsorted(np.cumsum(quota), middle, side="right")
    return [rows[part[inverse] == p] for p in range(len(shares))]


def _quota(total: int, shares: np.ndarray, carry: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whole rows per part by largest remainder, and what is owed to each part.

    What rounding took from a part in earlier strata counts in later ones: otherwise many tiny
    strata would all fall to the largest part.
    """
    ideal = total * shares
    quota = np.floor(ideal + 1e-9)
    left = total - int(quota.sum())
    claim = np.where(ideal - quota > 1e-9, np.round(ideal - quota + carry, 9), -np.inf)
    quota[np.argsort(-claim, kind="stable")[:left]] += 1
    return quota, carry + ideal - quota


def _label_by_group(data: Dataset) -> np.ndarray:
    return data.y.astype(np.int64) * len(data.groups) + data.group


def _shares(fractions: Mapping[str, float], allowed: tuple[str, ...]) -> dict[str, float]:
    for name in fractions:
        refuse_unknown(f"role fractions name {name!r}", name, allowed)
    share = {name: float(fractions.get(name, 0.0)) for name in allowed}
    # NaN fails the comparison of the sum.
    if not (min(share.values()) >= 0 and abs(sum(share.values()) - 1) <= 1e-6):
        given = ", ".join(f"{k} {v:g}" for k, v in share.items())
        raise DataError(f"role fractions must be at least 0 and sum to 1; given: {given}.")
    for name in ("fit", "test"):
        if share.get(name) == 0:
            raise DataError(f"the role fraction of {name} is 0; give it some rows.")
    return share


def _from_column(data: Dataset, atom: np.ndarray) -> dict[str, np.ndarray]:
    assert data.role is not None
    apart = np.flatnonzero(data.role != data.role[atom])
    if apart.size:
        row, other = apart[0], atom[apart[0]]
        raise DataError(
            f"the role column puts row {data.ids[other]} into {data.role[other]} and row "
            f"{data.ids[row]} into {data.role[row]}, though they hold the same image or the same "
            "unit; give both one role."
        )
    return {role: np.flatnonzero(data.role == role) for role in ROLES}


def _check(data: Dataset, seed: int) -> None:
    require_whole("seed", seed, 0)
    bare = int(((data.y < 0) | (data.group < 0)).sum())
    if bare:
        raise DataError(f"{bare} rows have no label or no group; roles need both.")


def _covered(
    data: Dataset,
    roles: dict[str, np.ndarray],
    used: set[str],
    counted: np.ndarray | None,
    least: int,
) -> dict[str, np.ndarray]:
    """The roles, if every class and counted group has enough rows in those that are used."""
    pool_groups = "merge small groups (small_groups), "
    pool_classes = "merge or drop small classes (small_classes and min_class_rows), "
    for kind, names, index, must, what_works in (
        ("group", data.groups, data.group, counted, pool_groups),
        ("class", data.classes, data.y, None, pool_classes),
    ):
        for role in (r for r in ROLES if r in used):
            here = np.bincount(index[roles[role]], minlength=len(names))
            for i in np.flatnonzero((here < least) & (True if must is None else must)):
                has = f"only {here[i]} rows" if here[i] else "no rows"
                raise DataError(
                    f"{kind} {names[i]!r} ({np.sum(index == i)} rows in all) has {has} in role "
                    f"{role}; {what_works}enlarge that role or add rows."
                )
    return roles
