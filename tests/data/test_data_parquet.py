"""Parquet files that stay where they are: the same rows as in memory, read by row group."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fairbilevel as fb
from fairbilevel.cli import main
from fairbilevel.data import (
    DataError,
    Encoder,
    Options,
    RowStore,
    StoredRows,
    coarse_fingerprints,
    coarse_scale,
    convert,
    load,
    row_fingerprints,
    split_roles,
)
from fairbilevel.data._parquet import EncodedTable, ParquetFile, StoredTable

ROWS = 600
BASE = Options(target="y", group=("sex",), id="key", in_memory="yes")
LAZY = Options(**BASE.to_json() | {"in_memory": "no"})


def frame(rows: int = ROWS) -> pd.DataFrame:
    """Columns of many types; what is missing is missing in the last row groups alone."""
    rng = np.random.default_rng(0)
    late = np.arange(rows) > rows - 50
    table = pd.DataFrame(
        {
            "age": rng.integers(18, 90, rows).astype(np.int64),
            "hours": pd.Series(rng.integers(0, 60, rows)).where(~late),
            "big": pd.Series(rng.integers(2**60, 2**61, rows), dtype="Int64").where(~late),
            "score": rng.normal(1e6, 1, rows).astype(np.float32),
            "job": pd.Series(rng.choice(["clerk", "cook ", "?"], rows)).where(rng.random(rows) < 2),
            "flag": pd.Series(rng.random(rows) < 0.5),
            "maybe": pd.Series(rng.random(rows) < 0.5).astype(object).where(~late),
            "kind": pd.Categorical(rng.choice(["a", "b", "c"], rows)),
            "a.b": rng.normal(size=rows),
            "a": rng.normal(size=rows),
            "when": pd.to_datetime(rng.choice(["2020-01-01", "2021-01-01"], rows)),
            "sex": rng.choice(["F", "M"], rows),
        }
    )
    table["y"] = (table["a"] + 0.3 * rng.normal(size=rows) > 0).map({True: "yes", False: "no"})
    table["key"] = [f"k{i}" for i in range(rows)]
    table.loc[5, table.columns != "key"] = table.loc[9, table.columns != "key"]  # twins
    return table.set_index(pd.Index(rng.permutation(rows), name="some index"))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("parquet") / "t.parquet"
    frame().to_parquet(path, row_group_size=64, write_page_checksum=True)
    return path


def test_a_table_is_the_same_in_its_file(path):
    held, data = load(path, BASE), load(path, LAZY)
    assert isinstance(held.inputs, pd.DataFrame)
    assert isinstance(data.inputs, StoredTable)
    assert len(data.inputs.file.starts) == 11  # ten row groups
    assert list(data.inputs.columns) == list(held.inputs.columns)
    rows = np.array([599, 3, 3, 130, 64, 63])
    pd.testing.assert_frame_equal(
        data.inputs.read(rows), held.inputs.iloc[rows].reset_index(drop=1)
    )
    pd.testing.assert_frame_equal(data.inputs[5:90].set_index(np.arange(5, 90)), held.inputs[5:90])
    assert not len(data.inputs.read(rows[:0]))
    for part, whole in ((data, held), (data.take(rows[2:]), held.take(rows[2:]))):
        assert part.fingerprint == whole.fingerprint
        np.testing.assert_array_equal(part.content, whole.content)
        ours, theirs = row_fingerprints(part), row_fingerprints(whole)
        np.testing.assert_array_equal(ours.row, theirs.row)
        scale = coarse_scale(part)
        np.testing.assert_array_equal(scale, coarse_scale(whole))
        np.testing.assert_array_equal(
            coarse_fingerprints(part, scale), coarse_fingerprints(whole, scale)
        )
    assert data.notes == held.notes
    for role, found in split_roles(held, seed=3).items():
        np.testing.assert_array_equal(split_roles(data, seed=3)[role], found)
    fit = np.arange(0, ROWS, 3)
    encoder = Encoder.fit(data, fit)
    assert encoder == Encoder.fit(held, fit)
    encoded = encoder.transform(data.inputs)
    assert isinstance(encoded, StoredRows)
    assert isinstance(encoded.store, RowStore)
    np.testing.assert_array_equal(encoded[::-7], encoder.transform(held.inputs)[::-7])
    np.testing.assert_array_equal(encoder.raw(data.inputs), encoder.raw(held.inputs))
    assert encoder.unseen(data.inputs) == encoder.unseen(held.inputs)


def test_masks_of_a_table_are_the_same(path):
    found = []
    for options in (BASE, LAZY):
        problem = fb.FairPruningProblem("mlp", load(path, options), width=6)
        found.append(fb.solve(problem, steps=6, sparsity=0.5, batch_size=16, dense_steps=6))
    assert isinstance(found[1].problem.inputs.store, EncodedTable)
    both = (jax.tree.leaves((s.masks, s.network.params)) for s in found)
    for a, b in zip(*both, strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_drawn_at_random_are_read_from_one_pass(path, monkeypatch, tmp_path):
    (tmp_path / "spill").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "spill"))
    held, data = load(path, BASE), load(path, LAZY)
    encoder = Encoder.fit(held, np.arange(0, ROWS, 3))
    rows = np.random.default_rng(0).permutation(ROWS)
    expected = encoder.transform(held.inputs)
    encoded = encoder.transform(data.inputs)
    np.testing.assert_array_equal(encoded[rows[:50]], expected[rows[:50]])
    monkeypatch.setattr(ParquetFile, "rows", None)  # nothing more is read of it
    for start in range(0, ROWS, 64):
        some = rows[start : start + 64]
        np.testing.assert_array_equal(encoded[some], expected[some])
    assert not list((tmp_path / "spill").iterdir())  # the file has no name: nobody finds it left


def test_rows_are_read_by_group_where_there_is_no_room_for_all(path, monkeypatch):
    held, data = load(path, BASE), load(path, LAZY)
    encoder = Encoder.fit(held, np.arange(0, ROWS, 3))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    encoded = encoder.transform(data.inputs)
    rows = np.array([599, 3, 3, 130])
    np.testing.assert_array_equal(encoded[rows], encoder.transform(held.inputs)[rows])
    assert encoded.store._written is None


def test_row_groups_are_read_once_while_there_is_room(path, monkeypatch):
    reads = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, *a: reads.append(i) or read(self, i, *a)
    )
    rows = np.random.default_rng(0).permutation(ROWS)
    file = ParquetFile(path)
    for _ in range(3):
        file.rows(rows, ["age", "a"])
    assert sorted(reads) == list(range(10))
    reads.clear()
    file = ParquetFile(path)
    file._room = 2 * file.group(0, ["age"]).nbytes  # the first two are kept, and two besides
    reads.clear()
    file._kept.clear()
    file._latest.clear()
    for _ in range(2):
        file.rows(rows, ["age"])
    assert [reads.count(i) for i in range(10)] == [1, 1, *[2] * 8]


def test_columns_named_otherwise_are_told(path):
    for changes, message in (
        (dict(target="z"), r"target is 'z'.*choose from age, hours"),
        (dict(group=["sx"]), "group is 'sx'.*did you mean 'sex'"),
        (dict(target="a"), "regression is not supported"),
        (dict(id="sex"), "occurs more than once"),
    ):
        with pytest.raises(DataError, match=message):
            load(path, Options(**LAZY.to_json() | changes))
    new = load(path, LAZY, classes=("no", "yes"), groups=("F", "M"), labelled=False)
    assert len(new) == ROWS


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 4
    return data[:middle] + bytes(255 - b for b in data[middle : middle + 50]) + data[middle + 50 :]


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_damaged_tables_get_one_sentence(path, damage, in_memory, tmp_path, capsys):
    broken = tmp_path / "t.parquet"
    broken.write_bytes(damage(path.read_bytes()))
    words = ["--data", str(broken), "--target", "y", "--group", "sex", "--in-memory", in_memory]
    assert main(["solve", *words, "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "t.parquet is not a readable Parquet file" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- images


def images(path, values, **columns):
    rows = np.arange(len(values))
    table = {"img": values, "label": rows % 2, "group": rows // 2 % 3, **columns}
    pq.write_table(pa.table(table), path, row_group_size=7)
    return path


@pytest.mark.parametrize("struct", [True, False])
def test_images_in_a_column(struct, tmp_path, picture):
    files = [picture(i) for i in range(40)]
    values = [{"bytes": f, "path": "x.png"} for f in files] if struct else files
    path = images(tmp_path / "t.parquet", values, who=[f"p{i // 2}" for i in range(40)])
    held, lazy = load(path, Options(unit="who")), load(path, Options(unit="who", in_memory="no"))
    assert isinstance(lazy.inputs, StoredRows)
    assert held.fingerprint == lazy.fingerprint
    assert (held.target, held.attributes, held.name) == ("label", ("group",), "images (t.parquet)")
    assert held.unit[3] == "p1"
    np.testing.assert_array_equal(lazy.inputs[::-3], held.inputs[::-3])
    small = load(path, Options(image_size=4))
    assert small.inputs.shape == (40, 4, 4, 3)
    convert(path, tmp_path / "out")
    assert load(tmp_path / "out").fingerprint == load(path).fingerprint


def test_images_that_are_damaged_or_missing(tmp_path, picture):
    files = [picture(i) for i in range(40)]
    files[9], files[20] = b"no image", None
    path = images(tmp_path / "t.parquet", files)
    for in_memory in ("yes", "no"):
        with pytest.raises(DataError, match=r"2 of 40 .* row 9 cannot be.* row 20 holds no"):
            load(path, Options(in_memory=in_memory))
        found = load(path, Options(in_memory=in_memory, skip_damaged=True))
        assert len(found) == 38
        assert found.skipped == {"image cannot be used: 9, 20": 2}
    images(path, files, other=files)
    with pytest.raises(DataError, match=r"several columns of images \(img, other\)"):
        load(path)
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load(path)


def test_bytes_that_are_no_images_are_text(tmp_path):
    path = images(tmp_path / "t.parquet", [f"w{i % 3}".encode() for i in range(40)])
    data = load(path, Options(target="label", group=("group",)))
    assert data.is_table
    assert data.inputs["img"].nunique() == 3
