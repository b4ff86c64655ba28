"""Horizontal bars, several per category, on both sides of zero where values are negative."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fairbilevel.report import _svg as svg
from fairbilevel.report._numbers import MISSING, compact


@dataclass(frozen=True)
class Bars:
    """One series: a value per category (`None`: no rows), filled as `_svg.bar` says.

    `intervals`, where given, are drawn as whiskers.
    """

    label: str
    values: Sequence[float | None]
    fill: str
    intervals: Sequence[tuple[float, float] | None] | None = None


@dataclass(frozen=True)
class Cut:
    """A line that values should not pass; longer bars are marked."""

    value: float
    text: str


def describe(
    categories: Sequence[str], series: Sequence[Bars], form: Callable[[float], str]
) -> str:
    """The text alternative of a bar chart: every value where they are few, else the range."""
    parts = []
    for one in series:
        pairs = [(n, v) for n, v in zip(categories, one.values, strict=True) if v is not None]
        if not pairs:
            continue
        if len(pairs) <= 16:
            text = "; ".join(f"{name} {form(value)}" for name, value in pairs)
        else:
            low, high = min(pairs, key=lambda p: p[1]), max(pairs, key=lambda p: p[1])
            text = f"{len(pairs)} values from {form(low[1])} ({low[0]}) "
            text += f"to {form(high[1])} ({high[0]})"
        parts.append(f"{one.label}: {text}.")
    return " ".join(parts) or "No values."


def bar_chart(
    key: str,
    width: float,
    *,
    title: str,
    categories: Sequence[str],
    series: Sequence[Bars],
    form: Callable[[float], str],
    axis: str,
    domain: tuple[float, float] | None = None,
    cut: Cut | None = None,
    slots: int = 0,
) -> str:
    """The chart as SVG, `width` pixels wide and as high as its bars need.

    `key` is unique on the page, `form` writes a value beside its bar. The axis reaches over the
    data and zero unless a `domain` is given; `slots` leaves room for so many bars per category, to
    align this chart with one beside it.
    """
    values = [v for one in series for v in one.values if v is not None]
    values += [end for one in series for pair in one.intervals or () for end in pair or ()]
    extent = [0.0, *values, *([cut.value] if cut else [])]
    low, high = domain or (min(extent), max(extent))
    marks = svg.ticks(low, high, 4)
    low, high = marks[0], marks[-1]

    longest = max((svg.text_width(name) for name in categories), default=0.0)
    above = longest > 0.28 * width and width < 420
    gutter = 0.0 if above else min(longest + 12, 0.36 * width)
    room = max((svg.text_width(form(v)) for v in values), default=0.0) + (20 if cut else 8)
    left = gutter + (room if low < 0 else 3)
    right = width - room
    scale = (right - left) / (high - low)

    def at(value: float) -> float:
        return left + (min(max(value, low), high) - low) * scale

    body = [svg.fills(key)]
    top = (_legend(body, key, series, width) or (26.0 if slots > 1 else 0.0)) + (
        18 if cut or slots else 4
    )
    thick = 15.0 if len(series) == 1 else 12.0 if len(categories) <= 16 else 10.0
    head, gap = (18.0 if above else 0.0), 12.0 if len(series) > 1 else 8.0
    bars = thick * len(series) + 2 * (len(series) - 1)
    spare = max(slots - len(series), 0) * (thick + 2) * (not above)
    band = head + bars + spare + gap
    bottom = top + band * max(len(categories), 1)

    for tick in marks:
        body.append(
            svg.stroke(at(tick), top, at(tick), bottom, svg.MUTED if tick == 0 else svg.GRID)
        )
        body.append(
            svg.label(at(tick), bottom + 15, compact(tick, high), anchor="middle", kind="m")
        )
    body.append(svg.label((left + right) / 2, bottom + 32, axis, anchor="middle", kind="m"))
    names: list[str] = []
    for i, name in enumerate(categories):
        y = top + band * i + gap / 2
        if above:
            names.append(svg.label(0, y + 12, svg.shorten(name, width), kind="halo", full=name))
        else:
            middle = y + (band - gap) / 2 + 4
            parts = svg.wrap(name, gutter - 8) if band >= 32 else [svg.shorten(name, gutter - 8)]
            for n, part in enumerate(parts):
                line = middle + 14 * (n - (len(parts) - 1) / 2)
                names.append(svg.label(gutter - 8, line, part, anchor="end", full=name))
        for j, one in enumerate(series):
            row = y + head + spare / 2 + j * (thick + 2)
            interval = one.intervals[i] if one.intervals else None
            body += _one_bar(key, one.fill, one.values[i], interval, row, thick, at, form, cut)
    if cut:
        body.append(
            svg.stroke(at(cut.value), top - 4, at(cut.value), bottom, svg.VERMILION, 1.5, "5 3")
        )
    body += names
    if cut:
        near_end = at(cut.value) > width - svg.text_width(cut.text) / 2 - 2
        place = width if near_end else at(cut.value)
        body.append(
            svg.label(place, top - 8, cut.text, anchor="end" if near_end else "middle", kind="b")
        )
    return svg.frame(key, width, bottom + 38, title, describe(categories, series, form), body)


def _one_bar(
    key: str,
    fill: str,
    value: float | None,
    interval: tuple[float, float] | None,
    y: float,
    thick: float,
    at: Callable[[float], float],
    form: Callable[[float], str],
    cut: Cut | None,
) -> list[str]:
    zero = at(0.0)
    if value is None:
        return [svg.label(zero + 5, y + thick / 2 + 4.2, f"{MISSING} no rows", kind="m")]
    end = at(value)
    over = cut is not None and value > cut.value + 1e-9
    text = form(value) + (" ✗" if over else "")
    whisker = _whisker(interval, at, y + thick / 2, thick) if interval else []
    reach = end if interval is None else at(interval[1] if value >= 0 else interval[0])
    x, anchor = (reach + 5, "start") if value >= 0 else (reach - 5, "end")
    # A short bar beside the limit would have the dashed line through its number.
    if cut is not None and value >= 0 and x - 2 < at(cut.value) < x + svg.text_width(text):
        x = at(cut.value) + 5
    return [
        svg.bar(key, fill, min(zero, end), y, abs(end - zero), thick),
        *whisker,
        svg.label(x, y + thick / 2 + 4.2, text, anchor=anchor, kind="b" if over else ""),
    ]


def _whisker(
    interval: tuple[float, float], at: Callable[[float], float], y: float, thick: float
) -> list[str]:
    low, high = at(interval[0]), at(interval[1])
    cap = thick / 4
    # White below black: seen on a dark bar as on paper.
    return [
        svg.stroke(low, y, high, y, "#fff", 3.2),
        svg.stroke(low, y, high, y, svg.INK, 1.2),
        *(svg.stroke(x, y - cap, x, y + cap, svg.INK, 1.2) for x in (low, high)),
    ]


def _legend(body: list[str], key: str, series: Sequence[Bars], width: float) -> float:
    """Appends a legend where there are several series; returns the height it takes."""
    if len(series) < 2:
        return 0.0
    x, y = 0.0, 2.0
    for one in series:
        need = 24 + svg.text_width(one.label) + 14
        if x and x + need > width:
            x, y = 0.0, y + 19
        body.append(svg.bar(key, one.fill, x + 1, y, 16, 11))
        body.append(svg.label(x + 23, y + 10, one.label))
        x += need
    return y + 24
