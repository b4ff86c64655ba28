"""``fairbilevel evaluate``: a finished run on other data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console

from fairbilevel._numbers import in_points, percent
from fairbilevel.cli._parse import parse
from fairbilevel.cli._show import plain, say, table

if TYPE_CHECKING:
    from fairbilevel.run import DataEvaluation


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a finished run on any data of the form it was made with."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    data: str
    """What to read, as for solve; attributes and columns are those of the run."""
    split: str | None = None
    """Split of a TensorFlow data set."""
    predictions: Path | None = None
    """Write per-row predictions to this CSV, as certify --predictions reads them: id, group, y,
    dense, pruned, then each class's probability by both models."""
    json: bool = False
    """Print the whole result as JSON instead of a table."""


def evaluate(words: list[str], console: Console) -> int:
    """Print what came out, or write it."""
    options = parse(Evaluate, "evaluate", words)
    from fairbilevel.run import evaluate_run, load_run

    run = load_run(options.run)
    result = evaluate_run(run, options.data, predictions=options.predictions, split=options.split)
    if options.json:
        print(json.dumps(result.to_json(), indent=2))
        return 0
    say(
        console,
        f"{result.rows:,} rows, {result.scored:,} scored, {result.unlabelled:,} without a "
        "label (predicted, not scored)",
    )
    for reason, count in result.skipped.items():
        say(console, f"skipped {count:,}: {reason}")
    for note in result.notes:
        say(console, f"note: {note}")
    for column, count in result.unseen_levels.items():
        say(console, f"note: {count:,} rows hold a value of {column} never seen in fit")
    if result.scored:
        _show(console, result)
    if options.predictions is not None:
        say(console, f"predictions: {options.predictions}")
    return 0


def _show(console: Console, result: DataEvaluation) -> None:
    shown = table(["group"], ["rows", "dense", "pruned", "excess gap"])
    for name, group in result.pruned.groups.items():
        shown.add_row(
            plain(name),
            f"{group.rows:,}",
            percent(group.dense_accuracy),
            percent(group.accuracy),
            in_points(group.excess, signed=True),
        )
    for name, key in (("all", "accuracy"), ("mean over classes", "balanced_accuracy")):
        dense, pruned = (percent(getattr(m, key)) for m in (result.dense, result.pruned))
        shown.add_row(name, f"{result.scored:,}", dense, pruned, "")
    console.print(shown, highlight=False)
