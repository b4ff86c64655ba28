"""What sections are made of: tables and figures, as the template draws them, and values of files in
which anything may be missing."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Cell = str | tuple[str, str]
"""Text, or text with a line in small print below."""
Fact = tuple[str, str]
"""A name and a value; one without a value is left out."""


class Row(NamedTuple):
    """A table row: a heading, then cells. A row without cells is one sentence.

    `css` is the row's class, `last` that of its last cell.
    """

    name: str
    cells: Sequence[Cell] = ()
    css: str = ""
    last: str = ""


class Table(NamedTuple):
    """A table. Every cell carries its column's name: on a phone a row is a card of named values."""

    head: Sequence[str]
    rows: Sequence[Row]
    caption: str = ""


class Figure(NamedTuple):
    """A chart drawn twice, for a screen and for a phone, so that its text is never scaled away.

    `chart(key, width, **look)` returns the SVG; the style sheet shows one of the two.
    """

    key: str
    heading: str
    text: str
    chart: Callable[..., str]
    look: dict[str, Any]
    wide: float = 500.0
    narrow: float = 350.0

    def draw(self, which: str, width: float) -> str:
        """One of the two."""
        return self.chart(f"{self.key}-{which}", width, **self.look)


def dig(tree: object, *path: str) -> Any:
    """The value under `path` in nested mappings, or `None` where any step is missing."""
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def number(tree: object, *path: str) -> float | None:
    """The finite number under `path`, or `None` where it is missing, null, NaN or infinite."""
    value = dig(tree, *path) if path else tree
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return found if math.isfinite(found) else None


def strings(tree: object, *path: str) -> list[str]:
    """The list under `path` as strings; empty where there is none."""
    value = dig(tree, *path)
    return [str(item) for item in value] if isinstance(value, list | tuple) else []


def mapping(tree: object, *path: str) -> dict[str, Any]:
    """The mapping under `path` with string keys; empty where there is none."""
    value = dig(tree, *path)
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}
