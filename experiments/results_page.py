"""The page of results, ``docs/results.md``, from the files of results and the words beside them.

    python -m experiments.results_page

``results_page.md`` holds the words that stand in no result file; ``{{table demo.md}}`` in it is the
first table of ``results/demo.md``. Other parts that can be named: ``body`` (all but the title and
how it was made), ``opening`` (its first paragraph), ``sentences`` (what was read off the tables);
``from`` and ``until`` cut the text before. ``{{tables claim}}`` links the tables of an experiment.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from experiments._presets import PRESETS
from experiments._write import RESULTS
from fairbilevel.records import write_text

WORDS = Path(__file__).with_suffix(".md")
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
_TOKEN = re.compile(r"\{\{(\w+) (\S+)(?: from (.+?))?(?: until (.+?))?\}\}")


def body(text: str) -> str:
    """All but the title and the line that says how it was made; headings a level deeper."""
    lines = [line for line in text.splitlines() if not line.startswith(("# ", "Made by "))]
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in lines).strip()


def opening(text: str) -> str:
    """The first paragraph."""
    return body(text).split("\n\n")[0]


def table(text: str) -> str:
    """The first table."""
    lines = text[text.index("\n|") :].strip().splitlines()
    return "\n".join(lines[: next((i for i, line in enumerate(lines) if not line), None)])


def sentences(text: str) -> str:
    """What was read off the tables, with the headings above it."""
    paragraphs = body(text).split("\n\n")
    heads = [("", *paragraphs)[i] for i in range(len(paragraphs))]
    found = [
        (head, paragraph)
        for head, paragraph in zip(heads, paragraphs, strict=True)
        if paragraph.startswith("- ")
    ]
    return "\n\n".join(part for pair in found for part in pair if part)


def tables(experiment: str) -> str:
    """Links to those of the settings that were run."""
    at = f"experiments/results/{experiment}"
    tables = {n: RESULTS / experiment / n / "table.md" for n in PRESETS[experiment]["small"]}
    return ", ".join(
        f"[{n}](../{at}/{n}/table.md)" for n, table in tables.items() if table.is_file()
    )


PARTS: dict[str, Callable[[str], str]] = {
    part.__name__: part for part in (body, opening, table, sentences)
}


def _shown(found: re.Match[str]) -> str:
    part, name, start, end = found.groups()
    if part == "tables":
        return tables(name)
    text = (RESULTS / name).read_text(encoding="utf-8")
    text = text[text.index(start) :] if start else text
    return PARTS[part](text[: text.index(end)] if end else text)


def made() -> str:
    """The page."""
    return _TOKEN.sub(_shown, WORDS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    write_text(PAGE, made())
