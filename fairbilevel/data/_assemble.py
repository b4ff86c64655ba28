"""Choose target and groups among the attributes of a source, and build the data set."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from ._attributes import as_text, binned, codes, cross, is_numeric, natural_order, parse_bins
from ._dataset import Dataset
from ._errors import DataError, listing, refuse_unknown, repeated
from ._parquet import StoredTable
from ._roles import ROLES, shuffled
from ._small import MERGED
from ._source import Request, Rows
from ._stores import StoredRows

_SUBSET_SEED = 20177
_MAX_NUMBERS = 50


def sample_rows(n: int, max_rows: int | None) -> np.ndarray:
    """Return the sorted numbers of the rows kept under `max_rows`; the same ones every time."""
    if max_rows is None or n <= max_rows:
        return np.arange(n)
    return np.sort(shuffled(np.arange(n), np.random.PCG64([_SUBSET_SEED, n]))[:max_rows])


def assemble(rows: Rows, request: Request) -> Dataset:
    """Build the data set that is asked for; every mistake about attributes, labels, groups,
    weights, ids and roles is found here, whatever the source."""
    options = request.options
    if not len(rows.ids):
        raise DataError(f"{rows.name} has no rows.")
    rows = dataclasses.replace(
        rows,
        ids=_ids(rows, options.id),
        target=options.target or rows.target,
        group=tuple(options.group) or rows.group,
        skipped=dict(rows.skipped),
        notes=list(rows.notes),
    )
    edges = parse_bins(options.bins)
    label, class_order = _target(rows, request, edges)
    if request.labelled and not rows.group and rows.target is not None:
        rows.notes.append("No group attribute was named: the groups are the classes.")
        rows.group = (rows.target,)
    group, group_order = _group(rows, request, edges, label, class_order)

    keep = np.arange(len(rows.ids))
    if options.missing_groups == "drop" and request.labelled:
        keep = np.flatnonzero(group != None)  # noqa: E711 (elementwise on objects)
        rows.skipped["group is missing"] = len(rows.ids) - keep.size
        if not keep.size:
            raise DataError(f"{rows.name} has no row with a group.")
    if request.dropped_classes:
        kept = keep[[c not in request.dropped_classes for c in label[keep]]]
        dropped = f"class was dropped: {listing(request.dropped_classes)}"
        rows.skipped[dropped] = len(keep) - len(kept)
        keep = kept
        if not keep.size:
            raise DataError(f"{rows.name} has no row of a class that the run kept.")
    chosen = keep[sample_rows(len(keep), options.max_rows)]
    if chosen.size < keep.size:
        rows.notes.append(f"A random subset of {chosen.size} of {keep.size} rows.")

    group, label = _pooled(group, request.merged), _pooled(label, request.merged_classes)

    def indexed() -> tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[str, ...]]:
        """Labels and groups of the chosen rows, as indices into their names."""
        classes = request.classes or natural_order(label[chosen], class_order)
        groups = request.groups or natural_order(group[chosen], group_order)
        y = codes(label, classes, "label", chosen, rows.where)
        return y, codes(group, groups, "group", chosen, rows.where), classes, groups

    y, g, classes, groups = indexed()  # what is wrong is told before inputs take their time
    inputs = rows.read(chosen)
    if options.in_memory == "no" and not isinstance(inputs, (StoredRows, StoredTable)):
        shards = "make a folder of shards of it with fairbilevel convert"
        remedy = shards if isinstance(inputs, np.ndarray) else "write it as Parquet"
        raise DataError(
            f"{rows.name} is read as a whole, whatever in_memory says: leave it out, or {remedy}."
        )
    if rows.damaged:
        what = f"{rows.piece} cannot be used: {listing(rows.ids[rows.damaged], 3)}"
        rows.skipped[what] = len(rows.damaged)
        chosen = chosen[~np.isin(chosen, rows.damaged)]
        y, g, classes, groups = indexed()
    if request.labelled and request.groups is None and len(groups) < 2:
        raise DataError(
            f"{rows.name} has a single group ({listing(groups)}), and nothing to compare; "
            "name another group attribute."
        )
    if request.labelled and request.classes is None and len(classes) < 2:
        raise DataError(f"{rows.name} has a single class ({listing(classes)}), nothing to learn.")
    data = Dataset(
        name=rows.name,
        inputs=inputs,
        y=y,
        group=g,
        ids=rows.ids[chosen],
        numbered=rows.numbered and options.id is None,
        classes=classes,
        groups=groups,
        skipped={reason: count for reason, count in rows.skipped.items() if count},
        merged=request.merged,
        merged_classes=request.merged_classes,
        dropped_classes=request.dropped_classes,
        target=rows.target,
        attributes=rows.group,
        **_row_columns(rows, request, chosen),
    )
    if options.image_size is not None and not data.is_image:
        raise DataError(f"{rows.name} holds no images, so image_size says nothing; leave it out.")
    if not data.is_table:
        rows.notes.append("Group attributes are no model inputs.")
    return dataclasses.replace(data, notes=(*rows.notes, *_twin_notes(data)))


def _pooled(text: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """The text with these names replaced by that of their pool."""
    if not names:
        return text
    return np.array([MERGED if t in names else t for t in text], dtype=object)


def _column(rows: Rows, name: str, use: str) -> pd.Series:
    said = f"{use} is {name!r}, which {rows.name} does not have"
    refuse_unknown(said, name, rows.attributes.columns)
    return rows.attributes[name]


def _refuse_missing(rows: Rows, text: np.ndarray, said: str, remedy: str) -> None:
    gaps = np.flatnonzero([t is None for t in text])
    if gaps.size:
        first = rows.where(int(gaps[0]))
        raise DataError(f"{said} in {gaps.size} rows (the first is {first}); {remedy}.")


def _filled(rows: Rows, name: str, use: str) -> np.ndarray:
    text = as_text(_column(rows, name, use))
    _refuse_missing(rows, text, f"{use} column {name!r} is empty", "fill it")
    return text.astype(str)


def _ids(rows: Rows, name: str | None) -> np.ndarray:
    if name is None and rows.numbered:
        return rows.ids
    ids = rows.ids.astype(str) if name is None else _filled(rows, name, "id")
    if len(np.unique(ids)) < len(ids):
        twice = repeated(ids.tolist())
        raise DataError(
            f"id {twice[0]!r} occurs more than once ({len(ids) - len(set(ids.tolist()))} repeated "
            "rows); ids must be unique."
        )
    return ids


def _named(
    rows: Rows, name: str, use: str, edges: dict, most: int = _MAX_NUMBERS
) -> tuple[np.ndarray, tuple | None]:
    """Return the text of an attribute, cut into bins where asked, and its natural order."""
    values = _column(rows, name, use)
    if name in edges:
        return binned(name, rows.numbers.get(name, values), edges[name])
    if is_numeric(values) and values.nunique() > most:
        raise DataError(
            f"{name!r} holds {values.nunique()} different numbers, too many for a {use}; "
            f"cut it with bins, as {name}=25,45."
        )
    return as_text(values), rows.orders.get(name)


def _target(rows: Rows, request: Request, edges: dict) -> tuple[np.ndarray, tuple | None]:
    name, positive = rows.target, request.options.positive
    if name is None and request.labelled:
        raise DataError(
            f"{rows.name} needs the attribute to predict (target); "
            f"it has {listing(map(str, rows.attributes.columns))}."
        )
    if name is None or not (request.labelled or name in rows.attributes.columns):
        return np.full(len(rows.ids), None, dtype=object), None
    # One number against the rest needs no bins, however many numbers there are.
    most = _MAX_NUMBERS if positive is None else len(rows.ids)
    if request.labelled and positive is None and name not in edges:
        _refuse_fractions(_column(rows, name, "target"), name)
    text, order = _named(rows, name, "target", edges, most)
    if request.labelled:
        said = f"target {name!r} is missing"
        _refuse_missing(rows, text, said, "remove these rows or fill them")
    if positive is None:
        return text, order
    # Rows for a former run need not hold the positive value at all.
    if request.labelled and request.classes is None:
        said = f"positive is {positive!r}, which is no value of {name!r}"
        refuse_unknown(said, positive, natural_order(text))
    names = (f"not {positive}", positive)
    return np.array([None if t is None else names[t == positive] for t in text], object), names


def _refuse_fractions(values: pd.Series, name: str) -> None:
    """Numbers between whole ones are measurements, and no names of classes."""
    if not pd.api.types.is_float_dtype(values.dtype):
        return
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.flatnonzero(np.isfinite(numbers) & (numbers != np.round(numbers)))
    if bad.size:
        raise DataError(
            f"{name!r} holds numbers such as {numbers[bad[0]]:g}: regression is not supported; cut "
            f"it into classes with bins, as {name}=25,45, or give classes as whole numbers or text."
        )


def _group(
    rows: Rows, request: Request, edges: dict, label: np.ndarray, class_order: tuple | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    for name in edges:
        if name not in (*rows.group, rows.target):
            raise DataError(f"bins were given for {name!r}, which is neither target nor group.")
    known = set(rows.attributes.columns)
    if not rows.group or not (request.labelled or set(rows.group) <= known):
        return np.full(len(rows.ids), None, dtype=object), ()
    policy = request.options.missing_groups
    columns, orders, missing = [], [], []
    for name in rows.group:
        own_target = name == rows.target
        text, order = (label, class_order) if own_target else _named(rows, name, "group", edges)
        if policy == "error" and request.labelled:
            said = f"group attribute {name!r} is missing"
            _refuse_missing(rows, text, said, "set missing_groups to own or drop")
        columns.append(text)
        orders.append(natural_order(text, order))
        absent = sum(t is None for t in text)
        missing += [f"{name} in {absent} rows"] if absent else []
    if missing and policy == "own":
        told = ", ".join(missing)
        rows.notes.append(f"Missing group attributes are a group of their own: {told}.")
    return cross(columns, orders, policy == "own")


def _row_columns(rows: Rows, request: Request, chosen: np.ndarray) -> dict[str, Any]:
    """Weight, unit and role of the chosen rows, as far as columns of them were named."""
    options = request.options
    named = {"weight": options.weight, "unit": options.unit, "role": options.role}
    if not request.labelled:
        # Rows that are only predicted need neither weights nor roles.
        named = {use: n for use, n in named.items() if n in rows.attributes.columns}
    found = {}
    if name := named.get("weight"):
        values = _column(rows, name, "weight")
        if not is_numeric(values):
            raise DataError(f"weight column {name!r} does not hold numbers.")
        weight = values.to_numpy(dtype=np.float64, na_value=np.nan)
        bad = int((~np.isfinite(weight) | (weight < 0)).sum())
        if bad or not weight[chosen].sum() > 0:
            raise DataError(
                f"weight column {name!r} must hold numbers of at least 0, not all 0 "
                f"({bad} rows are missing, infinite or negative)."
            )
        found["weight"] = (weight / weight[chosen].mean()).astype(np.float32)
    if name := named.get("unit"):
        found["unit"] = _filled(rows, name, "unit")
    if name := named.get("role"):
        text = as_text(_column(rows, name, "role"))
        role = np.array(["" if t is None else t.lower() for t in text], dtype=str)
        wrong = role[~np.isin(role, ROLES)]
        if wrong.size:
            raise DataError(
                f"role column {name!r} holds {str(wrong[0])!r} in {wrong.size} rows; "
                f"give one of {', '.join(ROLES)}."
            )
        found["role"] = role
    return {use: values[chosen] for use, values in found.items()}


def _twin_notes(data: Dataset) -> list[str]:
    """Count rows that no model can tell apart, and those among them that disagree."""
    twin = np.flatnonzero(np.bincount(data.content)[data.content] > 1)
    labels = pd.Series(data.y[twin]).groupby(data.content[twin])
    twins, clash = twin.size, int((labels.transform("nunique") > 1).sum())
    what, fate = "inputs identical to another row's", "no model can tell these apart"
    if data.is_image:
        what, fate = "images identical to another row's", "identical images share a role"
    told = f"{twins} of {len(data)} rows have {what}, {clash} with another label; {fate}."
    return [told] if twins else []
