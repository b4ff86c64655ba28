"""Networks as marks: a comparison's means with intervals; accuracy against the largest gap of a
frontier's networks, and over the course of one run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairbilevel._numbers import exact_points, percent, points, share
from fairbilevel.report.charts._palette import NETWORKS, STYLES
from fairbilevel.report.charts._svg import Picture, Scale, shorten, text_width, ticks

_FOREST, _GAP, _ROW, _HEAD = 300.0, 30.0, 15.0, 64.0
_PANEL, _HEIGHT, _LEFT, _TOP, _BOTTOM = 380.0, 330.0, 58.0, 34.0, 48.0

Spot = tuple[float, float]
"""Largest gap and accuracy, as fractions."""


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
    bottom = _HEAD + band * len(methods)
    width = gutter + len(panels) * (_FOREST + _GAP)
    picture = Picture("comparison")
    picture.text(0, 16, title, css="b")
    looks = {s: STYLES[i % len(STYLES)] for i, s in enumerate(sparsities)}
    names = [(shape, color, f"{share(s)} removed") for s, (color, _, shape) in looks.items()]
    picture.legend(names, 0, 38)
    for row, method in enumerate(methods):
        y = _HEAD + band * row
        picture.path([(0, y), (width - _GAP, y)])
        name = shorten(method, gutter - 12)
        picture.text(gutter - 10, y + band / 2 + 4, name, anchor="end", full=method)
    for i, panel in enumerate(panels):
        at = _scale(panel, lines, gutter + i * (_FOREST + _GAP))
        if at is None:
            continue
        picture.text(at.start, _HEAD - 10, panel.title, css="b")
        picture.across(at, _HEAD, bottom)
        for line in lines:
            mean = panel.read(line, panel.mean)
            if mean is None:
                continue
            color, _, shape = looks[line["sparsity"]]
            y = _HEAD + band * methods.index(str(line["method"])) + 5
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
    return Scale(ticks(low, high, 4), left, left + _FOREST)


def frontier_svg(points: Sequence[dict[str, Any]], roles: Sequence[str] = ("tune", "test")) -> str:
    """One panel a role, as a standalone SVG file.

    Args:
        points: rows of ``frontier.csv``: ``method``, ``sparsity``, ``chosen`` (not dominated on
            tune) and, for each role, ``ROLE_accuracy`` and ``ROLE_gap`` as fractions.
        roles: panels from left to right.
    """
    sparsities = sorted({p["sparsity"] for p in points if p["method"] != "dense"})
    shapes = [(c, "square" if shape == "cross" else shape) for c, _, shape in STYLES]
    looks = {s: shapes[i % len(shapes)] for i, s in enumerate(sparsities)}
    picture = Picture("frontier")
    for index, role in enumerate(roles):
        _panel(picture, points, role, (20 + _PANEL) * index, looks)
    y = _HEIGHT + 14
    names = [(shape, color, f"{share(s)} removed") for s, (color, shape) in looks.items()]
    picture.legend(names, _LEFT - 9, y)
    note = (
        "Numbers: tolerance in points. Ring: not dominated on tune. X: gradual magnitude pruning "
        "at the same sparsity."
    )
    picture.text(_LEFT, y + 24, note, css="m")
    best = ", ".join(
        f"{share(p['sparsity'])} removed at tolerance {exact_points(p['tolerance'])} points"
        for p in points
        if p["chosen"]
    )
    desc = (
        f"{len(points)} networks. Not dominated on tune: {best or 'none'}. All values stand in "
        "frontier.csv."
    )
    width = max(len(roles) * (_PANEL + 20), _LEFT + text_width(note, 11.5))
    return picture.svg(width, _HEIGHT + 52, "Accuracy against the largest gap", desc, alone=True)


def tradeoff_chart(
    key: str,
    width: float,
    *,
    title: str,
    ends: dict[str, Spot],
    trails: dict[str, list[Spot]],
) -> str:
    """Where `NETWORKS` ended, and the trails on which they came there: smaller dots are earlier."""
    spots = [*ends.values(), *itertools.chain(*trails.values())]
    picture = Picture(key)
    x, y = _axes(picture, (_LEFT, _TOP, width - 14, 290.0), spots)
    for network, trail in trails.items():
        _, color, shape = NETWORKS[network]
        places = [(x(gap), y(height)) for gap, height in trail]
        picture.path(places, color, 1, opacity="0.45")
        for i, place in enumerate(places):
            picture.mark(shape, *place, color, 1.2 + 1.8 * (i + 1) / len(trail))
    names, told = [], []
    for network, (gap, height) in ends.items():
        name, color, shape = NETWORKS[network]
        # All are seen where they coincide.
        size = {"dense": 7, "pruned": 5.2, "baseline": 3.8}[network]
        picture.mark(shape, x(gap), y(height), "paper", size + 1.2)
        picture.mark(shape, x(gap), y(height), color, size)
        names.append((shape, color, name))
        told.append(f"{name}: accuracy {percent(height)}, largest gap {points(gap)} points.")
    picture.legend(names, 0, 14)
    return picture.svg(width, 330.0, title, " ".join(told))


def _axes(
    picture: Picture, box: tuple[float, float, float, float], spots: Sequence[Spot]
) -> tuple[Scale, Scale]:
    """Grid and names of a panel, in which all spots lie; `box` is left, top, right, bottom."""
    left, top, right, bottom = box
    gaps, heights = zip(*spots, strict=True)
    across = Scale(ticks(min(0, *gaps), max(gaps), unit=100), left, right, 100)
    up = Scale(ticks(min(heights), max(heights), unit=100), bottom, top, 100)
    picture.upward(up, left - 6, right)  # marks lie on the axis, beside its numbers
    picture.across(across, top, bottom, "Largest excess accuracy gap (points)")
    picture.text(
        left - 47, (top + bottom) / 2, "Accuracy (%)", anchor="middle", css="m", turned=True
    )
    return across, up


def _panel(
    picture: Picture,
    points: Sequence[dict[str, Any]],
    role: str,
    left: float,
    looks: dict[float, tuple[str, str]],
) -> None:
    spots = [(p[f"{role}_gap"], p[f"{role}_accuracy"]) for p in points]
    box = (left + _LEFT, _TOP, left + _PANEL, _HEIGHT - _BOTTOM)
    across, up = _axes(picture, box, spots)
    picture.text(box[0], 18, f"On {role}", css="b")
    places = [(across(gap), up(height)) for gap, height in spots]
    if role == "tune":
        chosen = sorted(place for place, p in zip(places, points, strict=True) if p["chosen"])
        for one, two in itertools.pairwise(chosen):
            picture.path([one, two], "muted", 1, "4 3")
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y in places]
    for p, (x, y) in zip(points, places, strict=True):
        if p["method"] not in ("dense", "bilevel"):
            picture.mark("cross", x, y, looks[p["sparsity"]][0], 5)
            continue
        color, shape = looks.get(p["sparsity"], NETWORKS["dense"][1:])
        if p["chosen"]:
            picture.mark("halo", x, y, "ink", 8.5)
        picture.mark(shape, x, y, color, 4.5)
        text = "dense" if p["tolerance"] is None else exact_points(p["tolerance"])
        picture.beside(x, y, text, taken, box[0])
