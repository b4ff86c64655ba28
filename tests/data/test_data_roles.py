"""Roles: disjoint, complete, seeded, stratified, and no image or person in two of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairbilevel.data import (
    FRACTIONS,
    ROLES,
    DataError,
    Dataset,
    fold_roles,
    from_arrays,
    load,
    role_halves,
    split_roles,
)

SHARES = {"fit": 0.45, "select": 0.2, "tune": 0.1, "certify": 0.1, "test": 0.15}


def make(
    n: int, seed: int, classes: int = 2, groups: int = 3, units: int | None = None, copies: int = 0
) -> Dataset:
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    g = np.concatenate([np.arange(groups), rng.integers(0, groups, n - groups)])
    images = rng.integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)
    for _ in range(copies):
        a, b = rng.integers(0, n, 2)
        images[a] = images[b]
    return from_arrays(
        images,
        y,
        g,
        classes=tuple(f"c{i}" for i in range(classes)),
        groups=tuple(f"g{i}" for i in range(groups)),
        unit=None if units is None else rng.integers(0, units, n),
    )


def role_of(roles: dict[str, np.ndarray], n: int) -> np.ndarray:
    out = np.full(n, "", dtype="<U8")
    for role, rows in roles.items():
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
        assert (out[rows] == "").all(), "a row has two roles"
        out[rows] = role
    assert (out != "").all(), "a row has no role"
    return out


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(20, 300),
    seed=st.integers(0, 2**31),
    units=st.none() | st.integers(5, 200),
    copies=st.integers(0, 60),
)
def test_roles_partition_the_rows_and_keep_atoms_whole(n, seed, units, copies):
    data = make(n, seed, units=units, copies=copies)
    kwargs = dict(seed=seed, min_per_role=0)
    roles = split_roles(data, **kwargs)
    assert set(roles) == set(ROLES)
    role = role_of(roles, n)
    for key in (data.unit, [row.tobytes() for row in data.inputs]):
        if key is not None:
            seen: dict[object, str] = {}
            assert all(seen.setdefault(k, r) == r for k, r in zip(key, role, strict=True))
    again = split_roles(data, **kwargs)
    assert all((roles[r] == again[r]).all() for r in ROLES)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(30, 400), seed=st.integers(0, 2**31), groups=st.integers(2, 6))
def test_roles_are_stratified_within_one_row(n, seed, groups):
    data = make(n, seed, groups=groups)
    roles = split_roles(data, seed=seed, min_per_role=0)
    role = role_of(roles, n)
    for g in range(groups):
        size = (data.group == g).sum()
        for name in ("certify", "test"):
            assert abs((role[data.group == g] == name).sum() - SHARES[name] * size) < 1
    left = np.isin(role, ("fit", "select", "tune"))
    for stratum in np.unique(data.y * groups + data.group):
        inside = left & (data.y * groups + data.group == stratum)
        for name in ("fit", "select", "tune"):
            ideal = SHARES[name] / 0.75 * inside.sum()
            assert abs((role[inside] == name).sum() - ideal) < 1
    # Rounding in one stratum is made good in the next, so the whole is close too.
    for name, share in SHARES.items():
        assert abs(len(roles[name]) - share * n) <= 3


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), folds=st.integers(2, 6), copies=st.integers(0, 40))
def test_every_row_is_tested_once_over_the_folds(seed, folds, copies):
    data = make(200, seed, copies=copies, units=90)
    tested = np.zeros(200, dtype=int)
    for fold in range(folds):
        roles = fold_roles(data, fold, folds, seed=seed, min_per_role=0)
        role = role_of(roles, 200)
        tested[roles["test"]] += 1
        assert roles["certify"].size == 0
        for unit in np.unique(data.unit):
            assert len(set(role[data.unit == unit])) == 1
    assert (tested == 1).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), copies=st.integers(0, 40))
def test_halves_of_select_are_disjoint_stratified_and_whole(seed, copies):
    data = make(300, seed, copies=copies)
    rows = split_roles(data, seed=seed, min_per_role=0)["select"]
    a, b = role_halves(rows, data, seed)
    assert (np.sort(np.concatenate([a, b])) == rows).all()
    assert not np.intersect1d(data.content[a], data.content[b]).size
    if not copies:
        for stratum in range(6):
            key = data.y * 3 + data.group
            assert abs((key[a] == stratum).sum() - (key[b] == stratum).sum()) <= 1
    c, d = role_halves(rows, data, seed)
    assert (a == c).all()
    assert (b == d).all()


def test_seeds_draw_different_roles():
    data = make(300, 0)
    assert not np.array_equal(split_roles(data, seed=0)["test"], split_roles(data, seed=1)["test"])
    first = [fold_roles(data, 0, seed=s)["test"] for s in (0, 1)]
    assert not np.array_equal(*first)


def test_roles_are_the_same_on_every_platform_and_version():
    # The numbers are part of the contract: a published run names its seed only.
    i = np.arange(40)
    roles = split_roles(from_arrays(i[:, None] * np.ones(2), i % 2, i % 3), seed=5, min_per_role=0)
    assert roles["test"].tolist() == [18, 21, 26, 34, 37, 38]
    assert roles["select"].tolist() == [2, 3, 4, 12, 13, 23, 25, 28]


def test_digits_group_is_class_and_splits():
    data = load("digits")
    roles = split_roles(data)
    assert [len(roles[r]) for r in ROLES] == [
        pytest.approx(FRACTIONS[r] * len(data), abs=2) for r in ROLES
    ]
    small = data.groups.index("3")
    assert [(data.group[roles[r]] == small).sum() for r in ROLES] == [27, 12, 6, 6, 9]


def test_certify_may_be_empty():
    data = make(200, 1)
    roles = split_roles(data, {"fit": 0.6, "select": 0.2, "test": 0.2})
    assert roles["certify"].size == roles["tune"].size == 0
    assert len(roles["test"]) == pytest.approx(40, abs=2)


def test_a_role_column_overrides():
    rng = np.random.default_rng(0)
    names = np.array(ROLES)[np.arange(100) % 5]
    x, y, g = rng.normal(size=(100, 3)), np.arange(100) // 5 % 2, np.arange(100) // 10 % 2
    data = from_arrays(x, y, g, role=names)
    roles = split_roles(data, {"fit": 1.0})
    assert all((roles[r] == np.flatnonzero(names == r)).all() for r in ROLES)
    with pytest.raises(DataError, match="leave out the role column"):
        fold_roles(data, 0)


def test_a_role_column_may_not_part_identical_images():
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 3, 1), dtype=np.uint8)
    images[1] = images[0]
    y = np.arange(20) // 2 % 2
    role = np.where(np.arange(20) % 2, "fit", "test")
    data = from_arrays(images, y, y, role=role)
    with pytest.raises(DataError, match=r"row 0 into test and row 1 into fit.*same image"):
        split_roles(data)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"fit": 0.5, "tets": 0.5}, "did you mean 'test'"),
        ({"fit": 0.5, "test": 0.4}, "sum to 1"),
        ({"fit": 1.5, "test": -0.5}, "at least 0"),
        ({"select": 0.5, "test": 0.5}, "of fit is 0"),
        ({"fit": 0.5, "select": 0.5}, "of test is 0"),
        ({"fit": float("nan"), "test": 1}, "sum to 1"),
    ],
)
def test_bad_fractions(fractions, message):
    with pytest.raises(DataError, match=message):
        split_roles(make(60, 0), fractions)


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_bad_seeds(seed):
    with pytest.raises(DataError, match="seed is"):
        split_roles(make(60, 0), seed=seed)


@pytest.mark.parametrize(("fold", "folds"), [(5, 5), (-1, 5), (0, 1)])
def test_bad_folds(fold, folds):
    with pytest.raises(DataError, match="does not exist"):
        fold_roles(make(60, 0), fold, folds)


def test_groups_and_classes_without_rows_in_a_role():
    x = np.random.default_rng(0).normal(size=(100, 3))
    y = np.arange(100) % 2
    g = np.where(np.arange(100) < 2, 1, 0)
    data = from_arrays(x, y, g, groups=("big", "tiny"))
    with pytest.raises(DataError, match=r"group 'tiny' \(2 rows in all\) has no rows in role"):
        split_roles(data)
    split_roles(data, counted=np.array([True, False]))
    rare = from_arrays(x, g, y, classes=("usual", "rare"))
    with pytest.raises(DataError, match="class 'rare'"):
        split_roles(rare)
    with pytest.raises(DataError, match=r"only .* rows in role"):
        split_roles(from_arrays(x, y, y), min_per_role=20)


def test_unlabelled_rows_have_no_roles():
    x = np.zeros((4, 2))
    data = from_arrays(x, None, None, labelled=False)
    with pytest.raises(DataError, match="4 rows have no label"):
        split_roles(data)


def test_halves_of_one_row():
    data = make(60, 0)
    with pytest.raises(DataError, match="two halves"):
        role_halves(np.array([3]), data)
