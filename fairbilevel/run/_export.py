"""A run's or a solution's network as a file that others serve, and what such a file answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fairbilevel import deploy
from fairbilevel.data import Dataset
from fairbilevel.deploy import Artifact
from fairbilevel.records import MODEL, is_run_folder
from fairbilevel.run._evaluate import file_hash, read_as, reading, write_predictions
from fairbilevel.run._folder import Run, load_run
from fairbilevel.run._result import versions
from fairbilevel.run._roles import role_rows
from fairbilevel.train import Solution


def export(
    source: Solution | Run,
    path: str | Path,
    format: str | None = None,
    *,
    encoded: bool = False,
    inputs: Any = None,
) -> Artifact:
    """Write a pruned network as one file for others to serve; then read it back and compare.

    The encoder goes along: the file takes raw rows (images uint8; of a table one number a column,
    as ``about["input"]`` says). Channels that were removed are cut out. The batch size is free.

    Args:
        source: what ``fb.solve`` or ``fb.load_run`` returned.
        path: the file; it is replaced.
        format: ``"stablehlo"`` (JAX alone reads it, on CPU, CUDA and TPU), ``"onnx"``,
            ``"safetensors"`` (weights under torch's names, timm's where it has the family) or
            ``"npz"`` (weights); by default what the file's ending says.
        encoded: rows go in as the model takes them, standardized, and the encoder stays out.
        inputs: rows as read to compare on; by default the test rows (of a run as its data is now).

    Returns:
        The file, read back: ``.logits(inputs)``, ``.predict(inputs)``, ``.about``, ``.digest``.

    Raises:
        ValueError: neither solution nor run, an unknown format, one whose package is not installed,
            or a file that answers otherwise than the network: logits that differ by more than 1e-4
            or another class; then no file is written.
    """
    if not isinstance(source, (Solution, Run)):
        raise ValueError(
            f"a {type(source).__name__} is no pruned network: give what fb.solve or fb.load_run "
            "returned"
        )
    file = Path(path)
    deploy.format_of(file, format)
    if not file.parent.is_dir():
        raise ValueError(f"there is no folder {file.parent}")
    if inputs is None:
        if isinstance(source, Run):
            rows = role_rows(source, "test", "give rows to compare on (--data, inputs=)")
        else:
            rows = source.problem.data.take(source.problem.roles["test"])
        inputs = rows.inputs
    return deploy.write_artifact(
        source, file, format, inputs=inputs, encoded=encoded, more=_provenance(source)
    )


def _provenance(source: Solution | Run) -> dict[str, Any]:
    if isinstance(source, Run):
        result, model = source.result, source.path / MODEL
        run = {
            "method": result["method"],
            "seed": source.config.get("seed"),
            "data": result["data"]["fingerprint"],
            "pruned_model": file_hash(model / "sparse.npz"),
            "dense_model": file_hash(model / "dense.npz"),
            "versions": result.get("versions"),
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
    digest = (
        model.digest
        if isinstance(model, Artifact)
        else file_hash(model.path / MODEL / "sparse.npz")
    )
    write_predictions(
        path, data, {**answers, "pruned": logits}, model.classes, data.groups, f"sha256:{digest}"
    )
