"""Many sparsities and tolerances by the same programs, and the table and picture they become."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import fairbilevel as fb
from fairbilevel import cli, solver, train
from fairbilevel.records import Activity, Interrupted
from fairbilevel.report import frontier_svg
from fairbilevel.run import Config, _frontier, frontier_folder, frontier_run, prepare
from fairbilevel.sweeps import Engine

QUICK = {"steps": 120, "batch_size": 16, "buffer_size": 4}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two groups that differ, three classes that a small network can tell apart."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(480, 6)).astype("float32")
    group, y = rng.integers(0, 2, 480), np.arange(480) % 3
    x[:, :3] += 2.5 * np.eye(3)[y] * (1 - 0.5 * group)[:, None]
    path = tmp_path_factory.mktemp("rows") / "rows.npz"
    np.savez(path, x=x, y=y, group=group)
    return prepare(Config(data=str(path), model="mlp", width=12, dense_steps=40, **QUICK))


@pytest.fixture(scope="module")
def points(prepared, tmp_path_factory):
    """The frontier of one pair, before any other test has compiled more than it did."""
    return frontier_run(prepared, [0.6], [0.02], tmp_path_factory.mktemp("one") / "f")


@pytest.fixture(scope="module")
def reference(prepared):
    return train.train_dense(prepared.problem, steps=40, batch_size=16)


def tolerated(prepared, tolerance):
    problem = prepared.problem
    return problem.under([dataclasses.replace(c, tolerance=tolerance) for c in problem.constraints])


def test_a_point_is_the_single_run(prepared, points, reference):
    """What a frontier says of a pair is what one run of it says, to the last bit."""
    assert [p["method"] for p in points] == ["dense", "gradual-magnitude", "bilevel"]
    method = dataclasses.replace(prepared.method, sparsity=0.6)
    single = method.run(tolerated(prepared, 0.02), reference)
    for role in ("tune", "test"):
        seen = single.evaluate(role)
        assert points[2][f"{role}_accuracy"] == seen.accuracy
        assert points[2][f"{role}_gap"] == seen.gaps.excess_accuracy.largest
    assert points[2]["gradient_evaluations"] == round(single.costs.gradient_evaluations, 1)


def test_pairs_differ_by_what_was_asked(prepared, reference):
    totals = []
    for sparsity, tolerance in ((0.6, 0.02), (0.3, 0.02), (0.6, 0.5)):
        method = dataclasses.replace(
            prepared.method, sparsity=sparsity, shrink_violations=False
        )  # so few rows tell nothing but noise
        solution = method.run(tolerated(prepared, tolerance), reference)
        told = solution.allocation.describe(solution.masks)
        prunable = sum(int(np.size(m)) for m in solution.masks.values())
        assert told["kept"] == prunable - int(sparsity * prunable + 1e-9)
        assert 0 <= solution.evaluate("test").accuracy <= 1
        totals.append(sum(solution.multipliers["excess-accuracy-gap"].values()))
    tight, _, loose = totals
    assert loose == 0 < tight  # half of all answers may be lost


def test_floors_of_all_and_nothing(prepared, reference):
    floors = []
    for floor in (0.0, 1.0):
        problem = prepared.problem.under([fb.fairness.WorstGroupAccuracy(floor)])
        solution = prepared.method.run(problem, reference)
        floors.append(sum(solution.multipliers["worst-group-accuracy"].values()))
    assert floors[0] == 0  # no floor at all
    assert floors[1] > 0  # a floor that nothing reaches


def test_a_frontier_compiles_nothing_after_its_first_pair(prepared, points, tmp_path):
    """Sparsities and tolerances are arguments of the programs, never part of them."""
    before = train.weight_stretch.compiled, solver.outer_stretch.compiled
    assert min(before) > 0
    many = frontier_run(prepared, [0.3, 0.8], [0.0, 0.07], tmp_path / "frontier")
    assert len(many) == 1 + 2 + 4
    assert (train.weight_stretch.compiled, solver.outer_stretch.compiled) == before


def test_a_stopped_frontier_is_gone_on_with(prepared, tmp_path, monkeypatch):
    """Stopped while it solves, it ends with the same table as one that was not."""
    pairs = ([0.6, 0.3], [0.02])
    frontier_run(prepared, *pairs, tmp_path / "whole")
    out = tmp_path / "stopped"

    def stop(line):
        if "done at sparsity 0.6" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM"):
        frontier_run(prepared, *pairs, out, stop)
    assert not (out / "frontier.csv").exists()
    with pytest.raises(ValueError, match="unfinished frontier with other options"):
        frontier_run(prepared, [0.6], [0.02], out)
    found, resume = [], Activity.resume

    def resumed(activity, like):
        found.append(resume(activity, like))
        return found[-1]

    monkeypatch.setattr(Activity, "resume", resumed)
    frontier_run(prepared, *pairs, out)
    # What was done before is a part of its own; the one under way goes on behind a stage.
    assert [seen[1]["stage"] for seen in found if seen is not None] == [1]
    assert (out / "frontier.csv").read_bytes() == (tmp_path / "whole/frontier.csv").read_bytes()
    assert not (out / "checkpoints").exists()
    assert not (out / "parts").exists()


def test_without_an_out_the_same_command_finds_its_unfinished_frontier(prepared, tmp_path):
    stem, pairs = tmp_path / "frontier", ([0.6], [0.02])
    assert frontier_folder(prepared, *pairs, stem) == stem

    class Stopped(Exception):
        pass

    def stop(line):
        raise Stopped

    with pytest.raises(Stopped):
        frontier_run(prepared, *pairs, stem, stop)
    assert frontier_folder(prepared, *pairs, stem) == stem
    assert frontier_folder(prepared, [0.5], [0.02], stem) == tmp_path / "frontier-2"
    frontier_run(prepared, *pairs, stem)
    assert frontier_folder(prepared, *pairs, stem) == tmp_path / "frontier-2"


def test_a_frontier_of_other_rows_is_refused(prepared, tmp_path):
    folder = tmp_path / "frontier"
    _frontier._claim(folder, prepared.config, [0.6], [0.02], prepared.problem.data.fingerprint)
    _frontier._claim(folder, prepared.config, [0.6], [0.02], prepared.problem.data.fingerprint)
    with pytest.raises(ValueError, match="other options or rows: rows was"):
        _frontier._claim(folder, prepared.config, [0.6], [0.02], "0" * 64)


def test_processes_make_the_same_frontier(prepared, points, tmp_path):
    found = frontier_run(prepared, [0.6], [0.02], tmp_path / "f", executor=Engine("local", 2))
    assert found == points
    assert {path.name for path in (tmp_path / "f").iterdir()} == {
        "config.json", "frontier.csv", "frontier.json", "frontier.svg"
    }  # fmt: skip


def test_a_point_that_fails_is_a_line_and_can_be_had_later(prepared, points, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(type(prepared.method), "run", broken)
        found = frontier_run(prepared, [0.6], [0.02], tmp_path / "f")
    assert [p.get("error") for p in found] == [None, None, "RuntimeError: out of luck"]
    assert found[:2] == points[:2]
    assert "out of luck" in (tmp_path / "f/frontier.csv").read_text()
    assert frontier_run(prepared, [0.6], [0.02], tmp_path / "f") == points


def test_bad_pairs(prepared, tmp_path):
    for sparsities, tolerances, message in (
        ([], [0.1], "at least one sparsity"),
        ([0.5], [], "at least one sparsity and one tolerance"),
        ([1.0], [0.1], "sparsity must lie"),
        ([0.5], [-0.1], "tolerance of excess-accuracy-gap must be"),
        ([0.5], [float("nan")], "tolerance of excess-accuracy-gap must be"),
    ):
        with pytest.raises(ValueError, match=message):
            frontier_run(prepared, sparsities, tolerances, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stop_on_the_command_line_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise Interrupted("SIGTERM")

    monkeypatch.setattr(fb.run, "frontier_run", stopped)
    out = tmp_path / "frontier"
    assert cli.main(["frontier", "--model", "mlp", "--out", str(out)]) == 128 + signal.SIGTERM
    err = capsys.readouterr().err
    assert f"the same command goes on ({out})" in err
    assert err.count("\n") == 1


def test_command(prepared, tmp_path, capsys):
    out = tmp_path / "frontier"
    words = "--sparsities 0.5,0.9 --tolerances=1%,0.05 --steps 60 --dense-steps 40 --model mlp"
    words += f" --width 12 --batch-size 16 --buffer-size 4 --data {prepared.config.data}"
    code = cli.main(["frontier", *words.split(), "--out", str(out)])
    assert code == 0
    assert "Nothing is certified" in capsys.readouterr().out
    with (out / "frontier.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["method"] for r in rows] == ["dense"] + 2 * ["gradual-magnitude"] + 4 * ["bilevel"]
    told = json.loads((out / "frontier.json").read_text())
    assert {(p["sparsity"], p["tolerance"]) for p in told["points"][3:]} == {
        (0.5, 0.01),
        (0.5, 0.05),
        (0.9, 0.01),
        (0.9, 0.05),
    }
    assert any(p["chosen"] for p in told["points"])
    svg = ElementTree.fromstring((out / "frontier.svg").read_text())
    assert svg.tag.endswith("svg")
    before = (out / "frontier.csv").read_bytes()
    assert cli.main(["frontier", "--out", str(out)]) == 2
    assert "there already" in capsys.readouterr().err
    assert (out / "frontier.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sparsities", "0.5,much"], "numbers in [0, 1)"),
        (["--sparsities", "1.5"], "[0, 1)"),
        (["--tolerances", "-1%"], "tolerance"),
        (["--tolerances="], "wants a value"),
        (["--constraint", "none"], "needs a --constraint"),
        (["--no-baseline"], "stands at every sparsity"),
        (["--overwrite"], "a folder is gone on with"),
    ],
)
def test_bad_commands(words, message, tmp_path, capsys):
    out = tmp_path / "frontier"
    assert cli.main(["frontier", *words, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_picture_says_what_is_not_dominated():
    def point(method, sparsity, tolerance, accuracy, gap, chosen):
        values = {f"{r}_{k}": v for r in ("tune", "test") for k, v in
                  (("accuracy", accuracy), ("gap", gap))}  # fmt: skip
        return {"method": method, "sparsity": sparsity, "tolerance": tolerance,
                "chosen": chosen, **values}  # fmt: skip

    svg = frontier_svg(
        [
            point("dense", 0.0, None, 0.9, 0.0, False),
            point("bilevel", 0.9, 0.02, 0.88, 0.01, True),
            point("bilevel", 0.9, 0.05, 0.87, 0.02, False),
            point("gradual-magnitude", 0.9, None, 0.86, 0.03, False),
        ]
    )
    root = ElementTree.fromstring(svg)
    text = " ".join(t.text or "" for t in root.iter() if t.tag.endswith("desc"))
    assert "Not dominated on tune: 90 % removed at tolerance 2 points." in text
    rings = [c for c in root.iter() if c.get("r") == "8.5"]
    assert len(rings) == 2  # one a panel


def test_constrained_magnitude_pruning(prepared, reference):
    """CEAG: the same network until pruning ends, then multipliers on the rows it trains on."""
    quick = {"sparsity": 0.6, "steps": 120, "batch_size": 16}
    plain = fb.pruners.GradualMagnitude(**quick)
    held = fb.pruners.GradualMagnitude(**quick, enforce=True, buffer_size=4, dual_step=1.0)
    naive, constrained = (p.run(prepared.problem, reference) for p in (plain, held))
    for name, mask in naive.masks.items():
        np.testing.assert_array_equal(mask, constrained.masks[name])
    assert naive.multipliers == {}
    assert max(constrained.multipliers["excess-accuracy-gap"].values()) > 0
    assert constrained.method == "gradual-magnitude-constrained"
