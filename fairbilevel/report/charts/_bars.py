"""Horizontal bars, several per category, on both sides of zero where values are negative."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fairbilevel._numbers import MISSING
from fairbilevel.report.charts._palette import NETWORKS
from fairbilevel.report.charts._svg import Picture, Scale, shorten, text_width, ticks, wrap

Interval = tuple[float, float]
Form = Callable[[float], str]


@dataclass(frozen=True)
class Bars:
    """One series: which of `NETWORKS`, and a value per category (`None`: no rows).

    `intervals`, where given, are drawn as whiskers.
    """

    network: str
    values: Sequence[float | None]
    intervals: Sequence[Interval | None] | None = None


@dataclass(frozen=True)
class Cut:
    """A line that values should not pass; longer bars are marked."""

    value: float
    text: str


def describe(categories: Sequence[str], series: Sequence[Bars], form: Form) -> str:
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
        parts.append(f"{NETWORKS[one.network][0]}: {text}.")
    return " ".join(parts) or "No values."


def bar_chart(
    key: str,
    width: float,
    *,
    title: str,
    categories: Sequence[str],
    series: Sequence[Bars],
    form: Form,
    axis: str,
    domain: Interval | None = None,
    cut: Cut | None = None,
    slots: int = 0,
    unit: float = 100,
) -> str:
    """The chart as SVG, `width` pixels wide and as high as its bars need.

    `key` is unique on the page, `form` writes a value beside its bar. The axis reaches over the
    data and zero unless a `domain` is given; `slots` leaves room for so many bars per category, to
    align this chart with one beside it; numbers at the axis are values times `unit`.
    """
    values = [v for one in series for v in one.values if v is not None]
    values += [end for one in series for pair in one.intervals or () for end in pair or ()]
    extent = [0.0, *values, *([cut.value] if cut else [])]
    marks = ticks(*(domain or (min(extent), max(extent))), 4, unit)

    longest = max((text_width(name) for name in categories), default=0.0)
    above = longest > 0.28 * width and width < 420
    gutter = 0.0 if above else min(longest + 12, 0.36 * width)
    room = max((text_width(form(v)) for v in values), default=0.0) + (20 if cut else 8)
    at = Scale(marks, gutter + (room if marks[0] < 0 else 3), width - room, unit)

    picture = Picture(key)
    picture.hatches()
    top = 26.0 if slots > 1 else 0.0
    if len(series) > 1:
        names = [(one.network, "", NETWORKS[one.network][0]) for one in series]
        top = picture.legend(names, 0, 12, width) + 14
    top += 18 if cut or slots else 4
    thick = 15.0 if len(series) == 1 else 12.0 if len(categories) <= 16 else 10.0
    head, gap = (18.0 if above else 0.0), 12.0 if len(series) > 1 else 8.0
    bars = thick * len(series) + 2 * (len(series) - 1)
    spare = max(slots - len(series), 0) * (thick + 2) * (not above)
    band = head + bars + spare + gap
    bottom = top + band * max(len(categories), 1)

    picture.across(at, top, bottom, axis)
    for i in range(len(categories)):
        for j, one in enumerate(series):
            y = top + band * i + gap / 2 + head + spare / 2 + j * (thick + 2)
            _bar(picture, one, i, (y, thick), at, form, cut)
    if cut:
        picture.path([(at(cut.value), top - 4), (at(cut.value), bottom)], "red", 1.5, "5 3")
        half = text_width(cut.text, bold=True) / 2
        place = min(max(at(cut.value), half), width - half)
        picture.text(place, top - 8, cut.text, anchor="middle", css="b")
    for i, name in enumerate(categories):
        y = top + band * i + gap / 2
        if above:
            left = 0 if marks[0] < 0 else at.start + 4  # not on the axis
            picture.text(left, y + 12, shorten(name, width - left), css="halo", full=name)
            continue
        middle = y + (band - gap) / 2 + 4
        parts = wrap(name, gutter - 8) if band >= 32 else [shorten(name, gutter - 8)]
        for n, part in enumerate(parts):
            line = middle + 14 * (n - (len(parts) - 1) / 2)
            picture.text(gutter - 8, line, part, anchor="end", full=name)
    return picture.svg(width, bottom + 38, title, describe(categories, series, form))


def _bar(
    picture: Picture, one: Bars, i: int, row: Interval, at: Scale, form: Form, cut: Cut | None
) -> None:
    """A value with its whiskers and its number, in a row (top, height)."""
    value, interval = one.values[i], one.intervals[i] if one.intervals else None
    y, thick = row
    zero, middle = at(0.0), y + thick / 2
    if value is None:
        picture.text(zero + 5, middle + 4.2, f"{MISSING} no rows", css="m")
        return
    end = at(value)
    over = cut is not None and value > cut.value + 1e-9
    text = form(value) + (" ✗" if over else "")
    picture.bar(one.network, min(zero, end), y, abs(end - zero), thick)
    reach = end
    if interval:
        low, high = at(interval[0]), at(interval[1])
        reach = high if value >= 0 else low
        # Paper below ink: seen on a dark bar as beside it.
        picture.path([(low, middle), (high, middle)], "paper", 3.2)
        picture.path([(low, middle), (high, middle)], "ink", 1.2)
        for x in (low, high):
            picture.path([(x, middle - thick / 4), (x, middle + thick / 4)], "ink", 1.2)
    x, anchor = (reach + 5, "") if value >= 0 else (reach - 5, "end")
    # A short bar beside the limit would have the dashed line through its number.
    if cut is not None and value >= 0 and x - 2 < at(cut.value) < x + text_width(text):
        x = at(cut.value) + 5
    picture.text(x, middle + 4.2, text, anchor=anchor, css="b" if over else "")
