"""A drawing: measured text, ticks, marks and lines, and the SVG element around them.

Text stays text, and everything that is drawn is also said in the drawing's description.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fairbilevel._display import printable
from fairbilevel._numbers import compact
from fairbilevel.report.charts import _palette

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


def text_width(text: str, size: float = 12, *, bold: bool = False) -> float:
    """The width of `text` in pixels in DejaVu Sans, the widest of the fonts that may come up."""
    total = 0.0
    for char in text:
        if unicodedata.east_asian_width(char) in "WF":
            total += 1.05
        elif char in "mwMW%@—…":
            total += 0.98
        elif char in "−+<>=":
            total += 0.84
        elif char in "ijlIrtf|.,:;'!()[]{} ":
            total += 0.4
        else:
            total += 0.72 if char.isupper() else 0.64
    return total * size * (1.1 if bold else 1.0)


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


def ticks(low: float, high: float, about: int = 5, unit: float = 1.0) -> list[float]:
    """Round numbers, about `about` of them, that enclose `low` and `high`; where there is nothing
    between these, half a `unit`'s part on both sides."""
    if not high > low:
        aside = abs(low) * 0.1 or 0.5 / unit
        low, high = low - aside, high + aside
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


@dataclass(frozen=True)
class Scale:
    """An axis: its ticks, and the pixels between which its values lie (others at its ends)."""

    marks: Sequence[float]
    start: float
    end: float
    unit: float = 1.0
    """What numbers at the axis are multiplied by: 100 for shares."""
    high: float | None = None
    """The largest value, where it is not the last tick."""

    @property
    def numbers(self) -> list[tuple[float, str]]:
        """The pixel of every tick, and its number."""
        most = self.unit * self.marks[-1]
        return [(self(tick), compact(self.unit * tick, most)) for tick in self.marks]

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.marks[0], self.marks[-1] if self.high is None else self.high
        part = (min(max(value, low), high) - low) / (high - low)
        return self.start + part * (self.end - self.start)


