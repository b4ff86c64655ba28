"""Settings of paper experiments, and the command line that runs, draws and reads them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import _write
from experiments._curves import draw_curves
from experiments._summaries import Summary
from fairbilevel import comparison, devices, sweeps
from fairbilevel.comparison import Comparison
from fairbilevel.records import write_text
from fairbilevel.run import Config

Reading = Callable[[Mapping[str, Summary]], list[str]]


@dataclass(frozen=True)
class Trial:
    """What to cut a setting down to, to see that it runs; its own where ``None`` or empty.

    Attributes:
        steps: of dense training and of pruning each.
        folds: of the first round only.
        max_rows: rows to read.
        image_size: pixels.
        width: of the network.
        methods: instead of the setting's; the reference among them.
        sparsities: instead of the setting's.
    """

    steps: int | None = None
    folds: int | None = None
    max_rows: int | None = None
    image_size: int | None = None
    width: int | None = None
    methods: tuple[str, ...] = ()
    sparsities: tuple[float, ...] = ()

    def options(self) -> dict[str, int]:
        """Fields of ``Config`` that differ."""
        names = ("steps", "max_rows", "image_size", "width")
        found = {name: getattr(self, name) for name in names} | {"dense_steps": self.steps}
        return {name: value for name, value in found.items() if value is not None}


NO_TRIAL = Trial()


@dataclass(frozen=True)
class Setting:
    """One data set, network and list of methods.

    Attributes:
        source: file in the data folder, or a ``tfds:`` name, a bundled name.
        methods: names of ``fb.methods``.
        sparsities: shares removed.
        options: fields of ``Config`` that differ from the defaults.
        reference: what differences are taken from.
        rounds: rounds of folds.
        folds: parts of the data, each tested once a round.
    """

    source: str
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str = comparison.REFERENCE
    rounds: int = 1
    folds: int = 5

    @property
    def in_folder(self) -> bool:
        """Whether the rows are in the folder that ``--data`` names."""
        return self.source != "digits" and not self.source.startswith("tfds:")

    def design(self, folder: Path | None, trial: Trial = NO_TRIAL) -> Comparison:
        """The comparison, or a part of it in a few steps.

        Raises:
            ValueError: the trial does not fit.
        """
        data = self.source
        if self.in_folder and folder is not None:
            # Named as it is called from here, not by where it lies on this machine.
            data = os.path.relpath(folder / self.source)
        options = {"min_group_rows": 150, **self.options, **trial.options()}
        design = Comparison(
            Config(data=data, **options),
            trial.methods or self.methods,
            trial.sparsities or self.sparsities,
            reference=self.reference,
            folds=self.folds,
            rounds=self.rounds,
            dense_seeds=0 if trial.steps is not None else 5,
        )
        if trial.folds is not None:
            design = dataclasses.replace(design, folds=trial.folds, rounds=1)
        return design


Presets = Mapping[str, Mapping[str, Setting]]


def parser(doc: str | None, presets: Presets) -> argparse.ArgumentParser:
    """Of the command line of settings and their trials."""
    made = _write.parser(doc, None)
    made.add_argument("--preset", choices=presets, default="small")
    made.add_argument("--data", type=Path, help="folder with the data files")
    made.add_argument("--only", action="append", help="settings to run; all by default")
    made.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="jobs at a time on this machine"
    )
    cut = made.add_argument_group("a trial", "to see that it runs; needs an --out of its own")
    cut.add_argument("--steps", type=int, help="of every training")
    cut.add_argument("--folds", type=int, help="of the first round only")
    cut.add_argument("--max-rows", type=int, help="to read")
    cut.add_argument("--image-size", type=int, help="in pixels")
    cut.add_argument("--width", type=int, help="of the network")
    cut.add_argument(
        "--methods", default="", help="some of them, commas between; the reference too"
    )
    cut.add_argument("--sparsities", default="", help="commas between")
    return made


def asked(
    module: str, options: argparse.Namespace, presets: Presets
) -> tuple[Path, dict[str, tuple[Setting, Comparison]]]:
    """The folder of the results, and a preset's settings with their designs, of a command line.

    Raises:
        ValueError: an unknown setting, or a trial that does not fit.
    """
    settings = presets[options.preset]
    if set(options.only or ()) - set(settings):
        raise ValueError(f"--only: choose from {', '.join(settings)}")
    names = ("steps", "folds", "max_rows", "image_size", "width")
    trial = Trial(
        **{name: getattr(options, name) for name in names},
        methods=comparison.split_methods(options.methods),
        sparsities=tuple(float(s) for s in options.sparsities.split(",") if s),
    )
    if trial != NO_TRIAL and options.out is None:
        raise ValueError("a trial (--steps, --folds and the like) needs an --out of its own")
    out = options.out or _write.RESULTS / module
    out = out / options.preset if options.preset != "small" else out
    return out, {name: (s, s.design(options.data, trial)) for name, s in settings.items()}


def run_presets(
    module: str,
    doc: str | None,
    presets: Presets,
    reading: Reading,
    curves: Mapping[str, str],
    more: Callable[[Path, str, Comparison, Summary], None] | None = None,
) -> None:
    """The command line of an experiment: run its settings, draw, and read the numbers.

    Repetitions are packed once they are done, and tables are made anew from them: without
    ``--data`` those of the settings that are finished.

    Args:
        module: its name below ``experiments``.
        doc: its own words.
        presets: settings by preset and name.
        reading: sentences computed from the summaries of all settings that are there.
        curves: quantities to draw against sparsity: a line's key and its name.
        more: further figures of a setting, given its folder, name, design and summary; called
            once all settings have run.
    """
    devices.compile_cache()
    made = parser(doc, presets)
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
        out, settings = asked(module, options, presets)
        summaries = _run(module, options, engine, out, settings, curves, more)
    title = f"# {module}, preset {options.preset}: what was seen"
    text = "\n".join([title, "", *reading(summaries), ""])
    write_text(out / "reading.md", text)
    print(text)


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
    more: Callable[[Path, str, Comparison, Summary], None] | None,
) -> dict[str, Summary]:
    """Summaries of the settings that are asked for, and of those that are there already."""
    summaries: dict[str, Summary] = {}
    ran, lacking = [], []
    for name, (setting, design) in settings.items():
        folder = out / name
        if options.only and name not in options.only:
            if (folder / "table.md").is_file():
                summaries[name] = comparison.summarize(design, folder)
            continue
        if setting.in_folder and options.data is None and not _is_finished(design, folder):
            lacking.append(setting.source)
            continue
        words = [f"python -m experiments.{module} --preset {options.preset}"]
        if setting.in_folder:
            words.append(f"--data {options.data.name if options.data else 'DATA'}")
        summaries[name] = comparison.run_comparison(
            design,
            folder,
            executor=engine,
            progress=lambda line, name=name: print(f"{name}: {line}", flush=True),
            command=" ".join([*words, f"--only {name}"]),
        )
        comparison.pack_repetitions(design, folder)
        draw_curves(summaries[name], curves, folder / "curves.png", name)
        ran.append(name)
    if lacking and not ran:
        raise ValueError(f"--data is needed: the folder that holds {lacking[0]}")
    for name in ran if more is not None else ():
        more(out / name, name, settings[name][1], summaries[name])
    return summaries


def _is_finished(design: Comparison, folder: Path) -> bool:
    """Whether tables can be made without training. What there is of it is packed in any case."""
    if not folder.is_dir():
        return False
    comparison.pack_repetitions(design, folder)
    told = comparison.comparison_status(design, folder)
    return told.done == told.runs
