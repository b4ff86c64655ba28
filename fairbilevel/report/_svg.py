"""Small SVG pieces shared by the charts: measured text, ticks, fills, marks, the frame.

A chart is one string of well-formed SVG that stands alone inside an HTML page: text stays
text, colours are those of Okabe and Ito (2008), and no information is in colour only.
"""

import math
import unicodedata

from fairbilevel._display import esc

INK, MUTED, GRID = "#1a1f24", "#56606a", "#dfe3e7"
BLUE, ORANGE, VERMILION = "#0072B2", "#E69F00", "#D55E00"

LINE_STYLES: tuple[tuple[str, str, str], ...] = (
    ("#0072B2", "", "circle"),
    ("#D55E00", "7 3", "square"),
    ("#009E73", "2 3", "triangle"),
    ("#CC79A7", "", "diamond"),
    ("#E69F00", "7 3", "cross"),
    ("#000000", "2 3", "ring"),
    ("#56B4E9", "10 3 2 3", "square"),
    ("#8a9199", "", "triangle"),
)
"""Colour, dash pattern and mark of the first, second, ... line; at most eight are drawn."""


def text_width(text: str, size: float = 12) -> float:
    """An estimate, on the wide side, of the width of `text` in pixels in a sans-serif font."""
    total = 0.0
    for char in text:
        if unicodedata.east_asian_width(char) in "WF":
            total += 1.05
        elif char in "ijlI|.,:;'!()[]{} ":
            total += 0.36
        elif char.isupper() or char in "mwMW%@—−+<>":
            total += 0.76
        else:
            total += 0.6
    return total * size


def shorten(text: str, room: float, size: float = 12) -> str:
    """`text`, with an ellipsis in its middle where it is wider than `room` pixels.

    The end stays, because names of groups often differ in their last word.
    """
    if text_width(text, size) <= room + 0.5:
        return text
    head, tail = text, ""
    for take in range(len(text) - 1, 0, -1):
        head, tail = text[: take - take * 2 // 5], text[len(text) - take * 2 // 5 :]
        if text_width(f"{head}…{tail}", size) <= room:
            break
    return f"{head.rstrip()}…{tail.lstrip()}"


def wrap(text: str, room: float, size: float = 12) -> list[str]:
    """`text` on one line, or on two where it is wider than `room` pixels; shortened to fit."""
    words = text.split(" ")
    if text_width(text, size) <= room or len(words) == 1:
        return [shorten(text, room, size)]
    cut = 1
    while cut < len(words) - 1 and text_width(" ".join(words[: cut + 1]), size) <= room:
        cut += 1
    return [shorten(" ".join(part), room, size) for part in (words[:cut], words[cut:])]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, about `about` of them, that enclose `low` and `high`."""
    if not high > low:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def px(value: float) -> str:
    """A coordinate with one decimal at most."""
    return f"{value:.1f}".removesuffix(".0")


def label(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    kind: str = "",
    full: str = "",
    value: str = "",
) -> str:
    """A line of text, with a `value` set off behind it.

    `full` is the uncut text, shown where the pointer rests.
    """
    hint = f"<title>{esc(full)}</title>" if full and full != text else ""
    behind = f'<tspan class="b" dx="6">{esc(value)}</tspan>' if value else ""
    css = f' class="{kind}"' if kind else ""
    side = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{px(x)}" y="{px(y)}"{side}{css}>{esc(text)}{behind}{hint}</text>'


def stroke(
    x1: float, y1: float, x2: float, y2: float, color: str = GRID, width: float = 1, dash: str = ""
) -> str:
    """A straight line."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{px(x1)}" y1="{px(y1)}" x2="{px(x2)}" y2="{px(y2)}" '
        f'stroke="{color}" stroke-width="{px(width)}"{dashed}/>'
    )


def fills(key: str) -> str:
    """Definitions of the hatches that tell bars apart without colour, named after `key`."""
    return (
        f'<defs><pattern id="{key}-hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><rect width="6" height="6" fill="#FBE3AE"/>'
        f'<rect width="3" height="6" fill="{ORANGE}"/></pattern></defs>'
    )


def bar(key: str, fill: str, x: float, y: float, width: float, height: float) -> str:
    """A bar filled as `dense` (grey outline), `pruned` (solid) or `baseline` (hatched)."""
    paint = {
        "dense": f'fill="#e3e6e9" stroke="{MUTED}" stroke-width="1"',
        "pruned": f'fill="{BLUE}" stroke="{BLUE}" stroke-width="1"',
        "baseline": f'fill="url(#{key}-hatch)" stroke="#B27B00" stroke-width="1"',
    }[fill]
    return (
        f'<rect x="{px(x)}" y="{px(y)}" width="{px(max(width, 0.5))}" '
        f'height="{px(height)}" {paint}/>'
    )


def mark(shape: str, x: float, y: float, color: str, size: float = 3.4) -> str:
    """A mark on a line: its shape tells lines apart without colour."""
    if shape == "circle":
        return f'<circle cx="{px(x)}" cy="{px(y)}" r="{px(size)}" fill="{color}"/>'
    if shape == "ring":
        return (
            f'<circle cx="{px(x)}" cy="{px(y)}" r="{px(size)}" fill="#fff" '
            f'stroke="{color}" stroke-width="1.6"/>'
        )
    if shape == "cross":
        path = f"M{px(x - size)} {px(y - size)}l{px(2 * size)} {px(2 * size)}"
        path += f"m0 {px(-2 * size)}l{px(-2 * size)} {px(2 * size)}"
        return f'<path d="{path}" stroke="{color}" stroke-width="2" fill="none"/>'
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "triangle": ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
        "diamond": ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
    }[shape]
    where = " ".join(f"{px(x + size * dx)},{px(y + size * dy)}" for dx, dy in corners)
    return f'<polygon points="{where}" fill="{color}"/>'


def frame(key: str, width: float, height: float, title: str, desc: str, body: list[str]) -> str:
    """The SVG element around `body`, with its text alternative.

    `key` must be unique on the page, since the title, description and hatches are found by it.
    """
    return (
        f'<svg viewBox="0 0 {px(width)} {px(height)}" role="img" '
        f'aria-labelledby="{key}-title {key}-desc" style="max-width:{px(width * 1.12)}px">'
        f'<title id="{key}-title">{esc(title)}</title><desc id="{key}-desc">{esc(desc)}</desc>'
        + "".join(body)
        + "</svg>"
    )


def standalone(picture: str) -> str:
    """An SVG as a file of its own, with the style that a page would give its text."""
    picture = picture.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    style = "text{font:12px system-ui,sans-serif;fill:#1a1f24}.b{font-weight:600}.m{fill:#56606a}"
    return picture.replace("</desc>", f"</desc><style>{style}</style>", 1)
