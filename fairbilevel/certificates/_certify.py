"""``fb.certify``: predictions from anywhere to a certificate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairbilevel.certificates import _claim as gaps
from fairbilevel.certificates._certificate import Certificate
from fairbilevel.certificates._claim import Claim, Context, Looks, Origin
from fairbilevel.certificates._columns import (
    check_classes,
    check_models,
    check_quantity,
    default_positive,
    hash_of,
    indexed_groups,
    keys_of_rows,
    like_labels,
    numbered,
    once,
    plain_ids,
    read_column,
)
from fairbilevel.certificates._counts import copies, count_groups, one_row_per_unit
from fairbilevel.certificates._ledger import take_look

MIN_GROUP_ROWS = 50


def certify(
    y: Any,
    dense_pred: Any,
    pruned_pred: Any,
    group: Any,
    *,
    gap: str = gaps.EXCESS,
    tolerance: float,
    confidence: float = 0.95,
    bound: str = "sharp",
    min_group_rows: int = MIN_GROUP_ROWS,
    groups: Sequence[str] | None = None,
    claimed: Sequence[bool] | None = None,
    unit: Any = None,
    unit_name: str = "persons",
    ids: Any = None,
    classes: Sequence[Any] | None = None,
    positive: Any = None,
    quantity: Any = None,
    upper: float | None = None,
    quantity_name: str = "loss",
    row_keys: Any = None,
    as_given: bool = False,
    looks: Looks = Looks(),
    origin: Origin = Origin(),
) -> Certificate:
    """What held-out rows prove about gaps between groups, with stated confidence.

    The rows must be independent, identically distributed within each group, and unseen: by the
    training of either model and by every choice between models.

    Args:
        y: ``[rows]`` true classes: numbers or text; tensors are read with ``numpy.asarray``.
        dense_pred: ``[rows]`` classes that the dense model predicts.
        pruned_pred: ``[rows]`` classes that the pruned model predicts.
        group: ``[rows]`` groups.
        gap: ``excess-accuracy-gap``, ``absolute-excess-accuracy-gap``, ``degradation-gap``,
            ``accuracy-gap``, ``worst-group-accuracy``, ``demographic-parity``,
            ``equal-opportunity``, ``equalized-odds``, ``equalized-loss`` or
            ``equalized-loss-signed``.
        tolerance: the bound to certify, a fraction (0.02 is two points); of
            ``worst-group-accuracy`` the floor.
        confidence: of everything that is ever certified from these rows together.
        bound: of paired differences, ``sharp`` or ``simple``; to be chosen beforehand.
        min_group_rows: smaller groups are named as outside the claim.
        groups: group names, where ``group`` holds their indices.
        claimed: ``[groups]`` which ones the claim speaks of, instead of ``min_group_rows``.
        unit: ``[rows]`` the person behind a row; one row of each is drawn, and persons are counted.
        unit_name: what units are.
        ids: ``[rows]`` unique ids of the rows, by which a ledger knows them (7, 7.0 and 007
            are one).
        classes: every class there is, where the labels lack some that a model predicts; by default
            those of ``y``.
        positive: class whose rate is compared, for gaps of answers; 1 or True by default.
        quantity: ``[rows]`` of the pruned model, for ``equalized-loss``: a loss or anything else.
        upper: its largest possible value; the smallest is 0.
        quantity_name: what it is called.
        row_keys: uint64 ``[rows]`` fingerprints of rows, instead of ids; rows with equal ones are
            one and the same.
        as_given: take columns that look mistaken for one another as they are; otherwise equal ones
            make the verdict conditional, and exchanged ones are refused.
        looks: how often the rows are looked at, and who counts.
        origin: where rows and models come from.

    Returns:
        The certificate: ``.verdict``, ``.smallest_tolerance``, ``.sentence``, ``.save(path)``.

    Raises:
        ValueError: columns of different lengths, missing values, predictions that are no classes
            (probabilities, indices beside names, a class that neither a label has nor ``classes``
            declares), a dense model that chance would beat, columns that look mistaken for one
            another, an unknown gap, a tolerance or confidence out of range, values outside the
            declared range, no group large enough.
    """
    labels = read_column("y", y)
    columns = {
        "dense_pred": read_column("dense_pred", dense_pred),
        "pruned_pred": read_column("pruned_pred", pruned_pred),
        "group": read_column("group", group),
    }
    for name, extra in (("unit", unit), ("ids", ids), ("quantity", quantity)):
        if extra is not None:
            columns[name] = read_column(name, extra)
    for name, values in columns.items():
        if len(values) != len(labels):
            raise ValueError(f"{name} has {len(values)} rows where y has {len(labels)}")
    if not len(labels):
        raise ValueError("there are no rows to certify from")
    if "ids" in columns and len(set(plain_ids(columns["ids"]))) < len(labels):
        raise ValueError("ids occur more than once: every row needs its own")
    dense, pruned = columns["dense_pred"], columns["pruned_pred"]
    text = [c.dtype.kind == "U" for c in (labels, dense, pruned)]
    if any(text) and not all(text):
        raise ValueError("y, dense_pred and pruned_pred must all be numbers or all be text")
    check_classes({"y": labels, "dense_pred": dense, "pruned_pred": pruned}, classes)
    index, names = indexed_groups(columns["group"], groups)
    doubts = check_models(labels, dense, pruned, index, gap, as_given)
    if gap not in gaps.OF_ANSWERS:
        positive = None
    elif positive is None:
        positive = default_positive(labels, pruned)
    elif not (labels == like_labels(labels, positive)).any():
        raise ValueError(f"no row has the positive class {positive!r}")
    if gap in gaps.OF_QUANTITIES:
        check_quantity(gap, columns.get("quantity"), upper)
    keys, known = keys_of_rows(row_keys, columns.get("ids"), labels, index)
    notes = list(origin.notes)

    rows_read, kind = len(labels), "rows"
    chosen = np.arange(rows_read)
    if unit is not None:
        kind = unit_name
        chosen = one_row_per_unit(columns["unit"])
    else:
        rows = [labels, dense, pruned, index]
        if "quantity" in columns:
            rows.append(columns["quantity"])
        outcome = numbered(*rows)
        kept, doubt = once(keys, outcome) if row_keys is not None else None, None
        if not known:
            kept, doubt = copies(outcome, index)
        if doubt is not None:
            doubts.append(f"{doubt}, as if rows were copies")
        if kept is not None:
            chosen = kept
            notes.append(
                f"{rows_read - len(kept)} of {rows_read} rows are copies, which do not count."
            )
    labels, dense, pruned, index = (v[chosen] for v in (labels, dense, pruned, index))
    if "quantity" in columns:
        columns["quantity"] = columns["quantity"][chosen]
    if claimed is None:
        size = np.bincount(index, minlength=len(names))
        counted = size >= max(min_group_rows, 1)
    else:
        counted = np.asarray(claimed, bool)
        if counted.shape != (len(names),):
            raise ValueError(f"claimed has {counted.size} values for {len(names)} groups")
    is_positive = None
    if positive is not None:
        value = like_labels(labels, positive)
        is_positive = (labels == value, pruned == value)
    amounts = None
    if gap in gaps.OF_QUANTITIES and upper is not None:
        amounts = (columns["quantity"].astype(np.float64), float(upper))
    right = dense == labels, pruned == labels
    counts = count_groups(*right, index, names, counted, positive=is_positive, quantity=amounts)

    def claim(number: int) -> Claim:
        return Claim(
            gap=gap,
            tolerance=float(tolerance),
            confidence=float(confidence),
            bound=bound,
            look=number,
            only_look=looks.only,
            candidates=looks.candidates,
            positive=None if positive is None else str(positive),
            upper=None if upper is None else float(upper),
            quantity=quantity_name,
        )

    known_models = [m for m in (origin.dense_model, origin.pruned_model) if m is not None]
    terms = {k: v for k, v in claim(1).to_json().items() if k != "look"}

    def certificate(number: int, more: Sequence[str] = ()) -> Certificate:
        context = Context(
            data=origin.data,
            fingerprint=hashlib.sha256(np.sort(keys).astype("<u8").tobytes()).hexdigest(),
            kind=kind,
            rows_read=rows_read,
            left_out=dict(origin.left_out),
            duplicates=origin.duplicates,
            alike=origin.alike,
            doubts=tuple(doubts),
            dense_model=origin.dense_model or hash_of(columns["dense_pred"]),
            pruned_model=origin.pruned_model or hash_of(columns["pruned_pred"]),
            dense_trained_on=origin.dense_trained_on,
            looks_counted=looks.ledger is not None,
            notes=(*notes, *more),
        )
        return Certificate(claim(number), counts, context)

    # Whatever is wrong is found before the ledger counts a look.
    found = certificate(looks.number)
    if looks.ledger is None:
        return found
    taken = take_look(
        Path(looks.ledger),
        keys,
        terms,
        [terms, [g.to_json() for g in counts]],
        known=known,
        models=known_models if len(known_models) == 2 else None,
        candidates=looks.candidates,
        only_look=looks.only,
        also=looks.also,
        record=looks.record,
    )
    if not known and taken.number > 1:
        notes.append("Without ids rows are not told apart: every certificate of the ledger counts.")
    return certificate(taken.number, taken.notes)
