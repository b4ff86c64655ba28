"""A run's or a solution's network where it is served: as a file that others serve and what that
answers; its sizes, counts and times beside the dense network's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fairbilevel import deploy, fairness, report
from fairbilevel.data import Dataset
from fairbilevel.deploy import Artifact, Profile
from fairbilevel.problem import predict
from fairbilevel.records import (
    EXPORT,
    MODEL,
    PROFILE,
    SCHEMA_VERSION,
    RecordError,
    is_run_folder,
    write_json,
)
from fairbilevel.run._evaluate import file_hash, read_as, reading, rows_by_role, write_predictions
from fairbilevel.run._folder import Run, load_run
from fairbilevel.run._result import command, machine, versions
from fairbilevel.train import Solution


def export(
    source: Solution | Run,
    path: str | Path,
    format: str | None = None,
    *,
    precision: str = "float32",
    encoded: bool = False,
    inputs: Any = None,
    allow_changed: float | None = None,
) -> Artifact:
    """Write a pruned network as one file for others to serve; then read it back and compare.

    The encoder goes along: the file takes raw rows (images uint8; of a table one number a column,
    as ``about["input"]`` says). Channels that were removed are cut out. The batch size is free.

    In lower precision answers differ, and ``about["by_group"]`` says what that did to every group:
    on rows with label and group the performance of the ``dense`` model, the ``pruned`` network and
    the ``file``, ``gaps`` of the pruned network and ``file_gaps`` to the dense model, as in
    ``result.json``, ``step_gaps`` of the file to the pruned network, and how many rows of each
    group get another class (``changed``).

    Args:
        source: what ``fb.solve`` or ``fb.load_run`` returned.
        path: the file; it is replaced.
        format: ``"stablehlo"`` (JAX alone reads it, on CPU, CUDA and TPU), ``"onnx"``,
            ``"safetensors"`` (weights under torch's names, timm's where it has the family) or
            ``"npz"`` (weights); by default what the file's ending says.
        precision: ``"float32"``; ``"bfloat16"`` for all but ONNX (parameters and products; logits
            and normalization statistics stay float32); ``"int8"`` for ONNX (ONNX Runtime's static
            quantization, calibrated on up to 1,024 select rows, evenly spaced in their order).
        encoded: rows go in as the model takes them, standardized, and the encoder stays out.
        inputs: rows as read to compare on, or a ``Dataset``, whose labels and groups are judged
            too; by default the test rows (of a run as its data is now).
        allow_changed: in lower precision the largest share of rows that may get another class; by
            default 0.1.

    Returns:
        The file, read back: ``.logits(inputs)``, ``.predict(inputs)``, ``.about``, ``.digest``.

    Raises:
        ValueError: neither solution nor run, an unknown format or precision, a format that is not
            written in it or whose package is not installed, too few select rows, or a file that
            answers otherwise than the network: in float32 logits that differ by more than 1e-4 or
            another class, below it another class on more rows than may; then no file is written.
    """
    _check_source(source)
    file = Path(path)
    deploy.check_precision(deploy.format_of(file, format), precision)
    lower = precision != "float32"
    if allow_changed is not None and not (lower and 0 <= allow_changed <= 1):
        what = "a share between 0 and 1" if lower else "of lower precision: in float32 none may be"
        raise ValueError(f"allow_changed is {what}, got {allow_changed}")
    if not file.parent.is_dir():
        raise ValueError(f"there is no folder {file.parent}")
    needed = ("test",) * (inputs is None) + ("select",) * (precision == "int8")
    rows = _rows(source, needed)
    compared = rows["test"] if inputs is None else inputs
    judged = isinstance(compared, Dataset)
    return deploy.write_artifact(
        source,
        file,
        format,
        inputs=compared.inputs if judged else compared,
        encoded=encoded,
        precision=precision,
        calibration=rows["select"].inputs if "select" in rows else None,
        allow_changed=deploy.ALLOWED_CHANGED if allow_changed is None else allow_changed,
        judge=_judge(source, compared, inputs is None) if judged and lower else None,
        more=_provenance(source),
    )


def _check_source(source: Any) -> None:
    if not isinstance(source, Solution | Run):
        raise ValueError(
            f"a {type(source).__name__} is no pruned network: give what fb.solve or fb.load_run "
            "returned"
        )


def _rows(source: Solution | Run, roles: tuple[str, ...]) -> dict[str, Dataset]:
    if isinstance(source, Solution):
        problem = source.problem
        return {role: problem.data.take(problem.roles[role]) for role in roles}
    if not roles:
        return {}
    # No other rows calibrate: a certificate could not tell that it is made of them.
    instead = "export the solution from Python (fb.export), which has its rows"
    if roles == ("test",):
        instead = "give rows to compare on (--data, inputs=)"
    return rows_by_role(source, roles, instead)


def _judge(source: Solution | Run, rows: Dataset, own: bool) -> deploy.Judge:
    """What a file's answers on some rows did to every group."""
    given = deploy.ModelFiles.of(source)
    groups, use = given.groups, np.asarray(given.description["counted"], bool)
    if (tuple(rows.groups), tuple(rows.classes)) != (groups, given.classes):
        raise ValueError(f"{rows.name} has other groups or classes than the network was made with")

    def judge(found: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
        scored = np.flatnonzero((rows.y >= 0) & (rows.group >= 0))
        some = rows.take(scored)
        answers = {
            "dense": predict(
                given.model, given.encoder, given.dense, given.encoder.transform(some.inputs)
            ),
            "pruned": expected[scored],
            "file": found[scored],
        }
        right, told = {}, {}
        for name, logits in answers.items():
            right[name], loss = fairness.judge(logits, some.y)
            told[name] = fairness.performance(right[name], loss, some.group, groups)
        pairs = {
            "gaps": ("dense", "pruned"),
            "file_gaps": ("dense", "file"),
            "step_gaps": ("pruned", "file"),
        }
        changed = answers["file"].argmax(-1) != answers["pruned"].argmax(-1)
        by_group = np.bincount(some.group[changed], minlength=len(groups))
        return {
            "rows_of": "test" if own else rows.name,
            "rows": len(some),
            "groups": list(groups),
            "counted_groups": [g for g, c in zip(groups, use, strict=True) if c],
            **told,
            **{
                name: fairness.gaps(right[a], right[b], some.group, groups, use)
                for name, (a, b) in pairs.items()
            },
            "changed": {name: int(n) for name, n in zip(groups, by_group, strict=True)},
        }

    return judge


def record_export(run: Run, made: Artifact) -> Path:
    """Leave what a file in lower precision did to every group in the run folder, for its report.

    One record a format and precision; a later file replaces it.

    Args:
        run: the run that the file was exported from.
        made: the file.

    Raises:
        OSError: the folder cannot be written.
    """
    about = made.about
    kept = ("precision", "format", "checked", "calibration", "by_group", "versions")
    path = run.path / EXPORT.replace("*", f"{made.format}-{made.precision}")
    write_json(
        path,
        {
            "schema_version": SCHEMA_VERSION,
            "file": made.path.name,
            "bytes": made.path.stat().st_size,
            "digest": made.digest,
            **{name: about[name] for name in kept if name in about},
        },
    )
    report.write_report(run.path)
    return path


def _provenance(source: Solution | Run) -> dict[str, Any]:
    if isinstance(source, Run):
        result = source.result
        run = {
            "method": result.method,
            "seed": source.config.get("seed"),
            "data": result.data.fingerprint,
            "pruned_model": _digest(source),
            "dense_model": file_hash(source.path / MODEL / "dense.npz"),
            "versions": result.versions,
        }
        return {"run": run, "reading": reading(source), "versions": versions()}
    data = source.problem.data
    run = {"method": source.method, "data": data.fingerprint}
    return {"run": run, "versions": versions()}


def open_model(path: str | Path) -> Run | Artifact:
    """A run folder or a file written by ``export``.

    Raises:
        ValueError: neither, damaged, or what reads it is not installed.
    """
    given = Path(path)
    if given.is_dir() or is_run_folder(given):
        return load_run(given)
    return deploy.read_artifact(given)


def predict_source(
    model: Run | Artifact, source: str, *, split: str | None = None
) -> tuple[Dataset, Float[np.ndarray, "rows classes"]]:
    """What a run or a file answers on a data source.

    Args:
        model: from ``open_model``.
        source: as ``--data`` of solve; attributes and columns are those of the run.
        split: of a TensorFlow data set.

    Returns:
        The rows, whose labels and groups are -1 where they are missing, and logits.

    Raises:
        ValueError: data of another form.
    """
    how = reading(model) if isinstance(model, Run) else model.about.get("reading") or {}
    data = read_as({"classes": list(model.classes), **how}, source, split=split)
    return data, model.logits(data.inputs)


def write_answers(
    path: Path,
    model: Run | Artifact,
    data: Dataset,
    logits: Float[np.ndarray, "rows classes"],
    dense: Run | None = None,
) -> None:
    """Predictions as ``evaluate --predictions`` writes them, the pruned ones by what ships.

    Args:
        path: the CSV.
        model: what answered; its digest stands in the column ``model``.
        data: rows.
        logits: its answers.
        dense: the run whose dense model answers too, for ``certify --predictions``.
    """
    answers = {} if dense is None else {"dense": dense.logits(data.inputs, dense=True)}
    digest = model.digest if isinstance(model, Artifact) else _digest(model)
    write_predictions(
        path, data, {**answers, "pruned": logits}, model.classes, data.groups, f"sha256:{digest}"
    )


def profile(
    source: Solution | Run, *, batch_sizes: Sequence[int] = (1, 32), seconds: float = 10.0
) -> Profile:
    """What a pruned network takes where it is served, beside the dense one it was made of.

    Sizes of files, parameters, multiply-adds and the activations of one row are counted: they are
    the same everywhere. Times are of this machine: medians of rounds that take every call once, by
    JAX on the present device and, where ``fairbilevel[onnx]`` is installed, by ONNX Runtime on the
    CPU. The encoder is left out; rows are drawn, since no time depends on their values.

    Args:
        source: what ``fb.solve`` or ``fb.load_run`` returned.
        batch_sizes: rows a call; different whole numbers.
        seconds: of timing, beside compiling; at least five rounds are taken.

    Returns:
        ``.dense`` and ``.pruned`` (bytes and counts), ``.speeds`` (milliseconds, rows a second),
        ``.notes``, ``.to_json()``. ``fairbilevel.run.write_profile`` puts a run's into its folder
        and its report.

    Raises:
        ValueError: neither solution nor run, batch sizes that are not positive, or no time.
    """
    _check_source(source)
    made: dict[str, Any] = {"versions": versions(), "machine": machine()}
    if isinstance(source, Run):
        made["pruned_model"] = _digest(source)
    return deploy.measure(source, batch_sizes, seconds, made)


def _digest(run: Run) -> str:
    """Of the pruned network, as the run's manifest has it."""
    return file_hash(run.path / MODEL / "sparse.npz")


def write_profile(run: Run, found: Profile) -> dict[str, Any]:
    """Write ``profile.json`` into a run's folder, whole or not at all, and its report again.

    Returns:
        What the file holds.

    Raises:
        ValueError: the profile is not of this run's network.
    """
    if found.made.get("pruned_model") != _digest(run):
        raise RecordError(f"this profile is not of the network in {run.path}: profile the run")
    content = {"schema_version": SCHEMA_VERSION, "command": command(), **found.to_json()}
    write_json(run.path / PROFILE, content)
    report.write_report(run.path)
    return content
