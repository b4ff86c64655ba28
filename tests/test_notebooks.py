"""Every notebook runs to its end on public names only, and what it shows is what it kept."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

import fairbilevel as fb

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What runs them again for the repository runs them here.
_spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
runner = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runner)

ABSOLUTE = re.compile(r"(?<![\w./:<-])(?:/[\w.-]+){2,}|\b[A-Z]:\\")
NOISE = re.compile(r"Warning\b|Traceback|\b0x[0-9a-f]{6,}|\x1b\[")

# Here they take few steps: what a notebook says of full runs is what `execute.py` stored.
FEW = 60
DEFAULTS = {  # where a notebook names none, or no width
    "fb.solve(problem, sparsity=0.95)": "fb.solve(problem, sparsity=0.95, steps=999, "
    "dense_steps=999)",
    "GradualMagnitude(sparsity=0.95)": "GradualMagnitude(sparsity=0.95, steps=999)",
    'fb.data.load("digits"),': 'fb.data.load("digits"), width=8,',
}

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(output: Any) -> list[str]:
    """What an output says, in any form but pictures."""
    if output.output_type == "stream":
        return [output.text]
    return [str(v) for kind, v in output.get("data", {}).items() if kind.startswith("text/")]


def faults(outputs: list[Any]) -> list[str]:
    """Errors, complaints and traces of the machine in a cell's outputs."""
    found = [f"error {o.ename}" for o in outputs if o.output_type == "error"]
    found += [f"on stderr: {o.text}" for o in outputs if o.get("name") == "stderr"]
    said = [text for output in outputs for text in texts(output)]
    return found + [
        match.group() for t in said for p in (ABSOLUTE, NOISE) for match in p.finditer(t)
    ]


def kinds(outputs: list[Any]) -> set[str]:
    """Text, tables, pictures: the forms in which a cell showed something."""
    shown = {kind for o in outputs for kind in o.get("data", {}) if kind != "text/plain"}
    return shown | ({"text"} if any(texts(o) for o in outputs) else set())


def shorter(source: str) -> str:
    """The cell with few steps wherever it asks for many, or for none and would get many."""
    for default, given in DEFAULTS.items():
        source = source.replace(default, given)
    return re.sub(r"\b((?:dense_)?steps)=\d{3,}", rf"\1={FEW}", source)


def private_names(source: str) -> list[str]:
    """Names of the package that a reader should not rely on."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "fairbilevel" and name.name != "fairbilevel":
                    found.append(f"import {name.name}")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fairbilevel"):
            chain = (node.module or "").split(".")[1:]
            found += [n for alias in node.names if (n := refused([*chain, alias.name]))]
        elif isinstance(node, ast.Attribute):
            chain = attribute_chain(node)
            if chain[0] == "fb":
                found += [name] if (name := refused(chain[1:])) else []
            elif node.attr.startswith("_"):
                found.append(f".{node.attr}")
    return found


def attribute_chain(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [*attribute_chain(node.value), node.attr]
    return [node.id if isinstance(node, ast.Name) else ""]


def refused(chain: list[str]) -> str | None:
    """The first name of a dotted chain below the package that is not public, if any."""
    where: Any = fb
    for name in chain:
        if name.startswith("_"):
            return ".".join(chain)
        if isinstance(where, ModuleType):
            room = importlib.util.find_spec(f"{where.__name__}.{name}") if where is fb else None
            if name not in where.__all__ and room is None:
                return ".".join(chain)
        where = getattr(where, name, None)
    return None


def test_there_are_notebooks_and_the_readme_names_each():
    readme = (ROOT / "README.md").read_text()
    assert len(NOTEBOOKS) >= 4
    for path in NOTEBOOKS:
        assert f"(notebooks/{path.name})" in readme


@pytest.mark.parametrize(
    ("source", "private"),
    [
        ("import fairbilevel as fb\nfb.solver.outer_stretch.newest()", False),
        ("from fairbilevel.hypergrad import Neumann", False),
        ("from fairbilevel.hypergrad._neumann import Neumann", True),
        ("from fairbilevel import _trees", True),
        ("import fairbilevel.solver._step", True),
        ("fb._trees.copy(x)", True),
        ("fb.masks.no_such_name", True),
        ("state._replace(scores=1)", True),
        ("fb.solve(problem)._anything", True),
    ],
)
def test_private_names_are_told_from_public_ones(source, private):
    assert bool(private_names(source)) is private


def test_faults_of_outputs_are_seen():
    stream = {"output_type": "stream", "name": "stdout"}
    said = lambda text: faults([nbformat.from_dict({**stream, "text": text})])  # noqa: E731
    assert said("saved in /home/someone/runs") == ["/home/someone/runs"]
    assert said("x.py:3: FutureWarning: old") == ["Warning"]
    assert not said(
        "runs/mine/report.html: 97 and/or 98 %, fit/select/tune, https://example.org/a/b"
    )
    assert faults([nbformat.from_dict({**stream, "name": "stderr", "text": "3 %"})])


@every_notebook
def test_a_notebook_uses_public_names_and_its_links_lead_somewhere(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not private_names(cell.source)
        else:
            for link in re.findall(r"\]\((?!https?:)([^)#]+)", cell.source):
                assert (path.parent / link).exists(), link


@every_notebook
def test_a_notebook_is_stored_small_and_without_traces_of_a_machine(path):
    assert path.stat().st_size < 400_000
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}
    for number, cell in enumerate(code_cells(notebook), 1):
        assert not cell.metadata
        assert cell.execution_count == number
        assert not faults(cell.outputs), cell.source


@every_notebook
def test_a_notebook_runs_in_a_fresh_kernel_and_shows_what_it_kept(path, tmp_path, monkeypatch):
    # The tree under test, whatever is installed; nothing is written outside the test's folder.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    folder = tmp_path / "work"
    folder.mkdir()
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    for cell in code_cells(fresh):
        cell.source = shorter(cell.source)
    assert fresh != stored  # it has steps
    runner.execute(fresh, folder)
    for old, new in zip(code_cells(stored), code_cells(fresh), strict=True):
        assert not faults(new.outputs), new.source
        assert kinds(old.outputs) == kinds(new.outputs), new.source
