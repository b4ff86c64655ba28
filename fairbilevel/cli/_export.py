"""``fairbilevel export``, ``predict``, ``profile``: files to serve, what they answer and take."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console

from fairbilevel._numbers import (
    MISSING,
    count,
    in_points,
    milliseconds,
    percent,
    points,
    storage,
)
from fairbilevel.cli._parse import parse
from fairbilevel.cli._show import plain, say, table

_MOST_GROUPS = 40


@dataclass(frozen=True)
class Export:
    """Write a run's pruned network as one file, raw rows in and logits out, any batch size; removed
    channels are cut out. It is read back and compared on test rows: logits that differ by more than
    1e-4, or another class, are an error. In lower precision it is told what that did to every
    group, here and in the run's report."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: Path
    """The file; it is replaced."""
    format: Literal["stablehlo", "onnx", "safetensors", "npz"] | None = None
    """By default what the ending of --out says. stablehlo: read by JAX alone, on CPU, CUDA and TPU;
    onnx: needs fairbilevel[onnx]; safetensors: weights under torch's names; npz: weights."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """bfloat16: all formats but onnx; int8: onnx alone, calibrated on select rows."""
    allow_changed: str | None = None
    """In lower precision the largest share of rows that may get another class than by the run's
    network, as 5% or 0.05; by default 10%."""
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


def export(words: list[str], console: Console) -> int:
    """Write the file and say how it compares with the run."""
    options = parse(Export, "export", words)
    from fairbilevel.fairness import parse_tolerance
    from fairbilevel.run import export as write
    from fairbilevel.run import load_run, read_like, record_export

    run = load_run(options.run)
    inputs = None if options.data is None else read_like(run, options.data)
    allowed = None if options.allow_changed is None else parse_tolerance(options.allow_changed)
    made = write(
        run, options.out, options.format, precision=options.precision, encoded=options.encoded,
        inputs=inputs, allow_changed=allowed,
    )  # fmt: skip
    about, size = made.about, made.path.stat().st_size
    checked, given = about["checked"], about["input"]
    form = f"{given['dtype']} [rows, {', '.join(map(str, given['shape']))}]"
    lower = f", {made.precision}" if made.precision != "float32" else ""
    say(
        console,
        f"{plain(str(made.path))}: {storage(size)}, {about['parameters']:,} parameters{lower}",
    )
    say(console, f"input: {form}{', standardized' if options.encoded else ''}")
    if "calibration" in about:
        taken = about["calibration"]
        say(console, f"calibrated on {taken['rows']:,} of {taken['of']:,} select rows")
    say(
        console,
        f"compared with the run on {checked['rows']:,} rows: largest difference of a logit "
        f"{checked['largest_difference']:.1e}, changed verdicts {checked['changed']}",
    )
    if "by_group" in about:
        _show_groups(console, about["by_group"], made.precision)
    say(console, f"sha256: {made.digest}")
    if lower:
        try:
            say(console, f"report: {record_export(run, made).parent / 'report.html'}")
        except OSError as error:
            say(console, f"the report of {options.run} does not show it: {error.strerror or error}")
    return 0


def _show_groups(console: Console, told: dict[str, Any], precision: str) -> None:
    """What lower precision did to every group, most verdicts changed first."""
    names = ["rows", "dense", "pruned", precision, "changed", "beyond average", f"in {precision}"]
    shown = table(["group"], names)

    def share(name: str) -> float:
        return told["changed"][name] / max(told["file"]["group_size"][name], 1)

    ranked = sorted(told["groups"], key=share, reverse=True)
    for name in ranked[:_MOST_GROUPS]:
        accuracy = [told[m]["group_accuracy"][name] for m in ("dense", "pruned", "file")]
        excess = [told[g]["excess_accuracy_gap"][name] for g in ("gaps", "file_gaps")]
        shown.add_row(
            plain(name if name in told["counted_groups"] else f"{name} †"),
            f"{told['file']['group_size'][name]:,}",
            *(percent(value) for value in accuracy),
            f"{told['changed'][name]:,}",
            *(points(value, signed=True) for value in excess),
        )
    console.print(shown, highlight=False)
    if len(told["counted_groups"]) < len(ranked):
        say(console, "† too few rows: outside every limit and claim")
    if len(ranked) > _MOST_GROUPS:
        say(console, f"({len(ranked) - _MOST_GROUPS} groups with fewer changes not shown)")
    for key, name, form in (
        ("worst_group_accuracy", "worst group's accuracy", percent),
        ("accuracy_gap", "accuracy gap", in_points),
        ("max_excess_accuracy_gap", "largest excess accuracy gap", in_points),
    ):
        before, after = (form(told[g][key]) for g in ("gaps", "file_gaps"))
        say(console, f"{name}: {before} pruned, {after} in {precision}")


def predict(words: list[str], console: Console) -> int:
    """Count the answers, and write them."""
    options = parse(Predict, "predict", words)
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
        labelled = f"{int((data.y == i).sum()):,}" if known.any() else MISSING
        shown.add_row(plain(name), f"{int((answers == i).sum()):,}", labelled)
    console.print(shown, highlight=False)
    if known.any():
        right = float(np.mean(answers[known] == data.y[known]))
        say(console, f"accuracy on {int(known.sum()):,} labelled rows: {percent(right)}")
    for reason, number in data.skipped.items():
        say(console, f"skipped {number:,}: {reason}")
    if options.out is not None:
        write_answers(options.out, model, data, logits, dense)
        say(console, f"predictions: {options.out}")
    return 0


@dataclass(frozen=True)
class MakeProfile:
    """What a run's pruned network takes beside the dense one: file sizes, parameters,
    multiply-adds, activations, and latency and throughput on this machine, by JAX and, with
    fairbilevel[onnx], by ONNX Runtime on the CPU. Writes profile.json into the run, and its report
    again."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    batch_sizes: str = "1,32"
    """Rows a call, with commas between."""
    seconds: float = 10.0
    """Of timing, beside compiling; at least five rounds are taken."""
    layers: Path | None = None
    """Time the dense network's layers instead, at the first of the batch sizes, and write the table
    to this file: what solve --target latency=50% --latency-table takes."""
    json: bool = False
    """Print the profile as JSON instead of tables."""


