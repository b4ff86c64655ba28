"""``fairbilevel compare``: methods under one protocol."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

from rich.console import Console

from fairbilevel._numbers import decimal, points
from fairbilevel.cli._parse import configuration, engine_asked, shares, taken, whole
from fairbilevel.cli._show import plain, say, table

DEFAULTS = {
    "methods": "gradual-magnitude,magnitude,snip,bilevel",
    "sparsities": "0.9,0.95",
    "reference": "",
    "folds": "5",
    "rounds": "1",
    "dense-seeds": "5",
    "processes": "1",
    "executor": "local",
}
HELP = f"""\
fairbilevel compare runs methods on the same folds, from the same dense models, with the same budget
  --methods      names with commas between them, options after a colon as in
                 bilevel:score_step=0.3 (default {DEFAULTS["methods"]})
  --sparsities   shares to remove (default {DEFAULTS["sparsities"]})
  --reference    the method that differences are taken from (default gradual-magnitude if it is
                 among the methods, else the first)
  --folds        parts of the data, each tested once a round (default {DEFAULTS["folds"]})
  --rounds       rounds of folds; claims need ten repetitions (default {DEFAULTS["rounds"]})
  --dense-seeds  dense models for the second noise floor, 0 for none (default
                 {DEFAULTS["dense-seeds"]})
  --processes    jobs at a time on this machine, 0 for one a core (default {DEFAULTS["processes"]});
                 a job is a dense model or a method's run from it
  --executor     local (default); submitit: Slurm where there is one, told --slurm-partition,
                 --slurm-time (minutes), --slurm-array-parallelism and the like, else processes of
                 this machine; dask: the cluster at DASK_SCHEDULER_ADDRESS, else workers of this
                 machine
with the options of `fairbilevel solve`, of which --sparsity, --method, --baseline and --dense are
not used, and --out names the folder to write, or to go on with. Commands on one folder share the
work.
"""


def compare(words: list[str], console: Console) -> int:
    """Run it and print the table; everything that solve takes, and ``DEFAULTS``."""
    if {"-h", "--help"} & set(words):
        print(HELP)
    options, rest = taken(words, DEFAULTS)
    engine, rest = engine_asked(options, rest)
    config = configuration("compare", rest)
    from fairbilevel import comparison

    methods = comparison.split_methods(options["methods"])
    default = comparison.REFERENCE if comparison.REFERENCE in methods else (*methods, "")[0]
    design = comparison.Comparison(
        config=dataclasses.replace(config, sparsity=max(shares(options["sparsities"]))),
        methods=methods,
        sparsities=tuple(shares(options["sparsities"])),
        reference=options["reference"] or default,
        folds=whole(options, "folds"),
        rounds=whole(options, "rounds"),
        dense_seeds=whole(options, "dense-seeds"),
    )
    folder = Path(config.out) if config.out is not None else Path("runs/comparison")
    if folder.is_dir():
        say(console, f"{folder}: {comparison.comparison_status(design, folder)}")
    summary = comparison.run_comparison(
        design, folder, executor=engine, progress=partial(say, console)
    )
    columns = ("sparsity", "accuracy", "less ref.", "p", "churn", "certified", "less ref.", "p")
    shown = table(["method"], columns)
    for line in summary["lines"]:
        shown.add_row(
            plain(line["method"])
            + (" (failed)" if line["failed"] else " (one answer)" if line["constant"] else ""),
            f"{line['sparsity']:g}",
            points(line["test_accuracy"], 2),
            points(line.get("accuracy_difference_mean"), 2, signed=True),
            decimal(line.get("accuracy_difference_p_adjusted")),
            points(line.get("churn"), 2),
            points(line.get("certified_tolerance"), 2),
            points(line.get("certified_tolerance_difference_mean"), 2, signed=True),
            decimal(line.get("certified_tolerance_difference_p_adjusted")),
        )
    for error in summary.get("errors", ()):
        shown.add_row(f"{plain(error['job'])}: {plain(error['error'])} (tried twice)")
    console.print()
    console.print(shown, highlight=False)
    enough = "" if summary["claims"] else " Fewer than ten repetitions describe and claim nothing."
    console.print(
        f"On test, {summary['repetitions']} repetitions: accuracy in per cent; churn: share of "
        "rows whose correctness differs from the dense model's; certified (points): the smallest "
        "tolerance of excess gaps that the test rows certify at 95 %; p: of the difference from "
        f"{summary['reference']}, after Holm.{enough}",
        highlight=False,
    )
    say(console, f"\ntables: {folder / 'table.md'}")
    return 0
