"""Choose target and groups among the attributes of a source, and build the data set."""

from __future__ import annotations

import dataclasses
from typing import TypeGuard

import numpy as np
import pandas as pd

from ._attributes import (
    against_rest,
    as_text,
    binned,
    codes,
    cross,
    is_numeric,
    natural_order,
    one_or_not,
    parse_bins,
    refuse_many_numbers,
)
from ._dataset import Dataset
from ._errors import DataError, did_you_mean, listing
from ._groups import MERGED
from ._roles import ROLES
from ._source import Request, Rows

_SUBSET_SEED = 20177


def sample_rows(n: int, max_rows: int | None) -> np.ndarray:
    """Return the sorted numbers of the rows kept under `max_rows`; the same ones every time."""
    if max_rows is None or n <= max_rows:
        return np.arange(n)
    bits = np.random.PCG64(np.random.SeedSequence([_SUBSET_SEED, n]))
    return np.sort(np.argsort(bits.random_raw(n), kind="stable")[:max_rows])


def assemble(rows: Rows, request: Request) -> Dataset:
    """Build the data set that the request asks for.

    Raises:
        DataError: see the package; every mistake about attributes, labels, groups, weights, ids
            and roles is found here, whatever the source.
    """
    options = request.options
    if not len(rows.ids):
        raise DataError(f"{rows.name} has no rows.")
    ids = _ids(rows, options.id)
    target = options.target or rows.target
    label, class_order = _target(rows, request, ids)
    group, group_order = _group(rows, request, label, class_order, ids)
    skipped, notes = dict(rows.skipped), list(rows.notes)

    keep = np.arange(len(ids))
    if options.missing_groups == "drop" and request.labelled:
        keep = np.flatnonzero(group != None)  # noqa: E711 (elementwise on objects)
        if keep.size < len(ids):
            skipped["group is missing"] = len(ids) - keep.size
        if not keep.size:
            raise DataError(f"{rows.name} has no row with a group.")
    chosen = keep[sample_rows(len(keep), options.max_rows)]
    if chosen.size < keep.size:
        notes.append(f"A random subset of {chosen.size} of {keep.size} rows.")

    ids, label, group = ids[chosen], label[chosen], group[chosen]
    classes = request.classes or natural_order(label, class_order)
    if request.groups is None:
        groups = natural_order(group, group_order)
    else:
        groups = request.groups
        pooled = set(request.merged)
        group = np.array([MERGED if g in pooled else g for g in group], dtype=object)
    y = codes(label, classes, "label", ids)
    g = codes(group, groups, "group", ids)
    if request.labelled and request.groups is None and len(groups) < 2:
        raise DataError(
            f"{rows.name} has a single group ({listing(groups)}), and nothing to compare; "
            "name another group attribute."
        )
    if request.labelled and request.classes is None and len(classes) < 2:
        raise DataError(f"{rows.name} has a single class ({listing(classes)}), nothing to learn.")
    columns = _row_columns(rows, request, chosen)
    weight, unit, role = (None if values is None else values[chosen] for values in columns)
    data = Dataset(
        name=rows.name,
        inputs=rows.read(chosen),
        y=y,
        group=g,
        ids=ids,
        classes=classes,
        groups=groups,
        weight=weight,
        unit=unit,
        role=role,
        skipped=skipped,
        merged=request.merged,
        target=target,
        attributes=_group_names(rows, request),
    )
    if not data.is_table:
        notes.append("Group attributes are no model inputs.")
    notes.extend(_twin_notes(data))
    return dataclasses.replace(data, notes=tuple(notes))


def _column(rows: Rows, name: str, use: str) -> pd.Series:
    table = rows.attributes
    if name not in table.columns:
        known = [str(c) for c in table.columns]
        raise DataError(
            f"{use} is {name!r}, which {rows.name} does not have{did_you_mean(name, known)}; "
            f"it has {listing(known) or 'no attributes'}."
        )
    return table[name]


def _ids(rows: Rows, name: str | None) -> np.ndarray:
    ids = rows.ids.astype(str)
    if name is not None:
        text = as_text(_column(rows, name, "id"))
        missing = [i for i, t in enumerate(text) if t is None]
        if missing:
            raise DataError(f"id column {name!r} is empty in {len(missing)} rows; fill it.")
        ids = text.astype(str)
    repeated = pd.Series(ids).duplicated()
    if repeated.any():
        raise DataError(
            f"id {str(ids[repeated.argmax()])!r} occurs more than once "
            f"({int(repeated.sum())} repeated rows); ids must be unique."
        )
    return ids


def _named(rows: Rows, name: str, use: str, edges: dict) -> tuple[np.ndarray, tuple | None]:
    """Return the text of an attribute, cut into bins where asked, and its natural order."""
    values = _column(rows, name, use)
    if name in edges:
        return binned(name, rows.numbers.get(name, values), edges[name])
    refuse_many_numbers(name, values, f"a {use}")
    return as_text(values), rows.orders.get(name)


