"""One file that holds a pruned network: written, read back, run, and compared with it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from fairbilevel import _display, _options, _trees
from fairbilevel.data import DataError, Encoder, StoredRows, as_labels, select
from fairbilevel.deploy._arrays import NPZ, Safetensors
from fairbilevel.deploy._compact import Compact, compact, in_bfloat16
from fairbilevel.deploy._format import PRECISIONS, About, Damaged, Format, Run, line, require
from fairbilevel.deploy._model import ModelFiles
from fairbilevel.deploy._onnx import ONNX, chosen, quantized
from fairbilevel.deploy._stablehlo import StableHLO
from fairbilevel.models import as_model
from fairbilevel.problem import predict, probabilities
from fairbilevel.records import RecordError, write_bytes
from fairbilevel.train import Solution

FORMATS: dict[str, Format] = {
    "stablehlo": StableHLO(),
    "onnx": ONNX(),
    "safetensors": Safetensors(),
    "npz": NPZ(),
}
"""All formats by name."""

VERSION = 1
LARGEST_DIFFERENCE = 1e-4  # of a logit, in float32
ALLOWED_CHANGED = 0.1  # share of rows, in lower precision
_MOST_ROWS = 4096  # that an artifact in float32 is checked on
_BATCH = 256

Judge = Callable[[np.ndarray, np.ndarray], dict[str, Any]]
"""From logits of a file and of the network that it was made of, on the rows compared."""


@dataclass(frozen=True)
class Artifact:
    """A file written by ``fb.export``, read back.

    Attributes:
        path: the file.
        format: ``"stablehlo"``, ``"onnx"``, ``"safetensors"`` or ``"npz"``.
        about: its description: classes, input, precision, sparsity, provenance, what was checked.
        digest: SHA-256 of the file, hexadecimal.
        encoder: from rows as read to rows as the file takes them.
    """

    path: Path
    format: str
    about: About
    digest: str
    encoder: Encoder
    _run: Run = dataclasses.field(repr=False)

    def __repr__(self) -> str:
        return _display.line(
            "Artifact",
            str(self.path),
            f"{self.about['model']['name']} as {self.format} in {self.precision}",
            f"{self.about['parameters']:,} parameters",
        )

    @property
    def precision(self) -> str:
        """``"float32"``, ``"bfloat16"`` or ``"int8"``."""
        return self.about.get("precision", "float32")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return tuple(self.about["classes"])

    def rows(self, inputs: Any) -> np.ndarray:
        """Rows as read, as the file takes them: what any other runtime is fed.

        Raises:
            DataError: rows of another form.
        """
        return _rows(self.encoder, inputs, self.about["input"]["encoded"])

    def logits(self, inputs: Any) -> Float[np.ndarray, "rows classes"]:
        """Logits of rows in the form the run's data came in, by the file's own runtime; of rows
        that are not held in memory a part is read while the one before is answered.

        Raises:
            ValueError: rows of another form, or the runtime fails on them.
        """
        if self.encoder.kind != "table":
            inputs = self.encoder.transform(inputs)
        parts = inputs.passed() if isinstance(inputs, StoredRows) else [(0, inputs)]
        count = len(self.classes)
        found = [_logits(self._run, self.rows(part), count, self.path) for _, part in parts]
        return np.concatenate([np.zeros((0, count), np.float32), *found])

    def predict_proba(self, inputs: Any) -> Float[np.ndarray, "rows classes"]:
        """Probabilities in the order of ``classes``."""
        return probabilities(self.logits(inputs))

    def predict(self, inputs: Any) -> Shaped[np.ndarray, " rows"]:
        """Names of the rows' classes in the type of the labels."""
        return as_labels(self.classes)[self.logits(inputs).argmax(-1)]


def _rows(encoder: Encoder, inputs: Any, encoded: bool) -> np.ndarray:
    if not encoded:
        return encoder.raw(inputs)
    return np.asarray(encoder.normalize(jnp.asarray(encoder.transform(inputs))))


def _logits(run: Run, rows: np.ndarray, classes: int, path: Path) -> np.ndarray:
    parts = [np.zeros((0, classes), np.float32)]
    for start in range(0, len(rows), _BATCH):
        try:
            part = np.asarray(run(rows[start : start + _BATCH]))
        except Exception as error:  # each runtime has its own
            raise RecordError(f"{path} does not run on these rows: {line(error)}") from None
        if part.shape != (len(rows[start : start + _BATCH]), classes):
            raise RecordError(
                f"{path} gives {list(part.shape)} where {classes} logits a row are expected"
            )
        parts.append(part.astype(np.float32, copy=False))
    return np.concatenate(parts)


