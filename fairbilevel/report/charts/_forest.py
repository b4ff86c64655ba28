"""The comparison's picture: one row a method, means and intervals side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairbilevel._numbers import share
from fairbilevel.report.charts._palette import STYLES
from fairbilevel.report.charts._svg import Picture, Scale, shorten, text_width, ticks

_PANEL, _GAP, _ROW, _TOP = 300.0, 30.0, 15.0, 64.0


@dataclass(frozen=True)
class Panel:
    """One quantity: its title, and where a line keeps mean, low and high (in shown units)."""

    title: str
    mean: str
    low: str
    high: str
    scale: float = 1.0

    def read(self, line: dict[str, Any], key: str) -> float | None:
        """A value of a line, in shown units."""
        value = line.get(key)
        return None if value is None else self.scale * float(value)


def forest_svg(
    lines: Sequence[dict[str, Any]], panels: Sequence[Panel], *, title: str, note: str
) -> str:
    """Means with whiskers, as a standalone SVG file.

    Args:
        lines: one a method and sparsity, with ``method``, ``sparsity`` and what the panels name;
            missing values leave their place empty.
        panels: from left to right.
        title: of the picture.
        note: a line below it.
    """
    methods = list(dict.fromkeys(str(line["method"]) for line in lines))
    sparsities = sorted({line["sparsity"] for line in lines})
    gutter = min(max((text_width(m) for m in methods), default=0) + 16, 220)
    band = _ROW * len(sparsities) + 9
    bottom = _TOP + band * len(methods)
    width = gutter + len(panels) * (_PANEL + _GAP)
    picture = Picture("comparison")
    picture.text(0, 16, title, css="b")
    looks = {s: STYLES[i % len(STYLES)] for i, s in enumerate(sparsities)}
    names = [(shape, color, f"{share(s)} removed") for s, (color, _, shape) in looks.items()]
    picture.legend(names, 0, 38)
    for row, method in enumerate(methods):
        y = _TOP + band * row
        picture.path([(0, y), (width - _GAP, y)])
        name = shorten(method, gutter - 12)
        picture.text(gutter - 10, y + band / 2 + 4, name, anchor="end", full=method)
    for i, panel in enumerate(panels):
        at = _scale(panel, lines, gutter + i * (_PANEL + _GAP))
        if at is None:
            continue
        picture.text(at.start, _TOP - 10, panel.title, css="b")
        picture.across(at, _TOP, bottom)
        for line in lines:
            mean = panel.read(line, panel.mean)
            if mean is None:
                continue
            color, _, shape = looks[line["sparsity"]]
            y = _TOP + band * methods.index(str(line["method"])) + 5
            y += _ROW * (sparsities.index(line["sparsity"]) + 0.5)
            low, high = panel.read(line, panel.low), panel.read(line, panel.high)
            if low is not None and high is not None:
                picture.path([(at(low), y), (at(high), y)], "ink", 1.2)
            picture.mark(shape, at(mean), y, color, 4.2)
    picture.text(0, bottom + 44, note, css="m")
    desc = f"{len(methods)} methods at {len(sparsities)} sparsities; all values stand in the table."
    width = max(width, text_width(note))
    return picture.svg(width, bottom + 54, title, desc, alone=True)


def _scale(panel: Panel, lines: Sequence[dict[str, Any]], left: float) -> Scale | None:
    def known(*keys: str) -> list[float]:
        return [v for line in lines for key in keys if (v := panel.read(line, key)) is not None]

    means = known(panel.mean)
    if not means:
        return None
    ends = [0.0, *means, *known(panel.low, panel.high)]
    # A whisker from two repetitions can be endless: it is cut, the means are always seen.
    reach = 1.5 * (max(means) - min(means) or abs(means[0]) or 1.0)
    low = max(min(ends), min([0.0, *means]) - reach)
    high = min(max(ends), max([0.0, *means]) + reach)
    return Scale(ticks(low, high, 4), left, left + _PANEL)
