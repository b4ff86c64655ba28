"""Run folders: what the command line writes is complete, exact, safe to load and read back."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fairbilevel as fb
from fairbilevel.cli import main
from fairbilevel.records import Kept, read_json_lines

SMALL = ["--model", "mlp", "--width", "32", "--dense-steps", "60", "--batch-size", "64"]
QUICK = [*SMALL, "--steps", "100"]
REPORTED = {"fit", "select", "tune", "test"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The default data set, solved once."""
    path = tmp_path_factory.mktemp("runs") / "first"
    assert main(["solve", *QUICK, "--sparsity", "0.8", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def result(folder):
    return fb.records.read_result(folder)


@pytest.fixture(scope="module")
def run(folder):
    return fb.load_run(folder)


@pytest.fixture(scope="module")
def rows():
    """The same rows and roles again, by the public way."""
    data, counted = fb.data.handle_small_groups(fb.data.load("digits"), "report-only", 50)
    return data, fb.data.split_roles(data, seed=0, counted=counted)


def test_the_folder_is_complete(folder):
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "events.jsonl",
        "manifest.json",
        "metrics.jsonl",
        "model",
        "report.html",
        "result.json",
        "rows.npz",
    ]
    assert sorted(p.name for p in (folder / "model").iterdir()) == [
        "dense.npz",
        "model.json",
        "sparse.npz",
    ]


def test_schema(result, folder, rows):
    data, roles = rows
    assert result.schema_version == fb.records.SCHEMA_VERSION == 2
    assert result.completed
    assert result.seed == 0
    assert {"python", "jax", "numpy"} <= set(result.versions)
    assert result.data.name == "digits"
    assert result.data.classes == result.data.groups == list("0123456789")
    assert result.data.roles == {name: len(r) for name, r in roles.items()}
    assert result.data.skipped == data.skipped
    for network in (result.dense, result.pruned, result.baseline):
        assert set(network) == REPORTED
        for role, found in network.items():
            assert found.role == role
            assert list(found.groups) == list("0123456789")
            assert None not in (found.majority_class, found.commonest_answer)
    (constraint,) = result.constraints
    assert constraint.name == "excess-accuracy-gap"
    assert (constraint.title, constraint.unit) == ("Excess accuracy gap", "points")
    assert constraint.tolerance == 0.02
    assert list(constraint.multipliers) == list("0123456789")
    assert result.cost.gradient_evaluations <= 100
    assert result.cost.dense_gradient_evaluations == 60
    assert 0 < result.cost.compile_seconds < result.cost.seconds
    assert result.cost.peak_memory_mb > 100
    # What is written is what is read, to the last field.
    assert json.loads((folder / "result.json").read_text()) == result.to_json()
    assert fb.records.Result.from_json(result.to_json()) == result


def former(result: fb.records.Result) -> dict:
    """A result as schema 1 wrote it down."""
    old = {**result.to_json(), "schema_version": 1}
    roles = {"pruned": "gaps", "baseline": "baseline_gaps"}
    for model in ("dense", *roles):
        evaluations = getattr(result, model)
        old[model] = {
            role: {
                "accuracy": found.accuracy,
                "loss": found.loss,
                "group_accuracy": {n: g.accuracy for n, g in found.groups.items()},
                "group_size": {n: g.rows for n, g in found.groups.items()},
                "balanced_accuracy": found.balanced_accuracy,
                "majority_class": found.majority_class,
                "majority_share": found.majority_share,
                "commonest_answer": found.commonest_answer,
                "commonest_answer_share": found.commonest_answer_share,
            }
            for role, found in evaluations.items()
        }
        if model in roles:
            old[roles[model]] = {
                role: {
                    "accuracy_gap": found.gaps.accuracy.largest,
                    "degradation_gap": found.gaps.degradation.largest,
                    "max_excess_accuracy_gap": found.gaps.excess_accuracy.largest,
                    "worst_group_accuracy": found.worst_group_accuracy,
                    "excess_accuracy_gap": {n: g.excess for n, g in found.groups.items()},
                    "discordant": {n: [g.lost, g.won] for n, g in found.groups.items()},
                }
                for role, found in evaluations.items()
            }
    (bound,) = old["constraints"]
    for name in ("title", "meaning", "unit", "group_tolerance"):
        del bound[name]
    measured = {role: found.constraints[bound["name"]] for role, found in result.pruned.items()}
    bound["value"] = {role: found.value for role, found in measured.items()}
    bound["largest_violation"] = {role: found.violation for role, found in measured.items()}
    return old


def test_a_result_of_schema_1_says_the_same(result):
    """All but what schema 1 did not write: constraints and flips of the other two networks."""
    read = fb.records.Result.from_json(json.loads(json.dumps(former(result))))
    assert read.pruned == result.pruned
    for role, found in result.baseline.items():
        assert dataclasses.replace(found, constraints={}) == read.baseline[role]
        for name, group in result.dense[role].groups.items():
            assert (group.accuracy, group.excess) == (read.dense[role].groups[name].accuracy, 0.0)
    for name in ("data", "sparsity", "layers", "constraints", "cost", "feasibility", "machine"):
        assert getattr(read, name) == getattr(result, name)


@pytest.mark.parametrize(
    "damage",
    [
        {"pruned": {"test": 3}},
        {"pruned": {"test": {"accuracy": "much"}}},
        {"layers": [{"name": 1}]},
        {"warnings": "one"},
        {"data": [1]},
        {"schema_version": 1, "gaps": {"test": {"discordant": {"0": [1]}}}},
        {"schema_version": 1, "constraints": [3]},
        {"schema_version": "2"},
    ],
)
def test_a_result_of_other_types_is_refused(result, damage):
    whole = former(result) if damage.get("schema_version") == 1 else result.to_json()
    with pytest.raises(fb.records.RecordError, match=r"^result\.json (is damaged|has no schema)"):
        fb.records.Result.from_json({**whole, **damage})


def test_an_evaluation_tells_itself(result):
    found = result.pruned["test"]
    frame = found.to_frame()
    assert list(frame.index) == list(found.groups)
    assert frame.accuracy["3"] == found.groups["3"].accuracy
    assert frame.change["3"] == found.groups["3"].change
    gap = found.gaps.excess_accuracy
    assert gap.largest == frame.excess.max() == frame.excess[gap.group]
    assert found.worst_group_accuracy == frame.accuracy.min()
    assert frame.accuracy["3"] != frame.dense_accuracy["3"] or not frame.change["3"]
    assert f"accuracy {100 * found.accuracy:.1f} %" in repr(found)
    assert f"({gap.group})" in repr(found)
    page = found._repr_html_()
    assert page.count("<tr>") == 11
    assert f"{100 * found.groups['3'].accuracy:.1f}\xa0%" in page
    with pytest.raises(AttributeError):
        found.accuracy = 1.0


def test_sparsity_is_exact(result, run):
    part = result.sparsity
    prunable = 64 * 32 + 32 * 16
    assert part.prunable == prunable
    assert part.kept == prunable - int(0.8 * prunable + 1e-9)
    assert part.achieved == 1 - part.kept / prunable
    assert part.requested == 0.8
    assert (part.unit, part.granularity, part.budget) == ("weight", "weight", "global")
    kept = sum(int(np.count_nonzero(m)) for m in run.masks.values())
    assert kept == part.kept
    # A row of an MLP multiplies every weight once; the classifier and biases stay.
    rest = 16 * 10
    assert part.multiply_adds == Kept(kept + rest, prunable + rest)
    biases = 32 + 16 + 10
    assert part.parameters == Kept(kept + rest + biases, prunable + rest + biases)
    params = fb._trees.flatten_named(run.network.params)
    for name, mask in run.masks.items():
        np.testing.assert_array_equal(np.asarray(params[f"{name}/kernel"]) != 0, mask != 0)


def test_reported_accuracies_are_those_of_the_saved_model(result, run, rows):
    data, roles = rows
    for role in REPORTED:
        y, group = data.y[roles[role]], data.group[roles[role]]
        inputs = data.inputs[roles[role]]
        for dense, found in ((False, result.pruned[role]), (True, result.dense[role])):
            logits = run.logits(inputs, dense=dense)
            right = logits.argmax(-1) == y
            assert found.accuracy == right.mean()
            for g, label in enumerate(data.groups):
                told = found.groups[label]
                assert told.accuracy == pytest.approx(right[group == g].mean(), abs=1e-15)
                assert told.rows == (group == g).sum()
            label, answer = (np.array(data.classes)[i] for i in (y, logits.argmax(-1)))
            each = [np.mean(answer[label == name] == name) for name in data.classes]
            assert found.balanced_accuracy == pytest.approx(np.mean(each), abs=1e-12)
            for values, name, share in (
                (label, found.majority_class, found.majority_share),
                (answer, found.commonest_answer, found.commonest_answer_share),
            ):
                counts = np.unique(values, return_counts=True)[1]
                assert share == np.mean(values == name) == counts.max() / len(y)
        np.testing.assert_array_equal(run.predict(inputs), run.logits(inputs).argmax(-1))


def test_gaps_agree_with_the_accuracies(result):
    for network in (result.pruned, result.baseline):
        for role in REPORTED:
            dense, found = result.dense[role], network[role]
            assert found.dense_accuracy == dense.accuracy
            overall = dense.accuracy - found.accuracy
            damage = {}
            for name, group in found.groups.items():
                assert group.dense_accuracy == dense.groups[name].accuracy
                damage[name] = group.dense_accuracy - group.accuracy
                assert group.excess == pytest.approx(damage[name] - overall, abs=1e-12)
                flips = (group.lost - group.won) / group.rows
                assert flips == pytest.approx(damage[name], abs=1e-12)
            excess = [group.excess for group in found.groups.values()]
            # One quantity, two names: the overall loss of accuracy cancels.
            largest = max(excess) - min(excess)
            assert found.gaps.degradation.largest == pytest.approx(largest, abs=1e-12)
            assert found.gaps.excess_accuracy.largest == pytest.approx(max(excess), abs=1e-12)
            assert found.gaps.excess_accuracy.group == max(damage, key=damage.get)
            rates = [group.accuracy for group in found.groups.values()]
            assert found.gaps.accuracy.largest == pytest.approx(max(rates) - min(rates))
            assert found.worst_group_accuracy == min(rates)
    for role in REPORTED:
        found = result.pruned[role]
        measured = found.constraints["excess-accuracy-gap"]
        gap = found.gaps.excess_accuracy.largest
        assert measured.value == pytest.approx(gap, abs=1e-12)
        assert measured.violation == pytest.approx(gap - 0.02, abs=1e-12)
        assert measured.met == (gap <= 0.02 + 1e-9)


def test_metrics_lines(run):
    phases = [r["phase"] for r in run.metrics]
    assert [p for i, p in enumerate(phases) if i == 0 or phases[i - 1] != p] == [
        "dense",
        "bilevel",
        "finetune",
        "settle",
        "baseline",
    ]
    bilevel = [r["sparsity"] for r in run.metrics if r["phase"] == "bilevel"]
    assert bilevel == sorted(bilevel)
    assert bilevel[-1] == 0.8
    # The baseline's phases are one here, whose steps go on counting.
    baseline = [r for r in run.metrics if r["phase"] == "baseline"]
    steps = [r["step"] for r in baseline]
    assert steps == sorted(set(steps))
    assert {r["steps"] for r in baseline} == {steps[-1]}
    # A step costs one gradient evaluation, whichever phase it is in.
    assert steps[-1] == baseline[-1]["gradient_evaluations"] == 100
    assert read_json_lines(run.path / "metrics.jsonl") == run.metrics


def test_nothing_in_the_folder_is_a_pickle(folder):
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                assert all(arrays[name].dtype.kind in "fiub" for name in arrays.files)
        elif path.is_file():
            assert path.suffix in (".json", ".jsonl", ".html")
            path.read_text(encoding="utf-8")


def test_the_sparse_file_holds_kept_values_only(folder, run):
    with np.load(folder / "model" / "sparse.npz") as arrays:
        for name, mask in run.masks.items():
            assert arrays[f"mask/{name}"].dtype == np.uint8
            assert arrays[f"mask/{name}"].size == -(-mask.size // 8)
            assert arrays[f"kept/{name}/kernel"].size == np.count_nonzero(mask)


def test_a_dense_model_of_a_former_run(folder, result, tmp_path, rows):
    out = tmp_path / "second"
    words = ["solve", *QUICK, "--sparsity", "0.5", "--granularity", "filter", "--budget", "uniform"]
    words += ["--constraint", "accuracy-gap=5%", "--constraint", "equalized-loss=0.1"]
    assert main([*words, "--dense", str(folder), "--out", str(out), "--no-baseline"]) == 0
    second = fb.load_run(out).result
    for role, found in result.dense.items():
        assert dataclasses.replace(second.dense[role], constraints={}) == dataclasses.replace(
            found, constraints={}
        )
    assert second.baseline == {}
    assert second.cost.dense_gradient_evaluations == 0
    assert second.sparsity.prunable == 32 + 16
    assert second.sparsity.kept == 24
    assert [c.name for c in second.constraints] == ["accuracy-gap", "equalized-loss"]
    assert not any(r["phase"] == "dense" for r in fb.load_run(out).metrics)
    first, again = fb.load_run(folder), fb.load_run(out)
    inputs = rows[0].inputs[:200]
    np.testing.assert_array_equal(
        again.logits(inputs, dense=True), first.logits(inputs, dense=True)
    )
    # Removed neurons are exactly zero, biases included.
    for name, mask in again.masks.items():
        parts = fb._trees.flatten_named(again.network.params)
        assert not np.asarray(parts[f"{name}/bias"])[np.asarray(mask) == 0].any()
    # An .npz of parameters will do as well.
    file = folder / "model" / "dense.npz"
    assert main(["plan", *QUICK, "--dense", str(file)]) == 0


# ---------------------------------------------------------------- evaluate


def test_evaluate_scores_labelled_rows(folder, run, rows, capsys):
    assert main(["evaluate", str(folder), "--data", "digits", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    data = rows[0]
    assert shown["rows"] == shown["scored"] == len(data)
    assert shown["pruned"]["accuracy"] == (run.predict(data.inputs) == data.y).mean()


def images(path, rows, count, labels=None, *, group=True):
    """A folder of digits with a CSV: file, and a label (and the same as group) where asked for."""
    from PIL import Image

    data, roles = rows
    path.mkdir()
    columns = ["file", *(["label"] if labels else []), *(["group"] if labels and group else [])]
    lines = [",".join(columns)]
    for n, i in enumerate(roles["test"][:count]):
        Image.fromarray(data.inputs[i][..., 0]).save(path / f"{n}.png")
        label = labels(n, data.classes[data.y[i]]) if labels else ""
        lines.append(",".join([f"{n}.png", *[label] * (len(columns) - 1)]))
    (path / "labels.csv").write_text("\n".join(lines) + "\n")
    return str(path)


def test_evaluate_on_a_folder_of_images(folder, run, rows, tmp_path, capsys):
    data, roles = rows
    chosen = roles["test"][:40]
    source = images(tmp_path / "labelled", rows, 40, lambda n, label: label)
    out = tmp_path / "predictions.csv"
    words = ["evaluate", str(folder), "--data", source, "--json", "--predictions", str(out)]
    assert main(words) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["scored"] == 40
    right = run.predict(data.inputs[chosen]) == data.y[chosen]
    assert shown["pruned"]["accuracy"] == right.mean()
    assert shown["pruned"]["gaps"]["degradation"]["largest"] is not None
    with out.open() as stream:
        lines = list(csv.DictReader(stream))
    chances = [f"{model}_p_{name}" for model in ("dense", "pruned") for name in data.classes]
    assert list(lines[0]) == ["id", "group", "y", "dense", "pruned", *chances]
    assert [line["pruned"] for line in lines] == [str(c) for c in run.predict(data.inputs[chosen])]
    dense = run.logits(data.inputs[chosen], dense=True).argmax(-1)
    assert [line["dense"] for line in lines] == [str(c) for c in dense]
    assert [line["y"] for line in lines] == [str(c) for c in data.y[chosen]]
    for model in ("dense", "pruned"):
        written = [[float(line[f"{model}_p_{name}"]) for name in data.classes] for line in lines]
        expected = run.predict_proba(data.inputs[chosen], dense=model == "dense")
        np.testing.assert_allclose(written, expected, rtol=1e-5)
        assert [line[model] for line in lines] == [data.classes[i] for i in np.argmax(written, 1)]


def test_what_evaluate_writes_is_what_certify_reads(folder, tmp_path, capsys):
    out = tmp_path / "predictions.csv"
    assert main(["evaluate", str(folder), "--data", "digits", "--predictions", str(out)]) == 0
    assert main(["certify", "--predictions", str(out), "--tolerance", "50%"]) == 0
    assert "Verdict: certified" in capsys.readouterr().out


def test_groups_that_were_the_labels_are_the_labels_of_other_data_too(
    folder, rows, tmp_path, capsys
):
    """The run was made with the source's defaults, by which a digit's group is its label."""
    source = images(tmp_path / "labelled", rows, 20, lambda n, label: label, group=False)
    assert main(["evaluate", str(folder), "--data", source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scored"] == 20


def test_evaluate_counts_unlabelled_rows_and_scores_the_others(folder, rows, tmp_path, capsys):
    source = images(tmp_path / "some", rows, 12, lambda n, label: label if n % 3 else "")
    out = tmp_path / "predictions.csv"
    words = ["evaluate", str(folder), "--data", source, "--json", "--predictions", str(out)]
    assert main(words) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["rows"], shown["scored"], shown["unlabelled"]) == (12, 8, 4)
    with out.open() as stream:
        lines = list(csv.DictReader(stream))
    assert [line["y"] == "" for line in lines] == [n % 3 == 0 for n in range(12)]
    assert all(line["pruned"] in "0123456789" for line in lines)


def test_evaluate_without_any_label(folder, rows, tmp_path, capsys):
    source = images(tmp_path / "none", rows, 5)
    assert main(["evaluate", str(folder), "--data", source]) == 0
    out = capsys.readouterr().out
    assert "5 rows, 0 scored, 5 without a label (predicted, not scored)" in out


def test_evaluate_prints_a_table(folder, capsys):
    assert main(["evaluate", str(folder), "--data", "digits"]) == 0
    out = capsys.readouterr().out
    assert "1,560 rows, 1,560 scored" in out
    assert "skipped 237: thinned" in out
    assert "excess gap" in out


# ---------------------------------------------------------------- report, plan, configuration


def test_report_is_written_again(folder, capsys):
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == before
    assert "report:" in capsys.readouterr().out


def test_plan_writes_nothing(tmp_path, monkeypatch, capsys, tree):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *QUICK, "--out", "there"]) == 0
    assert tree(tmp_path) == {}
    out = capsys.readouterr().out
    assert "least tolerance" in out
    assert "2,304 of 2,560 weights to remove (90 %)" in out


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_configuration_files(kind, tmp_path, capsys):
    path = tmp_path / f"run.{kind}"
    if kind == "toml":
        path.write_text(
            'model = "mlp"\nwidth = 32\nsparsity = 0.7\nconstraint = ["accuracy-gap=10%"]\n'
            "dense-steps = 20\n"
        )
    else:
        path.write_text(
            json.dumps(
                {"model": "mlp", "width": 32, "sparsity": 0.7, "constraint": "accuracy-gap=10%",
                 "dense_steps": 20}
            )
        )  # fmt: skip
    assert main(["plan", "--config", str(path)]) == 0
    out = capsys.readouterr().out
    assert "(70 %)" in out
    assert "dense 20" in out
    # The command line goes before the file.
    assert main(["plan", f"--config={path}", "--sparsity", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "(50 %)" in out
    assert "dense 20" in out


def test_repeated_options_replace_those_of_the_file(tmp_path):
    from fairbilevel.cli._parse import configuration

    path = tmp_path / "run.toml"
    path.write_text('constraint = ["accuracy-gap=10%", "equalized-loss"]\ngroup = ["label"]\n')
    config = configuration("solve", ["--config", str(path)])
    assert config.constraint == ("accuracy-gap=10%", "equalized-loss")
    assert config.group == ("label",)
    config = configuration("solve", ["--config", str(path), "--constraint", "degradation-gap=1%"])
    assert config.constraint == ("degradation-gap=1%",)
    assert config.group == ("label",)
    assert configuration("solve", []).constraint == ("excess-accuracy-gap=2%",)
    assert configuration("solve", ["--constraint", "none"]).constraints() == ()


def test_the_config_of_a_run_reads_back(folder, tmp_path):
    from fairbilevel.run import Config

    values = json.loads((folder / "config.json").read_text())
    config = Config.from_mapping(values)
    assert config.to_json() == values
    assert config.sparsity == 0.8


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    assert "fairbilevel COMMAND" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert fb.__version__ in capsys.readouterr().out


# ---------------------------------------------------------------- where runs go


@pytest.fixture(scope="module")
def tiny_csv(tmp_path_factory, tiny_data):
    """A table small enough that a whole run takes seconds."""
    path = tmp_path_factory.mktemp("table") / "people.csv"
    lines = ["a,b,c,d,e,f,label,group"]
    for x, y, g in zip(tiny_data.inputs, tiny_data.y, tiny_data.group, strict=True):
        values = [f"{v:.4f}" for v in x]
        lines.append(",".join([*values, tiny_data.classes[y], tiny_data.groups[g]]))
    path.write_text("\n".join(lines) + "\n")
    return path


def table_words(path, *more):
    words = ["solve", "--data", str(path), "--target", "label", "--group", "group", "--width", "8"]
    words += ["--steps", "60", "--dense-steps", "20", "--batch-size", "16", "--no-baseline"]
    return [*words, "--sparsity", "0.5", *more]


def test_runs_never_overwrite_each_other(tiny_csv, tmp_path, monkeypatch, tree):
    monkeypatch.chdir(tmp_path)
    assert main(table_words(tiny_csv)) == 0
    (first,) = (tmp_path / "runs").iterdir()
    before = tree(first)
    assert main(table_words(tiny_csv)) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert tree(first) == before
    second = next(p for p in (tmp_path / "runs").iterdir() if p != first)
    # The same seed gives the same model, to the byte.
    for name in ("sparse.npz", "dense.npz", "model.json"):
        assert (second / "model" / name).read_bytes() == (first / "model" / name).read_bytes()


def test_overwrite_replaces_runs_and_leaves_foreign_files(tiny_csv, tmp_path, capsys, tree):
    out = tmp_path / "mine"
    assert main(table_words(tiny_csv, "--out", str(out))) == 0
    (out / "notes.txt").write_text("mine")
    before = tree(out)
    assert main(table_words(tiny_csv, "--out", str(out))) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert tree(out) == before
    assert main(table_words(tiny_csv, "--out", str(out), "--overwrite", "--seed", "5")) == 0
    after = tree(out)
    assert after["notes.txt"] == b"mine"
    assert json.loads(after["result.json"])["seed"] == 5
    assert set(after) == set(before)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert main(table_words(tiny_csv, "--out", str(other), "--overwrite")) == 2
    assert tree(other) == {"thesis.tex": b"years of work"}


def test_evaluating_a_table_without_labels(tiny_csv, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(table_words(tiny_csv, "--out", str(out))) == 0
    bare = tmp_path / "bare.csv"
    lines = tiny_csv.read_text().splitlines()[:21]
    bare.write_text(
        "\n".join(",".join(line.split(",")[:6] + line.split(",")[7:]) for line in lines)
    )
    capsys.readouterr()
    assert main(["evaluate", str(out), "--data", str(bare), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["rows"], shown["scored"], shown["unlabelled"]) == (20, 0, 20)


# ---------------------------------------------------------------- the library's own runs


def test_round_trip_of_a_users_model(tiny_problem, tiny_data, tmp_path):
    def start():
        rng = np.random.default_rng(0)
        return {
            "a": jnp.asarray(rng.normal(size=(6, 9)), jnp.float32),
            "b": jnp.zeros(9),
            "c": jnp.asarray(rng.normal(size=(9, 3)), jnp.float32),
        }

    model = fb.models.from_function(
        lambda p, x: jnp.maximum(x @ p["a"] + p["b"], 0) @ p["c"], start(), name="mine"
    )
    problem = tiny_problem(fb.fairness.ExcessAccuracyGap(0.05), model=model)
    solution = fb.solve(
        problem, dense=problem.initial_network(), sparsity=0.5, steps=60, batch_size=16
    )
    path = fb.save_run(solution, tmp_path / "mine", seed=3)
    with pytest.raises(ValueError, match=r"'mine' is not a built-in one: pass it as model="):
        fb.load_run(path)
    run = fb.load_run(path, model=model)
    inputs = tiny_data.inputs
    assert solution.logits(inputs).tobytes() == run.logits(inputs).tobytes()
    dense = problem.logits(solution.reference.network, problem.inputs)
    assert dense.tobytes() == run.logits(inputs, dense=True).tobytes()
    np.testing.assert_array_equal(run.predict(inputs), solution.predict(inputs))
    named = [tiny_data.classes[i] for i in run.logits(inputs).argmax(-1)]
    assert run.predict(inputs).tolist() == named
    np.testing.assert_array_equal(
        run.predict(inputs, dense=True) == named,
        run.logits(inputs, dense=True).argmax(-1) == run.logits(inputs).argmax(-1),
    )
    chances = run.predict_proba(inputs)
    np.testing.assert_array_equal(chances, solution.predict_proba(inputs))
    np.testing.assert_allclose(chances, jax.nn.softmax(run.logits(inputs)), rtol=1e-5)
    np.testing.assert_allclose(chances.sum(-1), 1, rtol=1e-12)
    assert run.result.seed == 3
    assert run.classes == tiny_data.classes
    assert run.groups == tiny_data.groups
    for name, mask in solution.masks.items():
        np.testing.assert_array_equal(run.masks[name], mask)
    with pytest.raises(ValueError, match="already holds a run"):
        fb.save_run(solution, path)
    fb.save_run(solution, path, overwrite=True)
    other = fb.models.from_function(lambda p, x: x @ p["w"], {"w": jnp.zeros((6, 3))})
    with pytest.raises(ValueError, match=r"(does not fit the model|damaged)"):
        fb.load_run(path, model=other)


def test_round_trip_from_the_command_line(folder, run, rows):
    """Loaded twice and in odd portions: the same bits."""
    inputs = rows[0].inputs[:100]
    again = fb.load_run(os.fspath(folder))
    assert again.logits(inputs).tobytes() == run.logits(inputs).tobytes()
    np.testing.assert_allclose(
        np.concatenate([run.logits(inputs[:7]), run.logits(inputs[7:])]),
        run.logits(inputs),
        atol=1e-5,
    )
