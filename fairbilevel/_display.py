"""How objects show themselves: a line of facts, or a small table in a notebook, never their arrays.

Names come from a user's data: whatever they hold, they disturb no page and no terminal.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

# Control characters, overrides of the direction of writing (they would turn the numbers behind
# a name around), and what is no character in UTF-8 or XML.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_LONGEST = 160  # of one fact


def printable(text: object) -> str:
    """``text`` with every character replaced that could disturb a page or a terminal."""
    return _UNPRINTABLE.sub("\ufffd", str(text))


def esc(text: object) -> str:
    """``text`` made safe inside HTML and SVG, as content or as a quoted attribute."""
    return html.escape(printable(text), quote=True)


def counted(number: int, noun: str) -> str:
    """``1 row``, ``2,371 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(fraction: float | None) -> str:
    """``0.8721`` as ``87.2 %``."""
    return "unknown" if fraction is None else f"{100 * fraction:.1f} %"


def storage(count: float | None) -> str:
    """``1536`` bytes as ``1.5 KiB``."""
    if count is None:
        return "unknown"
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


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
        title: above the table; all text is escaped here.
        rows: of cells.
        head: names of the columns.
        below: a paragraph.
    """

    def cells(row: Sequence[object]) -> str:
        first, *rest = row
        body = "".join(f'<td style="text-align:left">{esc(cell)}</td>' for cell in rest)
        return f'<tr><th style="text-align:left">{esc(first)}</th>{body}</tr>'

    named = "".join(f'<th style="text-align:left">{esc(name)}</th>' for name in head)
    top = f"<thead><tr>{named}</tr></thead>" if head else ""
    paragraph = f"<p>{esc(below)}</p>" if below else ""
    return (
        f"<div><p><b>{esc(title)}</b></p><table>{top}<tbody>{''.join(map(cells, rows))}</tbody>"
        f"</table>{paragraph}</div>"
    )
