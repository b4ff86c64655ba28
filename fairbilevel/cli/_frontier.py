"""``fairbilevel frontier``: accuracy against the largest gap over sparsities and tolerances."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from fairbilevel._numbers import MISSING, exact_points, points
from fairbilevel.cli._parse import configuration, engine_asked, shares, taken
from fairbilevel.cli._show import say, table


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
