"""The frontier's picture: accuracy against the largest gap, one mark a network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from fairbilevel.report import _svg as svg

Place = Callable[[float], float]

_PANEL, _HEIGHT, _LEFT, _TOP, _BOTTOM = 380.0, 330.0, 58.0, 34.0, 48.0


def frontier_svg(points: Sequence[dict[str, Any]], roles: Sequence[str] = ("tune", "test")) -> str:
    """One panel a role, as a standalone SVG file.

    Args:
        points: rows of ``frontier.csv``: ``method``, ``sparsity``, ``chosen`` (not dominated on
            tune) and, for each role, ``ROLE_accuracy`` and ``ROLE_gap`` as fractions.
        roles: panels from left to right.
    """
    sparsities = sorted({p["sparsity"] for p in points if p["method"] != "dense"})
    styles = {s: svg.LINE_STYLES[i % len(svg.LINE_STYLES)] for i, s in enumerate(sparsities)}
    width = len(roles) * (_PANEL + 20)
    body: list[str] = []
    for index, role in enumerate(roles):
        body += _panel(points, role, 20 * index + _PANEL * index, styles)
    body += _legend(styles, width)
    best = ", ".join(
        f"{100 * p['sparsity']:g} % removed at tolerance {100 * p['tolerance']:g} points"
        for p in points
        if p["chosen"]
    )
    title = "Accuracy against the largest gap"
    desc = (
        f"{len(points)} networks. Not dominated on tune: {best or 'none'}. All values stand in "
        "frontier.csv."
    )
    return svg.standalone(svg.frame("frontier", width, _HEIGHT + 52, title, desc, body))


def axes(
    box: tuple[float, float, float, float], gaps: Sequence[float], heights: Sequence[float]
) -> tuple[list[str], Place, Place]:
    """Grid and names of a panel, and where a gap (in points) and an accuracy (in percent) lie.

    `box` is left, top, right and bottom of the plot in pixels; all values given will fit in.
    """
    x0, y1, x1, y0 = box
    across, up = svg.ticks(min(0, *gaps), max(gaps)), svg.ticks(min(heights), max(heights))

    def x(value: float) -> float:
        return x0 + (value - across[0]) / (across[-1] - across[0]) * (x1 - x0)

    def y(value: float) -> float:
        return y0 - (value - up[0]) / (up[-1] - up[0]) * (y0 - y1)

    out = []
    for value in up:
        out.append(svg.stroke(x0, y(value), x1, y(value)))
        out.append(svg.label(x0 - 6, y(value) + 4, f"{value:g}", anchor="end", kind="m"))
    for value in across:
        out.append(svg.stroke(x(value), y0, x(value), y1))
        out.append(svg.label(x(value), y0 + 16, f"{value:g}", anchor="middle", kind="m"))
    middle = (x0 + x1) / 2
    out.append(
        svg.label(
            middle, y0 + 36, "Largest excess accuracy gap (points)", anchor="middle", kind="m"
        )
    )
    side, half = x0 - 44, (y0 + y1) / 2
    turn = f"rotate(-90 {svg.px(side)} {svg.px(half)})"
    out.append(
        f'<text class="m" text-anchor="middle" transform="{turn}" x="{svg.px(side)}" '
        f'y="{svg.px(half)}">Accuracy (%)</text>'
    )
    return out, x, y


def _panel(
    points: Sequence[dict[str, Any]], role: str, left: float, styles: dict[float, Any]
) -> list[str]:
    gaps = [100 * p[f"{role}_gap"] for p in points]
    heights = [100 * p[f"{role}_accuracy"] for p in points]
    box = (left + _LEFT, _TOP, left + _PANEL, _HEIGHT - _BOTTOM)
    out, x, y = axes(box, gaps, heights)
    out.append(svg.label(box[0], 18, f"On {role}", kind="b"))
    chosen = sorted((p for p in points if p["chosen"]), key=lambda p: p[f"{role}_gap"])
    if role == "tune":
        for a, b in itertools.pairwise(chosen):
            ends = [(x(100 * p[f"{role}_gap"]), y(100 * p[f"{role}_accuracy"])) for p in (a, b)]
            out.append(svg.stroke(*ends[0], *ends[1], svg.MUTED, 1, "4 3"))
    for p, gap, height in zip(points, gaps, heights, strict=True):
        out.append(_point(p, x(gap), y(height), styles))
    return out


def _point(p: dict[str, Any], x: float, y: float, styles: dict[float, Any]) -> str:
    if p["method"] == "dense":
        return svg.mark("diamond", x, y, svg.INK, 5) + svg.label(x + 9, y + 4, "dense")
    color, _, shape = styles[p["sparsity"]]
    if p["method"] != "bilevel":
        down = svg.stroke(x - 5, y - 5, x + 5, y + 5, color, 2)
        return down + svg.stroke(x - 5, y + 5, x + 5, y - 5, color, 2)
    shape = "square" if shape == "cross" else shape
    around = f'<circle cx="{svg.px(x)}" cy="{svg.px(y)}" r="8.5" fill="none" stroke="{svg.INK}" '
    around = around + 'stroke-width="1.4"/>' if p["chosen"] else ""
    text = f"{100 * p['tolerance']:g}"
    return around + svg.mark(shape, x, y, color, 4.5) + svg.label(x + 10, y - 5, text, kind="m")


def _legend(styles: dict[float, Any], width: float) -> list[str]:
    out, x, y = [], _LEFT, _HEIGHT + 14
    for sparsity, (color, _, shape) in styles.items():
        text = f"{100 * sparsity:g} % removed"
        out.append(svg.mark("square" if shape == "cross" else shape, x, y - 4, color, 4.5))
        out.append(svg.label(x + 10, y, text))
        x += 34 + svg.text_width(text)
    note = (
        "Numbers: tolerance in points. Ring: not dominated on tune. X: gradual magnitude pruning "
        "at the same sparsity."
    )
    return [*out, svg.label(_LEFT, y + 24, note, kind="m")]
