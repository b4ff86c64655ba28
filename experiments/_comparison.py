"""The command line of a comparison: it runs the settings of a preset, draws and reads them."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments import _write
from experiments._presets import PRESETS, Setting
from experiments._write import look, picture
from fairbilevel import comparison, devices, sweeps
from fairbilevel._numbers import share
from fairbilevel.comparison import Comparison
from fairbilevel.records import write_text

Summary = dict[str, Any]


def line_of(summary: Summary, method: str, sparsity: float) -> dict[str, Any]:
    """A line of a summary; empty where it was not run."""
    for line in summary["lines"]:
        if line["method"] == method and abs(line["sparsity"] - sparsity) < 1e-9:
            return line
    return {}


def pairs_of(
    summary: Summary, method: str, *others: str
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Lines of a method with those of others at the same sparsity, where both were run."""
    pairs = (
        (line_of(summary, method, s), line_of(summary, other, s))
        for s in sparsities_of(summary)
        for other in others
    )
    return [(own, beside) for own, beside in pairs if own and beside]


def sparsities_of(summary: Summary) -> list[float]:
    """Sparsities in ascending order, the dense model apart."""
    return sorted({x["sparsity"] for x in summary["lines"] if x["method"] != "dense"})


def count_of(seen: Sequence[bool]) -> str:
    """``"2 of 3"``."""
    return f"{sum(seen)} of {len(seen)}"


def dense_of(summary: Summary) -> dict[str, Any]:
    """The line of the dense model."""
    return next(line for line in summary["lines"] if line["method"] == "dense")


Reading = Callable[[Mapping[str, Summary]], list[str]]
More = Callable[[Path, str, Comparison, Summary], None]
_CERTIFIED = {"certified_tolerance": "certified (points)"}


def parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """Of the command line of settings."""
    made = _write.parser(doc, None)
    made.add_argument("--preset", choices=PRESETS[module], default="small")
    made.add_argument("--data", type=Path, help="folder with the data files")
    made.add_argument("--only", action="append", help="settings to run; all by default")
    made.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="jobs at a time on this machine"
    )
    made.add_argument(
        "--smoke",
        action="store_true",
        help="in miniature and on synthetic rows, to see that it runs; writes to a folder that is "
        "removed, unless --out is given",
    )
    return made


def asked(
    module: str, options: argparse.Namespace
) -> tuple[Path, dict[str, tuple[Setting, Comparison]]]:
    """The folder of the results, and a preset's settings with their designs, of a command line;
    ``ValueError`` where a setting is unknown or options do not go together."""
    settings = PRESETS[module][options.preset]
    if set(options.only or ()) - set(settings):
        raise ValueError(f"--only: choose from {', '.join(settings)}")
    if options.smoke and options.data is not None:
        raise ValueError("--smoke makes its own rows; leave out --data")
    if options.smoke and options.out is None:
        options.out = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, options.out, ignore_errors=True)
    out = options.out or _write.RESULTS / module
    out = out / options.preset if options.preset != "small" else out
    designs = {
        name: setting.smoke(out / f"{name}.npz") if options.smoke else setting.design(options.data)
        for name, setting in settings.items()
        if not options.smoke or name in (options.only or settings)
    }
    return out, {name: (settings[name], design) for name, design in designs.items()}


