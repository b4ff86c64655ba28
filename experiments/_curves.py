"""Pictures of a comparison: every quantity against sparsity, a line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments._summaries import Summary, line_of, sparsities_of

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9", "#8a9199")
DASHES = ("-", "--", "-.", ":")
MARKS = "osD^vP*X"


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
