"""A certificate for a finished run, from its own certify rows or from new data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from fairbilevel import certificates, fairness
from fairbilevel import data as fb_data
from fairbilevel.certificates import LEDGER, RECORD, Certificate, Looks, Origin
from fairbilevel.data import Dataset
from fairbilevel.deploy import Artifact
from fairbilevel.records import MODEL, ROWS
from fairbilevel.run._evaluate import file_hash, read_like, role_rows
from fairbilevel.run._folder import Run
from fairbilevel.run._rows import read_rows
from fairbilevel.train import Solution


def certify(
    rows: Any, dense_pred: Any = None, pruned_pred: Any = None, group: Any = None, **asked: Any
) -> Certificate:
    """What held-out rows prove about gaps between groups, with stated confidence.

    ``fb.certify(solution, tolerance=0.03)`` takes the rows of role certify, which nothing has
    touched; ``fb.certify(run, tolerance=0.03)`` those of a finished run, or new data (``data=``);
    ``fb.certify(y, dense_pred, pruned_pred, group, tolerance=0.03)`` predictions from anywhere.

    Args:
        rows: a solution, a run, or ``[rows]`` true classes.
        dense_pred: ``[rows]`` classes that the dense model predicts, beside classes.
        pruned_pred: likewise, of the pruned model.
        group: ``[rows]`` groups, likewise.
        asked: of predictions ``fairbilevel.certificates.certify`` says what; of a solution
            ``gap``, ``tolerance``, ``confidence``, ``bound``, ``positive``, ``looks``,
            ``artifact`` (the file that ships in place of its network), ``dense_trained_on`` (of a
            dense model that was given) and, for ``equalized-loss``, ``upper``, at which losses are
            clipped; of a run what ``fairbilevel.run.certify_run`` says.

    Returns:
        The certificate: ``.verdict``, ``.smallest_tolerance``, ``.sentence``, ``.save(path)``.

    Raises:
        ValueError: rows, columns or a claim that cannot be certified; one sentence says why.
    """
    if not isinstance(rows, Solution | Run):
        return certificates.certify(rows, dense_pred, pruned_pred, group, **asked)
    if not all(column is None for column in (dense_pred, pruned_pred, group)):
        raise ValueError(f"a {type(rows).__name__} brings its own predictions and groups")
    if isinstance(rows, Run):
        return certify_run(rows, **asked)
    return _certify_solution(rows, **asked)


def _certify_solution(
    solution: Solution,
    *,
    artifact: Artifact | None = None,
    dense_trained_on: str | None = None,
    **asked: Any,
) -> Certificate:
    problem, reference = solution.problem, solution.reference
    rows = problem.data.take(problem.roles["certify"])
    if not len(rows):
        raise ValueError("the problem set no certify rows aside: give their shares, or predictions")
    if reference.gradient_evaluations:
        dense_trained_on = f"the {len(problem.roles['fit'])} fit rows of this problem"
    notes: list[str] = []
    unit, unit_name, twins = _units(rows, notes, problem.data.content)
    encoded = problem.rows(problem.roles["certify"])
    pruned = problem.logits(solution.network, encoded)
    if artifact is not None:
        _check_classes(artifact, problem.data.classes)
        pruned = artifact.logits(rows.inputs)
    origin = Origin(
        data=f"{rows.name} (certify rows)",
        pruned_model=None if artifact is None else artifact.digest,
        dense_trained_on=dense_trained_on,
        duplicates=twins,
        notes=notes,
    )
    about = rows, problem.data.classes, problem.groups, problem.counted
    dense = problem.logits(reference.network, encoded)
    return _certified(*about, dense, pruned, unit, unit_name, origin=origin, **asked)


def certify_run(
    run: Run,
    *,
    artifact: Artifact | None = None,
    data: str | None = None,
    split: str | None = None,
    dense_trained_on: str | None = None,
    looks: Looks = Looks(),
    again: bool = False,
    **asked: Any,
) -> Certificate:
    """Certify a run's gaps between groups.

    Args:
        run: the run.
        artifact: the file that ships in place of the run's own network: it answers, and the
            certificate names its digest.
        data: new data, as ``--data`` of solve; by default the run's own certify rows.
        split: of a TensorFlow data set.
        dense_trained_on: what a given dense model was trained on.
        looks: how often the rows are looked at; a ledger beside the run's own, ``ledger.json`` in
            its folder, which counts in any case.
        again: compute the certificate of the look ``looks.number`` once more: no ledger is asked.
        asked: ``gap``, ``tolerance``, ``confidence``, ``bound``, ``positive`` as for
            ``fb.certify``; ``upper``: for ``equalized-loss``, where losses are clipped.

    Raises:
        ValueError: data that changed since the run, rows used for fitting or choosing, no rows.
    """
    notes: list[str] = []
    left_out: dict[str, int] = {}
    alike = 0
    if data is None:
        rows = _own_rows(run)
    else:
        rows, alike, left_out, notes = _new_rows(run, data, split)
    trained_on = _trained_on(run, rows, alike) or dense_trained_on
    if artifact is not None:
        _check_classes(artifact, run.classes)
    unit, unit_name, twins = _units(rows, notes, read_rows(run.path).prints.content)
    if not again:
        own, record = run.path / LEDGER, looks.record or run.path.parent / RECORD
        looks = dataclasses.replace(
            looks, ledger=looks.ledger or own, also=[*looks.also, own], record=record
        )
    sparse = run.path / MODEL / "sparse.npz"
    origin = Origin(
        data=rows.name if data is not None else f"{rows.name} (certify rows)",
        dense_model=file_hash(run.path / MODEL / "dense.npz"),
        pruned_model=file_hash(sparse) if artifact is None else artifact.digest,
        dense_trained_on=trained_on,
        duplicates=twins,
        alike=alike,
        left_out=left_out,
        notes=notes,
    )
    return _certified(
        rows,
        run.classes,
        run.groups,
        run.description["counted"],
        run.logits(rows.inputs, dense=True),
        (run if artifact is None else artifact).logits(rows.inputs),
        unit,
        unit_name,
        looks=looks,
        origin=origin,
        **asked,
    )


def _check_classes(artifact: Artifact, classes: Sequence[str]) -> None:
    if tuple(artifact.classes) != tuple(classes):
        raise ValueError(
            f"{artifact.path} answers {', '.join(artifact.classes)} and the run "
            f"{', '.join(classes)}: it was exported from another one"
        )


def _certified(
    rows: Dataset,
    classes: Sequence[str],
    groups: Sequence[str],
    counted: Sequence[bool] | np.ndarray,
    dense: Float[np.ndarray, "rows classes"],
    pruned: Float[np.ndarray, "rows classes"],
    unit: np.ndarray | None,
    unit_name: str,
    *,
    upper: float | None = None,
    positive: Any = None,
    **asked: Any,
) -> Certificate:
    """The certificate of two networks' logits on labelled rows."""
    more: dict[str, Any] = {}
    if upper is not None:
        loss = np.minimum(fairness.judge(pruned, rows.y)[1].astype(np.float64), upper)
        more = {"quantity": loss, "upper": upper, "quantity_name": f"loss clipped at {upper:g}"}
    named = np.asarray(classes)
    return certificates.certify(
        named[rows.y],
        named[dense.argmax(-1)],
        named[pruned.argmax(-1)],
        rows.group,
        classes=classes,
        positive=classes[1] if positive is None and len(classes) == 2 else positive,
        groups=groups,
        claimed=[bool(c) for c in counted],
        unit=unit,
        unit_name=unit_name,
        row_keys=fb_data.row_fingerprints(rows).row,
        as_given=True,
        **more,
        **asked,
    )


