"""The experiment on disparate impact: its numbers by hand, and one repetition in a few steps."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import _impact_tables as tables
from experiments import _presets
from experiments import disparate_impact as experiment
from fairbilevel import comparison

PRESETS = _presets.PRESETS["disparate_impact"]
DESIGN = PRESETS["small"]["utkface-race"].design(None)


def found(*done):
    return tables.Found("x", DESIGN.config, experiment.DEPTHS["small"], done)


def made_up(seed, *, sign=1.0):
    """A repetition of four groups whose loss of accuracy is known: 0, 10, 20 and 30 points.

    Gradient norm, eigenvalue and closeness go along with it, or against it.
    """
    rng = np.random.default_rng(seed)
    group = np.repeat([0, 1, 2, 3], 100)
    lost = np.tile(np.arange(100), 4) < 10 * group
    rows = {
        "id": np.arange(400).astype(str),
        "group": group,
        "label": group,
        "dense/correct": np.ones(400, bool),
        "rate 0.9/correct": ~lost,
    }
    loss = {"dense": [0.1] * 4, "rate 0.9": [0.1 + 0.5 * g for g in range(4)]}
    for variant, times in (("no mitigation", 1.0), ("before", 1.2), ("after", 0.5), ("both", 0.5)):
        rows[f"{variant}/correct"] = ~(np.tile(np.arange(100), 4) < 10 * times * group)
        loss[variant] = [0.1 + times * g for g in range(4)]
    trend = sign * np.arange(4.0) + 5 + 0.01 * rng.normal(size=4)
    properties = {
        "gradient_norm": trend.tolist(),
        "lambda_max": (2 * trend).tolist(),
        "closeness": (trend / 10).tolist(),
    }
    record = {
        "groups": ["a", "b", "c", "d"],
        "size": [400, 300, 200, 100],
        "roles": {"fit": 800, "select": 200, "test": 400},
        "parameters": 10,
        "loss": loss,
        "dense": properties,
        "rates": {
            "0.9": {
                **properties,
                "bound": [1.0, 1.0, 2.0, 1.0],
                "excess_loss_dense_statistics": [0.0, 0.5, 1.0, 1.5],
            }
        },
        "variants": {v: {"gradient_evaluations": 100.0} for v in _presets.MITIGATIONS},
    }
    return record, rows


def test_tables_by_hand():
    both = found(made_up(0), made_up(1))
    lines = {(x["rate"], x["group"]): x for x in tables.group_lines(both)}
    assert [lines[0.9, g]["accuracy"] for g in "abcd"] == pytest.approx([1, 0.9, 0.8, 0.7])
    assert [lines[0.9, g]["excess loss"] for g in "abcd"] == pytest.approx([0, 0.5, 1, 1.5])
    assert lines[0.0, "d"]["accuracy"] == 1
    assert lines[0.0, "d"]["taylor bound"] == ""
    mitigation = {x["variant"]: x for x in tables.mitigation_lines(both)}
    assert mitigation["dense"]["max-min group accuracy"] == 0
    assert mitigation["no mitigation"]["max-min group accuracy"] == pytest.approx(0.3)
    assert mitigation["after"]["max-min group accuracy"] == pytest.approx(0.15)
    assert mitigation["before"]["worst group accuracy"] == pytest.approx(0.64)
    assert mitigation["both"]["xi (nats)"] == pytest.approx(1.5)
    said = {(x["of"], x["with"], x["rate"]): x for x in tables.correlation_lines(both)}
    assert said["gradient norm", "excess loss", "0.9"]["pearson"] == pytest.approx(1, abs=1e-3)
    assert said["group size", "gradient norm", "0"]["pearson"] == pytest.approx(-1, abs=1e-3)
    assert said["group size", "gradient norm", "0"]["positive"] == 0


@pytest.mark.parametrize(
    ("values", "sign", "expected"),
    [
        ([1, 2, 3, 4, -1], "positive", "Seen"),
        ([1, 2, 3, -4, -1], "positive", "Not clear"),
        ([-1, -2, -3, -4, 1], "positive", "The opposite was seen"),
        ([-1, -2, -3, -4, -1], "negative", "Seen"),
        ([1, 2, 3, 4, -1], "negative", "The opposite was seen"),
        ([0, 0, 0, 0, 0], "positive", "Not clear"),
        ([1], "positive", "Too few repetitions to judge"),
    ],
)
def test_what_counts_as_seen(values, sign, expected):
    assert tables.seen(values, sign) == expected


def test_sentences_follow_the_numbers():
    said = list(tables.readings(found(*map(made_up, range(5)))))
    words = {line.split("*")[1]: line for line in said}
    assert "Seen: at rate 0.9" in words["Pruning harms groups unequally."]
    assert "is 30.0 points, dense 0.0, larger in 5 of 5" in words["Pruning harms groups unequally."]
    assert "lies above" in words["Pruning harms groups unequally."]
    assert "Seen: Pearson -1.00" in words["Smaller groups have larger gradient norms."]
    assert "Seen" in words["Groups with larger Hessian eigenvalues lose more (rate 0.9)."]
    # One of four groups loses more than its bound allows.
    assert "Not always: in 75 %" in words["The Taylor bound lies above the excess loss."]
    enforced = {k: v for k, v in words.items() if k.startswith("Equal losses")}
    before, after, both = enforced.values()
    assert "The opposite was seen" in before
    assert "changes by +6.0 points" in before
    assert "Seen" in after
    assert "changes by -15.0 points" in after
    assert "accuracy by +7.5" in both
    assert not any("Below chance" in line for line in said)
    record, rows = made_up(0)
    rows["dense/correct"] = rows["group"] != 2
    said = list(tables.readings(found((record, rows))))
    assert any("Below chance (25 %)" in line and line.endswith(": c.") for line in said)
    against = list(tables.readings(found(*(made_up(i, sign=-1.0) for i in range(5)))))
    assert any("lose more (rate 0.9).* The opposite was seen: Pearson -1.00" in s for s in against)


def test_a_repetition_in_a_few_steps_and_its_page(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    x = (rng.integers(0, 120, (240, 4, 4, 1)) + 40 * y[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "rows.npz", x=x, y=y, group=y)
    options = {"model": "mlp", "constraint": ("none",), "min_group_rows": 1, "batch_size": 8}
    options |= {"steps": 60, "dense_steps": 60, "width": 6}
    methods = tuple(_presets.MITIGATIONS.values())
    mine = _presets.Setting("rows.npz", methods, (0.98,), options, folds=2)
    monkeypatch.setitem(experiment.DEPTHS, "small", experiment.SHALLOW)
    monkeypatch.setitem(_presets.PRESETS, "disparate_impact", {"small": {"mine": mine}})
    out = tmp_path / "results"
    words = ["--data", str(tmp_path), "--out", str(out), "--processes", "1"]
    monkeypatch.setattr(sys, "argv", ["disparate_impact", *words])
    experiment.main()
    page = (out / "disparate_impact.md").read_text()
    assert "What of the paper was seen here" in page
    assert "Made by `python -m experiments.disparate_impact --data " in page
    assert (out / "repetitions.xz").is_file()
    assert not (out / "mine" / "repetitions").exists()
    record, rows = comparison.read_repetition(out / "mine", 0, 1)
    # Before and after together cost what one run of the pruner may.
    assert 0 < record["variants"]["both"]["gradient_evaluations"] <= 1.34 * 60
    assert len(rows["id"]) == record["roles"]["test"]
    assert rows["both/correct"].shape == rows["dense/correct"].shape
    # What is done is read back: neither data nor training is needed.
    monkeypatch.setattr(sys, "argv", ["disparate_impact", *words[2:]])
    monkeypatch.setattr(comparison, "start_repetition", None)
    (out / "disparate_impact.md").unlink()
    experiment.main()
    assert (out / "disparate_impact.md").read_text().splitlines()[:-1] == page.splitlines()[:-1]


def test_everything_is_written(tmp_path):
    page = tables.write(tmp_path, [found(made_up(0), made_up(1))])
    assert (tmp_path / "disparate_impact.md").read_text() == page
    for name, count in (("groups", 8), ("correlations", 5), ("mitigation", 5)):
        with (tmp_path / f"{name}.csv").open(newline="") as stream:
            lines = list(csv.DictReader(stream))
        assert len(lines) == count
        assert {line["setting"] for line in lines} == {"x"}
    with (tmp_path / "groups.csv").open(newline="") as stream:
        assert float(list(csv.DictReader(stream))[5]["accuracy"]) == pytest.approx(0.9)


def test_the_published_tables_are_made_from_the_rows(tmp_path):
    folder = Path(experiment.__file__).parent / "results/disparate_impact"
    settings = [
        tables.Found(
            name,
            setting.design(None).config,
            experiment.DEPTHS["small"],
            [comparison.read_repetition(folder / name, 0, fold) for fold in range(5)],
        )
        for name, setting in PRESETS["small"].items()
    ]
    page = tables.write(tmp_path, settings)
    for name in ("groups.csv", "correlations.csv", "mitigation.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    published = (folder / "disparate_impact.md").read_text()
    assert page.splitlines()[:-1] == published.splitlines()[:-1]


def test_settings_of_the_paper():
    assert len(PRESETS["paper"]) == 12
    for setting in PRESETS["paper"].values():
        assert len(setting.design(None).repetitions) == 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--data is needed: the folder that holds UTKFace"),
        (["--data", "nowhere", "--steps", "4", "--out", "out"], "error: "),
    ],
)
def test_missing_data_are_told_in_one_sentence(words, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["--preset", "paper", "--only", "utkface-race-resnet18", *words]
    monkeypatch.setattr(sys, "argv", ["disparate_impact", *words])
    with pytest.raises(SystemExit) as stop:
        experiment.main()
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in line
    assert "Traceback" not in line