def format_of(path: Path, given: str | None = None) -> str:
    """The format asked for, by default that of the file's ending.

    Raises:
        ValueError: there is no such format.
    """
    if given is not None:
        _options.one_of("format", given, tuple(FORMATS))
        return given
    if (name := _by_ending(path)) is not None:
        return name
    endings = ", ".join(kind.suffix for kind in FORMATS.values())
    raise ValueError(f"{path.name} ends in none of {endings}: give format")


def _by_ending(path: Path) -> str | None:
    return next((name for name, kind in FORMATS.items() if path.suffix == kind.suffix), None)


def check_precision(format: str, precision: str) -> None:
    """Refuse a precision that a format is not written in.

    Raises:
        ValueError: names the formats that are.
    """
    _options.one_of("precision", precision, PRECISIONS)
    if precision not in FORMATS[format].precisions:
        able = [name for name, kind in FORMATS.items() if precision in kind.precisions]
        raise ValueError(
            f"the format {format} is written in {' or '.join(FORMATS[format].precisions)}, not in "
            f"{precision}, which is for {', '.join(able)}"
        )


def write_artifact(
    source: Solution | ModelFiles,
    path: Path,
    format: str | None = None,
    *,
    inputs: Any,
    encoded: bool = False,
    precision: str = "float32",
    calibration: Any = None,
    allow_changed: float = ALLOWED_CHANGED,
    judge: Judge | None = None,
    more: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write a pruned network as one file, read it back, and compare it with the network.

    Args:
        source: a solution or a run.
        path: the file; its folder is there.
        format: by default that of the file's ending.
        inputs: rows as read to compare on; in float32 the first 4,096 are taken.
        encoded: the file takes rows as the model does, in place of rows as read.
        precision: ``"float32"``, ``"bfloat16"`` or ``"int8"``.
        calibration: rows as read that give int8 its ranges: those of select.
        allow_changed: the largest share of rows that may get another class in lower precision.
        judge: what else is told of the answers in lower precision, as ``about["by_group"]``.
        more: provenance.

    Returns:
        The artifact; ``about["checked"]`` says on how many rows it was compared, how far the
        logits lie apart and how many rows get another class.

    Raises:
        ValueError: the format or precision cannot be written here, or the file answers otherwise
            than the network: then no file is left.
    """
    name = format_of(path, format)
    kind, given = FORMATS[name], ModelFiles.of(source)
    check_precision(name, precision)
    require(f"the format {name}", name, kind.writes_with)
    network, encoder = compact(source), given.encoder
    some = inputs[:_MOST_ROWS] if precision == "float32" else inputs
    rows = _rows(encoder, some, encoded)
    first = (lambda x: x) if encoded else encoder.traced
    about = {
        "schema_version": VERSION,
        "format": name,
        "precision": precision,
        **describe(given, network),
        "input": _input(encoder, rows, encoded),
        **(more or {}),
    }
    if precision == "int8":
        take = chosen(len(calibration))
        about["calibration"] = {"rows": len(take), "of": len(calibration)}
        calibration = _rows(encoder, select(calibration, take), encoded)
    try:
        shipped = in_bfloat16(network) if precision == "bfloat16" else network
        content = kind.convert(shipped, first, rows.shape[1:], rows.dtype, about)
        if precision == "int8":
            content = quantized(content, calibration)
        about["digest"] = kind.digest(content)
        run = kind.run(*kind.unpack(kind.pack(content, about)), first, given.model)
    except Exception as error:  # each converter and each runtime has its own
        what = f"{given.model.name!r} cannot be written as {name}"
        what += "" if precision == "float32" else f" in {precision}"
        raise ValueError(f"{what}: {line(error)}") from None
    expected = predict(given.model, encoder, given.network, encoder.transform(some))
    found = _logits(run, rows, len(given.classes), path)
    changed = int((found.argmax(-1) != expected.argmax(-1)).sum())
    apart = float(np.abs(found - expected).max(initial=0))
    if precision == "float32":
        _check_same(apart, changed, len(found))
    else:
        _check_near(found, changed, precision, allow_changed)
    about["checked"] = {"rows": len(found), "largest_difference": apart, "changed": changed}
    if judge is not None and precision != "float32":
        about["by_group"] = judge(found, expected)
    write_bytes(path, kind.pack(content, about))
    return read_artifact(path, name, model=given.model)


def _check_same(apart: float, changed: int, rows: int) -> None:
    """Refuse logits that lie too far apart, or other classes."""
    if changed or not apart <= LARGEST_DIFFERENCE:
        raise ValueError(
            f"the exported network answers otherwise than the run: logits differ by up to "
            f"{apart:.2g} ({LARGEST_DIFFERENCE:g} is allowed) and {changed} of {rows} rows "
            "get another class; nothing was written. Numbers far larger than their spread lose "
            "digits where they are standardized in the file: --encoded leaves that out of it"
        )


def _check_near(found: np.ndarray, changed: int, precision: str, allowed: float) -> None:
    """Refuse no rows, logits in lower precision that are not finite, or too many other classes."""
    if not len(found):
        raise ValueError(f"there are no rows to compare the network in {precision} on: give some")
    if not np.isfinite(found).all():
        raise ValueError(f"logits in {precision} are not finite; nothing was written")
    if changed > allowed * len(found):
        raise ValueError(
            f"in {precision} {changed} of {len(found)} rows get another class than by the run's "
            f"network, and {allowed:.4g} of them may; nothing was written. --allow-changed allows "
            "more"
        )


def describe(given: ModelFiles, network: Compact) -> About:
    """What a network is, for people and for reading it back."""
    entries = [np.asarray(m) for m in given.masks.values()]
    units = sum(m.size for m in entries)
    kept = sum(int(np.count_nonzero(m)) for m in entries)
    leaves = _trees.flatten_named(network.params).values()
    return {
        "model": {
            "name": given.model.name,
            "width": given.description["width"],
            "built_in": given.description["built_in"],
            "input_shape": list(given.encoder.input_shape),
        },
        "classes": list(given.classes),
        "granularity": given.granularity,
        "sparsity": {"units": units, "kept": kept, "achieved": 1 - kept / units},
        "parameters": int(sum(np.size(leaf) for leaf in leaves)),
        "nonzero_parameters": int(sum(np.count_nonzero(np.asarray(leaf)) for leaf in leaves)),
        "encoder": given.encoder.to_json(),
    }


def _input(encoder: Encoder, rows: np.ndarray, encoded: bool) -> About:
    """What one row of the file's input is."""
    columns = []
    if encoder.kind == "table" and not encoded:
        for column in encoder.columns:
            levels = getattr(column, "levels", None)
            columns.append({"name": column.name, "levels": None if levels is None else [*levels]})
    return {
        "name": "rows",
        "kind": encoder.kind,
        "encoded": encoded,
        "shape": list(rows.shape[1:]),
        "dtype": str(rows.dtype),
        **({"columns": columns} if columns else {}),
    }


def read_artifact(path: str | Path, format: str | None = None, *, model: Any = None) -> Artifact:
    """Read a file written by ``fb.export``.

    Args:
        path: the file.
        format: by default that of the file's ending, or of what it holds.
        model: where it holds weights alone, and those of a model of the user's own.

    Raises:
        ValueError: missing, damaged, of another kind or from a newer version, or what runs it is
            not installed.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise RecordError(f"{file} does not exist") from None
    except OSError as error:
        raise RecordError(f"{file} cannot be read: {error.strerror or error}") from None
    name = _format_held(file, data) if format is None else format_of(file, format)
    kind = FORMATS[name]
    require(f"reading {file}", name, kind.runs_with)
    try:
        content, about = kind.unpack(data)
        version = about.get("schema_version")
        if not isinstance(version, int) or version > VERSION:
            raise Damaged(f"it is of version {version}, and this fairbilevel reads {VERSION}")
        if kind.digest(content) != about.get("digest"):
            raise Damaged("its content is not what was written")
        encoder = Encoder.from_json(about["encoder"])
        _check(about)
        first = (lambda x: x) if about["input"]["encoded"] else encoder.traced
        run = kind.run(content, about, first, None if model is None else as_model(model))
    except (KeyError, TypeError, AttributeError, DataError) as error:
        raise RecordError(f"{file} is damaged: its description lacks or distorts {error}") from None
    except Damaged as error:
        raise RecordError(f"{file} cannot be used: {error}") from None
    return Artifact(file, name, about, hashlib.sha256(data).hexdigest(), encoder, run)


def _format_held(path: Path, data: bytes) -> str:
    """The format of a file's ending, else of its content."""
    held = (name for name, kind in FORMATS.items() if kind.holds(data))
    if (name := _by_ending(path) or next(held, None)) is not None:
        return name
    raise RecordError(f"{path} is no file written by fairbilevel export")


def _check(about: About) -> None:
    """Refuse what would surprise later (``Damaged``)."""
    classes, given = about["classes"], about["input"]
    texts = isinstance(classes, list) and all(isinstance(c, str) for c in classes)
    if not texts or len(set(classes)) != len(classes) or not classes:
        raise Damaged("its classes are no names")
    if type(given["encoded"]) is not bool or not isinstance(about["model"]["name"], str):
        raise Damaged("its description is not one of a network")
    if about.get("precision", "float32") not in PRECISIONS:
        raise Damaged("its precision is none")
    if type(about["parameters"]) is not int:
        raise Damaged("its number of parameters is none")