def _own_rows(run: Run) -> Dataset:
    """The rows of role certify, drawn again as the run drew them."""
    rows = role_rows(
        run, "certify", "give new rows with --data, or use fb.certify on the predictions"
    )
    if not len(rows):
        raise ValueError(f"the run in {run.path} set no certify rows aside: give new rows (--data)")
    if not read_rows(run.path).same(rows, "certify"):
        raise ValueError(
            f"the certify rows, drawn again, are not those of the run in {run.path}: was its "
            "folder put together from several runs?"
        )
    return rows


def _new_rows(
    run: Run, source: str, split: str | None
) -> tuple[Dataset, int, dict[str, int], list[str]]:
    """Rows of new data with label and group, none of which the run has surely used; the number of
    those that look as if it had; rows left out; notes."""
    read = read_like(run, source, split=split, unit=run.config.get("unit"))
    used = read_rows(run.path)
    met, equal, near = used.met(read), used.equal(read), used.near(read)
    if met.any():
        first = read.ids[int(met.argmax())]
        raise ValueError(
            f"{int(met.sum())} of {len(read)} rows of {source} (the first is {first}) were used by "
            "this run for fitting or choosing: leave them out; without --data the run's own "
            "certify rows are taken"
        )
    for kind, found in (("", equal), ("nearly ", near)):
        if found.copied or (not kind and found.unusual):
            raise ValueError(
                f"{found.count} of {len(read)} rows of {source} are {kind}rows that were used by "
                f"this run for fitting or choosing, where {round(found.usual)} would be usual: "
                "leave them out; without --data the run's own certify rows are taken"
            )
    notes = []
    shown = int(used.met(read, ("test",)).sum())
    if shown:
        notes.append(
            f"{shown} rows are test rows of the run, which its report shows: valid only if nothing "
            "was chosen by them."
        )
    alike = near.count if near.unusual else equal.count
    labelled = (read.y >= 0) & (read.group >= 0)
    if not labelled.any():
        raise ValueError(f"{source} has no row with a label and a group")
    left_out = dict(read.skipped)
    if not labelled.all():
        left_out["no label or no group"] = int((~labelled).sum())
    return read.take(np.flatnonzero(labelled)), alike, left_out, notes


