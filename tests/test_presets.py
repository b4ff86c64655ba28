"""The paper experiments: every design holds, a trial cuts it down, mistakes get one sentence."""

import dataclasses
import sys

import numpy as np
import pytest

from experiments import claim, hypergradient_ablation, parts
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
    small = setting.smoke(tmp_path / "rows.npz")
    assert (small.methods, small.config.model) == (design.methods, design.config.model)
    assert (small.repetitions, small.config.steps) == ([(0, 0), (0, 1)], 40)
    with np.load(tmp_path / "rows.npz") as rows:
        assert {small.config.target, *small.config.group, "x"} == set(rows.files)
        images = rows["x"].shape[1:3]
    if (design.config.image_size or 0) > 64:
        assert images == (66, 66)


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
    options |= {"steps": 4, "dense_steps": 4}
    return Setting(source, ("gradual-magnitude", "magnitude"), (0.5,), options, folds=2)


def test_settings_run_and_then_what_hangs_on_all_of_them(rows, monkeypatch):
    seen = []

    def more(folder, name, design, summary):
        assert (folder.parent / "one" / "table.md").is_file()
        assert (folder.parent / "two" / "table.md").is_file()
        seen.append((name, design.runs, [line["method"] for line in summary["lines"]]))

    words = ["--data", rows, "--processes", 1, "--out", rows / "out"]
    call(monkeypatch, {"one": setting(), "two": setting()}, *words, more=more)
    methods = ["gradual-magnitude", "magnitude"]
    runs = [(method, 0.5) for method in methods]
    assert seen == [(name, runs, ["dense", *methods]) for name in ("one", "two")]
    assert (rows / "out" / "reading.md").is_file()
    assert (rows / "out" / "one" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_tables_of_what_is_finished_are_made_anew_without_data(rows, monkeypatch):
    both = {"one": setting(), "two": setting()}
    words = ["--processes", 1, "--out", rows / "out"]
    call(monkeypatch, both, "--data", rows, "--only", "one", *words)
    there = rows / "out" / "one"
    assert (rows / "out" / "repetitions.xz").is_file()
    assert not (there / "repetitions").exists()
    before = (there / "table.csv").read_bytes()
    (there / "table.csv").unlink()
    call(monkeypatch, both, *words)
    assert (there / "table.csv").read_bytes() == before
    assert not (rows / "out" / "two").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--data is needed: the folder that holds rows.npz"),
        (["--data", "nowhere", "--out", "out"], "nowhere"),
        (["--only", "two"], "--only: choose from one"),
        (["--data", ".", "--smoke"], "--smoke makes its own rows; leave out --data"),
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


def test_a_smoke_run_needs_no_data_and_leaves_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    both = {"one": setting("nowhere.zip"), "two": setting("tfds:nothing")}
    call(monkeypatch, both, "--smoke", "--only", "two", "--processes", 1)
    out = capsys.readouterr().out
    assert "two: round 0 fold 1: magnitude@0.5" in out
    assert "one:" not in out
    assert not list(tmp_path.iterdir())
    call(monkeypatch, both, "--smoke", "--processes", 1, "--out", "kept")
    assert "--preset small --smoke --only one" in (tmp_path / "kept/one/table.md").read_text()


def test_runs_that_failed_are_left_out_of_a_reading_and_end_it_with_an_error(
    rows, monkeypatch, capsys
):
    few = setting()
    few = dataclasses.replace(
        few,
        methods=("gradual-magnitude", "bilevel:hypergradient=cg"),
        options={**few.options, "steps": 1},
    )
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, {"one": few}, "--data", rows, "--processes", 1, "--out", rows / "out")
    assert stop.value.code == "2 runs failed; the same command tries them again"
    assert (rows / "out" / "reading.md").is_file()
    assert "do not pay for one outer step" in capsys.readouterr().out
    alone = {"lines": [{"method": "bilevel"}], "admitted": {}}
    assert not any("failing" in line for line in claim.reading({"failing": alone}))


