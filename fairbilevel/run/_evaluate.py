"""A finished run's own rows, drawn again as it drew them, and other data of the same form."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fairbilevel import data as fb_data
from fairbilevel import fairness
from fairbilevel.data import Dataset, Options, load
from fairbilevel.fairness import Evaluation, Outcomes
from fairbilevel.problem import probabilities
from fairbilevel.records import write_text
from fairbilevel.run._config import Config
from fairbilevel.run._folder import Run
from fairbilevel.run._prepare import read_data
from fairbilevel.run._rows import read_rows


def role_rows(run: Run, role: str, instead: str) -> Dataset:
    """Rows of a role. Where the run does not say where its data is, or that has changed since,
    ``instead``, what a user can do without them, ends the sentence of the ``ValueError``."""
    return rows_by_role(run, (role,), instead)[role]


def rows_by_role(run: Run, roles: Sequence[str], instead: str) -> dict[str, Dataset]:
    """Rows of several roles, the data read once; otherwise as ``role_rows``."""
    named = " and ".join(roles)
    if "data" not in run.config:
        raise ValueError(
            f"the run in {run.path} was saved from Python and does not say where its data is: "
            f"{instead}"
        )
    config = Config.from_mapping(run.config)
    data, counted = read_data(config)
    if data.fingerprint != run.result.data.fingerprint:
        raise ValueError(
            f"the data at {config.data} has changed since the run, so its {named} rows cannot be "
            f"told: restore it, or {instead}"
        )
    fractions = config.fractions() or fb_data.FRACTIONS
    rows = fb_data.split_roles(data, fractions, config.seed, counted)
    return {role: data.take(rows[role]) for role in roles}


# What the run did to names; models written before it was recorded had done nothing.
_FORMER = ("merged", "merged_classes", "dropped_classes")
_OWN = (
    "These are the rows that the run was made from, those it was fitted on among them: they say "
    "nothing of new data."
)


def reading(run: Run) -> dict[str, Any]:
    """How other data is read for a run: as its own. JSON values, which files that ship carry."""
    known = {f.name for f in dataclasses.fields(Options)}
    values = {k: v for k, v in run.config.items() if k in known}
    # What the run predicted and compared, though it may have left that to its source.
    values |= {name: run.description[name] for name in ("target", "group")}
    # Roles, units and row weights belong to the run's own rows; trials' subsets and splits too.
    # Where data lies, and is held, is a matter of the machine.
    for name in ("role", "unit", "weight", "max_rows", "data_dir", "split", "download"):
        values.pop(name, None)
    former = {name: list(run.description.get(name, ())) for name in _FORMER}
    return {
        "options": Options.from_json(values).to_json(),
        "classes": list(run.classes),
        "groups": list(run.groups),
        **former,
    }


def read_as(how: Mapping[str, Any], source: str, **changes: Any) -> Dataset:
    """Other data in a form that ``reading`` told, with changes; labels may be missing."""
    groups = tuple(how["groups"]) if "groups" in how else None
    former = {name: tuple(how.get(name, ())) for name in _FORMER}
    # Files that shipped earlier say what their own rows were held in.
    asked = {**how.get("options", {}), "in_memory": "auto", **changes}
    options = Options.from_json(asked)
    return load(
        source, options, classes=tuple(how["classes"]), groups=groups, labelled=False, **former
    )


def read_like(run: Run, source: str, **changes: Any) -> Dataset:
    """Other data in the form of a run's own, with its classes and groups; labels may be missing."""
    return read_as(reading(run), source, **{"data_dir": run.config.get("data_dir"), **changes})


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class DataEvaluation:
    """A run's networks on a data source.

    Attributes:
        data: name of the data.
        fingerprint: SHA-256 of its rows.
        rows: that were read.
        scored: with a label and a group.
        unlabelled: predicted and counted, never scored.
        without_group: labelled, but not scored.
        skipped: rows left out, by reason.
        notes: sentences a reader should know.
        unseen_levels: rows with a value never seen in fit, by column.
        dense: the dense reference on the rows that are scored.
        pruned: the sparse network on them.
    """

    data: str
    fingerprint: str
    rows: int
    scored: int
    unlabelled: int
    without_group: int
    skipped: dict[str, int]
    notes: list[str]
    unseen_levels: dict[str, int]
    dense: Evaluation
    pruned: Evaluation

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)


def evaluate_run(
    run: Run, source: str, *, predictions: Path | None = None, split: str | None = None
) -> DataEvaluation:
    """Evaluate the sparse and the dense network on a data source.

    Args:
        run: the run.
        source: as ``--data`` of solve.
        predictions: where to write one CSV row per data row, if wanted, as ``fairbilevel certify
            --predictions`` reads it: id, group, y, dense, pruned (names of groups and classes;
            empty where a row has no group or label), then every class's probability by both models
            (``dense_p_CLASS``, ``pruned_p_CLASS``).
        split: of a TensorFlow data set.

    Raises:
        ValueError: data of another form, labels or groups outside the run's.
    """
    data = read_like(run, source, split=split)
    answers = {"dense": run.logits(data.inputs, dense=True), "pruned": run.logits(data.inputs)}
    scored = (data.y >= 0) & (data.group >= 0)
    y, group = data.y[scored], data.group[scored]
    judged = {name: fairness.judge(logits[scored], y) for name, logits in answers.items()}
    found = {
        name: fairness.evaluate(
            Outcomes(
                judged[name][0],
                judged["dense"][0],
                judged[name][1],
                judged["dense"][1],
                y,
                answers[name][scored].argmax(-1),
            ),
            group,
            run.groups,
            np.asarray(run.description["counted"], bool),
            classes=run.classes,
            role=data.name,
        )
        for name in answers
    }
    if predictions is not None:
        write_predictions(predictions, data, answers, run.classes, run.groups)
    own = data.fingerprint == run.result.data.fingerprint
    return DataEvaluation(
        data=data.name,
        fingerprint=data.fingerprint,
        rows=len(data),
        scored=int(scored.sum()),
        unlabelled=int((data.y < 0).sum()),
        without_group=int(((data.group < 0) & (data.y >= 0)).sum()),
        skipped=dict(data.skipped),
        notes=[*data.notes, *([_OWN] if own else _used(run, data))],
        unseen_levels=run.encoder.unseen(data.inputs),
        **found,
    )


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


def write_predictions(
    path: Path,
    data: Dataset,
    logits: Mapping[str, Float[np.ndarray, "rows classes"]],
    classes: Sequence[str],
    groups: Sequence[str],
    model: str | None = None,
) -> None:
    """A CSV row per data row: id, group, y, the class by each model (``dense``, ``pruned`` or one
    of them), in a column of its own what the pruned answers come from, then all probabilities."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = [f"{name}_p_{label}" for name in logits for label in classes]
    head, tail = (["model"], [model]) if model is not None else ([], [])
    writer.writerow(["id", "group", "y", *logits, *head, *columns])
    # The last name, which an index of -1 picks, is that of what is missing.
    groups, classes = (*groups, ""), (*classes, "")
    answers = [values.argmax(-1) for values in logits.values()]
    chances = np.concatenate([probabilities(values) for values in logits.values()], axis=-1)
    for i in range(len(data)):
        named = [data.ids[i], groups[data.group[i]], classes[data.y[i]]]
        named += [classes[answer[i]] for answer in answers]
        writer.writerow([*named, *tail, *(f"{p:.6g}" for p in chances[i])])
    write_text(path, stream.getvalue())
