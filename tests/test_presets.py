"""The paper experiments: every design holds, a trial cuts it down, mistakes get one sentence."""

import sys

import numpy as np
import pytest

from experiments import claim, hypergradient_ablation
from experiments._comparison import run_presets
from experiments._presets import PRESETS, Setting

SETTINGS = {
    f"{module}/{preset}/{name}": setting
    for module, presets in PRESETS.items()
    for preset, settings in presets.items()
    for name, setting in settings.items()
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_is_a_design_that_holds(setting, tmp_path):
    design = setting.design(tmp_path)
    assert design.methods == setting.methods
    assert design.config.data.endswith(setting.source)
    assert design.dense_seeds == 5
    trial = {"steps": 4, "folds": 2, "max_rows": 500, "image_size": 66, "width": 8}
    cut = setting.design(tmp_path, trial)
    assert cut.config.width == 8
    assert (cut.config.steps, cut.config.dense_steps, cut.config.max_rows) == (4, 4, 500)
    assert (cut.config.image_size, cut.folds, cut.rounds, cut.dense_seeds) == (66, 2, 1, 0)
    assert (cut.methods, cut.sparsities) == (setting.methods, setting.sparsities)
    some = setting.design(tmp_path, {"methods": (setting.reference,), "sparsities": (0.25,)})
    assert some.runs == [(setting.reference, 0.25)]


@pytest.fixture
def rows(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype("float32")
    group = rng.integers(0, 2, 300)
    np.savez(tmp_path / "rows.npz", x=x, y=(x[:, 0] + 0.3 * group > 0).astype(int), group=group)
    return tmp_path


def call(monkeypatch, settings, *words, more=None):
    monkeypatch.setattr(sys, "argv", ["experiment", *map(str, words)])
    monkeypatch.setitem(PRESETS, "experiment", {"small": settings})
    run_presets("experiment", "One sentence.", lambda summaries: list(summaries), more)


def setting(source="rows.npz"):
    options = {"model": "mlp", "width": 8, "min_group_rows": 10, "batch_size": 32}
    return Setting(source, ("gradual-magnitude", "magnitude"), (0.5, 0.9), options)


def test_a_trial_runs_what_was_asked_for_and_then_the_rest(rows, monkeypatch):
    seen = []

    def more(folder, name, design, summary):
        assert (folder.parent / "one" / "table.md").is_file()
        assert (folder.parent / "two" / "table.md").is_file()
        seen.append((name, design.runs, [line["method"] for line in summary["lines"]]))

    words = ["--data", rows, "--steps", 4, "--folds", 2, "--processes", 1, "--out", rows / "out"]
    words += ["--methods", "gradual-magnitude", "--sparsities", "0.5"]
    call(monkeypatch, {"one": setting(), "two": setting()}, *words, more=more)
    runs = [("gradual-magnitude", 0.5)]
    assert seen == [(name, runs, ["dense", "gradual-magnitude"]) for name in ("one", "two")]
    assert (rows / "out" / "reading.md").is_file()
    assert (rows / "out" / "one" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_tables_of_what_is_finished_are_made_anew_without_data(rows, monkeypatch):
    both = {"one": setting(), "two": setting()}
    trial = ["--steps", 4, "--folds", 2, "--processes", 1, "--out", rows / "out"]
    call(monkeypatch, both, "--data", rows, "--only", "one", *trial)
    there = rows / "out" / "one"
    assert (there / "repetitions.xz").is_file()
    assert not (there / "repetitions").exists()
    before = (there / "table.csv").read_bytes()
    (there / "table.csv").unlink()
    call(monkeypatch, both, *trial)
    assert (there / "table.csv").read_bytes() == before
    assert not (rows / "out" / "two").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--data is needed: the folder that holds rows.npz"),
        (["--data", "nowhere", "--out", "out", "--steps", 2], "nowhere"),
        (["--only", "two"], "--only: choose from one"),
        (["--max-rows", "9"], "a trial (--steps, --folds and the like) needs an --out of its own"),
        (
            ["--data", ".", "--methods", "magnitude", "--out", "out"],
            "the reference 'gradual-magnitude' is not among the methods magnitude",
        ),
    ],
)
def test_mistakes_get_one_sentence(words, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, {"one": setting()}, *words, "--processes", 1)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_data_that_are_not_prepared_are_said_so(monkeypatch, capsys, tmp_path):
    """Up to reading: what the ``tfds:`` presets come to where nothing is prepared."""
    monkeypatch.chdir(tmp_path)
    source = f"tfds:cifar100?data_dir={tmp_path}"
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, {"one": setting(source)}, "--processes", 1, "--out", "out")
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: tfds:cifar100 is not prepared here")


def test_a_reading_does_without_what_a_trial_left_out():
    """Rivals that were not run, and times of runs that were all gone on with."""
    alone = {"lines": [{"method": "bilevel"}], "admitted": {}}
    assert not any(
        "setting of a trial" in line for line in claim.reading({"setting of a trial": alone})
    )
    lines = [
        {
            "method": method,
            "sparsity": 0.9,
            "accuracy_difference_mean": 0.01,
            "accuracy_difference_low": low,
            "accuracy_difference_high": 0.02,
            "certified_tolerance_difference_mean": 0.0,
            "certified_tolerance_difference_p_adjusted": 1.0,
        }
        for method, low in (("bilevel:hypergradient=none", None), ("bilevel:hypergradient=cg", 0.0))
    ]
    summary = {"lines": lines, "repetitions": 2, "claims": False}
    (said,) = hypergradient_ablation.reading({"tables": summary})
    assert "conjugate gradients is no different than no implicit term" in said
