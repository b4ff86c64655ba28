"""Lines over the course of a run, told apart by colour, dash pattern and mark."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fairbilevel.report.charts._palette import STYLES
from fairbilevel.report.charts._svg import Picture, Scale, shorten, text_width, ticks

Point = tuple[float, float | None]
Form = Callable[[float], str]

MOST_LINES = len(STYLES)
MOST_POINTS = 200
_REFERENCE_DASH = "4 3"


@dataclass(frozen=True)
class Line:
    """One line: points (x, y); a `None` breaks it. `style` counts through `STYLES`."""

    label: str
    points: Sequence[Point]
    style: int = 0

    @property
    def last(self) -> float | None:
        """The last known value."""
        return next((y for _, y in reversed(self.points) if y is not None), None)


@dataclass(frozen=True)
class Reference:
    """A horizontal line that says what to compare with."""

    value: float
    text: str


def thin(points: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS` points, evenly taken, with the first and the last."""
    if len(points) <= MOST_POINTS:
        return list(points)
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(i * step)] for i in range(MOST_POINTS)]


def line_chart(
    key: str,
    width: float,
    *,
    title: str,
    lines: Sequence[Line],
    form: Form,
    y_axis: str,
    x_axis: str = "gradient evaluations",
    phases: Sequence[tuple[float, str]] = (),
    reference: Reference | None = None,
    y_domain: tuple[float, float] | None = None,
    unit: float = 100,
) -> str:
    """The chart as SVG, `width` pixels wide, of at most `MOST_LINES` lines.

    `key` is unique on the page, `form` writes a value beside a name in the chart's key. `phases`
    says where each phase begins; the vertical axis spans the data unless `y_domain` is given, and
    its numbers are values times `unit`.
    """
    ys = [y for line in lines for _, y in line.points if y is not None]
    ys += [reference.value] if reference else []
    y_marks = ticks(*(y_domain or (min(ys, default=0.0), max(ys, default=1.0))), 5, unit)
    x_end = max([*(x for line in lines for x, _ in line.points), 1e-9])
    x_marks = [x for x in ticks(0.0, x_end, 4) if x <= x_end * (1 + 1e-9)]

    # The key: name, last value, and number of the style (-1 of the reference).
    entries = [(one.label, one.last, one.style) for one in lines]
    entries += [(reference.text, reference.value, -1)] if reference else []
    told = [(name, "" if last is None else form(last), style) for name, last, style in entries]
    beside = width >= 420
    widest = max((text_width(f"{name}  {last}", bold=True) for name, last, _ in told), default=0.0)
    side = min(widest + 36, 0.46 * width)
    top, bottom = 40.0, 250.0 if beside else 225.0
    y_at = Scale(y_marks, bottom, top, unit)
    left = max(text_width(number) for _, number in y_at.numbers) + 8
    right = width - (side if beside else 8)
    x_at = Scale(x_marks, left, right, high=x_end)

    picture = Picture(key)
    picture.text(0, 12, y_axis, css="m")
    picture.upward(y_at, left, right)
    picture.across(x_at, bottom, bottom + 4, x_axis)
    _phases(picture, phases, x_at, top, bottom)
    if reference:
        y = y_at(reference.value)
        picture.path([(left, y), (right, y)], "ink", 1.2, _REFERENCE_DASH)
    for line in lines:
        _draw(picture, line, x_at, y_at)
    height = bottom + 46
    if beside:
        wanted = [bottom if last is None else y_at(last) for _, last, _ in entries]
        spots = [(right + 8, y) for y in _spread(wanted, 16, top, bottom)]
    else:
        spots = [(0.0, height + 10 + 18 * i) for i in range(len(entries))]
        side, height = width, height + 18 * len(entries) + 6
    for entry, spot in zip(told, spots, strict=True):
        _entry(picture, *entry, *spot, side - 36)
    return picture.svg(width, height, title, _describe(lines, form))


def _entry(
    picture: Picture, name: str, value: str, style: int, x: float, y: float, room: float
) -> None:
    """A sample of a line with its mark, its name and its last value."""
    text = shorten(name, room - text_width(f"  {value}", bold=True))
    picture.text(x + 27, y + 4, text, full=name, value=value)
    if style < 0:
        picture.path([(x, y), (x + 22, y)], "ink", 1.2, _REFERENCE_DASH)
        return
    color, dash, shape = STYLES[style % MOST_LINES]
    picture.path([(x, y), (x + 22, y)], color, 1.6, dash)
    picture.mark(shape, x + 11, y, color)


def _describe(lines: Sequence[Line], form: Form) -> str:
    parts = []
    for line in lines:
        known = [y for _, y in line.points if y is not None]
        if known:
            parts.append(
                f"{line.label}: from {form(known[0])} to {form(known[-1])}, "
                f"lowest {form(min(known))}, highest {form(max(known))}."
            )
    return " ".join(parts) or "No values."


def _phases(
    picture: Picture, phases: Sequence[tuple[float, str]], at: Scale, top: float, bottom: float
) -> None:
    """The names of the phases along the top, with a line between two of them."""
    ends = [*(at(start) for start, _ in phases[1:]), at.end]
    for i, ((start, name), end) in enumerate(zip(phases, ends, strict=False)):
        x = at(start)
        if i:
            picture.path([(x, top - 12), (x, bottom)], "muted", 1, "1 3")
        if end - x > text_width(name, 11.5) + 8:
            picture.text(x + 4, top - 8, name, css="m")


def _draw(picture: Picture, line: Line, x_at: Scale, y_at: Scale) -> None:
    color, dash, shape = STYLES[line.style % MOST_LINES]
    places = [(x_at(x), None if y is None else y_at(y)) for x, y in thin(line.points)]
    picture.path(places, color, 1.6, dash)
    known = [(x, y) for x, y in places if y is not None]
    # Marks of different lines are set off against each other, so that they do not coincide.
    every = max(len(known) // 5, 1)
    for x, y in known[(line.style * every // MOST_LINES) % every :: every]:
        picture.mark(shape, x, y, color)


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, at least `gap` apart, within `low` and `high`."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = list(wanted)
    for n, i in enumerate(order):
        floor = placed[order[n - 1]] + gap if n else low
        placed[i] = max(wanted[i], floor)
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed
