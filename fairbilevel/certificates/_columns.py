"""Columns of rows that somebody gives: read, checked, keyed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairbilevel._numbers import percent, points
from fairbilevel.certificates import _claim as gaps
from fairbilevel.certificates._ledger import digest, fingerprints
from fairbilevel.certificates._paired import rate_upper

# Rows below which equal columns mean little.
_FEW = 50


def read_column(name: str, values: Any) -> np.ndarray:
    found = np.asarray(values)
    if found.ndim != 1:
        raise ValueError(f"{name} must hold one value a row, its shape is {list(found.shape)}")
    if found.dtype.kind == "O":
        missing = sum(v is None or v != v for v in found)
    else:
        missing = int(np.isnan(found).sum()) if found.dtype.kind == "f" else 0
    if missing:
        raise ValueError(f"{name} is missing in {missing} of {len(found)} rows")
    return found.astype(str) if found.dtype.kind in "OSU" else found


def check_classes(columns: Mapping[str, np.ndarray], classes: Sequence[Any] | None) -> None:
    """That all values are classes: one that no label has would count as wrong in every row."""
    for name, values in columns.items():
        if values.dtype.kind == "U":
            continue
        if values.dtype.kind not in "iufb":
            raise ValueError(f"{name} must hold numbers or text, not {values.dtype}")
        broken = values[values != np.floor(values)] if values.dtype.kind == "f" else values[:0]
        if len(broken):
            raise ValueError(
                f"{name} holds {broken[0]:g}, which is no class ({len(broken)} of {len(values)} "
                "rows): give the class that is predicted, not its probability or score"
            )
    labels = columns["y"]
    declared = (
        np.asarray([like_labels(labels, c) for c in classes]) if classes is not None else labels
    )
    known = np.unique(declared)
    for name, values in columns.items():
        strange = np.setdiff1d(values, known)
        if not len(strange):
            continue
        count = int(np.isin(values, strange).sum())
        which = ", ".join(repr(v) for v in strange[:3].tolist())
        has = ", ".join(repr(v) for v in known[:5].tolist()) + (", ..." if len(known) > 5 else "")
        where = "is declared" if classes is not None else "y has"
        raise ValueError(
            f"{name} holds {which} in {count} of {len(values)} rows, where {where} only {has}: "
            "predictions must be classes, written as in y; if the labels merely lack one, declare "
            "all of them as classes"
        )


def like_labels(labels: np.ndarray, value: Any) -> Any:
    if labels.dtype.kind == "U":
        return str(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"the classes are numbers, the positive class is {value!r}") from None


def indexed_groups(
    group: np.ndarray, names: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    if names is None:
        values, index = np.unique(group, return_inverse=True)
        return index, tuple(str(v) for v in values)
    if group.dtype.kind not in "iu" or group.min() < 0 or group.max() >= len(names):
        raise ValueError(f"with {len(names)} names of groups, group must hold their indices")
    return group.astype(np.int64), tuple(map(str, names))


def default_positive(labels: np.ndarray, pruned: np.ndarray) -> Any:
    values = np.union1d(labels, pruned)
    if labels.dtype.kind != "U" and np.isin(values, (0, 1)).all():
        return 1
    raise ValueError(
        "name the positive class: gaps of answers compare its rate, and the classes are "
        f"{', '.join(map(str, values[:10].tolist()))}"
    )


def check_quantity(gap: str, quantity: np.ndarray | None, upper: float | None) -> None:
    if upper is None or quantity is None:
        raise ValueError(
            f"{gap} is not certifiable without a quantity and its declared range: an unbounded "
            "loss can hide any mean in rare rows, so clip it and give upper"
        )
    if quantity.dtype.kind not in "iufb":
        raise ValueError("quantity must hold numbers")
    outside = int(((quantity < 0) | (quantity > upper)).sum())
    if outside:
        raise ValueError(f"quantity lies outside its declared range [0, {upper}] in {outside} rows")


def check_models(
    labels: np.ndarray,
    dense: np.ndarray,
    pruned: np.ndarray,
    group: np.ndarray,
    gap: str,
    as_given: bool,
) -> list[str]:
    """What remains in doubt of whether columns are what they are called; where they look mistaken
    for one another, or the dense model knows nothing, they are refused."""
    right, after = dense == labels, pruned == labels
    if gap in gaps.BESIDE_DENSE:
        # What answers given in the same shares, but at random, would get right.
        shares = [
            dict(zip(*(v.tolist() for v in np.unique(c, return_counts=True)), strict=True))
            for c in (labels, dense)
        ]
        chance = sum(n * shares[1].get(k, 0) for k, n in shares[0].items()) / len(labels) ** 2
        if right.mean() < chance:
            raise ValueError(
                f"the dense model gets {percent(right.mean())} of the rows right and the pruned "
                f"one {percent(after.mean())}, where the same answers at random would get "
                f"{percent(chance)}: are classes written as in y?"
            )
    if as_given or len(labels) < _FEW:
        return []
    if gap in gaps.BESIDE_DENSE:
        lost = np.bincount(group[right & ~after], minlength=group.max() + 1)
        won = np.bincount(group[after & ~right], minlength=group.max() + 1)
        some = (lost + won) > 0
        surely = rate_upper(int(lost.sum()), int((lost + won).sum()), 0.001) < 0.5
        if surely and (won > lost)[some].all():
            raise ValueError(
                f"the dense model is right less often than the pruned one in every group "
                f"({points(right.mean())} and {percent(after.mean())} in all), as if the two were "
                "exchanged: if that is so, say as_given=True (--as-given)"
            )
    pairs = (
        ("dense_pred", "y", right),
        ("pruned_pred", "y", after),
        ("pruned_pred", "dense_pred", dense == pruned),
    )
    return [
        f"{name} equals {other} in all {len(labels)} rows"
        for name, other, equal in pairs
        if equal.all()
    ]


def plain_ids(ids: np.ndarray) -> list[str]:
    """Ids as text, numbers in one form: 7, 7.0, 007 and " 7" are one."""
    found = []
    for value in map(str, ids.tolist()):
        text = value.strip()
        whole = re.fullmatch(r"[+]?0*(\d+)(?:\.0*)?", text)
        found.append(whole[1] if whole else text)
    return found


def numbered(*columns: np.ndarray) -> np.ndarray:
    """A number a row, equal for equal rows."""
    found = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, code = np.unique(column, return_inverse=True)
        found = np.unique(found * len(values) + code, return_inverse=True)[1]
    return found


def once(keys: np.ndarray, outcome: np.ndarray) -> np.ndarray | None:
    """One row of each key, whose rows must have one outcome; ``None`` where keys are unique."""
    distinct, first, place = np.unique(keys, return_index=True, return_inverse=True)
    if len(distinct) == len(keys):
        return None
    other = int((outcome != outcome[first][place]).sum())
    if other:
        raise ValueError(f"row_keys repeat, and {other} rows with the same key have other outcomes")
    return np.sort(first)


def keys_of_rows(
    row_keys: Any, ids: np.ndarray | None, labels: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Fingerprints of the rows, and whether they are of single rows."""
    if row_keys is not None:
        keys = np.asarray(row_keys, np.uint64)
        if keys.shape != labels.shape:
            raise ValueError(f"row_keys has {keys.size} values for {len(labels)} rows")
        return keys, True
    if ids is not None:
        return fingerprints([f"id {i}" for i in plain_ids(ids)]), True
    # Without ids rows are known as a whole, in any order and under any names.
    counts = np.unique(numbered(labels, group), return_counts=True)[1]
    return fingerprints([digest([len(labels), sorted(counts.tolist())])]), False


def hash_of(predictions: np.ndarray) -> str:
    return "predictions:" + digest(predictions.tolist())
