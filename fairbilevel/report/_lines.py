"""Lines over the course of a run, told apart by colour, dash pattern and mark."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fairbilevel.report import _svg as svg
from fairbilevel.report._numbers import compact

Point = tuple[float, float | None]

MOST_LINES = len(svg.LINE_STYLES)
MOST_POINTS = 200
_REFERENCE_DASH = "4 3"


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
    """The chart as SVG, `width` pixels wide, of at most `MOST_LINES` lines.

    `key` is unique on the page, `form` writes a value beside a name in the chart's key. `phases`
    says where each phase begins; the vertical axis spans the data unless `y_domain` is given.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if y is not None]
    ys += [reference.value] if reference else []
    y_marks = svg.ticks(*(y_domain or (min(ys, default=0.0), max(ys, default=1.0))), 5)
    x_end = max([*xs, 1e-9])
    x_marks = [x for x in svg.ticks(0.0, x_end, 4) if x <= x_end * (1 + 1e-9)]

    entries = [_Entry(one.label, one.last, one.style) for one in lines]
    entries += [_Entry(reference.text, reference.value, None)] if reference else []
    beside = width >= 420
    side = max(svg.text_width(entry.text(form)) for entry in entries) + 44 if entries else 0.0
    side = min(side, 0.46 * width)
    left = max(svg.text_width(compact(t, y_marks[-1])) for t in y_marks) + 8
    right = width - (side if beside else 8)
    top, bottom = 40.0, 250.0 if beside else 225.0

    def at_x(x: float) -> float:
        return left + x / x_end * (right - left)

    def at_y(y: float) -> float:
        return bottom - (y - y_marks[0]) / (y_marks[-1] - y_marks[0]) * (bottom - top)

    body = [svg.label(0, 12, y_axis, kind="m")]
    for tick in y_marks:
        y, text = at_y(tick), compact(tick, y_marks[-1])
        body.append(svg.stroke(left, y, right, y, svg.MUTED if tick == 0 else svg.GRID))
        body.append(svg.label(left - 6, y + 4, text, anchor="end", kind="m"))
    for tick in x_marks:
        x, text = at_x(tick), compact(tick, x_end)
        body.append(svg.stroke(x, bottom, x, bottom + 4, svg.MUTED))
        body.append(svg.label(x, bottom + 18, text, anchor="middle", kind="m"))
    body.append(svg.label((left + right) / 2, bottom + 35, x_axis, anchor="middle", kind="m"))
    body += _phases(phases, at_x, top, bottom, right)
    if reference:
        y = at_y(reference.value)
        body.append(svg.stroke(left, y, right, y, svg.INK, 1.2, _REFERENCE_DASH))
    for line in lines:
        body += _path(line, at_x, at_y)
    height = bottom + 42
    if beside:
        wanted = [at_y(e.value) if e.value is not None else bottom for e in entries]
        spots = [(right + 8, y) for y in _spread(wanted, 16, top, bottom)]
    else:
        spots = [(0.0, height + 10 + 18 * i) for i in range(len(entries))]
        side, height = width, height + 18 * len(entries) + 6
    for entry, (x, y) in zip(entries, spots, strict=True):
        body += _key(entry, form, x, y, side - 34)
    return svg.frame(key, width, height, title, _describe(lines, form), body)


@dataclass(frozen=True)
class _Entry:
    """One line of the key; `style` is `None` for the reference."""

    name: str
    value: float | None
    style: int | None

    def text(self, form: Callable[[float], str]) -> str:
        """The name with the last value."""
        return self.name if self.value is None else f"{self.name}  {form(self.value)}"


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
            body.append(svg.stroke(x, top - 12, x, bottom, svg.MUTED, 1, "1 3"))
        if end - x > svg.text_width(name, 11) + 8:
            body.append(svg.label(x + 4, top - 8, name, kind="m"))
    return body


def _path(line: Line, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> list[str]:
    color, dash, shape = svg.LINE_STYLES[line.style % MOST_LINES]
    places = [(at_x(x), None if y is None else at_y(y)) for x, y in thin(line.points)]
    steps, pen_down = [], False
    for x, y in places:
        if y is not None:
            steps.append(f"{'L' if pen_down else 'M'}{svg.px(x)} {svg.px(y)}")
        pen_down = y is not None
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    path = (
        f'<path d="{"".join(steps)}" fill="none" stroke="{color}" stroke-width="1.6" '
        f'stroke-linejoin="round"{dashed}/>'
    )
    body = [path] if steps else []
    known = [(x, y) for x, y in places if y is not None]
    # Marks of different lines are set off against each other, so that they do not coincide.
    every = max(len(known) // 5, 1)
    for i in range((line.style * every // MOST_LINES) % every, len(known), every):
        body.append(svg.mark(shape, known[i][0], known[i][1], color))
    return body


def _key(entry: _Entry, form: Callable[[float], str], x: float, y: float, room: float) -> list[str]:
    """A sample of the line with its mark, its name and its last value."""
    full = entry.text(form)
    value = full[len(entry.name) :].strip()
    text = svg.shorten(entry.name, room - svg.text_width(f"  {value}"))
    name = svg.label(x + 27, y + 4, text, full=entry.name, value=value)
    if entry.style is None:
        return [svg.stroke(x, y, x + 22, y, svg.INK, 1.2, _REFERENCE_DASH), name]
    color, dash, shape = svg.LINE_STYLES[entry.style % MOST_LINES]
    return [svg.stroke(x, y, x + 22, y, color, 1.6, dash), svg.mark(shape, x + 11, y, color), name]


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
