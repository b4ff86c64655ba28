"""``fb.certify``: predictions from anywhere to a certificate."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairbilevel.certificates import _claim as gaps
from fairbilevel.certificates._asked import Looks, Origin
from fairbilevel.certificates._binomial import rate_upper
from fairbilevel.certificates._certificate import Certificate, Context
from fairbilevel.certificates._claim import Claim
from fairbilevel.certificates._counts import count_groups, one_row_per_unit
from fairbilevel.certificates._independence import copies
from fairbilevel.certificates._ledger import digest, fingerprints, take_look

MIN_GROUP_ROWS = 50
# Rows below which equal columns mean little.
_FEW = 50


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
    labels = _column("y", y)
    columns = {
        "dense_pred": _column("dense_pred", dense_pred),
        "pruned_pred": _column("pruned_pred", pruned_pred),
        "group": _column("group", group),
    }
    for name, extra in (("unit", unit), ("ids", ids), ("quantity", quantity)):
        if extra is not None:
            columns[name] = _column(name, extra)
    for name, values in columns.items():
        if len(values) != len(labels):
            raise ValueError(f"{name} has {len(values)} rows where y has {len(labels)}")
    if not len(labels):
        raise ValueError("there are no rows to certify from")
    if "ids" in columns and len(set(_plain(columns["ids"]))) < len(labels):
        raise ValueError("ids occur more than once: every row needs its own")
    dense, pruned = columns["dense_pred"], columns["pruned_pred"]
    text = [c.dtype.kind == "U" for c in (labels, dense, pruned)]
    if any(text) and not all(text):
        raise ValueError("y, dense_pred and pruned_pred must all be numbers or all be text")
    _check_classes({"y": labels, "dense_pred": dense, "pruned_pred": pruned}, classes)
    index, names = _groups(columns["group"], groups)
    doubts = _check_models(labels, dense, pruned, index, gap, as_given)
    if gap not in gaps.OF_ANSWERS:
        positive = None
    elif positive is None:
        positive = _default_positive(labels, pruned)
    elif not (labels == _like(labels, positive)).any():
        raise ValueError(f"no row has the positive class {positive!r}")
    if gap in gaps.OF_QUANTITIES:
        _check_quantity(gap, columns.get("quantity"), upper)
    keys, known = _row_keys(row_keys, columns.get("ids"), labels, index)
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
        outcome = _numbered(*rows)
        kept, doubt = _once(keys, outcome) if row_keys is not None else None, None
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
        value = _like(labels, positive)
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
            dense_model=origin.dense_model or _hash(columns["dense_pred"]),
            pruned_model=origin.pruned_model or _hash(columns["pruned_pred"]),
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


def _column(name: str, values: Any) -> np.ndarray:
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


def _check_classes(columns: Mapping[str, np.ndarray], classes: Sequence[Any] | None) -> None:
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
    declared = np.asarray([_like(labels, c) for c in classes]) if classes is not None else labels
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


def _like(labels: np.ndarray, value: Any) -> Any:
    if labels.dtype.kind == "U":
        return str(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"the classes are numbers, the positive class is {value!r}") from None


def _groups(group: np.ndarray, names: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    if names is None:
        values, index = np.unique(group, return_inverse=True)
        return index, tuple(str(v) for v in values)
    if group.dtype.kind not in "iu" or group.min() < 0 or group.max() >= len(names):
        raise ValueError(f"with {len(names)} names of groups, group must hold their indices")
    return group.astype(np.int64), tuple(map(str, names))


def _default_positive(labels: np.ndarray, pruned: np.ndarray) -> Any:
    values = np.union1d(labels, pruned)
    if labels.dtype.kind != "U" and np.isin(values, (0, 1)).all():
        return 1
    raise ValueError(
        "name the positive class: gaps of answers compare its rate, and the classes are "
        f"{', '.join(map(str, values[:10].tolist()))}"
    )


def _check_quantity(gap: str, quantity: np.ndarray | None, upper: float | None) -> None:
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


def _check_models(
    labels: np.ndarray,
    dense: np.ndarray,
    pruned: np.ndarray,
    group: np.ndarray,
    gap: str,
    as_given: bool,
) -> list[str]:
    """That the columns can be what they are called; what remains in doubt.

    Raises:
        ValueError: they look mistaken for one another, or the dense model knows nothing.
    """
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
                f"the dense model gets {100 * right.mean():.1f} % of the rows right and the pruned "
                f"one {100 * after.mean():.1f} %, where the same answers at random would get "
                f"{100 * chance:.1f} %: are classes written as in y?"
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
                f"({100 * right.mean():.1f} and {100 * after.mean():.1f} % in all), as if the two "
                "were exchanged: if that is so, say as_given=True (--as-given)"
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


def _plain(ids: np.ndarray) -> list[str]:
    """Ids as text, numbers in one form: 7, 7.0, 007 and " 7" are one."""
    found = []
    for value in map(str, ids.tolist()):
        text = value.strip()
        whole = re.fullmatch(r"[+]?0*(\d+)(?:\.0*)?", text)
        found.append(whole[1] if whole else text)
    return found


def _numbered(*columns: np.ndarray) -> np.ndarray:
    """A number a row, equal for equal rows."""
    found = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, code = np.unique(column, return_inverse=True)
        found = np.unique(found * len(values) + code, return_inverse=True)[1]
    return found


def _once(keys: np.ndarray, outcome: np.ndarray) -> np.ndarray | None:
    """One row of each key; ``None`` where keys are unique.

    Raises:
        ValueError: rows with the same key and another outcome.
    """
    distinct, first, place = np.unique(keys, return_index=True, return_inverse=True)
    if len(distinct) == len(keys):
        return None
    other = int((outcome != outcome[first][place]).sum())
    if other:
        raise ValueError(f"row_keys repeat, and {other} rows with the same key have other outcomes")
    return np.sort(first)


def _row_keys(
    row_keys: Any, ids: np.ndarray | None, labels: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Fingerprints of the rows, and whether they are of single rows."""
    if row_keys is not None:
        keys = np.asarray(row_keys, np.uint64)
        if keys.shape != labels.shape:
            raise ValueError(f"row_keys has {keys.size} values for {len(labels)} rows")
        return keys, True
    if ids is not None:
        return fingerprints([f"id {i}" for i in _plain(ids)]), True
    # Without ids rows are known as a whole, in any order and under any names.
    counts = np.unique(_numbered(labels, group), return_counts=True)[1]
    return fingerprints([digest([len(labels), sorted(counts.tolist())])]), False


def _hash(predictions: np.ndarray) -> str:
    return "predictions:" + digest(predictions.tolist())