def run_presets(
    module: str,
    doc: str | None,
    reading: Reading,
    more: More | None = None,
    **curves: str,
) -> None:
    """The command line of an experiment: run its settings, draw, and read the numbers.

    Repetitions are packed once they are done, and tables are made anew from them: without
    ``--data`` those of the settings that are finished.

    Args:
        module: its name below ``experiments``, and in ``PRESETS``.
        doc: its own words.
        reading: sentences computed from the summaries of all settings that are there.
        more: further figures of a setting, given its folder, name, design and summary; called
            once all settings have run.
        curves: what to draw against sparsity beside accuracy: names by a line's keys; what is
            certified unless told otherwise.
    """
    devices.compile_cache()
    curves = {"test_accuracy": "accuracy on test (%)"} | (curves or _CERTIFIED)
    made = parser(module, doc)
    made.add_argument(
        "--executor",
        default="local",
        help=f"{', '.join(sweeps.EXECUTORS)}; submitit takes --slurm-* as `fairbilevel compare`",
    )
    options, rest = made.parse_known_args()
    with one_sentence():
        engine, rest = sweeps.engine_of(rest, options.executor, options.processes)
        if rest:
            made.error(f"unrecognized arguments: {' '.join(rest)}")
        out, settings = asked(module, options)
        summaries = _run(module, options, engine, out, settings, curves, more)
    title = f"# {module}, preset {options.preset}: what was seen"
    text = "\n".join([title, "", *reading(summaries), ""])
    write_text(out / "reading.md", text)
    print(text)
    if failed := sum(len(summary.get("errors", ())) for summary in summaries.values()):
        raise SystemExit(f"{failed} runs failed; the same command tries them again")


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """A user's mistake ends the program with one sentence."""
    try:
        yield
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _run(
    module: str,
    options: argparse.Namespace,
    engine: sweeps.Engine,
    out: Path,
    settings: Mapping[str, tuple[Setting, Comparison]],
    curves: Mapping[str, str],
    more: More | None,
) -> dict[str, Summary]:
    """Summaries of the settings that are asked for, and of those that are there already."""
    summaries: dict[str, Summary] = {}
    ran, lacking = [], []
    asked_first = sorted(settings, key=lambda name: bool(options.only) and name not in options.only)
    for name in asked_first:
        (setting, design), folder = settings[name], out / name
        if options.only and name not in options.only:
            if (folder / "table.md").is_file():
                summaries[name] = comparison.summarize(design, folder)
            continue
        away = setting.in_folder and options.data is None and not options.smoke
        if away and not _is_finished(design, folder):
            lacking.append(setting.source)
            continue
        words = [f"python -m experiments.{module} --preset {options.preset}"]
        if options.smoke:
            words.append("--smoke")
        elif setting.in_folder:
            words.append(f"--data {options.data.name if options.data else 'DATA'}")
        summaries[name] = comparison.run_comparison(
            design,
            folder,
            executor=engine,
            progress=partial(_say, name),
            command=" ".join([*words, f"--only {name}"]),
        )
        comparison.pack_repetitions(design, folder, beside=True)
        draw_curves(summaries[name], curves, folder / "curves.png", name)
        ran.append(name)
    if lacking and not ran:
        raise ValueError(f"--data is needed: the folder that holds {lacking[0]}")
    if more is not None:
        for name in ran:
            more(out / name, name, settings[name][1], summaries[name])
    return {name: summaries[name] for name in settings if name in summaries}


def _say(name: str, line: str) -> None:
    print(f"{name}: {line}", flush=True)


def _is_finished(design: Comparison, folder: Path) -> bool:
    """Whether tables can be made without training. What there is of it is packed in any case."""
    if not folder.is_dir():
        return False
    comparison.pack_repetitions(design, folder, beside=True)
    told = comparison.comparison_status(design, folder)
    return told.done == told.runs


def draw_curves(summary: Summary, curves: Mapping[str, str], path: Path, title: str) -> None:
    """Each quantity against sparsity, a line a method; a dot a method where there is but one."""
    methods = list(dict.fromkeys(x["method"] for x in summary["lines"] if x["method"] != "dense"))
    single = len(sparsities_of(summary)) == 1
    height = 1.4 + 0.24 * len(methods) if single else 4.6
    size = (4.6 * len(curves), height)
    head = f"{title}: means of {summary['repetitions']} repetitions"
    with picture(path, 1, len(curves), size, sharey=single) as (figure, axes):
        for axis, (key, label) in zip(axes[0], curves.items(), strict=True):
            draw = _dots if single else _lines
            draw(axis, summary, methods, key)
            axis.set_title(label)
        if single:
            head += f", {share(sparsities_of(summary)[0])} removed"
        else:
            handles, names = axes[0][0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside lower center", ncols=4)
        figure.suptitle(head)


def _lines(axis: Any, summary: Summary, methods: Sequence[str], key: str) -> None:
    for i, method in enumerate(methods):
        found = sorted(
            (100 * x["sparsity"], 100 * x[key])
            for x in summary["lines"]
            if x["method"] == method and x.get(key) is not None
        )
        axis.plot(*zip(*found, strict=True) if found else ([], []), label=method, **look(i))
    axis.set_xlabel("removed (%)")


def _dots(axis: Any, summary: Summary, methods: Sequence[str], key: str) -> None:
    values = [line_of(summary, m, sparsities_of(summary)[0]).get(key) for m in methods]
    for place, (method, value) in enumerate(zip(methods, values, strict=True)):
        if value is not None:
            axis.plot(100 * value, place, **look(int(method == summary["reference"]), line=False))
    axis.set_yticks(range(len(methods)), methods)
    axis.set_ylim(len(methods) - 0.5, -0.5)
