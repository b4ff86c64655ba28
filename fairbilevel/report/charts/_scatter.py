"""Accuracy against the largest gap: a frontier's networks, and the course of one run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from fairbilevel._numbers import exact_points, percent, points, share
from fairbilevel.report.charts._palette import NETWORKS, STYLES
from fairbilevel.report.charts._svg import Picture, Scale, text_width, ticks

Spot = tuple[float, float]
"""Largest gap and accuracy, as fractions."""

_PANEL, _HEIGHT, _LEFT, _TOP, _BOTTOM = 380.0, 330.0, 58.0, 34.0, 48.0


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
