"""What to do with groups too small to say anything about."""

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
    few = np.flatnonzero(small)
    named = listing(f"{data.groups[i]} ({sizes[i]})" for i in few)
    notes = list(data.notes)
    if small.any() and policy == "error":
        raise DataError(
            f"groups with fewer than {min_rows} rows: {named}; set small_groups to merge or "
            "report-only, or lower min_group_rows."
        )
    if small.any() and policy == "merge":
        # Small groups go last, as one; the others keep their order.
        target = np.where(small, int((~small).sum()), np.cumsum(~small) - 1)
        group = np.where(data.group < 0, -1, target[data.group]).astype(np.int32)
        groups = (*(data.groups[i] for i in np.flatnonzero(~small)), MERGED)
        lost = (data.groups[i] for i in few if data.groups[i] != MERGED)
        data = dataclasses.replace(data, group=group, groups=groups, merged=(*data.merged, *lost))
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
