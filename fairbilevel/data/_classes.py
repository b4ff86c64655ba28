"""What to do with classes too rare to be learnt and judged."""

from __future__ import annotations

import dataclasses

import numpy as np

from ._dataset import Dataset, require_whole
from ._errors import DataError, listing, refuse_unknown
from ._groups import MERGED


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
    few = [data.classes[i] for i in np.flatnonzero(small)]
    named = listing(f"{data.classes[i]} ({sizes[i]})" for i in np.flatnonzero(small))
    kept = tuple(c for c, rare in zip(data.classes, small, strict=True) if not rare)
    if len(kept) + (policy == "merge") < 2:
        raise DataError(
            f"fewer than two classes are left: these have fewer than {min_rows} rows: {named}; "
            "lower min_class_rows or add rows."
        )
    # Small classes go last, as one; the others keep their order.
    target = np.where(small, len(kept), np.cumsum(~small) - 1)
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
