"""Parses the command line, runs the command, and turns a user's mistakes into one sentence."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console

from fairbilevel import _options
from fairbilevel._numbers import MISSING, exact_points, in_points, percent, points
from fairbilevel.cli._parse import configuration, engine_asked, parse, shares, taken
from fairbilevel.cli._plan import print_plan
from fairbilevel.cli._show import plain, say, table

if TYPE_CHECKING:
    from fairbilevel.run import DataEvaluation

_HELP = """\
usage: fairbilevel COMMAND [options]

Prune a network and keep its accuracy fair across groups.

commands:
  solve      train, prune under fairness constraints, write a run folder and a report
             (without options: the bundled digits); the same command, or solve --resume RUN, goes on
             with a run that was killed
  methods    what --method can be: the solver, its relatives and the baselines
  plan       what a solve would do: rows per group and role, what they could certify, time
  frontier   accuracy against the largest gap over --sparsities and --tolerances, other options as
             for solve: a table and a picture
  compare    methods under one protocol: --methods a,b,c --folds 5 --sparsities ..., other options
             as for solve: tables, a picture, per-row outcomes; goes on where it stopped
  runs       the runs below a folder and how they ended: fairbilevel runs [FOLDER]
  evaluate   a finished run on other data: fairbilevel evaluate RUN --data SOURCE
  analyze    why groups lost what they lost, from the dense network's gradients and curvature:
             fairbilevel analyze RUN
  certify    what rows that nothing has touched prove about gaps between groups:
             fairbilevel certify RUN --tolerance 3%, or --predictions FILE.csv
             exit code 0 certified, 3 violated, 4 undecided
  verify     compute a certificate again: fairbilevel verify certificate.json
             exit code 0 the same, 1 different
  export     a run's pruned network as one file to serve: fairbilevel export RUN --out FILE.onnx
  predict    what a run or an exported file answers on data: fairbilevel predict FILE --data SOURCE
  convert    any source of images or arrays as shards that are read batch by batch, for rows that do
             not fit in memory: fairbilevel convert SOURCE OUT
  profile    file sizes, counts, latency and throughput of a run's network beside the dense one:
             fairbilevel profile RUN
  report     write a finished run's report.html again: fairbilevel report RUN

