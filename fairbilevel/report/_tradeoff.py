"""The trade-off: accuracy against the largest gap, along the run and where it ended."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fairbilevel.records import Result
from fairbilevel.report import _svg as svg
from fairbilevel.report._groups import on
from fairbilevel.report._history import METHOD_PHASES, track
from fairbilevel.report._markup import figure, section
from fairbilevel.report._numbers import number, percent, points
from fairbilevel.report._scatter import axes
from fairbilevel.report._verdict import BASELINE, diverged

_GAP = "max_excess_accuracy_gap"
_MOST_STEPS = 40

# Largest gap in points, accuracy in percent.
_Spot = tuple[float, float]


def tradeoff_section(result: Result, metrics: Sequence[dict[str, Any]]) -> str:
    """Two pictures: every logged network on tune, and the final ones on test."""
    if diverged(result):
        return ""
    charts = _test_figure(result) + _tune_figure(result, metrics)
    if not charts:
        return ""
    intro = (
        "<p>Up is more accurate, left is fairer: the gap is what the worst group loses beyond the "
        "average. The dense model has no gap by definition. Small groups make gaps noisy, so read "
        "distances beside the intervals above.</p>"
    )
    return section(
        "tradeoff", "Accuracy against fairness", intro, f'<div class="charts">{charts}</div>'
    )


def _ends(result: Result, role: str) -> list[tuple[str, _Spot]]:
    """Dense, pruned and baseline, as far as they were measured on ``role``."""
    networks = (("Dense", result.dense), ("Pruned", result.pruned), (BASELINE, result.baseline))
    ends = []
    for name, roles in networks:
        found = on(roles, role)
        gap = 0.0 if name == "Dense" else found.gaps.excess_accuracy.largest
        if found.accuracy is not None and gap is not None:
            ends.append((name, (100 * gap, 100 * found.accuracy)))
    return ends if any(name == "Pruned" for name, _ in ends) else []


def _test_figure(result: Result) -> str:
    ends = _ends(result, "test")
    if not ends:
        return ""
    draw = partial(_chart, title="Accuracy against the largest gap on test", ends=ends, trails=[])
    return figure("tradeoff-test", "Where it ended", "Final networks, on test.", draw)


def _tune_figure(result: Result, metrics: Sequence[dict[str, Any]]) -> str:
    trails = []
    for name, phases in (("Pruned", METHOD_PHASES), (BASELINE, ("baseline",))):
        lines = track(metrics, *phases).lines
        lines = lines[:: -(-len(lines) // _MOST_STEPS) or 1]
        trail = [
            (100 * gap, 100 * accuracy)
            for line in lines
            if (gap := number(line, "tune", _GAP)) is not None
            and (accuracy := number(line, "tune", "accuracy")) is not None
        ]
        if len(trail) > 1:
            trails.append((name, trail))
    ends = _ends(result, "tune")
    if not trails or not ends:
        return ""
    title = "Accuracy against the largest gap on tune over the run"
    draw = partial(_chart, title=title, ends=ends, trails=trails)
    text = "Every logged network, on tune; thicker dots are later, the large marks the final ones."
    return figure("tradeoff-tune", "How it got there", text, draw)


_LOOK = {
    "Dense": (svg.INK, "diamond"),
    "Pruned": (svg.BLUE, "circle"),
    BASELINE: (svg.ORANGE, "square"),
}


def _chart(
    key: str,
    width: float,
    title: str,
    ends: Sequence[tuple[str, _Spot]],
    trails: Sequence[tuple[str, Sequence[_Spot]]],
) -> str:
    spots = [spot for _, spot in ends] + [spot for _, trail in trails for spot in trail]
    box = (58.0, 34.0, width - 14, 290.0)
    body, x, y = axes(box, [gap for gap, _ in spots], [height for _, height in spots])
    for name, trail in trails:
        color, shape = _LOOK[name]
        path = "".join(
            f"{'L' if i else 'M'}{svg.px(x(gap))} {svg.px(y(height))}"
            for i, (gap, height) in enumerate(trail)
        )
        body.append(
            f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1" opacity="0.45"/>'
        )
        for i, (gap, height) in enumerate(trail):
            size = 1.2 + 1.8 * (i + 1) / len(trail)
            body.append(svg.mark(shape, x(gap), y(height), color, size))
    place = 0.0
    for name, (gap, height) in ends:
        color, shape = _LOOK[name]
        body.append(svg.mark(shape, x(gap), y(height), "#fff", 7.5))
        body.append(svg.mark(shape, x(gap), y(height), color, 6))
        body.append(svg.mark(shape, place + 7, 10, color, 5))
        body.append(svg.label(place + 18, 14, name))
        place += 34 + svg.text_width(name)
    desc = " ".join(
        f"{name}: accuracy {percent(height / 100)}, largest gap {points(gap / 100)} points."
        for name, (gap, height) in ends
    )
    return svg.frame(key, width, 330.0, title, desc, body)
