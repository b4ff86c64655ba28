"""``fairbilevel methods``: what ``--method`` can be."""

from __future__ import annotations

from rich.console import Console

from fairbilevel.cli._show import table


def methods(words: list[str], console: Console) -> int:
    """A line for each method."""
    if words:
        raise ValueError(f"fairbilevel methods takes no options, got {words[0]!r}")
    from fairbilevel.methods import METHODS

    shown = table(["method", "removes", "what it does"])
    shown.columns[0].no_wrap = True  # names are there to be copied
    for entry in METHODS.values():
        removes = " or ".join(f"{g}s" for g in entry.granularities)
        shown.add_row(entry.name, removes, entry.description)
    console.print(shown, highlight=False)
    return 0
