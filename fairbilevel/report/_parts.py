"""What sections of the page are made of: tables and figures, as the template draws them."""

from collections.abc import Callable, Sequence
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