def _overlap(one: Box, two: Box) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def _px(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


class Picture:
    """A drawing in the making. Colours are names of the palette."""

    def __init__(self, key: str) -> None:
        """`key` must be unique on the page: title, description and hatches are found by it."""
        self.key = key
        self.root = ET.Element("svg")

    def add(
        self, tag: str, within: ET.Element | None = None, **attributes: float | str
    ) -> ET.Element:
        """An element; ``stroke_width`` stands for ``stroke-width``, ``css`` for ``class``."""
        told = {
            {"css": "class"}.get(name, name.replace("_", "-")): _px(value)
            for name, value in attributes.items()
            if value != ""
        }
        return ET.SubElement(self.root if within is None else within, tag, told)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: str = "",
        css: str = "",
        full: str = "",
        value: str = "",
        turned: bool = False,
    ) -> None:
        """A line of text, with a `value` set off behind it.

        `full` is the uncut text, shown where the pointer rests; `turned` text is read upwards.
        """
        turn = f"rotate(-90 {_px(x)} {_px(y)})" if turned else ""
        made = self.add("text", x=x, y=y, text_anchor=anchor, css=css, transform=turn)
        made.text = printable(text)
        if value:
            self.add("tspan", made, css="b", dx="6").text = printable(value)
        if full and full != text:
            self.add("title", made).text = printable(full)

    def path(
        self,
        places: Iterable[tuple[float, float | None]],
        color: str = "line",
        width: float = 1,
        dash: str = "",
        opacity: str = "",
    ) -> None:
        """Straight lines from place to place; one without a height breaks them."""
        steps, pen_down = "", False
        for x, y in places:
            if y is not None:
                steps += f"{'L' if pen_down else 'M'}{_px(x)} {_px(y)}"
            pen_down = y is not None
        if steps:
            self.add(
                "path", d=steps, css=f"c-{color}", stroke_width="" if width == 1 else width,
                stroke_dasharray=dash, opacity=opacity,
            )  # fmt: skip

    def hatches(self) -> None:
        """What `bar` fills with."""
        pattern = self.add(
            "pattern", self.add("defs"), id=f"{self.key}-hatch", width=6, height=6,
            patternUnits="userSpaceOnUse", patternTransform="rotate(45)",
        )  # fmt: skip
        for width, color in ((6, "hatch"), (3, "s4")):
            self.add("rect", pattern, width=width, height=6, css=f"c-{color}", fill="currentColor")

    def bar(self, kind: str, x: float, y: float, width: float, height: float) -> None:
        """A bar of one of `NETWORKS`: outlined in grey, solid, or hatched."""
        fill = f"url(#{self.key}-hatch)" if kind == "baseline" else ""
        self.add(
            "rect", x=x, y=y, width=max(width, 0.5), height=height, css=f"bar-{kind}", fill=fill
        )

    def mark(self, shape: str, x: float, y: float, color: str, size: float = 3.4) -> None:
        """A mark on a line: its shape tells lines apart; ``"halo"`` is around one."""
        css = f"c-{color}"
        if shape == "ring":
            self.mark("circle", x, y, "paper", size)
        if shape in ("circle", "ring", "halo"):
            self.add("circle", cx=x, cy=y, r=size, css=css + " hollow" * (shape != "circle"))
        elif shape == "cross":
            for turn in (-1, 1):
                self.path([(x - size, y - turn * size), (x + size, y + turn * size)], color, 2)
        else:
            corners = {
                "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
                "triangle": ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
                "diamond": ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
            }[shape]
            where = " ".join(f"{_px(x + size * dx)},{_px(y + size * dy)}" for dx, dy in corners)
            self.add("polygon", points=where, css=css)

    def across(self, scale: Scale, top: float, bottom: float, name: str = "") -> None:
        """Grid and numbers of a horizontal axis, its name below."""
        for x, number in scale.numbers:
            self.path([(x, top), (x, bottom)], "muted" if number == "0" else "line")
            self.text(x, bottom + 15, number, anchor="middle", css="m")
        middle = (scale.start + scale.end) / 2
        self.text(middle, bottom + 33, name, anchor="middle", css="m")

    def upward(self, scale: Scale, left: float, right: float) -> None:
        """Grid and numbers of a vertical axis."""
        for y, number in scale.numbers:
            self.path([(left, y), (right, y)], "muted" if number == "0" else "line")
            self.text(left - 6, y + 4, number, anchor="end", css="m")

    def beside(self, x: float, y: float, text: str, taken: list[Box], least: float) -> None:
        """A short text at a mark, where it covers nothing that is `taken`, not left of `least`."""
        width = text_width(text, 11.5)
        for far, up, right in itertools.product((9, 16, 24), (-1, 1), (1, -1)):
            left = x + far * right - (width if right < 0 else 0)
            base = y + 4 + up * 0.8 * far
            box = (left, base - 9, left + width, base + 2)
            if left >= least and not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        self.text(left, base, text, css="m")

    def legend(
        self, names: Sequence[tuple[str, str, str]], x: float, y: float, width: float = math.inf
    ) -> float:
        """Marks or bars (shape, colour) with names, in lines; returns where the last is."""
        left = x
        for shape, color, name in names:
            need = 38 + text_width(name)
            if x > left and x + need > width:
                x, y = left, y + 19
            if shape in _palette.NETWORKS:
                self.bar(shape, x + 1, y - 10, 16, 11)
            else:
                self.mark(shape, x + 9, y - 4, color, 4.5)
            self.text(x + 23, y, name)
            x += need
        return y

    def svg(
        self, width: float, height: float, title: str, desc: str, *, alone: bool = False
    ) -> str:
        """The drawing with its text alternative; ``alone`` it is a file of its own."""
        root, key = self.root, self.key
        root.attrib |= {
            "viewBox": f"0 0 {_px(width)} {_px(height)}", "role": "img",
            "aria-labelledby": f"{key}-title {key}-desc",
            "style": f"max-width:{_px(1.12 * width)}px",
        }  # fmt: skip
        for place, (tag, text) in enumerate((("title", title), ("desc", desc))):
            element = ET.Element(tag, id=f"{key}-{tag}")
            element.text = printable(text)
            root.insert(place, element)
        if alone:
            root.set("xmlns", "http://www.w3.org/2000/svg")
            style = ET.Element("style")
            style.text = _palette.alone()
            root.insert(2, style)
        return ET.tostring(root, encoding="unicode")
