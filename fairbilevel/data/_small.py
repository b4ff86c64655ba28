"""What to do with groups and classes too small to be learnt, judged or spoken of."""

from __future__ import annotations

import dataclasses

import numpy as np

from ._dataset import Dataset, require_whole
from ._errors import DataError, listing, refuse_unknown

MERGED = "other (merged)"


def handle_small_groups(data: Dataset, policy: str, min_rows: int) -> tuple[Dataset, np.ndarray]:
    """Apply a policy to the groups with fewer than `min_rows` rows.

    Args:
        data: labelled rows.
        policy: "merge" pools them into the group "other (merged)"; "report-only" keeps them as they
            are, trained on and shown, outside every claim; "error" refuses them.
        min_rows: rows from which a group counts.

    Returns:
        The data, regrouped under "merge" (`Dataset.merged` names what went in), and bool `[G]`:
        which groups count. A pool still below `min_rows` does not.

    Raises:
        DataError: an unknown policy, a small group under "error", or fewer than two groups left.
    """
    refuse_unknown(f"small_groups is {policy!r}", policy, ("merge", "report-only", "error"))
    require_whole("min_group_rows", min_rows, 1)
    sizes = _sizes(data)
    small = sizes < min_rows
    few, named = _few(data.groups, sizes, small)
    notes = list(data.notes)
    if small.any() and policy == "error":
        raise DataError(
            f"groups with fewer than {min_rows} rows: {named}; set small_groups to merge or "
            "report-only, or lower min_group_rows."
        )
    if small.any() and policy == "merge":
        target, kept = _small_last(data.groups, small)
        group = np.where(data.group < 0, -1, target[data.group]).astype(np.int32)
        lost = (name for name in few if name != MERGED)
        data = dataclasses.replace(
            data, group=group, groups=(*kept, MERGED), merged=(*data.merged, *lost)
        )
        notes.append(f"Groups with fewer than {min_rows} rows are merged into {MERGED!r}: {named}.")
    counted = _sizes(data) >= min_rows
    if not counted.all():
        outside = listing(data.groups[i] for i in np.flatnonzero(~counted))
        notes.append(f"Trained on and shown, but outside every claim for want of rows: {outside}.")
    if counted.sum() < 2:
        raise DataError(
            f"a single group is left: fewer than two groups have {min_rows} rows; lower "
            "min_group_rows or name another group attribute."
        )
    return dataclasses.replace(data, notes=tuple(notes)), counted


def _sizes(data: Dataset) -> np.ndarray:
    return np.bincount(data.group[data.group >= 0], minlength=len(data.groups))


def _few(names: tuple[str, ...], sizes: np.ndarray, small: np.ndarray) -> tuple[list[str], str]:
    """Names of the small ones, and the same with their sizes for a sentence."""
    few = np.flatnonzero(small)
    return [names[i] for i in few], listing(f"{names[i]} ({sizes[i]})" for i in few)


def _small_last(names: tuple[str, ...], small: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """New indices, the small ones last, as one, and the names of the others in their order."""
    kept = tuple(name for name, few in zip(names, small, strict=True) if not few)
    return np.where(small, len(kept), np.cumsum(~small) - 1), kept


def handle_small_classes(data: Dataset, policy: str, min_rows: int) -> Dataset:
    """Apply a policy to the classes with fewer than `min_rows` rows.

    Args:
        data: labelled rows.
        policy: "merge" pools them into the class "other (merged)"; "drop" leaves their rows out;
            "error" changes nothing: `split_roles` refuses a class that is not in every role.
        min_rows: rows from which a class is not small.

    Returns:
        The data with other classes under "merge" (`Dataset.merged_classes` names what went in) or
        without their rows under "drop" (`Dataset.dropped_classes`, counted in `Dataset.skipped`;
        groups that have no other rows go too).

    Raises:
        DataError: an unknown policy, fewer than two classes left, or a pool that is itself small.
    """
    refuse_unknown(f"small_classes is {policy!r}", policy, ("merge", "drop", "error"))
    require_whole("min_class_rows", min_rows, 1)
    sizes = np.bincount(data.y, minlength=len(data.classes))
    small = sizes < min_rows
    if policy == "error" or not small.any():
        return data
    few, named = _few(data.classes, sizes, small)
    target, kept = _small_last(data.classes, small)
    if len(kept) + (policy == "merge") < 2:
        raise DataError(
            f"fewer than two classes are left: these have fewer than {min_rows} rows: {named}; "
            "lower min_class_rows or add rows."
        )
    y = target[data.y].astype(np.int32)
    if policy == "merge":
        pool = int(sizes[small].sum())
        if pool < min_rows:
            raise DataError(
                f"classes with fewer than {min_rows} rows have only {pool} together: {named}; set "
                "small_classes to drop, lower min_class_rows or add rows."
            )
        note = f"Classes with fewer than {min_rows} rows are merged into {MERGED!r}: {named}."
        return dataclasses.replace(
            data,
            y=y,
            classes=(*kept, MERGED),
            merged_classes=(*data.merged_classes, *few),
            notes=(*data.notes, note),
        )
    data = dataclasses.replace(data, y=y).take(np.flatnonzero(y < len(kept)))
    there = np.bincount(data.group, minlength=len(data.groups)) > 0
    return dataclasses.replace(
        data,
        classes=kept,
        group=(np.cumsum(there) - 1)[data.group].astype(np.int32),
        groups=tuple(g for g, some in zip(data.groups, there, strict=True) if some),
        dropped_classes=(*data.dropped_classes, *few),
        skipped={
            **data.skipped,
            f"class has fewer than {min_rows} rows: {named}": int(sizes[small].sum()),
        },
    )
