"""A small run on a table without ids, for attacks to begin from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from fairbilevel.cli import main
from fairbilevel.records._folder import seal


def table(rows: int, seed: int) -> list[str]:
    """Lines of a CSV, header first: eight numbers, a colour, a label that they tell, a group."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 8)).round(4)
    y = (x[:, 0] + x[:, 1] + 0.3 * rng.normal(size=rows) > 0).astype(int)
    colour, group = (rng.choice(names, rows) for names in (["red", "blue"], ["a", "b"]))
    head = ",".join([*(f"x{i}" for i in range(8)), "colour", "label", "group"])
    return [head, *(",".join(map(str, [*x[i], colour[i], y[i], group[i]])) for i in range(rows))]


def reseal(run: Path) -> None:
    """Make the manifest of a run fit its files again."""
    seal(run, (run / "result.json").read_text())


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("attacked")
    (place / "rows.csv").write_text("\n".join(table(900, 0)))
    words = ["--data", str(place / "rows.csv"), "--target", "label", "--group", "group"]
    words += ["--model", "mlp", "--width", "8", "--steps", "30", "--dense-steps", "60"]
    words += ["--no-baseline", "--sparsity", "0.5", "--out", str(place / "run")]
    assert main(["solve", *words]) == 0
    return place


@pytest.fixture
def place(made, tmp_path) -> Path:
    """A copy of the run and of its rows."""
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copy(made / "rows.csv", tmp_path / "rows.csv")
    return tmp_path
