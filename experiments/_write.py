"""What experiments write: tables as CSV and Markdown, pages, pictures, and by what they were
made."""

from __future__ import annotations

import argparse
import contextlib
import csv
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fairbilevel import _numbers, records
from fairbilevel.report.charts import LIGHT, STYLES
from fairbilevel.run import machine, versions

RESULTS = Path(__file__).parent / "results"
Row = Mapping[str, Any]


def parser(doc: str | None, out: Path | None = RESULTS, **options: Any) -> argparse.ArgumentParser:
    """Of an experiment's command line.

    Args:
        doc: the module's own words; the first paragraph says what it asks.
        out: where results go unless ``--out`` says otherwise.
        options: further ones by name (``_`` stands for ``-``): a default of the type to read, a
            type where there is no default, ``False`` for what is on when it is given.
    """
    made = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is False:
            made.add_argument(flag, action="store_true")
        elif isinstance(value, type):
            made.add_argument(flag, type=value)
        else:
            made.add_argument(flag, type=type(value), default=value)
    made.add_argument("--out", type=Path, default=out, help="folder for the results")
    return made


def command() -> str:
    """The command as typed, but for where things lie on this machine."""
    words = ["python", "-m", f"experiments.{Path(sys.argv[0]).stem}"]
    given = iter(sys.argv[1:])
    for word in given:
        option, is_, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if option == "--out":
            value = value if is_ else next(given, "")
        else:
            words.append(option + is_ + (Path(value).name if "/" in value else value))
    return shlex.join(words)


def made_by(typed: str | None = None) -> str:
    """Command, versions and machine, in one line."""
    of = ", ".join(f"{name} {version}" for name, version in versions().items())
    here = machine()
    return (
        f"Made by `{typed or command()}` with {of} on {here['device']} ({here['processor']}), "
        f"{here['cores']} cores."
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown; nothing without rows."""
    if not rows:
        return ""
    names = dict.fromkeys(name for row in rows for name in row)
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    lines += (f"| {' | '.join(str(row.get(name, '')) for name in names)} |" for row in rows)
    return "\n".join(lines)


def page(*blocks: str) -> str:
    """Markdown of paragraphs, tables and headings; empty ones are left out."""
    return "\n\n".join(block for block in blocks if block) + "\n"


def write_csv(path: Path, rows: Sequence[Row], digits: int | None = None) -> None:
    """Rows as CSV, with so many significant digits, or all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_csv(path, records.to_digits(rows, digits) if digits else rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def publish(stem: Path, rows: Sequence[Row], *blocks: str, typed: str | None = None) -> str:
    """Write ``STEM.csv`` and, of the blocks and by what they were made, ``STEM.md``; the latter is
    printed and returned."""
    write_csv(stem.with_suffix(".csv"), rows)
    text = page(*blocks, made_by(typed))
    records.write_text(stem.with_suffix(".md"), text)
    print(text, flush=True)
    return text


points = partial(_numbers.points, decimals=2)
gain = partial(points, signed=True)
"""A difference of fractions in points, with its sign."""


def interval(found: Mapping[str, Any], form: Callable[[Any], str] = gain) -> str:
    """A mean and, where it is known, its interval in brackets, of a corrected t test."""
    if found["low"] is None:
        return form(found["mean"])
    return f"{form(found['mean'])} ({form(found['low'])} to {form(found['high'])})"


_MARKS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "cross": "X", "ring": "o"}
_FRAME: dict[Any, Any] = {
    "axes.axisbelow": True, "axes.edgecolor": LIGHT["muted"], "axes.grid": True,
    "axes.labelcolor": LIGHT["muted"], "axes.labelsize": 9, "axes.spines.right": False,
    "axes.spines.top": False, "axes.titlesize": 10, "figure.titlesize": 11,
    "grid.color": LIGHT["line"], "legend.fontsize": 8, "legend.frameon": False,
    "lines.linewidth": 1.3, "lines.markersize": 5, "savefig.dpi": 120, "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"], "xtick.labelsize": 8, "ytick.color": LIGHT["muted"],
    "ytick.labelsize": 8,
}  # fmt: skip


def look(series: int, *, line: bool = True) -> dict[str, Any]:
    """How the first, second, ... series is plotted, as a line with marks or as marks alone.

    The ninth is the first again with other marks, and so on.
    """
    color, dash, _ = STYLES[series % len(STYLES)]
    shape = STYLES[(series + series // len(STYLES)) % len(STYLES)][2]
    dashes = tuple(float(n) for n in dash.split())
    return {
        "color": LIGHT[color],
        "marker": _MARKS[shape],
        "fillstyle": "none" if shape == "ring" else "full",
        "linestyle": ((0, dashes) if dashes else "-") if line else "",
    }


@contextlib.contextmanager
def picture(
    path: Path, rows: int, columns: int, size: tuple[float, float], **shared: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure of so many panels, in inches, and its axes as an array; saved at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    with plt.rc_context(_FRAME):
        figure, axes = plt.subplots(
            rows, columns, figsize=size, squeeze=False, layout="constrained", **shared
        )
        yield figure, axes
        figure.savefig(path)
        plt.close(figure)
    with Image.open(path) as drawn:  # few colours: a third of the size
        plain = drawn.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    plain.save(path, optimize=True)
