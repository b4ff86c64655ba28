"""Pictures of a comparison: every quantity against sparsity, a line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments._pictures import look, picture
from experiments._summaries import Summary, line_of, sparsities_of
from fairbilevel._numbers import share


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
