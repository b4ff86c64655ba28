"""What the paper experiments share: settings of a preset, a comparison each, curves, a reading."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairbilevel import comparison, devices, sweeps
from fairbilevel.comparison import Comparison
from fairbilevel.records import write_text
from fairbilevel.run import Config

Summary = dict[str, Any]
Reading = Callable[[Mapping[str, Summary]], list[str]]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9", "#8a9199")
DASHES = ("-", "--", "-.", ":")
MARKS = "osD^vP*X"


@dataclass(frozen=True)
class Trial:
    """What to cut a setting down to, to see that it runs; its own where ``None`` or empty.

    Attributes:
        steps: of dense training and of pruning each.
        folds: of the first round only.
        max_rows: rows to read.
        image_size: pixels.
        methods: instead of the setting's; the reference among them.
        sparsities: instead of the setting's.
    """

    steps: int | None = None
    folds: int | None = None
    max_rows: int | None = None
    image_size: int | None = None
    methods: tuple[str, ...] = ()
    sparsities: tuple[float, ...] = ()

    def options(self) -> dict[str, int]:
        """Fields of ``Config`` that differ."""
        found = {
            "steps": self.steps,
            "dense_steps": self.steps,
            "max_rows": self.max_rows,
            "image_size": self.image_size,
        }
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
        bundled: whether ``source`` needs no folder.
    """

    source: str
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str = comparison.REFERENCE
    rounds: int = 1
    folds: int = 5
    bundled: bool = False

    @property
    def in_folder(self) -> bool:
        """Whether the rows are in the folder that ``--data`` names."""
        return not self.bundled and not self.source.startswith("tfds:")

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


def run_presets(
    module: str,
    description: str,
    presets: Mapping[str, Mapping[str, Setting]],
    reading: Reading,
    curves: Mapping[str, str],
    more: Callable[[Path, str, Comparison, Summary], None] | None = None,
) -> None:
    """The command line of an experiment: run its settings, draw, and read the numbers.

    Repetitions are packed once they are done, and tables are made anew from them: without
    ``--data`` those of the settings that are finished.

    Args:
        module: its name below ``experiments``.
        description: one sentence.
        presets: settings by preset and name.
        reading: sentences computed from the summaries of all settings that are there.
        curves: quantities to draw against sparsity: a line's key and its name.
        more: further figures of a setting, given its folder, name, design and summary; called
            once all settings have run.
    """
    devices.compile_cache()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", choices=presets, default="small")
    parser.add_argument("--data", type=Path, help="folder with the data files")
    parser.add_argument("--only", action="append", help="settings to run; all by default")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="jobs at a time on this machine"
    )
    parser.add_argument(
        "--executor",
        default="local",
        help=f"{', '.join(sweeps.EXECUTORS)}; submitit takes --slurm-* as `fairbilevel compare`",
    )
    parser.add_argument("--out", type=Path)
    cut = parser.add_argument_group("a trial", "to see that it runs; needs an --out of its own")
    cut.add_argument("--steps", type=int, help="of every training")
    cut.add_argument("--folds", type=int, help="of the first round only")
    cut.add_argument("--max-rows", type=int, help="to read")
    cut.add_argument("--image-size", type=int, help="in pixels")
    cut.add_argument(
        "--methods", default="", help="some of them, commas between; the reference too"
    )
    cut.add_argument("--sparsities", default="", help="commas between")
    arguments, rest = parser.parse_known_args()
    try:
        engine, rest = sweeps.engine_of(rest, arguments.executor, arguments.processes)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        _run(module, arguments, engine, presets, reading, curves, more)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _trial(arguments: argparse.Namespace) -> Trial:
    return Trial(
        arguments.steps,
        arguments.folds,
        arguments.max_rows,
        arguments.image_size,
        comparison.split_methods(arguments.methods),
        tuple(float(s) for s in arguments.sparsities.split(",") if s),
    )


