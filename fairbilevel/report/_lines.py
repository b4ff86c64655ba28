"""Lines over the course of a run, told apart by colour, dash pattern and mark."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fairbilevel.report._numbers import compact
from fairbilevel.report._svg import (
    GRID,
    LINE_STYLES,
    MUTED,
    frame,
    label,
    mark,
    px,
    shorten,
    stroke,
    text_width,
    ticks,
)

Point = tuple[float, float | None]

MOST_LINES = len(LINE_STYLES)
MOST_POINTS = 200


@dataclass(frozen=True)
class Line:
    """One line: points (x, y); a `None` breaks it. `style` counts through `LINE_STYLES`."""

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
    form: Callable[[float], str],
    y_axis: str,
    x_axis: str = "gradient evaluations",
    phases: Sequence[tuple[float, str]] = (),
    reference: Reference | None = None,
    y_domain: tuple[float, float] | None = None,
) -> str:
    """Draws the chart as an SVG string.

    **Arguments:**

    - `key`: unique on the page.
    - `lines`: at most `MOST_LINES` of them.
    - `form`: writes a line's last value beside its name.
    - `phases`: where each phase begins, with its name.
    - `reference`: a value to draw as a dashed horizontal line.
    - `y_domain`: the range of the vertical axis; by default that of the data.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if y is not None]
    ys += [reference.value] if reference else []
    y_marks = ticks(*(y_domain or (min(ys, default=0.0), max(ys, default=1.0))), 5)
    x_marks = ticks(0.0, max([*xs, 1e-9]), 4)
    x_end = max([*xs, 1e-9])
    x_marks = [x for x in x_marks if x <= x_end * (1 + 1e-9)]

    beside = width >= 420
    names = [f"{line.label}  {form(line.last)}" if line.last is not None else line.label
             for line in lines]
    side = min(max((text_width(n) for n in names), default=0.0) + 34, 0.42 * width)
    left = max(text_width(compact(t)) for t in y_marks) + 10
    right = width - (side if beside else 8)
    top, bottom = 40.0, 250.0

    def at_x(x: float) -> float:
        return left + x / x_end * (right - left)

    def at_y(y: float) -> float:
        return bottom - (y - y_marks[0]) / (y_marks[-1] - y_marks[0]) * (bottom - top)

    body = [label(0, 12, y_axis, kind="m")]
    for tick in y_marks:
        shade = MUTED if tick == 0 else GRID
        body.append(stroke(left, at_y(tick), right, at_y(tick), shade))
        body.append(label(left - 6, at_y(tick) + 4, compact(tick), anchor="end", kind="m"))
    for tick in x_marks:
        body.append(stroke(at_x(tick), bottom, at_x(tick), bottom + 4, MUTED))
        body.append(label(at_x(tick), bottom + 18, compact(tick), anchor="middle", kind="m"))
    body.append(label((left + right) / 2, bottom + 35, x_axis, anchor="middle", kind="m"))
    body += _phases(phases, at_x, top, bottom, right)
    if reference:
        y = at_y(reference.value)
        body.append(stroke(left, y, right, y, "#1a1f24", 1.2, "4 3"))
        below = y < top + 16
        body.append(label(left + 5, y + (14 if below else -5), reference.text, kind="halo"))
    for line in lines:
        body += _path(line, at_x, at_y)
    height = bottom + 42
    if len(lines) > 1 or beside:
        placed = [at_y(line.last) if line.last is not None else bottom for line in lines]
        if beside:
            spots = [(right + 8, y) for y in _spread(placed, 16, top, bottom)]
            room = side - 34
        else:
            spots = [(0.0, height + 4 + 18 * i) for i in range(len(lines))]
            room, height = width - 30, height + 18 * len(lines) + 4
        for line, name, (x, y) in zip(lines, names, spots, strict=True):
            body += _key(line, shorten(line.label, room - text_width(name[len(line.label):])),
                         name, x, y)
    return frame(key, width, height, title, _describe(lines, form), body)


def _describe(lines: Sequence[Line], form: Callable[[float], str]) -> str:
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
    phases: Sequence[tuple[float, str]],
    at_x: Callable[[float], float],
    top: float,
    bottom: float,
    right: float,
) -> list[str]:
    """The names of the phases along the top, with a line between two of them."""
    body = []
    for i, (start, name) in enumerate(phases):
        x = at_x(start)
        end = at_x(phases[i + 1][0]) if i + 1 < len(phases) else right
        if i:
            body.append(stroke(x, top - 12, x, bottom, MUTED, 1, "1 3"))
        if end - x > text_width(name, 11) + 8:
            body.append(label(x + 4, top - 8, name, kind="m"))
    return body


def _path(
    line: Line, at_x: Callable[[float], float], at_y: Callable[[float], float]
) -> list[str]:
    color, dash, shape = LINE_STYLES[line.style % MOST_LINES]
    places = [(at_x(x), None if y is None else at_y(y)) for x, y in thin(line.points)]
    steps, pen_down = [], False
    for x, y in places:
        if y is not None:
            steps.append(f"{'L' if pen_down else 'M'}{px(x)} {px(y)}")
        pen_down = y is not None
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    body = [
        f'<path d="{"".join(steps)}" fill="none" stroke="{color}" stroke-width="1.8" '
        f'stroke-linejoin="round"{dashed}/>'
    ] if steps else []
    known = [(x, y) for x, y in places if y is not None]
    # Marks of different lines are set off against each other, so that they do not coincide.
    every = max(len(known) // 5, 1)
    for i in range((line.style * every // MOST_LINES) % every, len(known), every):
        body.append(mark(shape, known[i][0], known[i][1], color))
    return body


def _key(line: Line, text: str, name: str, x: float, y: float) -> list[str]:
    """A sample of the line with its mark, its name and its last value."""
    color, dash, shape = LINE_STYLES[line.style % MOST_LINES]
    value = name[len(line.label):]
    return [
        stroke(x, y, x + 22, y, color, 1.8, dash),
        mark(shape, x + 11, y, color),
        label(x + 27, y + 4, text + value, full=name),
    ]


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
