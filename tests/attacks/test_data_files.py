"""Arrays, folders and options of data that nobody should be able to use: one sentence for each."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from fairbilevel.cli import main
from fairbilevel.data import DataError, load

X = np.random.default_rng(0).normal(size=(12, 3))
Y, G = np.arange(12) % 2, np.arange(12) // 6
NAN = np.where(np.arange(12) == 5, np.nan, Y)

ARRAYS = {
    "complex rows": (dict(x=X + 1j), "x has shape .* complex128"),
    "structured rows": (dict(x=np.zeros(12, [("a", float)])), "x has shape"),
    "dates as rows": (dict(x=X.astype("M8[s]")), "x has shape .* datetime64"),
    "text as rows": (dict(x=X.astype(str)), "x has shape"),
    "a number as rows": (dict(x=np.array(1.0)), "holds a single number"),
    "rows without columns": (dict(x=X[:, :0]), "x has shape"),
    "images without pixels": (dict(x=np.zeros((12, 0, 4), np.uint8)), "x has shape"),
    "no images": (dict(x=np.zeros((0, 4, 4), np.uint8), y=Y[:0], group=G[:0]), "x has shape"),
    "numbers beyond float32": (dict(x=np.where(X > 1, 1e300, X)), r"infinite numbers .* 3e\+38"),
    "one infinite number": (dict(x=np.where(X.max() == X, -np.inf, X)), "in 1 rows"),
    "labels of another length": (dict(y=Y[:7]), r"y has shape \(7,\) where x has 12 rows"),
    "labels in a column": (dict(y=Y[:, None]), r"y has shape \(12, 1\)"),
    "one-hot labels": (dict(y=np.eye(2)[Y]), r"y has shape \(12, 2\)"),
    "groups of another length": (dict(group=G[:7]), r"group has shape \(7,\)"),
    "one number as groups": (dict(group=np.array(1)), r"group has shape \(\)"),
    "labels that are missing": (dict(y=NAN), "'y' is missing in 1 rows .*row 5"),
    "groups that are missing": (dict(group=NAN), "'group' is missing in 1 rows .*row 5"),
    "blank labels": (dict(y=np.where(Y, " ", "b")), "'y' is missing in 6 rows"),
    "complex labels": (dict(y=Y + 1j), "y holds values of type complex128"),
    "structured labels": (dict(y=np.zeros(12, [("a", int)])), "y holds values of type"),
    "bytes that are no text": (dict(y=np.where(Y, b"\xff", b"a")), "y holds bytes that are not"),
    "structured groups": (dict(group=np.zeros(12, "V4")), "group holds values of type"),
    "measurements as labels": (dict(y=X[:, 0]), "y holds numbers that are no classes"),
    "one measurement a label": (dict(y=X[:, 0], classes=["a", "b"]), "outside a, b"),
    "one class": (dict(y=Y * 0), "single class"),
    "one group": (dict(group=G * 0), "single group"),
    "classes twice": (dict(classes=["a", "a"]), "classes names 'a' twice"),
    "groups twice": (dict(groups=["a", "b", "a"]), "groups names 'a' twice"),
    "classes in a table": (dict(classes=[["a", "b"]]), r"classes has shape \(1, 2\)"),
    "one word as classes": (dict(classes=np.array("ab")), r"classes has shape \(\)"),
    "classes of fractions": (dict(classes=[0.5, 1.5]), "classes has shape .* float64"),
    "a class too few": (dict(classes=["a"]), "y is 1 in row 1, outside the 1 classes"),
    "names that no class has": (dict(y=np.where(Y, "a", "c"), classes=["a", "b"]), "label 'c'"),
    "groups that no group has": (dict(group=np.where(G, "a", "c"), groups=["a", "b"]), "group 'c'"),
    "a label below all": (dict(y=Y - 2, classes=["a", "b"]), "y is -2 in row 0"),
    "ids twice": (dict(ids=Y), "id '0' occurs more than once"),
    "ids of another length": (dict(ids=np.arange(5)), r"ids has shape \(5,\)"),
    "no rows": (dict(y=None), "no array 'y'"),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_arrays_that_are_no_data(what, tmp_path):
    changes, message = ARRAYS[what]
    given = dict(x=X, y=Y, group=G) | changes
    np.savez(tmp_path / "d.npz", **{k: v for k, v in given.items() if v is not None})
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "d.npz")
    assert "\n" not in str(caught.value)


FINE = {
    "the other byte order": dict(x=X.astype(">f8"), y=Y.astype(">i8")),
    "columns first in memory": dict(x=np.asfortranarray(X)),
    "half precision": dict(x=X.astype(np.float16)),
    "truth values": dict(y=Y == 1, group=G == 1),
    "whole numbers as fractions": dict(y=Y.astype(float), classes=["a", "b"]),
    "labels as bytes": dict(y=np.char.encode(np.where(Y, "ä", "b"), "utf-8")),
    "a date beside each row": dict(when=np.arange(12).astype("M8[D]")),
    "further arrays": dict(more=np.zeros((3, 3), complex)),
}


@pytest.mark.parametrize("what", FINE)
def test_odd_arrays_that_are_data(what, tmp_path):
    np.savez(tmp_path / "d.npz", **(dict(x=X, y=Y, group=G) | FINE[what]))
    data = load(tmp_path / "d.npz")
    assert data.inputs.dtype == np.float32
    assert np.bincount(data.y).tolist() == [6, 6]


def picture(size=(8, 8), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


GOOD = {f"{c}/{i}.png": picture(seed=i) for i, c in enumerate("abababab")}
ZIPS = {
    "a folder above": (GOOD | {"x/../../e.png": picture()}, "points outside the zip"),
    "a drive": (GOOD | {"C:e.png": picture()}, "points outside the zip"),
    "a share": (GOOD | {"\\\\host\\e.png": picture()}, "points outside the zip"),
    "a name cut by a zero": (GOOD | {"a/8.png\0/../../../e": picture()}, "points outside the zip"),
    "an archive in it": ({"more.zip": b"PK\5\6" + bytes(18)}, "holds no images"),
    "only litter": ({"__MACOSX/a/0.png": picture(), ".DS_Store": b""}, "holds no files"),
    "one class": ({f"a/{i}.png": picture(seed=i) for i in range(4)}, "gives no labels"),
    "a table of another kind": (
        GOOD | {"labels.csv": b"\x00\x01\x02,\n"},
        "zero byte in line 1",
    ),
    "a table with a path outside": (
        GOOD | {"labels.csv": b"file,label\n../../etc/passwd,a\na/0.png,b\n"},
        "1 files that are not in",
    ),
    "a table with a ragged line": (
        GOOD | {"labels.csv": b"file,label\na/0.png,a\nb/1.png,b,c\n"},
        "labels.csv in .* has 3 fields in line 3|labels.csv has 3 fields in line 3",
    ),
    "a table without a name": (
        GOOD | {"labels.csv": b"file,label\na/0.png,a\n,b\n"},
        r"lacks the file name in 1 rows \(the first is line 3\)",
    ),
    "pictures a hundred times as large": (GOOD | {"a/9.png": picture((800, 8))}, "differ in size"),
    "CelebA without names": ({"list_attr_celeba.txt": b"1\nBlond_Hair Male\n"}, "attribute"),
    "CelebA of words": (
        {"list_attr_celeba.txt": b"1\nBlond_Hair Male\n0.jpg 1 yes\n", "0.jpg": picture()},
        "neither -1 nor 1",
    ),
    "CelebA with a person too few": (
        {
            "list_attr_celeba.txt": b"2\nBlond_Hair Male\n0.jpg 1 -1\n1.jpg -1 1\n",
            "identity_CelebA.txt": b"0.jpg 7\n1.jpg\n",
            "0.jpg": picture(),
            "1.jpg": picture(seed=1),
        },
        "1 words in line 2",
    ),
    "an age that nobody reaches": (
        {f"999_0_{i}_2017.jpg": picture(seed=i) for i in range(3)},
        "age of 999",
    ),
}


@pytest.mark.parametrize("what", ZIPS)
def test_zips_that_are_no_collection(what, tmp_path):
    files, message = ZIPS[what]
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo("x")
            entry.filename = name  # as it is, which the constructor would mend
            archive.writestr(entry, content)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "i.zip")
    assert "\n" not in str(caught.value)


JOBS, SEXES = ("clerk", "cook"), "mf"
TABLE = "age,job,w,who,part,y,g\n" + "".join(
    f"{20 + i % 50},{JOBS[i % 3 == 0]},{i % 4},p{i // 2},fit,{i % 2},{SEXES[i // 2 % 2]}\n"
    for i in range(200)
)
OPTIONS = {
    "the target as a feature to leave out": (["--exclude-feature", "why"], "'why'"),
    "all features left out": (
        [w for c in ("age", "job", "w", "who", "part", "g") for w in ("--exclude-feature", c)],
        "no column left",
    ),
    "a group twice": (["--group", "g"], "twice"),
    "bins of another column": (["--bins", "age=30"], "neither target nor group"),
    "bins of text": (["--group", "job", "--bins", "job=3"], "does not hold numbers"),
    "bins without edges": (["--group", "age", "--bins", "age="], "growing edges"),
    "bins that shrink": (["--group", "age", "--bins", "age=40,30"], "growing edges"),
    "bins that are not finite": (["--group", "age", "--bins", "age=nan"], "growing edges"),
    "weights that are text": (["--weight", "job"], "does not hold numbers"),
    "roles that are none": (["--role", "job"], "holds 'c"),
    "one role": (["--role", "part"], "in role"),
    "persons in several rows as ids": (["--id", "who"], "more than once"),
    "a positive value that is none": (["--positive", "yes"], "positive is 'yes'"),
    "damaged images of a table": (["--skip-damaged"], "skip_damaged"),
    "a size of a table": (["--image-size", "8"], "image_size"),
    "no rows": (["--max-rows", "0"], "max_rows"),
    "less than no rows": (["--max-rows=-3"], "max_rows"),
    "one row": (["--max-rows", "1"], "single"),
    "no such policy for classes": (["--small-classes", "report-only"], "--small-classes"),
    "no such policy for gaps": (["--missing-groups", "merge"], "missing_groups"),
    "classes of no rows": (["--min-class-rows", "0"], "--min-class-rows must be at least 1"),
    "classes that all are small": (
        ["--small-classes", "drop", "--min-class-rows", "150"],
        "fewer than two classes are left",
    ),
    "a fraction of nothing": (["--role-fractions", "fit=1"], "test is 0"),
    "fractions of words": (["--role-fractions", "fit=most"], "role fractions"),
    "fractions below nothing": (
        ["--role-fractions", "fit=1.1,select=-0.2,test=0.1"],
        "at least 0",
    ),
    "groups larger than the data": (["--min-group-rows", "1000"], "single group is left"),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_options_of_data_that_cannot_be_meant(what, tmp_path, monkeypatch, capsys):
    words, message = OPTIONS[what]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(TABLE)
    given = ["--data", "t.csv", "--target", "y", "--group", "g", *words]
    try:
        code = main(["plan", *given])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2, said
    assert len(said.splitlines()) == 1
    assert message in said
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"y,dense,pruned,group\n", "no rows"),
        (b"y,dense,pruned\n1,1,1\n", "no column 'group'"),
        (b"y,dense,pruned,group\n1,1,1\n", "3 fields in line 2"),
        (b"y,dense,pruned,group\n1,1,,a\n", "empty in 1 rows (the first is line 2)"),
        (b"y,y,dense,pruned,group\n1,1,1,1,a\n", "column 'y' twice"),
        (b"y,dense,pruned,group\n1,1,\xff,a\n", "not UTF-8 text: line 2"),
        (b"y,dense,pruned,group\n1,1,\x00,a\n", "zero byte in line 2"),
        (b'y,dense,pruned,group\n1,1,1,"a\n', "line 2"),
        (b"PK\x03\x04" + bytes(40), "zero byte in line 1"),
    ],
)
def test_predictions_that_are_none(content, message, tmp_path, capsys):
    (tmp_path / "p.csv").write_bytes(content)
    code = main(["certify", "--predictions", str(tmp_path / "p.csv"), "--tolerance", "5%"])
    said = capsys.readouterr().err
    assert code == 2
    assert len(said.splitlines()) == 1
    assert message in said
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_predictions_of_a_spreadsheet(separator, tmp_path, capsys):
    lines = ["y,dense,pruned,group", *(f"{i % 2},{i % 2},{i % 2},{i // 2 % 2}" for i in range(400))]
    text = "\r\n".join(lines).replace(",", separator)
    (tmp_path / "p.csv").write_bytes(text.encode("utf-16"))
    words = ["certify", "--predictions", str(tmp_path / "p.csv"), "--tolerance", "50%"]
    assert main(words) == 0
