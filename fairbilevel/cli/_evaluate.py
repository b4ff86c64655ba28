"""``fairbilevel evaluate`` and ``analyze``: a finished run on other data, and why groups lost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console

from fairbilevel._numbers import MISSING, decimal, in_points, percent
from fairbilevel.cli._parse import parse
from fairbilevel.cli._show import plain, say, table

if TYPE_CHECKING:
    from fairbilevel.analysis import DisparateImpact
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


@dataclass(frozen=True)
class Analyze:
    """Why groups lost what they lost (Tran et al. 2022): every group's excess loss beside its
    gradient norm, largest Hessian eigenvalue and closeness to the decision boundary in the dense
    network, and the Taylor bound these give. Writes analysis.json and analysis.csv into the run."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    role: str = "test"
    """Rows to look at: fit, select, tune or test."""
    max_rows: int | None = None
    """Look at no more rows than these, evenly over groups."""
    products: int = 20
    """Products with each group's Hessian; each costs about three gradients over its rows."""
    batch_size: int = 256
    """Rows a batch; memory grows with it and not with the rows."""
    json: bool = False
    """Print the analysis as JSON instead of a table."""


def analyze(words: list[str], console: Console) -> int:
    """Write the analysis into the run and print it."""
    options = parse(Analyze, "analyze", words)
    from fairbilevel.analysis import Lanczos
    from fairbilevel.records import ANALYSIS
    from fairbilevel.run import analyze_run, load_run, write_analysis

    if options.products < 1:
        raise ValueError(f"--products must be at least 1, got {options.products}")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    run = load_run(options.run)
    impact = analyze_run(
        run,
        options.role,
        max_rows=options.max_rows,
        batch_size=options.batch_size,
        lanczos=Lanczos(options.products),
    )
    content = write_analysis(run.path, impact, role=options.role, rows=options.max_rows)
    if options.json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return 0
    _show_impact(console, impact, options)
    say(console, f"analysis: {run.path / ANALYSIS}")
    return 0


def _show_impact(console: Console, impact: DisparateImpact, options: Analyze) -> None:
    own = impact.own_pruned_loss is not None
    columns = {
        "rows": "rows", "dense_loss": "dense loss",
        "own_pruned_loss" if own else "pruned_loss": "pruned loss",
        "own_excess_loss" if own else "excess_loss": "excess",
        "gradient_norm": "gradient norm", "lambda_max": "lambda max", "closeness": "closeness",
        **({"excess_loss": "excess, dense stat."} if own else {}), "bound": "Taylor bound",
    }  # fmt: skip
    shown = table(["group"], list(columns.values()))
    for line in impact.table():
        values = [getattr(line, name) for name in columns]
        shown.add_row(plain(line.group), f"{values[0]:,}", *(_number(v) for v in values[1:]))
    console.print(shown, highlight=False)
    role = f"{options.role} rows"
    limit = "" if options.max_rows is None else f", at most {options.max_rows:,} of them"
    say(
        console,
        f"Losses in nats on {role}{limit}; gradient norm, largest Hessian eigenvalue and closeness "
        "to the decision boundary are those of the dense network.",
    )
    if own:
        say(
            console,
            "The Taylor bound speaks of the loss under the dense network's normalization "
            'statistics ("excess, dense stat."); the pruned network has its own.',
        )
    xi = impact.own_violation if own else impact.violation
    say(
        console,
        f"Fairness violation (largest difference of two groups' excess losses): {_number(xi)}.",
    )
    for correlation in impact.correlations:
        say(console, correlation.sentence)


def _number(value: Any) -> str:
    return MISSING if value is None else f"{value:.3g}" if abs(value) >= 100 else decimal(value)
