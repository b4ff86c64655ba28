"""``fairbilevel compare`` and ``frontier``: methods under one protocol, and accuracy against the
largest gap over sparsities and tolerances."""

from __future__ import annotations

import dataclasses
import signal
import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from fairbilevel._numbers import MISSING, decimal, exact_points, points
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
  --executor     local (default); vmap: all --processes jobs in one process, computed as one, which
                 fills an accelerator that one small network leaves idle; submitit: Slurm where
                 there is one, told --slurm-partition, --slurm-time (minutes),
                 --slurm-array-parallelism and the like, else processes of this machine; dask: the
                 cluster at DASK_SCHEDULER_ADDRESS, else workers of this machine
with the options of `fairbilevel solve` but --sparsity, --method, --baseline, --dense, --overwrite
and --tensorboard; --out
names the folder to write, or to go on with. Commands on one folder share the work.
"""
REFUSED = {
    "sparsity": "give --sparsities",
    "method": "give --methods",
    "baseline": "name it among --methods, and as --reference",
    "overwrite": "a folder is gone on with; choose another --out",
    "tensorboard": "it is for solve",
}


def compare(words: list[str], console: Console) -> int:
    """Run it and print the table; everything that solve takes, and ``DEFAULTS``."""
    if {"-h", "--help"} & set(words):
        print(HELP)
    options, rest = taken(words, DEFAULTS, REFUSED)
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


def frontier(words: list[str], console: Console) -> int:
    """``--sparsities`` and ``--tolerances``, and everything that solve takes."""
    lists = {"sparsities": "0.8,0.9,0.95", "tolerances": "0%,2%,5%"}
    lists |= {"processes": "1", "executor": "local"}
    if {"-h", "--help"} & set(words):
        print(
            "fairbilevel frontier solves for every pair of\n"
            f"  --sparsities  shares to remove (default {lists['sparsities']})\n"
            f"  --tolerances  of every constraint, fractions or percentages (default "
            f"{lists['tolerances']})\n"
            "  --processes, --executor and --slurm-*  as for `fairbilevel compare`\n"
            "with the options of `fairbilevel solve` but --sparsity, --baseline, --overwrite and\n"
            "--tensorboard; the tolerances in --constraint are not used, and --out names the\n"
            "folder to write, or to go on with.\n"
        )
    baseline = dict.fromkeys(("baseline", "no-baseline"), "it stands at every sparsity")
    refused = {n: why for n, why in {**REFUSED, **baseline}.items() if n != "method"}
    lists, rest = taken(words, lists, refused)
    engine, rest = engine_asked(lists, rest)
    config = configuration("frontier", rest)
    from fairbilevel import fairness
    from fairbilevel.records import Interrupted
    from fairbilevel.run import frontier_folder, frontier_run, prepare

    sparsities = shares(lists["sparsities"])
    tolerances = [fairness.parse_tolerance(text.strip()) for text in lists["tolerances"].split(",")]
    config = dataclasses.replace(config, sparsity=max(sparsities))
    config.check()
    prepared = prepare(config)
    if config.out is not None:
        path = Path(config.out)
    else:
        path = frontier_folder(prepared, sparsities, tolerances, Path("runs/frontier"))

    try:
        solved = frontier_run(
            prepared, sparsities, tolerances, path, partial(say, console), executor=engine
        )
    except Interrupted as error:
        print(
            f"fairbilevel: {error}; the same command goes on ({path})",
            file=sys.stderr,
        )
        return 128 + int(getattr(signal, error.signal, signal.SIGTERM))
    columns = ("sparsity", "tolerance", "tune", "gap", "test", "gap", "chosen")
    shown = table(["method"], columns)
    for p in solved:
        measured = ("tune_accuracy", "tune_gap", "test_accuracy", "test_gap")
        numbers = [points(p.get(name)) for name in measured]
        tolerance = MISSING if p["tolerance"] is None else exact_points(p["tolerance"])
        shown.add_row(
            p["method"], f"{p['sparsity']:g}", tolerance, *numbers, "yes" if p["chosen"] else ""
        )
    for p in solved:
        if "error" in p:
            say(
                console,
                f"{p['method']} at sparsity {p['sparsity']:g} failed twice: {p['error']} (the same "
                "command tries again)",
            )
    console.print(shown, highlight=False)
    console.print(
        "Accuracy in per cent, gaps (the most a group loses beyond the average) and tolerances "
        "in points. Chosen: no other is at least as good in all on tune. Nothing is certified.",
        highlight=False,
    )
    say(console, f"\nfrontier: {path}")
    return 0
