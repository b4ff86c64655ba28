"""``fairbilevel profile``: what a run's network takes where it is served."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console

from fairbilevel._numbers import count, milliseconds, percent
from fairbilevel.cli._parse import parse
from fairbilevel.cli._show import plain, say, table

if TYPE_CHECKING:
    from fairbilevel.run import Run


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
    """Run ``fairbilevel profile``.

    Raises:
        ValueError: anything wrong with options or run.
    """
    options = parse(MakeProfile, "profile", words)
    from fairbilevel.deploy import check_profile
    from fairbilevel.records import PROFILE
    from fairbilevel.run import load_run, write_profile
    from fairbilevel.run import profile as measure

    sizes = _batch_sizes(options.batch_sizes)
    check_profile(sizes, options.seconds)
    if options.layers is not None and not options.layers.parent.is_dir():
        raise ValueError(f"there is no folder {options.layers.parent} to write --layers to")
    run = load_run(options.run)
    if options.layers is not None:
        return _layers(run, options.layers, sizes[0], console)
    found = measure(run, batch_sizes=sizes, seconds=options.seconds)
    content = write_profile(run, found)
    if options.json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return 0
    _show(console, content)
    say(console, f"profile: {run.path / PROFILE}")
    return 0


def _layers(run: Run, path: Path, batch: int, console: Console) -> int:
    from fairbilevel.deploy import layer_times
    from fairbilevel.records import write_json

    table = layer_times(run, batch, lambda line: say(console, plain(line)))
    write_json(path, table.to_json())
    say(console, f"table of latencies: {path}")
    return 0


def _batch_sizes(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--batch-sizes are whole numbers such as 1,32, got {text!r}") from None


def _show(console: Console, content: dict[str, Any]) -> None:
    from fairbilevel.report import counted_rows, timed_rows

    counts = table([""], ["dense", "pruned", "of dense"])
    for row in counted_rows(content):
        counts.add_row(row.name, row.dense, row.pruned, percent(row.share))
    console.print(counts, highlight=False)
    columns = (
        "batch",
        "dense, ms",
        "pruned, ms",
        "times as fast",
        "dense, rows/s",
        "pruned, rows/s",
    )
    times = table([""], columns)
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
