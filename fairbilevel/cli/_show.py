"""How commands print: lines that are never cut, plain tables, names that disturb nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def say(console: Console, line: str, style: str | None = None) -> None:
    """A line as it is: no markup is read in it, nothing is coloured or cut."""
    console.print(line, highlight=False, markup=False, soft_wrap=True, style=style)


def table(left: Sequence[str], right: Sequence[str] = ()) -> Table:
    """A table without lines, its first columns ranged left (and folded), the others right."""
    made = Table(box=None, pad_edge=False)
    for name in left:
        made.add_column(name, overflow="fold")
    for name in right:
        made.add_column(name, justify="right")
    return made


def plain(text: str) -> str:
    """Text that cannot disturb the terminal, whatever a group is called."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
