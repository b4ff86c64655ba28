"""What is typed by mistake: exit code 2, one sentence, no traceback, and no folder."""

from __future__ import annotations

import datetime

import numpy as np
import pytest

from fairbilevel.cli import main
from fairbilevel.cli._parse import configuration

BASE = ["--model", "mlp", "--width", "8", "--steps", "60", "--dense-steps", "5", "--no-baseline"]


@pytest.fixture
def refuses(tmp_path, monkeypatch, capsys):
    """Run a command that must fail cleanly, in an empty folder."""

    def check(words, message):
        place = tmp_path / "work"
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        try:
            code = main([str(w) for w in words])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr().err
        assert code == 2, said
        assert len(said.splitlines()) == 1, said
        assert said.startswith("fairbilevel: error: "), said
        assert message in said, said
        assert not list(place.iterdir())

    return check


OPTIONS = {
    "none beside a bound": (["--constraint", "none", "--constraint", "accuracy-gap=2%"], "none"),
    "a bound beside none": (["--constraint", "accuracy-gap=2%", "--constraint", "none"], "none"),
    "none twice": (["--constraint", "none", "--constraint", "none"], "none bounds nothing"),
    "none with a tolerance": (["--constraint", "none=2%"], "unknown constraint 'none'"),
    "no tolerance": (["--constraint", "accuracy-gap="], "a tolerance is a fraction"),
    "more than all": (["--constraint", "excess-accuracy-gap=250%"], "a fraction of at most 1"),
    "points of a group": (["--constraint", "accuracy-gap=2%,1=150%"], "a fraction of at most 1"),
    "an unknown group": (["--constraint", "accuracy-gap=2%,x=1%"], "'x', which is no group"),
    "a floor above one": (["--constraint", "worst-group-accuracy=120%"], "at most 1"),
    "a method's unknown option": (["--method", "snip:foo=1"], "no option 'foo'"),
    "a method's option without value": (["--method", "snip:batches"], "batches must be a whole"),
    "a method's option of another kind": (["--method", "snip:batches=many"], "a whole number"),
    "a method's option out of range": (["--method", "snip:batches=0"], "batches must be at least"),
    "an option the name fixes": (["--method", "group-dro:enforce_in=x"], "no option"),
    "an option of another method": (["--method", "snip", "--score-step", "1"], "no option of"),
    "an unknown hypergradient's option": (["--hypergradient", "cg:foo=1"], "no option 'foo'"),
    "an unknown rule's option": (["--multiplier-rule", "nupi:foo=1"], "no option 'foo'"),
    "a filter method on weights": (["--method", "fpgm"], "granularity filter only"),
    "a network too wide": (["--width", "100000000"], "GiB are there"),
    "a width below one": (["--width", "-1"], "width must be at least 1"),
    "sizes of what has none": (["--image-size", "32"], "holds none"),
    "an unknown normalization": (["--normalize", "nne"], "did you mean 'none'"),
    "half a normalization": (["--normalize", "0.5"], "MEAN,STD"),
    "an odd normalization": (["--normalize", "0.5,0.5,0.5"], "MEAN,STD"),
    "a normalization of text": (["--normalize", "a,b"], "MEAN,STD"),
    "no normalization": (["--normalize", ""], "MEAN,STD"),
    "a deviation of zero": (["--normalize", "0.5,0"], "deviations above 0"),
    "a normalization for bytes": (["--normalize", "127.5,127.5"], "divide by 255"),
    "other channels": (["--normalize", "0,0,0,1,1,1"], "3 numbers as mean for 1 channels"),
    "a dense model that is none": (["--dense", "none.npz"], "none.npz"),
    "roles without test": (["--role-fractions", "fit=0.5,select=0.3,tune=0.2"], "test is 0"),
    "roles of one share": (["--role-fractions", "fit=1"], "test is 0"),
    "roles that are no numbers": (["--role-fractions", "fit=nan,test=1"], "sum to 1"),
    "too many devices": (["--devices", "99"], "99 devices were asked for"),
    "a batch that is not shared": (["--accumulate", "3"], "--accumulate must divide"),
    "no temperature": (["--distill-temperature", "0"], "must be above 0"),
    "more than all distilled": (["--distill", "2"], r"--distill must lie in [0, 1]"),
    "a file for a folder": (["--out", "/dev/null"], "is a file"),
    "no file of options": (["--config", "none.toml"], "none.toml"),
    "an unknown column": (["--exclude-feature", "x"], "exclude_feature"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options_of_solve(refuses, case):
    words, message = OPTIONS[case]
    refuses(["solve", *BASE, *words], message)


@pytest.mark.parametrize(
    "case", ["a network too wide", "none beside a bound", "a method's unknown option"]
)
@pytest.mark.parametrize("command", ["plan", "frontier"])
def test_bad_options_of_other_commands(refuses, command, case):
    words, message = OPTIONS[case]
    base = [word for word in BASE if command == "plan" or word != "--no-baseline"]
    refuses([command, *base, *words], message)


COMPARE = {
    "no method": (["--methods", ""], "--methods wants a value"),
    "an unknown method": (["--methods", "snipp"], "did you mean 'snip'"),
    "an unknown option": (["--methods", "snip:foo=1"], "no option 'foo'"),
    "an option before a method": (["--methods", "batches=3,snip"], "belongs to no method"),
    "a method twice": (["--methods", "snip,snip"], "given twice"),
    "a reference that is not there": (["--methods", "snip", "--reference", "grasp"], "not among"),
    "one fold": (["--folds", "1"], "at least 2 folds"),
    "no round": (["--rounds", "0"], "1 round"),
    "folds of text": (["--folds", "many"], "a whole number"),
    "sparsities of text": (["--sparsities", "half"], "numbers in [0, 1)"),
    "a sparsity of one": (["--sparsities", "0.5,1"], "sparsity must lie in [0, 1)"),
    "a sparsity twice": (["--sparsities", "0.5,0.5"], "given twice"),
    "a dense model": (["--dense", "runs/x"], "leave out --dense"),
    "roles": (["--role-fractions", "fit=0.5,test=0.5"], "leave out --role"),
    "none beside a bound": (["--constraint", "none", "--constraint", "accuracy-gap"], "none"),
    "a normalization": (["--normalize", "1"], "MEAN,STD"),
}


@pytest.mark.parametrize("case", COMPARE)
def test_bad_options_of_compare(refuses, case):
    words, message = COMPARE[case]
    refuses(["compare", *BASE, *words], message)


def test_the_help_says_that_constraints_are_replaced(capsys):
    with pytest.raises(SystemExit):
        main(["solve", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "What is given replaces the default and a file's" in said
    assert "repeatable, appends" not in said.split("--constraint STR")[1].split("--surrogate")[0]
    words = ["--constraint", "accuracy-gap=3%", "--constraint", "equalized-loss=1"]
    assert configuration("solve", words).constraint == ("accuracy-gap=3%", "equalized-loss=1")


# ---------------------------------------------------------------- data


def write(path, lines):
    path.write_text("\n".join(",".join(map(str, line)) for line in lines) + "\n")
    return path


def test_dates_are_no_categories(refuses, tmp_path):
    """Each would be an input of its own: weights by the hundred thousand, and nothing learnt."""
    first = datetime.date(2020, 1, 1)
    lines = [["day", "label", "group"]]
    lines += [[first + datetime.timedelta(i), i % 2, i // 2 % 2] for i in range(400)]
    path = write(tmp_path / "t.csv", lines)
    words = ["solve", *BASE, "--data", path, "--target", "label", "--group", "group"]
    refuses(words, "column 'day' of t.csv holds 400 different dates")
    lines[1:] = [[f"{i // 28 % 12 + 1}/{i % 28 + 1}/99 10:00", *rest] for i, (_, *rest) in
                 enumerate(lines[1:])]  # fmt: skip
    write(path, lines)
    refuses(words, "different dates")
    lines = [[*line, i % 7] for i, line in enumerate(lines)]
    lines[0][-1] = "weekday"
    write(path, lines)
    assert main([*map(str, words), "--exclude-feature", "day", "--out", str(tmp_path / "r")]) == 0


TABLES = {
    "regression": ("0.5 1.25 2.75 3.5", "regression is not supported"),
    "missing labels": ("0 1 ? 1", "target 'label' is missing"),
    "one class": ("1 1 1 1", "a single class"),
}


@pytest.mark.parametrize("case", TABLES)
def test_targets_of_tables(refuses, tmp_path, case):
    values, message = TABLES[case]
    values = values.split()
    lines = [["a", "label", "group"]]
    lines += [[i, values[i % 4], i % 2] for i in range(200)]
    path = write(tmp_path / "t.csv", lines)
    words = ["solve", *BASE, "--data", path, "--target", "label", "--group", "group"]
    refuses(words, message)


Y = np.arange(200) % 2
ARRAYS = {
    "missing marks": ({"y": np.where(Y, np.arange(200) % 3, -1)}, "y is -1 in 100 of 200 rows"),
    "one-hot": ({"y": np.eye(2)[Y]}, "y.argmax(1)"),
    "regression": ({"y": np.linspace(0, 1, 200)}, "regression is not supported"),
    "no x": ({"x": None}, "has no array 'x'"),
    "x of text": ({"x": np.array(["a"] * 200)}, "type <U1"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays(refuses, tmp_path, case):
    change, message = ARRAYS[case]
    given = {"x": np.random.default_rng(0).normal(size=(200, 3)), "y": Y, "group": Y} | change
    np.savez(tmp_path / "a.npz", **{k: v for k, v in given.items() if v is not None})
    refuses(["solve", *BASE, "--data", tmp_path / "a.npz"], message)
    if change.get("x", 0) is not None:
        refuses(["plan", *BASE, "--data", tmp_path / "a.npz", "--image-size", "8"], "")
