"""What the guides print is what a reader can run."""

from __future__ import annotations

import pkgutil
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import fairbilevel as fb
from experiments import results_page

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "page", ["docs/devices.md", "docs/disparate_impact.md", "docs/hypergradients.md"]
)
def test_the_code_of_a_guide_runs(page, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})
    assert "DONE" in capsys.readouterr().out


def test_the_store_of_a_guide_is_one():
    """And is read as it is indexed."""
    text = (ROOT / "docs/large_data.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/large_data.md", "exec"), names)
    inputs = names["problem"].inputs
    assert isinstance(inputs, fb.data.StoredRows)
    assert (inputs[[7, 3]] == names["videos"][[7, 3]]).all()


def test_the_models_of_a_guide_are_right(capsys):
    page = "docs/models_from_elsewhere.md"
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for block in blocks:
        exec(compile(block, page, "exec"), {})
    given, orbax, texts, _ = capsys.readouterr().out.splitlines()
    assert float(orbax.split()[0]) > 0.8
    assert "answers 5 classes and the data has 2: it was replaced by a new one" in orbax
    assert float(given.split()[0]) > 0.9
    assert given.endswith(" ()")
    assert texts.startswith("integer ")
    assert float(texts.split()[1]) > 0.9


def run_blocks(page: str, names: dict[str, Any]) -> None:
    """All of a page's Python, one block after the other, among these names."""
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        exec(compile(block, page, "exec", dont_inherit=True), names)


def test_the_examples_of_python_run_one_after_the_other(monkeypatch, tmp_path, capsys):
    """With fewer steps than printed; the last of their run's folder is what lists of runs show."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fb, "solve", partial(fb.solve, steps=12, dense_steps=30))
    names: dict[str, Any] = {
        "valid_loss": lambda scale, w, rows: ((scale * w - rows) ** 2).sum(),
        "train_loss": lambda scale, w, rows: ((w - scale * rows) ** 2).sum(),
        "outer_var": jnp.asarray(2.0),
        "weights": jnp.asarray([2.0, 4.0]),
        "batch": jnp.asarray([1.0, 2.0]),
        "held_out": jnp.asarray([1.0, 1.0]),
    }
    run_blocks("docs/python.md", names)
    found = names["found"]
    assert float(capsys.readouterr().out) == found.gaps.excess_accuracy.largest
    assert len(found.to_frame()) == 10
    bound = names["problem"].under((names["errors"],)).constraints[0]
    assert bound.tolerance[8] == 0.1
    # w = scale * batch, so the outer loss is the sum of (scale**2 * batch - held_out)**2.
    assert float(names["gradient"]) == pytest.approx(8 * (4 - 1) * 1 + 8 * (8 - 1) * 2, rel=1e-4)

    run_blocks("docs/run_folder.md", {})
    assert capsys.readouterr().out.startswith("runs/mine completed ")
    names["problem"] = names["problem"].under(())
    run_blocks("docs/crash_safety.md", names)
    assert list(Path("checkpoints/faces").iterdir())


def test_the_example_of_certificates_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    rng, n = np.random.default_rng(0), 4000
    y = rng.integers(0, 2, n)
    dense, lost = np.where(rng.random(n) < 0.9, y, 1 - y), rng.random(n) < 0.01
    names: dict[str, Any] = {"fb": fb, "y": y, "dense_pred": dense}
    names |= {"pruned_pred": np.where(lost, 1 - dense, dense), "group": rng.integers(0, 2, n)}
    names |= {"person": np.arange(n) // 2, "row_id": np.arange(n)}
    run_blocks("docs/certificates.md", names)
    assert capsys.readouterr().out.startswith("certified 0.0")
    assert Path("certificate.json").exists()
    assert Path("ledger.json").exists()


def test_the_examples_of_contributing_work_as_printed(tiny_problem):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    # A data source is printed as a file of its room.
    names = {"__name__": "wine", "__package__": "fairbilevel.data"}
    for block in blocks:
        exec(compile(block, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    problem = tiny_problem(names["ErrorCeiling"](0.2))
    dense = problem.refer(problem.initial_network())
    options = {"sparsity": 0.5, "steps": 24, "batch_size": 16}
    for method in (
        fb.BilevelSolver(relaxation=names["KeptOnly"](), dual_step=0.1, **options),
        names["Fisher"](**options),
    ):
        solution = fb.solve(problem, method, dense=dense)
        removed = sum(int((mask == 0).sum()) for mask in solution.masks.values())
        assert removed == sum(mask.size for mask in solution.masks.values()) // 2
        found = solution.evaluate("test")
        worst = 1 - min(group.accuracy for group in found.groups.values())
        assert [c.violation for c in found.constraints.values()] == [pytest.approx(worst - 0.2)]
    rows = names["Wine"]().read(None, None)
    assert len(rows.read([0, 1])) == 2
    assert len(rows.attributes) == 178


def test_the_page_of_results_is_the_one_that_its_files_make():
    page = results_page.made()
    assert page == results_page.PAGE.read_text()
    reading = (ROOT / "experiments/results/systems/reading.md").read_text()
    table = reading[reading.index("| method |") : reading.index("\n- digits")].strip()
    assert len(table.splitlines()) > 25
    assert table in page


PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        ROOT / "CHANGELOG.md",
    ]
)


def anchors(page: Path) -> set[str]:
    """What a heading is linked by: lower case, dashes for blanks, no punctuation."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).strip().replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_inside_is_dead(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


def test_every_room_has_a_page_of_the_site():
    """Whose entries are the room's ``__all__``: a name cannot be left out."""
    rooms = {room.name for room in pkgutil.iter_modules(fb.__path__) if room.name[0] != "_"}
    listed = re.findall(
        r"^   fairbilevel\.(\w+)$", (ROOT / "docs/api.rst").read_text(), re.MULTILINE
    )
    assert sorted(listed) == sorted(rooms - {"cli"})  # the command line has a guide


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {fb.__version__}\n" in citation
    assert f"\n## {fb.__version__} (" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_is_short_and_names_every_guide():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 180
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in readme


def test_what_the_readme_says_of_the_gain_stands_in_the_results():
    readme = (ROOT / "README.md").read_text()
    said = readme[readme.index("**What the solver gains:**") : readme.index("[All of it](docs/res")]
    readings = [ROOT / f"experiments/results/{name}/reading.md" for name in ("claim", "main_job")]
    lines = [line for page in readings for line in page.read_text().splitlines()]
    told = " ".join(line for line in lines if not line.startswith("|"))
    known = {round(float(number), 2) for number in re.findall(r"\d+\.\d+", told)}
    numbers = [float(number) for number in re.findall(r"\d+\.\d\d\b", said)]
    assert len(numbers) > 15
    assert set(numbers) <= known
