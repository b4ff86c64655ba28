"""Parses the command line, runs the command, and turns a user's mistakes into one sentence."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from rich.console import Console

from fairbilevel import _options

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


# Where each command's function is, of the command's name.
_MODULES = {
    "solve": "_solve",
    "methods": "_runs",
    "plan": "_plan",
    "frontier": "_compare",
    "compare": "_compare",
    "runs": "_runs",
    "evaluate": "_evaluate",
    "analyze": "_evaluate",
    "certify": "_certify",
    "verify": "_certify",
    "export": "_export",
    "predict": "_export",
    "convert": "_convert",
    "profile": "_export",
    "report": "_runs",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        Exit code: 0, or 2 for a user's mistake (one sentence on standard error). ``certify`` also
        answers 3 and 4, ``verify`` 1.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0 if words else 2
    if words[0] == "--version":
        from fairbilevel import __version__

        print(f"fairbilevel {__version__}")
        return 0
    if words[0] not in _MODULES:
        return _fail(f"unknown command {words[0]!r}: {_options.choose(words[0], _MODULES)}")
    # TensorFlow Datasets and XLA write lines that are no concern of a user of this command.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    code = _answer(lambda: _command(words[0])(words[1:], _console(words[0])))
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


def _command(name: str) -> Callable[[list[str], Console], int]:
    """A command's module is read when it is asked for: none pays for another's imports."""
    return getattr(import_module(f"fairbilevel.cli.{_MODULES[name]}"), name)


def _console(name: str) -> Console:
    """As wide as the terminal or COLUMNS says; piped, 100 columns, and lists of runs 80."""
    told = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(width=None if told else 80 if name == "runs" else 100)