def profile(words: list[str], console: Console) -> int:
    """Write the profile into the run and print it, or the times of its layers."""
    options = parse(MakeProfile, "profile", words)
    from fairbilevel.deploy import check_profile, layer_times
    from fairbilevel.records import PROFILE, write_json
    from fairbilevel.run import load_run, write_profile
    from fairbilevel.run import profile as measure

    text = options.batch_sizes
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--batch-sizes are whole numbers such as 1,32, got {text!r}") from None
    check_profile(sizes, options.seconds)
    if options.layers is not None and not options.layers.parent.is_dir():
        raise ValueError(f"there is no folder {options.layers.parent} to write --layers to")
    run = load_run(options.run)
    if options.layers is not None:
        latencies = layer_times(run, sizes[0], lambda line: say(console, plain(line)))
        write_json(options.layers, latencies.to_json())
        say(console, f"table of latencies: {options.layers}")
        return 0
    found = measure(run, batch_sizes=sizes, seconds=options.seconds)
    content = write_profile(run, found)
    if options.json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return 0
    _show_profile(console, content)
    say(console, f"profile: {run.path / PROFILE}")
    return 0


def _show_profile(console: Console, content: dict[str, Any]) -> None:
    from fairbilevel.report import counted_rows, timed_rows

    counts = table([""], ["dense", "pruned", "of dense"])
    for row in counted_rows(content):
        counts.add_row(row.name, row.dense, row.pruned, percent(row.share))
    console.print(counts, highlight=False)
    columns = ["batch", "dense, ms", "pruned, ms", "times as fast"]
    times = table([""], [*columns, "dense, rows/s", "pruned, rows/s"])
    for timed in timed_rows(content):
        gain = timed.gain if timed.clear else f"{timed.gain}, unclear"
        ms = [milliseconds(spent[0]) for spent in (timed.dense, timed.pruned)]
        rates = [count(rate) for rate in timed.rates]
        times.add_row(plain(timed.way), str(timed.batch), *ms, gain, *rates)
    console.print()
    console.print(times, highlight=False)
    console.print()
    for note in content["notes"]:
        say(console, plain(note))
