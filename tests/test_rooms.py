"""No import runs upward: each room knows only those below it (CONTRIBUTING.md draws them)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fairbilevel"
# From the top; rooms in one row do not import each other.
ROWS = (
    ("__init__", "__main__"),
    ("cli",),
    ("comparison",),
    ("run",),
    ("report", "certificates", "deploy"),
    ("methods",),
    ("solver", "pruners"),
    ("train", "pretrained"),
    ("problem",),
    ("sweeps",),
    ("records",),
    ("hypergrad", "fairness", "masks", "analysis"),
    ("models", "data"),
    ("devices",),
    ("_display", "_numbers", "_trees", "_xla", "_options", "_files", "_npz"),
)
RANK = {room: i for i, row in enumerate(ROWS) for room in row}


def room_of(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of the package, wherever it stands in the file."""
    inside = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:  # relative: within the room
                base = ["fairbilevel", *inside[: len(inside) - node.level + 1], *base]
            names = [[*base, alias.name] for alias in node.names] if len(base) == 1 else [base]
        else:
            continue
        for name in names:
            if name[0] == "fairbilevel" and len(name) > 1 and name[1] in RANK:
                yield node.lineno, name[1]


def test_every_file_is_in_a_room():
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert rooms == set(RANK)


@pytest.mark.parametrize("room", RANK)
def test_no_import_runs_upward(room):
    found, wrong = 0, []
    for path in PACKAGE.rglob("*.py"):
        if room_of(path) != room:
            continue
        for line, other in imported(path):
            found += 1
            if other != room and RANK[other] <= RANK[room]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {other}")
    assert not wrong, "\n".join(wrong)
    assert found or room.startswith("_") or room in ("data", "devices", "__main__")


def test_the_picture_of_the_rooms_is_this_one():
    """The drawing in CONTRIBUTING.md names the same rooms in the same order."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawing = text[text.index("## Rooms") : text.index("## Add a constraint")]
    lines = drawing.split("```")[1].splitlines()
    drawn = []
    for line in lines:
        words = {w for w in re.findall(r"\b_?[a-z]+\b", line[:39]) if w in RANK}
        if words:
            drawn.append(words)
    expected = [set(row) for row in ROWS[1:]]
    for row, seen in zip(expected, drawn, strict=True):
        assert seen <= row
        assert row - seen <= {"_options", "_files", "_npz"}
