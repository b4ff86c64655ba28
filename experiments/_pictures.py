"""Pictures of experiments: matplotlib in the palette, with the dashes and marks, of the package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fairbilevel.report.charts import LIGHT, STYLES

_MARKS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "cross": "X", "ring": "o"}
_FRAME = {
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

    with plt.rc_context(_FRAME):
        figure, axes = plt.subplots(
            rows, columns, figsize=size, squeeze=False, layout="constrained", **shared
        )
        yield figure, axes
        figure.savefig(path)
        plt.close(figure)
