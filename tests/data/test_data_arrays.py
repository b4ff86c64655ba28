"""Arrays in memory and in `.npz` files, and the digits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fairbilevel.data import DataError, Options, as_labels, from_arrays, load

X = np.random.default_rng(0).normal(size=(6, 3))
Y = np.array([0, 1, 2, 0, 1, 2])
G = np.array(["m", "f", "m", "f", "m", "f"])


def test_arrays():
    data = from_arrays(X, Y, G, weight=np.arange(6), unit=list("aabbcc"), ids=list("uvwxyz"))
    assert data.inputs.dtype == np.float32
    assert data.classes == ("0", "1", "2")
    assert data.groups == ("f", "m")
    assert data.group.tolist() == [1, 0, 1, 0, 1, 0]
    assert data.weight.mean() == pytest.approx(1)
    assert data.ids.tolist() == list("uvwxyz")
    named = from_arrays(X, Y, G, classes=("red", "green", "blue", "never"), groups=("m", "f"))
    assert named.classes == ("red", "green", "blue", "never")
    assert named.y.tolist() == Y.tolist()
    assert named.group.tolist() == [0, 1, 0, 1, 0, 1]
    images = from_arrays(np.zeros((6, 4, 4), np.uint8), Y, G)
    assert images.inputs.shape == (6, 4, 4, 1)
    assert images.inputs.dtype == np.uint8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(classes=("a", "b")), "y is 2 in row 2, outside the 2 classes"),
        (dict(classes=("a", "b"), y=["a", "b", "c"] * 2), "label 'c', which is outside a, b"),
        (dict(groups=("m", "x")), "group 'f', which is outside m, x"),
        (dict(y=Y[:4]), "y has shape"),
        (dict(x=np.zeros(6)), "x has shape"),
        (dict(x=np.full((6, 2), np.nan)), "not|missing or infinite numbers in 6 rows"),
        (dict(x=np.array([["a"]] * 6)), "x has shape"),
        (dict(x=np.zeros((0, 3)), y=[], group=[]), "x has shape"),
        (dict(group=["m"] * 6), "single group"),
        (dict(y=[1] * 6), "single class"),
        (dict(y=None), "need y and group"),
        (dict(ids=["a"] * 6), "occurs more than once"),
        (dict(weight=[-1] * 6), "at least 0"),
        (dict(weight=[0] * 6), "not all 0"),
        (dict(role=["train"] * 6), "'train' in 6 rows"),
        (dict(classes=("a", "b", "c"), y=[-1, 0, 1, 2, 0, 1]), "missing in 1 rows"),
    ],
)
def test_bad_arrays(changes, message):
    values = dict(x=X, y=Y, group=G) | changes
    with pytest.raises(DataError, match=message):
        from_arrays(**values)


def test_arrays_without_labels():
    data = from_arrays(X, None, None, classes=("a", "b"), labelled=False)
    assert data.y.tolist() == [-1] * 6
    assert data.classes == ("a", "b")


def test_npz(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y, group=G, classes=["r", "g", "b"], site=list("ababab"))
    data = load(tmp_path / "d.npz")
    assert data.classes == ("r", "g", "b")
    assert data.y.tolist() == Y.tolist()
    assert load(tmp_path / "d.npz", Options(group=("site",))).groups == ("a", "b")
    assert load(tmp_path / "d.npz", Options(group=("group", "site"))).groups == ("f x b", "m x a")
    np.savez(tmp_path / "bare.npz", x=X)
    with pytest.raises(DataError, match="no array 'y'"):
        load(tmp_path / "bare.npz")
    bare = load(tmp_path / "bare.npz", classes=data.classes, groups=data.groups, labelled=False)
    assert bare.y.tolist() == [-1] * 6
    np.savez(tmp_path / "pickled.npz", x=np.array([{}, None], dtype=object))
    with pytest.raises(DataError, match="plain arrays"):
        load(tmp_path / "pickled.npz")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04torn")
    with pytest.raises(DataError, match="no readable"):
        load(tmp_path / "torn.npz")


def test_digits():
    data = load("digits")
    assert data.inputs.shape == (1560, 8, 8, 1)
    assert data.classes == data.groups == tuple("0123456789")
    assert np.bincount(data.y)[[3, 8]].tolist() == [60, 60]
    assert data.skipped == {"thinned: digits 3 and 8": 237}
    assert "thinned" in data.notes[0]
    assert "certificate undecided" in data.notes[0]
    # Every row is the real digit, exactly.
    bunch = load_digits()
    rows = data.ids.astype(int)
    assert (bunch.target[rows] == data.y).all()
    assert (bunch.images[rows] == data.inputs[..., 0] / 15).all()
    with pytest.raises(DataError, match="did you mean 'label'"):
        load("digits", Options(target="labels"))
    one = load("digits", Options(positive="3"))
    assert one.classes == one.groups == ("not 3", "3")


def test_importing_the_package_is_light():
    code = (
        "import sys, fairbilevel; before = set(sys.modules); import fairbilevel.data; "
        "heavy = {'pandas', 'PIL', 'sklearn', 'tensorflow_datasets', 'tensorflow'}; "
        "bad = heavy & (set(sys.modules) - before); "
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "labels",
    [
        np.array([3, 11, -2, 3]),
        np.array([True, False, True]),
        np.array([2.0, 0.0, 1.0]),
        np.array(["women", "men", "women"]),
        np.array(["01", "1", "2"]),
        np.array(["-0", "1"]),
        np.array([0.5, 1.5]).astype(str),
    ],
    ids=lambda labels: "-".join(map(str, labels)),
)
def test_names_of_classes_are_labels_again(labels):
    """What a model answers can be compared with the labels that it was given."""
    data = from_arrays(np.zeros((len(labels), 2)), labels, np.arange(len(labels)) % 2)
    named = as_labels(data.classes)[data.y]
    np.testing.assert_array_equal(named, labels)
    assert (named == labels).all()
