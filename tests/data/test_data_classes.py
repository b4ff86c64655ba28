"""Rare classes: merged, left out, or refused with what would work."""

from __future__ import annotations

import numpy as np
import pytest

import fairbilevel as fb
from fairbilevel.cli import main
from fairbilevel.data import (
    DataError,
    Options,
    from_arrays,
    handle_small_classes,
    load,
    split_roles,
)


def classed(*sizes: int, own_group: bool = False):
    y = np.repeat(np.arange(len(sizes)), sizes)
    x = np.random.default_rng(0).normal(size=(len(y), 2))
    group = y if own_group else np.arange(len(y)) % 2
    return from_arrays(x, y, group, classes=tuple("abcdef"[: len(sizes)]))


def test_merge_pools_the_small():
    before = classed(50, 6, 40, 7)
    data = handle_small_classes(before, "merge", 10)
    assert data.classes == ("a", "c", "other (merged)")
    assert np.bincount(data.y).tolist() == [50, 40, 13]
    assert data.merged_classes == ("b", "d")
    assert "b (6), d (7)" in data.notes[-1]
    np.testing.assert_array_equal(data.inputs, before.inputs)


def test_drop_leaves_their_rows_out():
    before = classed(50, 6, 40, 7)
    data = handle_small_classes(before, "drop", 10)
    assert data.classes == ("a", "c")
    assert data.dropped_classes == ("b", "d")
    assert data.skipped == {"class has fewer than 10 rows: b (6), d (7)": 13}
    np.testing.assert_array_equal(data.ids, before.ids[np.isin(before.y, [0, 2])])
    assert np.bincount(data.y).tolist() == [50, 40]


def test_groups_without_rows_go_with_their_class():
    data = handle_small_classes(classed(50, 6, 40, own_group=True), "drop", 10)
    assert data.groups == ("0", "2")
    np.testing.assert_array_equal(data.group, data.y)
    kept = handle_small_classes(classed(50, 6, 40, 7, own_group=True), "merge", 10)
    assert kept.groups == ("0", "1", "2", "3")


def test_nothing_small_and_error_change_nothing():
    data = classed(50, 6, 40)
    assert handle_small_classes(data, "error", 10) is data
    for policy in ("merge", "drop"):
        assert handle_small_classes(data, policy, 6) is data


@pytest.mark.parametrize(
    ("policy", "least", "message"),
    [
        ("merg", 10, "did you mean 'merge'"),
        ("merge", 0, "at least 1"),
        ("merge", 10, r"only 6 together: b \(6\); set small_classes to drop"),
        ("drop", 45, "fewer than two classes are left"),
        ("merge", 60, "fewer than two classes are left"),
    ],
)
def test_refusals(policy, least, message):
    with pytest.raises(DataError, match=message):
        handle_small_classes(classed(50, 6, 40), policy, least)


def test_the_message_of_a_rare_class_names_what_works():
    data = classed(60, 3, 60)
    with pytest.raises(DataError, match=r"class 'b' \(3 rows .*small_classes and min_class_rows"):
        split_roles(data)
    split_roles(handle_small_classes(data, "drop", 10))


def test_new_rows_follow_the_run(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,y,g\n1,a,m\n2,b,f\n3,c,m\n4,d,f\n5,a,f\n")
    asked = Options(target="y", group=("g",))
    names = dict(groups=("f", "m"), labelled=False)
    with pytest.raises(DataError, match="line 4 has the label 'c', which is outside a, b"):
        load(path, asked, classes=("a", "b"), **names)
    merged = dict(merged_classes=("c", "d"), classes=("a", "b", "other (merged)"))
    assert load(path, asked, **merged, **names).y.tolist() == [0, 1, 2, 2, 0]
    data = load(path, asked, classes=("a", "b"), dropped_classes=("c", "d"), **names)
    assert data.y.tolist() == [0, 1, 0]
    assert data.ids.tolist() == ["0", "1", "4"]
    assert data.skipped == {"class was dropped: c, d": 2}
    with pytest.raises(DataError, match="no row of a class that the run kept"):
        load(path, asked, classes=("e", "f"), dropped_classes=tuple("abcd"), **names)


def rows(tmp_path, name="t.csv"):
    rng = np.random.default_rng(0)
    lines = ["u,v,y,g"]
    for i in range(440):
        label = "rare" if i % 60 == 0 else "odd" if i % 110 == 1 else "ab"[i % 2]
        u, v = rng.normal(size=2) + 2 * (label == "a")
        lines.append(f"{u:.4f},{v:.4f},{label},{'gh'[i // 2 % 2]}")
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path / name


@pytest.mark.parametrize("policy", ["merge", "drop"])
def test_a_run_and_its_evaluation(policy, tmp_path, capsys):
    path = rows(tmp_path)
    words = ["--data", path, "--target", "y", "--group", "g", "--model", "mlp", "--width", "8"]
    words += ["--steps", "60", "--dense-steps", "20", "--no-baseline", "--sparsity", "0.5"]
    words += ["--batch-size", "16"]
    fractions = "fit=0.4,select=0.2,tune=0.1,certify=0,test=0.3"
    words += ["--role-fractions", fractions, "--min-group-rows", "10"]
    assert main(["solve", *map(str, words), "--out", str(tmp_path / "no")]) == 2
    said = capsys.readouterr().err
    assert "class 'odd' (4 rows in all)" in said
    assert "small_classes" in said
    words += ["--small-classes", policy, "--min-class-rows", "10"]
    assert main(["solve", *map(str, words), "--out", str(tmp_path / "run")]) == 0
    run = fb.load_run(tmp_path / "run")
    assert run.classes == (("a", "b", "other (merged)") if policy == "merge" else ("a", "b"))
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(path), "--json"]) == 0
    found = capsys.readouterr().out
    kept = 440 if policy == "merge" else 428
    assert f'"scored": {kept}' in found
    if policy == "drop":
        assert "class was dropped: odd, rare" in found
        report = (tmp_path / "run" / "report.html").read_text()
        assert "class has fewer than 10 rows: odd (4), rare (8)" in report
