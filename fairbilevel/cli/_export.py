"""``fairbilevel export`` and ``fairbilevel predict``: files to serve, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console

from fairbilevel._display import storage
from fairbilevel.cli._show import percent, plain, say, table


@dataclass(frozen=True)
class Export:
    """Write a run's pruned network as one file, raw rows in and logits out, any batch size; removed
    channels are cut out. It is read back and compared on test rows: logits that differ by more than
    1e-4, or another class, are an error."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: Path
    """The file; it is replaced."""
    format: Literal["stablehlo", "onnx", "safetensors", "npz"] | None = None
    """By default what the ending of --out says. stablehlo: read by JAX alone, on CPU, CUDA and TPU;
    onnx: needs fairbilevel[onnx]; safetensors: weights under torch's names; npz: weights."""
    encoded: bool = False
    """Rows go in as the model takes them, standardized, and the encoder stays out of the file."""
    data: str | None = None
    """Rows to compare on, of the run's form, in place of its test rows."""


@dataclass(frozen=True)
class Predict:
    """What a run or an exported file answers on data of the form that the run was made with."""

    model: tyro.conf.Positional[Path]
    """A file written by fairbilevel export, or a run folder."""
    data: str
    """What to read, as for solve; attributes and columns are those of the run."""
    out: Path | None = None
    """Write per-row predictions to this CSV: id, group, y, pruned, the file's digest, then each
    class's probability."""
    run: Path | None = None
    """The run that the file was exported from: its dense model answers too, so that certify
    --predictions reads the CSV."""
    split: str | None = None
    """Split of a TensorFlow data set."""


def export(options: Export, console: Console) -> int:
    """Run ``fairbilevel export``.

    Raises:
        ValueError: anything wrong with run, options or rows, or a file that answers otherwise.
    """
    from fairbilevel.run import export as write
    from fairbilevel.run import load_run, read_like

    run = load_run(options.run)
    inputs = None if options.data is None else read_like(run, options.data).inputs
    made = write(run, options.out, options.format, encoded=options.encoded, inputs=inputs)
    about, size = made.about, made.path.stat().st_size
    checked, given = about["checked"], about["input"]
    form = f"{given['dtype']} [rows, {', '.join(map(str, given['shape']))}]"
    say(console, f"{plain(str(made.path))}: {storage(size)}, {about['parameters']:,} parameters")
    say(console, f"input: {form}{', standardized' if options.encoded else ''}")
    say(
        console,
        f"compared with the run on {checked['rows']:,} rows: largest difference of a logit "
        f"{checked['largest_difference']:.1e}, changed verdicts {checked['changed']}",
    )
    say(console, f"sha256: {made.digest}")
    return 0


def predict(options: Predict, console: Console) -> int:
    """Run ``fairbilevel predict``.

    Raises:
        ValueError: anything wrong with file, run or data.
    """
    from fairbilevel.run import load_run, open_model, predict_source, write_answers

    model = open_model(options.model)
    dense = None if options.run is None else load_run(options.run)
    if dense is not None and dense.classes != model.classes:
        raise ValueError(f"{options.run} has other classes than {options.model}")
    data, logits = predict_source(model, options.data, split=options.split)
    answers = logits.argmax(-1)
    known = data.y >= 0
    shown = table(["class"], ["answered", "labelled"])
    for i, name in enumerate(model.classes):
        labelled = f"{int((data.y == i).sum()):,}" if known.any() else "-"
        shown.add_row(plain(name), f"{int((answers == i).sum()):,}", labelled)
    console.print(shown, highlight=False)
    if known.any():
        right = float(np.mean(answers[known] == data.y[known]))
        say(console, f"accuracy on {int(known.sum()):,} labelled rows: {percent(right)}")
    for reason, count in data.skipped.items():
        say(console, f"skipped {count:,}: {reason}")
    if options.out is not None:
        write_answers(options.out, model, data, logits, dense)
        say(console, f"predictions: {options.out}")
    return 0
