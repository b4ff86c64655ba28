"""A finished run on other data of the same form."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fairbilevel import fairness
from fairbilevel.data import Dataset, Options, load
from fairbilevel.problem import probabilities
from fairbilevel.records import write_text
from fairbilevel.run._folder import Run
from fairbilevel.run._rows import read_rows

# What the run did to names; models written before it was recorded had done nothing.
_FORMER = ("merged", "merged_classes", "dropped_classes")


def run_options(run: Run, **changes: Any) -> Options:
    """How to read other data for a run: as its own, with changes."""
    known = {f.name for f in dataclasses.fields(Options)}
    values = {k: v for k, v in run.config.items() if k in known}
    # What the run predicted and compared, though it may have left that to its source.
    values |= {name: run.description[name] for name in ("target", "group")}
    # Roles, units and row weights belong to the run's own rows; trials' subsets too.
    values |= {"role": None, "unit": None, "weight": None, "max_rows": None, **changes}
    return Options.from_json(values)


def read_like(run: Run, source: str, **changes: Any) -> Dataset:
    """Other data in the form of a run's own, with its classes and groups; labels may be missing."""
    former = {n: tuple(run.description.get(n, ())) for n in _FORMER}
    options = run_options(run, **changes)
    return load(source, options, classes=run.classes, groups=run.groups, labelled=False, **former)


def evaluate_run(
    run: Run, source: str, *, predictions: Path | None = None, split: str | None = None
) -> dict[str, Any]:
    """Evaluate the sparse and the dense network on a data source.

    Args:
        run: the run.
        source: as ``--data`` of solve.
        predictions: where to write one CSV row per data row, if wanted, as ``fairbilevel certify
            --predictions`` reads it: id, group, y, dense, pruned (names of groups and classes;
            empty where a row has no group or label), then every class's probability by both models
            (``dense_p_CLASS``, ``pruned_p_CLASS``).
        split: of a TensorFlow data set.

    Returns:
        ``rows``, ``unlabelled`` (predicted and counted, never scored), ``skipped``, ``dense`` and
        ``pruned`` performance, ``gaps``, ``unseen`` levels of categorical columns.

    Raises:
        ValueError: data of another form, labels or groups outside the run's.
    """
    data = read_like(run, source, split=split)
    dense, pruned = run.logits(data.inputs, dense=True), run.logits(data.inputs)
    scored = (data.y >= 0) & (data.group >= 0)
    y, group = data.y[scored], data.group[scored]
    counted = np.asarray(run.description["counted"], bool)
    notes = list(data.notes)
    if data.fingerprint == run.result["data"]["fingerprint"]:
        notes.append(
            "These are the rows that the run was made from, those it was fitted on among them: "
            "they say nothing of new data."
        )
    else:
        notes += _used(run, data)
    results: dict[str, Any] = {
        "data": data.name,
        "fingerprint": data.fingerprint,
        "rows": len(data),
        "scored": int(scored.sum()),
        "unlabelled": int((data.y < 0).sum()),
        "without_group": int(((data.group < 0) & (data.y >= 0)).sum()),
        "skipped": dict(data.skipped),
        "notes": notes,
        "unseen_levels": run.encoder.unseen(data.inputs),
    }
    right = {}
    for name, logits in (("dense", dense), ("pruned", pruned)):
        right[name], loss = fairness.judge(logits[scored], y)
        results[name] = fairness.performance(
            right[name],
            loss,
            group,
            run.groups,
            label=y,
            answer=logits[scored].argmax(-1),
            classes=run.classes,
        )
    results["gaps"] = fairness.gaps(right["dense"], right["pruned"], group, run.groups, counted)
    if predictions is not None:
        _write_predictions(predictions, run, data, {"dense": dense, "pruned": pruned})
    return results


def _used(run: Run, data: Dataset) -> list[str]:
    """What is to be said of rows that the run has used."""
    used = read_rows(run.path)
    same, near = used.met(data), used.near(data)
    count = max(int(same.sum()), used.equal(data).count)
    if same.any() or used.equal(data).unusual:
        return [
            f"{count} of {len(data)} rows are rows that the run was fitted or chosen on: of these, "
            "the numbers say nothing of new data."
        ]
    if near.unusual:
        return [
            f"{near.count} of {len(data)} rows are nearly rows that the run was fitted or chosen "
            f"on, where {round(near.usual)} would be usual: copies say nothing of new data."
        ]
    return []


def _write_predictions(
    path: Path, run: Run, data: Dataset, logits: dict[str, Float[np.ndarray, "rows classes"]]
) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = [f"{model}_p_{name}" for model in logits for name in run.classes]
    writer.writerow(["id", "group", "y", *logits, *columns])
    # The last name, which an index of -1 picks, is that of what is missing.
    groups, classes = (*run.groups, ""), (*run.classes, "")
    answers = [values.argmax(-1) for values in logits.values()]
    chances = np.concatenate([probabilities(values) for values in logits.values()], axis=-1)
    for i in range(len(data)):
        named = [data.ids[i], groups[data.group[i]], classes[data.y[i]]]
        named += [classes[answer[i]] for answer in answers]
        writer.writerow([*named, *(f"{p:.6g}" for p in chances[i])])
    write_text(path, stream.getvalue())