def _units(
    rows: Dataset, notes: list[str], own: Shaped[np.ndarray, " used"]
) -> tuple[np.ndarray | None, str, int]:
    """What is independent: persons where they are known, distinct images, else rows; distinct
    rows where more of them have the same inputs than in the run's own data (``own``: its contents).

    The unit of each row (``None`` where every row is its own), what units are called, and how many
    rows have inputs that equal another's.
    """
    content, size = np.unique(rows.content, return_counts=True)
    repeated = content[size > 1]
    twin = np.isin(rows.content, repeated)
    if twin.any():
        labels = [np.unique(rows.y[rows.content == c]).size for c in repeated]
        conflicting = sum(n > 1 for n in labels)
        notes.append(
            f"{int(twin.sum())} rows have the same inputs as another row here, in "
            f"{len(repeated)} clusters, {conflicting} of them with conflicting labels."
        )
    atom = fb_data.atoms(rows)
    if rows.unit is None and not rows.is_image and _copied(rows.content, own):
        notes.append("More rows have the same inputs than is usual: copies, of which one counts.")
        return rows.content, "distinct rows", int(twin.sum())
    if rows.unit is None and np.unique(atom).size == len(rows):
        return None, "rows", int(twin.sum())
    return atom, "distinct images" if rows.unit is None else "persons", int(twin.sum())


def _copied(new: np.ndarray, own: np.ndarray) -> bool:
    """Whether more rows are copies than among as many of the run's own, by four standard
    deviations and then two."""
    size = min(len(new), len(own))
    rng = np.random.default_rng(0)
    found, usual = (size - np.unique(rng.permutation(v)[:size]).size for v in (new, own))
    return bool(found > usual + 4 * (usual * (1 - usual / max(size, 1))) ** 0.5 + 2)


def _trained_on(run: Run, rows: Dataset, alike: int) -> str | None:
    """What the dense model was trained on, as far as files tell."""
    apart = "" if alike else ", none of which is here"
    if run.result.cost.dense_gradient_evaluations:
        count = run.result.data.roles["fit"]
        return f"the {count} fit rows of this run{apart}"
    given = run.config.get("dense")
    source = None if given is None else Path(given)
    if source is None or not (source / ROWS).exists():
        return None
    used = read_rows(source)
    count = int(used.met(rows).sum())
    if used.equal(rows).unusual:
        count = max(count, used.equal(rows).count)
    if count:
        raise ValueError(
            f"{count} of these rows were used for fitting or choosing by the run {given} "
            "that the dense model comes from: nothing can be certified from them"
        )
    return f"the fit rows of the run {given}{apart}"