def test_a_claim_counts_where_the_solver_is_least():
    def line(method, churn, spread):
        numbers = {"test_accuracy": 0.8, "certified_tolerance": 0.05, "churn": churn}
        each = {key: [0.5, 0.6] for key in ("test_accuracy_each", "certified_tolerance_without")}
        return {"method": method, "spread_test": spread, **numbers, **each}

    def summary(*lines):
        return {"lines": lines, "admitted": {0.9: {"admitted": False}}}

    near = line("ceag", 0.1, 1e-4)
    told = claim.reading(
        {
            "both": summary(line("bilevel", 0.09, 0.9e-4), near),
            "one": summary(line("bilevel", 0.09, 1.1e-4), near, line("synflow", 0.2, 1.2e-4)),
        }
    )
    assert "is below that of every rival in 2 of 2 settings, its noise-free spread in 1 of 2." in (
        "\n".join(told)
    )


def test_a_claim_averages_each_budget_apart():
    def summary(gain):
        each = {"certified_tolerance_without": [0.05, 0.05], "churn": 0.1, "spread_test": 0.0}
        same = {"certified_tolerance": 0.05, **each}
        rival = {"method": "ceag", "test_accuracy": 0.8, "test_accuracy_each": [0.79, 0.81]}
        own = {"method": "bilevel", "test_accuracy": 0.8 + gain}
        own["test_accuracy_each"] = [0.789 + gain, 0.811 + gain]
        return {
            "lines": [same | own, same | rival],
            "admitted": {0.9: {"admitted": True}},
            "roles": {"test": 100, "fit": 200, "select": 100},
        }

    told = claim.reading({"a-300": summary(0.02), "b-300": summary(0.04), "c-1000": summary(-0.03)})
    said = [line for line in told if "evaluations alone" in line]
    assert said[0].startswith("Those at 300 evaluations alone (2), no test: accuracy +3.00 (")
    assert said[1].startswith("Those at 1,000 evaluations alone (1), no test: accuracy −3.00 (")
    assert "Averaged over 3 admitted settings, unadjusted 95 % intervals: accuracy +1.00 (" in (
        "\n".join(told)
    )


def test_a_claim_compares_where_multiply_adds_are_counted_among_themselves():
    def line(method, accuracy, cost):
        each = {"test_accuracy_each": [accuracy] * 2, "certified_tolerance_without": [0.05] * 2}
        numbers = {"test_accuracy": accuracy, "multiply_adds_kept": cost, **each}
        same = {"certified_tolerance": 0.05, "churn": 0.1, "spread_test": 0.0}
        return {"method": method, **numbers, **same}

    strong = "distill=0.5,match_dense=true"
    costs = "sparsity_of=multiply-adds"
    lines = [
        line("ceag", 0.70, 0.2),
        line(f"ceag:{strong}", 0.71, 0.2),
        line("bilevel", 0.72, 0.2),
        line(f"ceag:{strong},{costs}", 0.78, 0.3),
        line(f"bilevel:{costs}", 0.75, 0.3),
    ]
    roles = {"test": 100, "fit": 200, "select": 100}
    whole = {"lines": lines, "admitted": {0.7: {"admitted": True}}, "roles": roles}
    weights = whole | {"lines": lines[:3]}
    told = claim.reading({"filters-300": whole, "weights-300": weights})
    rows = [row.split(" | ") for row in told if row.startswith("| filters-300")]
    assert [(row[4], row[5]) for row in rows] == [
        ("ceag", "+2.00"), ("ceag", "+1.00"), ("ceag", "−3.00")
    ]  # fmt: skip
    text = "\n".join(told)
    assert text.count("weights-300 |") == 2
    assert "filters-300 72.00 % at 20.00 %, 75.00 % at 30.00 %." in text
    assert text.count("After Holm") == 2


def test_brackets_are_differences_of_the_numbers_before_them():
    def line(method, accuracy, certified):
        numbers = {"test_accuracy": accuracy, "certified_tolerance": certified}
        return {"method": method, "churn": 0.1, "spread_test": 1e-4, **numbers}

    ceag, changed = line("ceag", 0.8, 0.05), line("ceag:dual_step=0.1", 0.81, 0.04)
    changed["certified_tolerance_difference_mean"] = 0.02  # of the folds' own
    summary = {"reference": "ceag", "lines": [{"method": "dense"}, ceag, changed]}
    found = parts.reading({"some": summary})
    assert "| some | ceag | 10.00 | 80.00 | – | 5.00 |" in found[0]
    assert "| 81.00 (+1.00) | – | 4.00 (−1.00) |" in found[0]


def test_a_reading_does_without_times_of_runs_that_were_gone_on_with():
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
