"""How objects show themselves: a line of facts, or a small table in a notebook, never their arrays.

Names come from a user's data: whatever they hold, they disturb no page and no terminal.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

# Control characters, overrides of the direction of writing (they would turn the numbers behind
# a name around), and what is no character in UTF-8 or XML.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_PERCENT = re.compile(r"(?<=\d) %")
_LONGEST = 160  # of one fact


def printable(text: object) -> str:
    """``text`` with every character replaced that could disturb a page or a terminal."""
    return _UNPRINTABLE.sub("\ufffd", str(text))


@functools.cache
def template(name: str) -> jinja2.Template:
    """Of a page or a part of one, a file of this package: all that is put into it is printable and
    escaped."""
    import jinja2  # for those who write pages

    def finalize(value: Any) -> Any:
        # No line ends between a number and its per cent sign.
        safe = hasattr(value, "__html__")
        return value if safe else _PERCENT.sub("\xa0%", printable(value))

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(name)


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names with commas between, and how many are left out."""
    more = [f"{len(names) - most:,} more"] if len(names) > most else []
    return ", ".join([*map(str, names[:most]), *more])


def line(name: str, *facts: str) -> str:
    """A representation: ``NAME(fact; fact)``, on one line; long facts are cut, empty ones left out.

    Args:
        name: of the class.
        facts: what a reader wants to know first.
    """
    told = [" ".join(printable(fact).split()) for fact in facts if fact]
    cut = [t if len(t) <= _LONGEST else f"{t[: _LONGEST - 1]}…" for t in told]
    return f"{name}({'; '.join(cut)})"


def table(
    title: str, rows: Sequence[Sequence[object]], *, head: Sequence[str] = (), below: str = ""
) -> str:
    """What a notebook shows: a title, rows whose first cell names them, a sentence below.

    Args:
        title: above the table.
        rows: of cells.
        head: names of the columns.
        below: a paragraph.
    """
    return template("_display.html").render(title=title, rows=rows, head=head, below=below)
