"""HTML pieces that the sections share: tables, figures, lists of facts, the state's sign."""

from collections.abc import Callable, Iterable, Sequence

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


def table(head: Sequence[str], rows: Iterable[str], *, caption: str = "") -> str:
    """A table from head cells (escaped already) and finished rows."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    title = f"<caption>{esc(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table>{title}<thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def row(name: str, cells: Iterable[str], *, css: str = "") -> str:
    """A table row: a heading cell (escaped here), then cells that are escaped already."""
    kind = f' class="{css}"' if css else ""
    body = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
    return f'<tr{kind}><th scope="row">{esc(name)}</th>{body}</tr>'


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
        "missed": ("#B34700", "M9.5 9.5l11 11m0-11l-11 11"),
        "diverged": ("#B34700", "M15 7.5v9m0 4.5v1"),
    }.get(state, ("#56606a", "M15 7.5v9m0 4.5v1"))
    return (
        f'<svg viewBox="0 0 30 30" aria-hidden="true"><circle cx="15" cy="15" r="14" '
        f'fill="{color}"/><path d="{path}" fill="none" stroke="#fff" stroke-width="3" '
        f'stroke-linecap="round" stroke-linejoin="round"/></svg>'
    )
