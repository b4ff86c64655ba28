"""The comparison's picture: one row a method, means and intervals side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairbilevel.report import _svg as svg

_PANEL, _GAP, _ROW, _TOP = 300.0, 30.0, 15.0, 64.0


@dataclass(frozen=True)
class Panel:
    """One quantity: its title, and where a line keeps mean, low and high (in shown units)."""

    title: str
    mean: str
    low: str
    high: str
    scale: float = 1.0


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
    gutter = min(max((svg.text_width(m) for m in methods), default=0) + 16, 220)
    band = _ROW * len(sparsities) + 9
    bottom = _TOP + band * len(methods)
    width = gutter + len(panels) * (_PANEL + _GAP)
    body = [svg.label(0, 16, title, kind="b")]
    x = 0.0
    for i, sparsity in enumerate(sparsities):
        color, _, shape = svg.LINE_STYLES[i % len(svg.LINE_STYLES)]
        text = f"{100 * sparsity:g} % removed"
        body += [svg.mark(shape, x + 6, 34, color, 4.5), svg.label(x + 16, 38, text)]
        x += 36 + svg.text_width(text)
    for row, method in enumerate(methods):
        y = _TOP + band * row
        body.append(svg.stroke(0, y, width - _GAP, y))
        name = svg.shorten(method, gutter - 12)
        body.append(svg.label(gutter - 10, y + band / 2 + 4, name, anchor="end", full=method))
    for i, panel in enumerate(panels):
        left = gutter + i * (_PANEL + _GAP)
        body += _draw(panel, lines, methods, sparsities, left, band, bottom)
    body.append(svg.label(0, bottom + 44, note, kind="m"))
    desc = f"{len(methods)} methods at {len(sparsities)} sparsities; all values stand in the table."
    width = max(width, svg.text_width(note))
    return svg.standalone(svg.frame("comparison", width, bottom + 54, title, desc, body))


def _draw(
    panel: Panel,
    lines: Sequence[dict[str, Any]],
    methods: Sequence[str],
    sparsities: Sequence[float],
    left: float,
    band: float,
    bottom: float,
) -> list[str]:
    def read(line: dict[str, Any], key: str) -> float | None:
        value = line.get(key)
        return None if value is None else panel.scale * float(value)

    means = [v for line in lines if (v := read(line, panel.mean)) is not None]
    if not means:
        return []
    reach = max(means) - min(means) or abs(means[0]) or 1.0
    ends = [
        v for line in lines for k in (panel.low, panel.high) if (v := read(line, k)) is not None
    ]
    # A whisker from two repetitions can be endless: it is cut, the means are always seen.
    low = max(min([0.0, *means, *ends]), min([0.0, *means]) - 1.5 * reach)
    high = min(max([0.0, *means, *ends]), max([0.0, *means]) + 1.5 * reach)
    marks = svg.ticks(low, high, 4)
    low, high = marks[0], marks[-1]

    def at(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * _PANEL

    body = [svg.label(left, _TOP - 10, panel.title, kind="b")]
    for tick in marks:
        body.append(
            svg.stroke(at(tick), _TOP, at(tick), bottom, svg.MUTED if tick == 0 else svg.GRID)
        )
        body.append(svg.label(at(tick), bottom + 16, f"{tick:g}", anchor="middle", kind="m"))
    for line in lines:
        mean = read(line, panel.mean)
        if mean is None:
            continue
        place = sparsities.index(line["sparsity"])
        color, _, shape = svg.LINE_STYLES[place % len(svg.LINE_STYLES)]
        y = _TOP + band * methods.index(str(line["method"])) + 5 + _ROW * (place + 0.5)
        start, end = read(line, panel.low), read(line, panel.high)
        if start is not None and end is not None:
            body.append(svg.stroke(at(start), y, at(end), y, svg.INK, 1.2))
        body.append(svg.mark(shape, at(mean), y, color, 4.2))
    return body