def _run(
    module: str,
    arguments: argparse.Namespace,
    engine: sweeps.Engine,
    presets: Mapping[str, Mapping[str, Setting]],
    reading: Reading,
    curves: Mapping[str, str],
    more: Callable[[Path, str, Comparison, Summary], None] | None,
) -> None:
    settings = presets[arguments.preset]
    unknown = set(arguments.only or ()) - set(settings)
    if unknown:
        raise ValueError(f"--only: choose from {', '.join(settings)}")
    trial = _trial(arguments)
    if trial != NO_TRIAL and arguments.out is None:
        raise ValueError("a trial (--steps, --folds and the like) needs an --out of its own")
    out = arguments.out or Path(__file__).parent / "results" / module
    if arguments.preset != "small":
        out = out / arguments.preset
    summaries: dict[str, Summary] = {}
    ran: dict[str, Comparison] = {}
    lacking: list[str] = []
    for name, setting in settings.items():
        folder = out / name
        design = setting.design(arguments.data, trial)
        if arguments.only and name not in arguments.only:
            if (folder / "table.md").is_file():
                summaries[name] = comparison.summarize(design, folder)
            continue
        if setting.in_folder and arguments.data is None and not _is_finished(design, folder):
            lacking.append(setting.source)
            continue
        words = [f"python -m experiments.{module} --preset {arguments.preset}"]
        if setting.in_folder:
            words.append(f"--data {arguments.data.name if arguments.data else 'DATA'}")
        summaries[name] = comparison.run_comparison(
            design,
            folder,
            executor=engine,
            progress=lambda line, name=name: print(f"{name}: {line}", flush=True),
            command=" ".join([*words, f"--only {name}"]),
        )
        comparison.pack_repetitions(design, folder)
        draw_curves(summaries[name], curves, folder / "curves.png", name)
        ran[name] = design
    if lacking and not ran:
        raise ValueError(f"--data is needed: the folder that holds {lacking[0]}")
    for name, design in ran.items() if more is not None else ():
        more(out / name, name, design, summaries[name])
    lines = [f"# {module}, preset {arguments.preset}: what was seen", "", *reading(summaries), ""]
    write_text(out / "reading.md", "\n".join(lines))
    print("\n".join(lines))


def _is_finished(design: Comparison, folder: Path) -> bool:
    """Whether tables can be made without training. What there is of it is packed in any case."""
    if not folder.is_dir():
        return False
    comparison.pack_repetitions(design, folder)
    told = comparison.comparison_status(design, folder)
    return told.done == told.runs


def draw_curves(summary: Summary, curves: Mapping[str, str], path: Path, title: str) -> None:
    """Each quantity against sparsity, a line a method; a dot a method where there is but one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    methods = list(dict.fromkeys(x["method"] for x in summary["lines"] if x["method"] != "dense"))
    single = len(sparsities_of(summary)) == 1
    height = 1.4 + 0.24 * len(methods) if single else 4.4
    figure, axes = plt.subplots(1, len(curves), figsize=(4.6 * len(curves), height), squeeze=False)
    for axis, (key, label) in zip(axes[0], curves.items(), strict=True):
        draw = _dots if single else _lines
        draw(axis, summary, methods, key)
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.3)
    head = f"{title}: means of {summary['repetitions']} repetitions"
    if single:
        for axis in axes[0][1:]:
            axis.set_yticklabels([])
        figure.suptitle(f"{head}, {100 * sparsities_of(summary)[0]:g} % removed", fontsize=11)
        figure.tight_layout()
    else:
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="lower center", ncols=4, fontsize=8, frameon=False)
        figure.suptitle(head, fontsize=11)
        figure.tight_layout(rect=(0, 0.035 * -(-len(names) // 4) + 0.02, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _lines(axis: Any, summary: Summary, methods: Sequence[str], key: str) -> None:
    for i, method in enumerate(methods):
        found = sorted(
            (100 * x["sparsity"], 100 * x[key])
            for x in summary["lines"]
            if x["method"] == method and x.get(key) is not None
        )
        axis.plot(
            *zip(*found, strict=True) if found else ([], []),
            color=COLORS[i % len(COLORS)],
            linestyle=DASHES[i // len(COLORS) % len(DASHES)],
            marker=MARKS[i % len(MARKS)],
            markersize=4,
            linewidth=1.3,
            label=method,
        )
    axis.set_xlabel("removed (%)")


def _dots(axis: Any, summary: Summary, methods: Sequence[str], key: str) -> None:
    values = [line_of(summary, m, sparsities_of(summary)[0]).get(key) for m in methods]
    for place, (method, value) in enumerate(zip(methods, values, strict=True)):
        if value is not None:
            color = COLORS[1] if method == summary["reference"] else COLORS[0]
            axis.plot(100 * value, place, "o", color=color, markersize=5)
    axis.set_yticks(range(len(methods)), methods, fontsize=8)
    axis.set_ylim(len(methods) - 0.5, -0.5)


def line_of(summary: Summary, method: str, sparsity: float) -> dict[str, Any]:
    """A line of a summary; empty where it was not run."""
    for line in summary["lines"]:
        if line["method"] == method and abs(line["sparsity"] - sparsity) < 1e-9:
            return line
    return {}


def sparsities_of(summary: Summary) -> list[float]:
    """Sparsities in ascending order, the dense model apart."""
    return sorted({x["sparsity"] for x in summary["lines"] if x["method"] != "dense"})


def points(value: float | None, *, signed: bool = False) -> str:
    """A fraction in points."""
    return "-" if value is None else f"{100 * value:{'+' if signed else ''}.2f}"


def count_of(seen: Sequence[bool]) -> str:
    """``"2 of 3"``."""
    return f"{sum(seen)} of {len(seen)}"
