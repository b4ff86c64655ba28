"""A user's mistake costs one sentence: exit code 2, one line, no traceback, nothing written."""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fairbilevel as fb
from fairbilevel.cli import main

BASE = ["--model", "mlp", "--width", "8", "--steps", "60", "--dense-steps", "5"]
FAST = [*BASE, "--batch-size", "32", "--no-baseline"]


@pytest.fixture
def refuses(tmp_path, monkeypatch, capsys, tree):
    """Run a command that must fail cleanly, in an empty folder of its own; returns the sentence."""

    def check(words, message="", *, writes=False):
        place = tmp_path / "work"
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        before = tree(tmp_path)
        capsys.readouterr()
        try:
            code = main([str(w) for w in words])
        except SystemExit as stop:
            code = stop.code
        err = capsys.readouterr().err
        assert code == 2, err
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("fairbilevel: error: "), err
        assert "Traceback" not in err
        assert message in lines[0], err
        if not writes:
            assert tree(tmp_path) == before
        return lines[0]

    return check


# ---------------------------------------------------------------- options


@pytest.mark.parametrize("value", ["-0.1", "1", "1.5", "nan"])
@pytest.mark.parametrize("command", ["solve", "plan"])
def test_sparsity_outside_its_range(refuses, command, value):
    refuses([command, *FAST, f"--sparsity={value}"], "sparsity must lie in [0, 1)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sparsity", "0.9999"], "fewer than the 2 layers"),
        (["--sparsity", "0.98", "--budget", "uniform", "--granularity", "filter"], "empty"),
    ],
)
def test_sparsity_that_leaves_a_layer_empty(refuses, words, message):
    refuses(["solve", *FAST, *words], message)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ("accuracy-gap=-1%", "tolerance"),
        ("accuracy-gap=-0.5", "tolerance"),
        ("accuracy-gap=nan", "tolerance"),
        ("accuracy-gap=2", "ambiguous: write 2% or a fraction"),
        ("accuracy-gap=much", "a fraction such as 0.02 or a percentage such as 2%"),
        ("acuracy-gap=2%", "did you mean 'accuracy-gap'"),
        ("excess-acuracy-gap", "did you mean 'excess-accuracy-gap'"),
    ],
)
def test_bad_constraints(refuses, constraint, message):
    refuses(["solve", *FAST, "--constraint", constraint], message)


def test_one_constraint_twice(refuses):
    words = ["--constraint", "accuracy-gap=2%", "--constraint", "accuracy-gap=3%"]
    refuses(["solve", *FAST, *words], "each constraint can be given once")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "resnet-18"], "did you mean 'resnet18'"),
        (["--data", "digit"], "did you mean 'digits'"),
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--target", "labl"], "did you mean 'label'"),
        (["--group", "lable"], "did you mean 'label'"),
        (["--hypergradient", "bilnear"], "did you mean 'bilinear'"),
        (["--relaxation", "topk"], "did you mean 'top-k'"),
        (["--granularity", "weights"], "did you mean 'weight'"),
        (["--budget", "globl"], "did you mean 'global'"),
        (["--score-start", "magnitud"], "did you mean 'magnitude'"),
        (["--surrogate", "hing"], "surrogate"),
        (["--small-groups", "drop"], "--small-groups"),
        (["--missing-groups", "ignore"], "missing_groups"),
        (["--hypergradient", "bilinear:gamma=0"], "gamma must be positive"),
        (["--hypergradient", "bilinear:gamma=nan"], "gamma must be positive"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--dense-steps", "0"], "--dense-steps must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--buffer-size", "-3"], "--buffer-size must be at least 1"),
        (["--width", "0"], "width must be at least 1"),
        (["--learning-rate", "nan"], "--learning-rate must be a finite number"),
        (["--dense-learning-rate", "inf"], "--dense-learning-rate must be a finite number"),
        (["--score-step=-1"], "--score-step must be a finite number"),
        (["--seed=-1"], "--seed must lie in"),
        (["--max-rows", "0"], "max_rows"),
        (["--image-size", "0"], "image_size"),
        (["--role-fractions", "fit=0.5,selct=0.5"], "role fractions"),
        (["--role-fractions", "fit=0.5,select=0.2,tune=0.1,certify=0.1,test=0.5"], "sum to 1"),
        (["--exclude-feature", "age"], "exclude_feature"),
        (["--dense", "nowhere"], "nowhere"),
    ],
)
def test_bad_options(refuses, words, message):
    refuses(["solve", *FAST, *words], message)