def _target(rows: Rows, request: Request, ids: np.ndarray) -> tuple[np.ndarray, tuple | None]:
    options = request.options
    name = options.target or rows.target
    absent = np.full(len(ids), None, dtype=object)
    if name is None:
        if request.labelled:
            raise DataError(
                f"{rows.name} needs the attribute to predict (target); "
                f"it has {listing(map(str, rows.attributes.columns))}."
            )
        return absent, None
    if not request.labelled and name not in rows.attributes.columns:
        return absent, None
    if options.positive is not None and name not in parse_bins(options.bins):
        # One number against the rest needs no bins, however many numbers there are.
        text, order = as_text(_column(rows, name, "target")), None
    else:
        text, order = _named(rows, name, "target", parse_bins(options.bins))
    missing = np.flatnonzero([t is None for t in text])
    if missing.size and request.labelled:
        raise DataError(
            f"target {name!r} is missing in {missing.size} rows (the first is row "
            f"{ids[missing[0]]}); remove these rows or fill them."
        )
    if options.positive is None:
        return text, order
    if request.labelled and request.classes is None:
        return against_rest(text, options.positive, name)
    # Rows for a former run need not hold the positive value at all.
    return one_or_not(text, options.positive)


def _group_names(rows: Rows, request: Request) -> tuple[str, ...]:
    """The attributes to cross: the user's, the source's own, or else the target."""
    names = tuple(request.options.group) or rows.group
    target = request.options.target or rows.target
    if names or not request.labelled or target is None:
        return names
    return (target,)


def _group(
    rows: Rows, request: Request, label: np.ndarray, class_order: tuple | None, ids: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    options = request.options
    target = options.target or rows.target
    edges = parse_bins(options.bins)
    names = _group_names(rows, request)
    absent = np.full(len(ids), None, dtype=object)
    if request.labelled and not (options.group or rows.group):
        rows.notes.append("No group attribute was named: the groups are the classes.")
    for name in edges:
        if name not in (*names, target):
            raise DataError(f"bins were given for {name!r}, which is neither target nor group.")
    known = set(rows.attributes.columns)
    if not names or (not request.labelled and not set(names) <= known):
        return absent, ()
    columns, orders = [], []
    for name in names:
        text, order = (label, class_order) if name == target else _named(rows, name, "group", edges)
        columns.append(text)
        orders.append(natural_order(text, order))
    missing = {
        name: int(sum(t is None for t in text)) for name, text in zip(names, columns, strict=True)
    }
    own = options.missing_groups == "own"
    if any(missing.values()) and options.missing_groups == "error" and request.labelled:
        name = max(missing, key=lambda k: missing[k])
        first = next(i for i, t in enumerate(columns[names.index(name)]) if t is None)
        raise DataError(
            f"group attribute {name!r} is missing in {missing[name]} rows (the first is row "
            f"{ids[first]}); set missing_groups to own or drop."
        )
    if any(missing.values()) and own:
        told = ", ".join(f"{k} in {v} rows" for k, v in missing.items() if v)
        rows.notes.append(f"Missing group attributes are a group of their own: {told}.")
    return cross(columns, orders, own)


def _row_columns(
    rows: Rows, request: Request, chosen: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    options = request.options
    present = set(rows.attributes.columns)
    weight = unit = role = None

    def wanted(name: str | None) -> TypeGuard[str]:
        # Rows that are only predicted need neither weights nor roles.
        return name is not None and (request.labelled or name in present)

    if wanted(options.weight):
        values = _column(rows, options.weight, "weight")
        if not is_numeric(values):
            raise DataError(f"weight column {options.weight!r} does not hold numbers.")
        weight = values.to_numpy(dtype=np.float64, na_value=np.nan)
        bad = int((~np.isfinite(weight) | (weight < 0)).sum())
        if bad or not weight[chosen].sum() > 0:
            raise DataError(
                f"weight column {options.weight!r} must hold numbers of at least 0, not all 0 "
                f"({bad} rows are missing, infinite or negative)."
            )
        weight = (weight / weight[chosen].mean()).astype(np.float32)
    if wanted(options.unit):
        text = as_text(_column(rows, options.unit, "unit"))
        empty = sum(t is None for t in text)
        if empty:
            raise DataError(f"unit column {options.unit!r} is empty in {empty} rows; fill it.")
        unit = text.astype(str)
    if wanted(options.role):
        text = as_text(_column(rows, options.role, "role"))
        role = np.array(["" if t is None else t.lower() for t in text], dtype=str)
        wrong = np.flatnonzero(~np.isin(role, ROLES))
        if wrong.size:
            raise DataError(
                f"role column {options.role!r} holds {str(role[wrong[0]])!r} in {wrong.size} rows; "
                f"give one of {', '.join(ROLES)}."
            )
    return weight, unit, role


def _twin_notes(data: Dataset) -> list[str]:
    """Count rows that no model can tell apart, and those among them that disagree."""
    _, inverse, size = np.unique(data.content, return_inverse=True, return_counts=True)
    twins = size[inverse] > 1
    if not twins.any():
        return []
    low, high = np.full(size.size, data.y.max()), np.full(size.size, -1)
    np.minimum.at(low, inverse, data.y)
    np.maximum.at(high, inverse, data.y)
    clash = int((low < high)[inverse].sum())
    if data.is_table or np.ndim(data.inputs) < 3:
        what, fate = "inputs identical to another row's", "no model can tell these apart"
    else:
        what, fate = "images identical to another row's", "identical images share a role"
    return [
        f"{int(twins.sum())} of {len(data)} rows have {what}, {clash} with another label; {fate}."
    ]
