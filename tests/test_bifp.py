"""The BiFP experiment: the loss surface between the variants at a tiny size."""

import csv

import numpy as np
import pytest

from experiments import bifp
from fairbilevel import comparison
from fairbilevel.comparison import Comparison
from fairbilevel.run import Config


@pytest.fixture(scope="module")
def design(source):
    config = Config(
        data=str(source), model="mlp", width=8, dense_steps=40, steps=150, batch_size=64,
        constraint=("accuracy-gap=0%",),
    )  # fmt: skip
    return Comparison(config, bifp.SURFACE, (0.5,), reference="bifp", folds=2, dense_seeds=0)


def test_the_surface_goes_through_the_networks_of_the_table(design, tmp_path, monkeypatch):
    comparison.run_comparison(design, tmp_path)
    (said,) = bifp.surface(tmp_path, design, points=3)
    assert said.startswith("- *The surface")
    assert (tmp_path / "surface.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "surface.csv").open() as file:
        rows = list(csv.DictReader(file))
    networks, grid = rows[:3], rows[3:]
    assert [row["network"] for row in networks] == list(bifp.SURFACE)
    assert len(grid) == 9
    record, kept = comparison.read_repetition(tmp_path, 0, 0)
    share = np.bincount(kept["test/group"]) / len(kept["test/group"])
    for row in networks:
        known = record["runs"][f"{row['network']}@0.5"]["test"]["performance"]
        assert float(row["loss"]) == pytest.approx(known["loss"], rel=1e-4)
        assert f"{row['network']} {float(row['loss']):.3f}" in said
    for row in rows:
        by_group = [float(v) for k, v in row.items() if k.startswith("loss: ")]
        assert float(row["loss"]) == pytest.approx(share @ by_group, rel=1e-4)
    places = np.array([[float(row["u"]), float(row["v"])] for row in networks])
    np.testing.assert_array_equal(places[0], 0)
    assert places[1, 0] > 0 == places[1, 1] < places[2, 1]
    u, v = ({float(row[k]) for row in grid} for k in "uv")
    assert (min(u), min(v)) < (places.min(0)[0], places.min(0)[1])
    assert (max(u), max(v)) > (places.max(0)[0], places.max(0)[1])

    def never(*_):
        raise AssertionError("the surface is there already")

    monkeypatch.setattr(comparison, "start_repetition", never)
    assert bifp.surface(tmp_path, design, points=3) == [said]


def test_a_surface_that_cannot_be_drawn_is_told(design, tmp_path, monkeypatch):
    class Cut:
        def run(self, problem, reference):
            raise ValueError("sparsity 0.5 cut the network")

    monkeypatch.setattr(Comparison, "method", lambda *_: Cut())
    (said,) = bifp.surface(tmp_path, design)
    assert said == "- No loss surface at 50 %: sparsity 0.5 cut the network."
    assert not list(tmp_path.iterdir())