`fairbilevel COMMAND --help` explains the options of a command.
"""


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


@dataclass(frozen=True)
class MakeReport:
    """Write a finished run's report.html again and print its verdict."""

    run: tyro.conf.Positional[Path]
    """Run folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        Exit code: 0, or 2 for a user's mistake (one sentence on standard error). ``certify`` also
        answers 3 and 4, ``verify`` 1.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "solve": _solve,
        "methods": _methods,
        "plan": _plan,
        "frontier": _frontier,
        "compare": _compare,
        "runs": _runs,
        "evaluate": _evaluate,
        "analyze": _analyze,
        "certify": _certify,
        "verify": _verify,
        "export": _export,
        "predict": _predict,
        "convert": _convert,
        "profile": _profile,
        "report": _report,
    }
    if not words or words[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0 if words else 2
    if words[0] == "--version":
        from fairbilevel import __version__

        print(f"fairbilevel {__version__}")
        return 0
    if words[0] not in commands:
        return _fail(f"unknown command {words[0]!r}: {_options.choose(words[0], commands)}")
    # TensorFlow Datasets and XLA write lines that are no concern of a user of this command.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    code = _answer(lambda: commands[words[0]](words[1:]))
    if code and "jax" in sys.modules:
        from fairbilevel import devices

        devices.leave(code)
    return code


def _answer(command: Callable[[], int]) -> int:
    """Run a command; what is wrong is one sentence."""
    try:
        return command()
    except (ValueError, RuntimeError) as error:
        if "jax" in sys.modules:
            from fairbilevel import devices

            if devices.lost_others(error):
                _fail(
                    "another process of the run ended or cannot be reached: give all of them the "
                    "same command again, and they go on from the last checkpoint"
                )
                return 1
        if isinstance(error, RuntimeError):
            raise
        return _fail(str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _fail("the disk is full: free some space and run the command again")
        name = f" {error.filename}" if error.filename else ""
        return _fail(f"cannot read or write{name}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("fairbilevel: stopped", file=sys.stderr)
        return 130


def _fail(sentence: str) -> int:
    print(f"fairbilevel: error: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


def _console(piped: int = 100) -> Console:
    """As wide as the terminal or COLUMNS says, else `piped` columns."""
    told = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(width=None if told else piped)


def _solve(words: list[str]) -> int:
    from fairbilevel.cli._solve import HELP, resume, solve

    if {"-h", "--help"} & set(words):
        print(HELP)
    # Alone, --resume insists on what the same command does anyway: going on where there is a run.
    must = [i for i, w in enumerate(words) if w == "--resume" and not _has_value(words, i)]
    options, rest = taken([w for i, w in enumerate(words) if i not in must], {"resume": ""})
    if options["resume"]:
        from fairbilevel.run import stored_config

        path = Path(options["resume"])
        return resume(path, configuration("solve", rest, stored_config(path)), _console())
    return solve(configuration("solve", rest), _console(), must_resume=bool(must))


def _has_value(words: list[str], place: int) -> bool:
    """Whether the option at a place is followed by a value."""
    return place + 1 < len(words) and not words[place + 1].startswith("--")


def _compare(words: list[str]) -> int:
    """``--methods``, ``--sparsities`` and the folds, and everything that solve takes."""
    from fairbilevel.cli._compare import DEFAULTS, HELP, compare

    if {"-h", "--help"} & set(words):
        print(HELP)
    options, rest = taken(words, DEFAULTS)
    engine, rest = engine_asked(options, rest)
    config = configuration("compare", rest)
    return compare(config, options, engine, _console())


def _runs(words: list[str]) -> int:
    from fairbilevel.cli._runs import Runs, runs

    return runs(parse(Runs, "runs", words), _console(80))


def _methods(words: list[str]) -> int:
    """A line for each method."""
    if words:
        raise ValueError(f"fairbilevel methods takes no options, got {words[0]!r}")
    from fairbilevel import methods

    shown = table(["method", "removes", "what it does"])
    shown.columns[0].no_wrap = True  # names are there to be copied
    for entry in methods.METHODS.values():
        removes = " or ".join(f"{g}s" for g in entry.granularities)
        shown.add_row(entry.name, removes, entry.description)
    _console().print(shown, highlight=False)
    return 0


def _frontier(words: list[str]) -> int:
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
            "with the options of `fairbilevel solve`, of which --sparsity and the tolerances in\n"
            "--constraint are not used, and --out names the folder to write.\n"
        )
    lists, rest = taken(words, lists)
    engine, rest = engine_asked(lists, rest)
    config = configuration("frontier", rest)
    from fairbilevel import fairness
    from fairbilevel.records import Interrupted
    from fairbilevel.run import frontier_run, prepare

    sparsities = shares(lists["sparsities"])
    tolerances = [fairness.parse_tolerance(text.strip()) for text in lists["tolerances"].split(",")]
    console = _console()
    path = Path(config.out) if config.out is not None else _free("runs/frontier")
    config = dataclasses.replace(config, sparsity=max(sparsities))
    config.check()

    try:
        prepared = prepare(config)
        solved = frontier_run(
            prepared, sparsities, tolerances, path, partial(say, console), executor=engine
        )
    except Interrupted as error:
        print(
            f"fairbilevel: {error}; go on with the same command and --out {shlex.quote(str(path))}",
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


def _free(stem: str) -> Path:
    """The first folder of this name, or with a number behind it, that does not exist."""
    path, number = Path(stem), 2
    while path.exists():
        path, number = Path(f"{stem}-{number}"), number + 1
    return path


def _plan(words: list[str]) -> int:
    config = configuration("plan", words)
    from fairbilevel.run import make_plan, prepare

    prepared = prepare(config)
    print_plan(_console(), prepared, make_plan(prepared))
    return 0


def _evaluate(words: list[str]) -> int:
    options = parse(Evaluate, "evaluate", words)
    from fairbilevel.run import evaluate_run, load_run

    run = load_run(options.run)
    result = evaluate_run(run, options.data, predictions=options.predictions, split=options.split)
    if options.json:
        print(json.dumps(result.to_json(), indent=2))
        return 0
    console = _console()
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
        _print_evaluation(console, result)
    if options.predictions is not None:
        say(console, f"predictions: {options.predictions}")
    return 0


def _print_evaluation(console: Console, result: DataEvaluation) -> None:
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


def _analyze(words: list[str]) -> int:
    from fairbilevel.cli._analyze import Analyze, analyze

    return analyze(parse(Analyze, "analyze", words), _console())


def _certify(words: list[str]) -> int:
    from fairbilevel.cli._certify import Certify, certify

    return certify(parse(Certify, "certify", words), _console())


def _verify(words: list[str]) -> int:
    from fairbilevel.cli._certify import Verify, verify

    return verify(parse(Verify, "verify", words), _console())


def _export(words: list[str]) -> int:
    from fairbilevel.cli._export import Export, export

    return export(parse(Export, "export", words), _console())


def _predict(words: list[str]) -> int:
    from fairbilevel.cli._export import Predict, predict

    return predict(parse(Predict, "predict", words), _console())


def _convert(words: list[str]) -> int:
    from fairbilevel.cli._convert import Convert, convert

    return convert(parse(Convert, "convert", words), _console())


def _profile(words: list[str]) -> int:
    from fairbilevel.cli._profile import MakeProfile, profile

    return profile(parse(MakeProfile, "profile", words), _console())


def _report(words: list[str]) -> int:
    options = parse(MakeReport, "report", words)
    from fairbilevel import report
    from fairbilevel.records import CERTIFICATE, check_completed, read_json, read_result

    result = read_result(options.run)
    if result.completed:
        check_completed(options.run, result)
    path = report.write_report(options.run)
    written = options.run / CERTIFICATE
    certificate = read_json(written) if written.is_file() else None
    console = _console()
    console.print(report.verdict(result, certificate), highlight=False, markup=False)
    say(console, f"report: {path}")
    return 0
