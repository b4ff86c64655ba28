"""HTML pieces that the sections share: tables, figures, lists of facts, the state's sign."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from fairbilevel._display import esc

WIDE, NARROW = 500.0, 350.0


def figure(
    key: str,
    heading: str,
    explanation: str,
    draw: Callable[[str, float], str],
    wide: float = WIDE,
    narrow: float = NARROW,
) -> str:
    """A chart drawn twice, for a screen and for a phone, so that its text is never scaled away.

    `draw(key, width)` returns the SVG; the style sheet shows one of the two.
    """
    caption = f"<figcaption>{esc(heading)}<span>{esc(explanation)}</span></figcaption>"
    return (
        f'<figure>{caption}<div class="wide">{draw(f"{key}-w", wide)}</div>'
        f'<div class="narrow">{draw(f"{key}-n", narrow)}</div></figure>'
    )


class Row(NamedTuple):
    """A table row: a heading (escaped by the table), then cells that are escaped already.

    `css` is the row's class, `last` that of its last cell. A row without cells is one sentence.
    """

    name: str
    cells: Sequence[str]
    css: str = ""
    last: str = ""


def table(head: Sequence[str], rows: Iterable[Row], *, caption: str = "") -> str:
    """A table from head cells (escaped here) and rows.

    Every cell carries its column's name: on a phone a row is a card of named values.
    """
    cells = "".join(f'<th scope="col">{esc(cell)}</th>' for cell in head)
    title = f"<caption>{esc(caption)}</caption>" if caption else ""
    body = "".join(_row(head, row) for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table>{title}<thead><tr>{cells}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(head: Sequence[str], row: Row) -> str:
    kind = f' class="{row.css}"' if row.css else ""
    if not row.cells:
        return f'<tr{kind}><td colspan="{len(head)}">{esc(row.name)}</td></tr>'
    cells = []
    for i, (label, cell) in enumerate(zip(head[1:], row.cells, strict=True), start=2):
        own = f' class="{row.last}"' if row.last and i == len(head) else ""
        cells.append(f'<td{own} data-label="{esc(label)}">{cell}</td>')
    return f'<tr{kind}><th scope="row">{esc(row.name)}</th>{"".join(cells)}</tr>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values (escaped here); empty values are left out."""
    items = "".join(f"<dt>{esc(k)}</dt><dd>{esc(v)}</dd>" for k, v in pairs if v)
    return f'<dl class="facts">{items}</dl>' if items else ""


def bullets(sentences: Iterable[str]) -> str:
    """A plain list of sentences (escaped here); nothing where there are none."""
    items = "".join(f"<li>{esc(s)}</li>" for s in sentences if s)
    return f'<ul class="plain">{items}</ul>' if items else ""


def section(key: str, heading: str, *parts: str) -> str:
    """A section of the page; nothing where all its parts are empty."""
    body = "".join(parts)
    if not body:
        return ""
    return (
        f'<section aria-labelledby="{key}-heading"><h2 id="{key}-heading">{esc(heading)}</h2>'
        f"{body}</section>"
    )


def sign(state: str) -> str:
    """A drawn sign for the verdict: a tick, a cross, or an exclamation mark.

    It repeats what the headline says, hence hidden from screen readers.
    """
    color, path = {
        "met": ("#007A59", "M8 15.5l5 5 9-10"),
        "doubtful": ("#8A5A00", "M15 7.5v9m0 4.5v1"),
        "missed": ("#B34700", "M9.5 9.5l11 11m0-11l-11 11"),
        "diverged": ("#B34700", "M15 7.5v9m0 4.5v1"),
    }.get(state, ("#56606a", "M15 7.5v9m0 4.5v1"))
    return (
        f'<svg viewBox="0 0 30 30" aria-hidden="true"><circle cx="15" cy="15" r="14" '
        f'fill="{color}"/><path d="{path}" fill="none" stroke="#fff" stroke-width="3" '
        f'stroke-linecap="round" stroke-linejoin="round"/></svg>'
    )