@pytest.mark.parametrize(
    "words",
    [
        ["solve", "--sparsty", "0.5"],
        ["solve", "--sparsity", "half"],
        ["solve", "--sparsity"],
        ["solve", "extra"],
        ["plan", "--unknown"],
        ["evaluate"],
        ["evaluate", "runs/none"],
        ["report"],
        ["report", "a", "b"],
        ["sovle"],
        ["--sparsity", "0.5"],
    ],
)
def test_command_lines_that_cannot_be_parsed(refuses, words):
    refuses(words)


def test_an_unknown_option_names_the_nearest(refuses):
    assert "--sparsity" in refuses(["solve", "--sparsty", "0.5"])
    assert "did you mean 'solve'" in refuses(["sovle"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.toml", "sparsity = = 0.5", "malformed"),
        ("run.json", '{"sparsity": 0.5', "malformed"),
        ("run.json", "[0.5]", "no table of options"),
        ("run.toml", "sparsty = 0.5", "did you mean 'sparsity'"),
        ("run.toml", 'sparsity = "half"', "sparsity"),
        ("run.toml", "steps = 1.5", "steps"),
        ("run.toml", "constraint = 2", "constraint"),
        ("run.toml", "constraint = [2]", "constraint"),
        ("run.toml", "width = 'wide'", "width"),
        ("run.toml", "baseline = 'no'", "baseline"),
        ("run.toml", "sparsity = 1.5", "sparsity must lie in"),
        ("run.toml", "sparsity = true", "sparsity"),
    ],
)
def test_bad_configuration_files(refuses, tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    refuses(["solve", *FAST, "--config", path], message)


def test_configuration_files_that_cannot_be_read(refuses, tmp_path):
    refuses(["solve", "--config", tmp_path / "none.toml"], "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    refuses(["solve", "--config", tmp_path / "binary.toml"], "cannot be read")
    refuses(["solve", "--config"], "--config wants")


# ---------------------------------------------------------------- tables and arrays


def table(rows=400, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2))
    return [
        ["a", "b", "label", "group", "key", "role"],
        *(
            [
                f"{v[0]:.3f}",
                f"{v[1]:.3f}",
                "yes" if i % 2 else "no",
                "gh"[i // 2 % 2],
                f"r{i}",
                "fit",
            ]
            for i, v in enumerate(x)
        ),
    ]


def save(path, lines):
    path.write_text("\n".join(",".join(line) for line in lines) + "\n")
    return path


def solve_table(path, *more):
    words = ["--steps", "60", "--dense-steps", "20", "--width", "8", "--no-baseline"]
    return ["solve", "--data", path, "--target", "label", "--group", "group", *words, *more]


def test_tables_with_columns_that_are_not_there(refuses, tmp_path):
    path = save(tmp_path / "t.csv", table())
    refuses(["solve", "--data", path, "--group", "group"], "column to predict")
    refuses(["solve", "--data", path, "--target", "label"], "group")
    refuses(["solve", "--data", path, "--target", "labl", "--group", "group"], "'label'")
    refuses(["solve", "--data", path, "--target", "label", "--group", "grup"], "'group'")
    for option in ("--id", "--unit", "--weight", "--role", "--exclude-feature"):
        refuses(solve_table(path, option, "nothing"), "nothing")
    refuses(solve_table(path, "--positive", "Yes"), "'yes'")
    refuses(solve_table(path, "--model", "cnn"), "--model mlp")


def test_tables_with_bad_rows(refuses, tmp_path):
    lines = table()
    lines[5][4] = "r0"
    refuses(solve_table(save(tmp_path / "t.csv", lines), "--id", "key"), "more than once")
    lines = table()
    lines[5][2] = ""
    refuses(solve_table(save(tmp_path / "t.csv", lines)), "label")
    lines = table()
    lines[5][3] = "?"
    refuses(solve_table(save(tmp_path / "t.csv", lines)), "missing_groups")
    lines = table()
    lines[5].append("too many")
    refuses(solve_table(save(tmp_path / "t.csv", lines)), "t.csv")
    refuses(solve_table(save(tmp_path / "t.csv", table()[:1])), "no rows")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfea,b")
    refuses(solve_table(tmp_path / "t.csv"), "UTF-8")
    lines = table()
    lines[9][0] = "inf"
    refuses(solve_table(save(tmp_path / "t.csv", lines)), "infinity")


def test_a_single_group_or_class(refuses, tmp_path):
    lines = table()
    for line in lines[1:]:
        line[3] = "g"
    refuses(solve_table(save(tmp_path / "t.csv", lines)), "group")
    lines = table()
    for line in lines[1:]:
        line[2] = "yes"
    refuses(solve_table(save(tmp_path / "t.csv", lines)), "class")


def test_groups_and_classes_without_rows_in_a_role(refuses, tmp_path):
    lines = table()
    roles = ("fit", "select", "tune", "certify", "test")
    for i, line in enumerate(lines[1:]):
        line[5] = roles[i // 4 % 5]
    save(tmp_path / "good.csv", lines)
    for line in lines[1:]:
        if line[5] == "tune":
            line[3] = "g"
    message = "group 'h' (160 rows in all) has no rows in role tune"
    refuses(solve_table(save(tmp_path / "t.csv", lines), "--role", "role"), message)
    for line in lines[1:]:
        if line[5] == "test":
            line[2] = "no"
    message = "has no rows in role"
    refuses(solve_table(save(tmp_path / "t.csv", lines), "--role", "role"), message)
    few = table(40)
    words = ["--min-group-rows", "1", "--role-fractions"]
    shares = "fit=0.9,select=0.05,tune=0.01,certify=0.02,test=0.02"
    refuses(solve_table(save(tmp_path / "few.csv", few), *words, shares), "role")


def test_too_few_rows_for_any_claim(refuses, tmp_path):
    path = save(tmp_path / "t.csv", table(40))
    refuses(solve_table(path), "single group is left")
    refuses(solve_table(path, "--small-groups", "error"), "fewer than 50 rows")


def test_bad_arrays(refuses, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"not a zip")
    refuses(["solve", *FAST, "--data", path], "a.npz")
    np.savez(path, x=np.zeros((4, 2)), y=np.zeros(4))
    refuses(["solve", *FAST, "--data", path], "'group'")
    np.savez(path, x=np.full((4, 2), np.nan), y=np.arange(4) % 2, group=np.arange(4) % 2)
    refuses(["solve", *FAST, "--data", path], "missing or infinite numbers")
    objects = np.array([{}, {}], dtype=object)
    np.savez(path, x=objects, y=np.zeros(2), group=np.zeros(2))
    refuses(["solve", *FAST, "--data", path], "plain arrays")


# ---------------------------------------------------------------- images


def picture(size=(8, 8), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def image_files(count=8, columns="file,label,group", row="{i}.png,{c},{g}"):
    files = {f"{i}.png": picture(seed=i) for i in range(count)}
    lines = [columns, *(row.format(i=i, c="ab"[i % 2], g="gh"[i // 2 % 2]) for i in range(count))]
    return files | {"labels.csv": "\n".join(lines).encode()}


def as_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def as_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


IMAGE_CASES = {
    "a file that is missing": (lambda f: f.pop("3.png"), "not in"),
    "a truncated image": (lambda f: f.update({"3.png": f["3.png"][:60]}), "3.png"),
    "text instead of an image": (lambda f: f.update({"3.png": b"hello"}), "3.png"),
    "an empty image": (lambda f: f.update({"3.png": b""}), "3.png"),
    "sizes that differ": (lambda f: f.update({"3.png": picture((9, 8))}), "differ in size"),
    "no column of files": (
        lambda f: f.update({"labels.csv": f["labels.csv"].replace(b"file,", b"what,")}),
        "no column of file names",
    ),
    "no column of labels": (
        lambda f: f.update({"labels.csv": f["labels.csv"].replace(b"label", b"colour")}),
        "target",
    ),
    "a missing label": (
        lambda f: f.update({"labels.csv": f["labels.csv"].replace(b"3.png,b", b"3.png,")}),
        "missing",
    ),
    "a missing group": (
        lambda f: f.update({"labels.csv": f["labels.csv"].replace(b"3.png,b,h", b"3.png,b,")}),
        "missing",
    ),
    "a file listed twice": (
        lambda f: f.update({"labels.csv": f["labels.csv"].replace(b"3.png", b"2.png")}),
        "twice",
    ),
    "no files": (lambda f: f.clear(), "no files"),
}


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("case", IMAGE_CASES)
def test_bad_image_collections(refuses, tmp_path, case, form):
    files = image_files()
    damage, message = IMAGE_CASES[case]
    damage(files)
    path = tmp_path / ("images" if form == "folder" else "images.zip")
    if form == "folder":
        path.mkdir()
    (as_folder if form == "folder" else as_zip)(path, files)
    refuses(["solve", *FAST, "--data", path], message)


@pytest.mark.parametrize(
    "name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "C:\\evil.png"]
)
def test_zips_that_lead_outside(refuses, tmp_path, name):
    path = as_zip(tmp_path / "images.zip", image_files() | {name: picture()})
    refuses(["solve", *FAST, "--data", path], "points outside the zip")


def test_zips_that_are_none(refuses, tmp_path):
    path = tmp_path / "images.zip"
    path.write_bytes(b"PK\x03\x04 and then nothing")
    refuses(["solve", *FAST, "--data", path], "not a readable zip")


# ---------------------------------------------------------------- run folders


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run on the digits that took no time."""
    path = tmp_path_factory.mktemp("finished") / "run"
    assert main(["solve", *FAST, "--sparsity", "0.5", "--out", str(path)]) == 0
    return path


@pytest.fixture
def copied(finished, tmp_path):
    return as_folder(
        tmp_path / "copy",
        {str(p.relative_to(finished)): p.read_bytes() for p in finished.rglob("*") if p.is_file()},
    )


def change_result(folder, **values):
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DAMAGES = {
    "no folder": (lambda f: None, "nowhere"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "not a run folder"),
    "unfinished": (lambda f: (f / "result.json").unlink(), "did not finish"),
    "result cut short": (
        lambda f: (f / "result.json").write_text((f / "result.json").read_text()[:99]),
        "result.json",
    ),
    "result of another kind": (lambda f: (f / "result.json").write_text("[1]"), "schema_version"),
    "newer schema": (lambda f: change_result(f, schema_version=3), "schema 3"),
    "no schema": (lambda f: change_result(f, schema_version=None), "schema_version"),
}
MODEL_DAMAGES = {
    "no sparse model": (lambda f: (f / "model" / "sparse.npz").unlink(), "sparse.npz"),
    "sparse model cut short": (
        lambda f: (f / "model" / "sparse.npz").write_bytes(
            (f / "model" / "sparse.npz").read_bytes()[:500]
        ),
        "sparse.npz",
    ),
    "dense model of text": (lambda f: (f / "model" / "dense.npz").write_text("x"), "dense.npz"),
    "no description": (lambda f: (f / "model" / "model.json").unlink(), "model.json"),
    "empty description": (lambda f: (f / "model" / "model.json").write_text("{}"), "model.json"),
    "description of a list": (
        lambda f: (f / "model" / "model.json").write_text("[]"),
        "model.json",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES | MODEL_DAMAGES)
def test_evaluating_damaged_runs(refuses, copied, damage):
    act, message = (DAMAGES | MODEL_DAMAGES)[damage]
    act(copied)
    path = "nowhere" if damage == "no folder" else copied
    refuses(["evaluate", path, "--data", "digits"], message)


@pytest.mark.parametrize("damage", DAMAGES)
def test_reports_of_damaged_runs(refuses, copied, damage):
    act, message = DAMAGES[damage]
    act(copied)
    refuses(["report", "nowhere" if damage == "no folder" else copied], message)


def test_pickles_in_a_run_are_refused(refuses, copied):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(copied / "executed"),))

    path = copied / "model" / "dense.npz"
    np.savez(path, **{"param/x": np.array([Trap()], dtype=object)})
    refuses(["evaluate", copied, "--data", "digits"], "dense.npz")
    refuses(["solve", *FAST, "--dense", copied], "dense.npz")
    assert not (copied / "executed").exists()


def test_a_dense_model_of_another_shape(refuses, copied):
    words = ["--width", "16", "--dense", copied]
    refuses(["solve", *FAST, *words], "does not fit the model")


def test_evaluating_data_of_another_form(refuses, copied, tmp_path):
    files = image_files(columns="file,label", row="{i}.png,{c}")
    path = as_folder(tmp_path / "letters", files)
    refuses(["evaluate", copied, "--data", path], "label 'a'")
    path = save(tmp_path / "t.csv", table())
    refuses(["evaluate", copied, "--data", path])
    good = image_files(columns="file,label", row="{i}.png,1")
    path = as_folder(tmp_path / "colours", good)
    refuses(["evaluate", copied, "--data", path], "shape")


# ---------------------------------------------------------------- output folders and disks


def test_output_folders_that_are_not_free(refuses, copied, tmp_path):
    words = ["solve", *FAST, "--sparsity", "0.5", "--out"]
    refuses([*words, copied], "already holds a run")
    foreign = as_folder(tmp_path / "foreign", {"thesis.tex": b"years"})
    for more in ([], ["--overwrite"]):
        refuses([*words, foreign, *more], "holds files that are no run")
        refuses([*words, foreign / "thesis.tex", *more], "is a file")


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk(refuses, monkeypatch, tmp_path, call):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    out = tmp_path / "work" / "run"
    words = ["solve", *FAST, "--sparsity", "0.5", "--out", out]
    refuses(words, "the disk is full", writes=True)
    monkeypatch.undo()
    # Nothing half written is left behind.
    assert not [p for p in out.rglob("*") if p.is_file() and p.name.startswith(".")]
    assert not (out / "result.json").exists()


def test_a_disk_that_fills_up_while_the_model_is_written(refuses, monkeypatch, tmp_path):
    replace, calls = os.replace, []

    def filling(*args):
        calls.append(args)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(*args)

    monkeypatch.setattr(os, "replace", filling)
    out = tmp_path / "work" / "run"
    words = ["solve", *FAST, "--sparsity", "0.5", "--out", out]
    refuses(words, "the disk is full", writes=True)
    monkeypatch.undo()
    assert not (out / "result.json").exists()
    refuses(["evaluate", out, "--data", "digits"], "did not finish")
    # The folder can be used again.
    assert main([*map(str, words), "--overwrite"]) == 0


def test_a_folder_that_may_not_be_written(refuses, tmp_path):
    (tmp_path / "file").write_text("")
    words = ["solve", *FAST, "--sparsity", "0.5", "--out", tmp_path / "file" / "run"]
    refuses(words)


# ---------------------------------------------------------------- numbers that blow up


@pytest.mark.parametrize(
    ("words", "phase"),
    [
        (["--dense-learning-rate", "1e9"], "dense"),
        (["--learning-rate", "1e9"], "bilevel"),
        (["--learning-rate", "1e30"], "bilevel"),
        (["--dense-learning-rate", "1e38"], "dense"),
    ],
)
def test_divergence(refuses, tmp_path, words, phase):
    out = tmp_path / "work" / "run"
    longer = ["--steps", "200", "--dense-steps", "60"]
    line = refuses(
        ["solve", *FAST, *longer, "--sparsity", "0.5", *words, "--out", out],
        f"of the {phase} phase",
        writes=True,
    )
    result = json.loads((out / "result.json").read_text())
    assert result["status"] == "diverged"
    assert f"at step {result['step']} of the {phase} phase" in line
    assert result["phase"] == phase
    with np.load(out / "model" / "last_good.npz", allow_pickle=False) as arrays:
        assert arrays.files
        for name in arrays.files:
            assert np.isfinite(arrays[name]).all(), name


def test_a_diverged_run_is_told_from_a_finished_one(refuses, copied):
    """Evaluating or reporting what diverged says so."""
    change_result(copied, status="diverged", diagnosis="the loss is not finite at step 3")
    for path in ("sparse.npz", "dense.npz", "model.json"):
        (copied / "model" / path).unlink()
    refuses(["evaluate", copied, "--data", "digits"])


def test_the_library_raises_the_same_sentences(tmp_path):
    with pytest.raises(ValueError, match=r"not a run folder|no run folder"):
        fb.load_run(tmp_path / "none")
    with pytest.raises(ValueError, match="sparsity must lie in"):
        fb.BilevelSolver(sparsity=2.0)
