"""Packed repetitions: nothing is lost, and whoever reads or goes on sees no difference."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from experiments._presets import PRESETS
from fairbilevel import comparison
from fairbilevel.comparison import Comparison
from fairbilevel.records import RecordError, to_digits
from fairbilevel.run import Config

RESULTS = Path(__file__).parents[1] / "experiments/results"
TABLES = ("table.md", "table.csv", "comparison.svg")
arrays = st.one_of(
    npst.arrays(bool, st.integers(0, 20)),
    npst.arrays(np.int32, st.integers(0, 20)),
    npst.arrays(np.float32, st.integers(0, 20)),
    npst.arrays("U5", st.integers(0, 20), elements=st.text("0123abc", max_size=5)),
)
repetitions = st.dictionaries(
    st.sampled_from(["0-0", "0-1", "1-0"]),
    st.tuples(
        st.dictionaries(st.text(max_size=4), st.one_of(st.none(), st.floats(allow_nan=False,
                        allow_infinity=False), st.text(max_size=4)), max_size=3),
        st.dictionaries(st.sampled_from(["counted", "tune/id", "test/id", "test/a@0.5", "test/b"]),
                        arrays),
    ),
)  # fmt: skip


def assert_same(one, other):
    assert one[0] == other[0]
    assert list(one[1]) == list(other[1])
    for name, values in one[1].items():
        np.testing.assert_array_equal(values, other[1][name])


@settings(deadline=None, max_examples=60)
@given(repetitions, repetitions)
def test_what_is_packed_comes_back(found, others):
    together = {f"a/{name}": of for name, of in found.items()}
    together |= {f"ab/{name}": of for name, of in others.items()}
    packed = comparison._files.pack(together)
    assert packed == comparison._files.pack(together)
    for under, own in ((None, together), ("", {}), ("a/", found), ("ab/", others)):
        back = comparison._files.unpack(packed, under)
        assert list(back) == list(own)
        for name, repetition in own.items():
            assert_same(back[name], repetition)


def design(source, *more):
    config = Config(data=str(source), model="mlp", width=8, dense_steps=20, steps=20, batch_size=32)
    methods = ("gradual-magnitude", "magnitude", *more)
    return Comparison(config, methods, (0.5,), folds=2, dense_seeds=2)


@pytest.fixture(scope="module")
def live(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "comparison"
    comparison.run_comparison(design(source), folder, command="command")
    return folder


@pytest.fixture(params=[False, True], ids=["inside", "beside"])
def beside(request):
    return request.param


@pytest.fixture
def packed(live, source, tmp_path, beside):
    folder = shutil.copytree(live, tmp_path / "packed")
    comparison.pack_repetitions(design(source), folder, beside=beside)
    return folder


def file_of(folder, beside):
    return (folder.parent if beside else folder) / "repetitions.xz"


def test_tables_are_made_from_packed_repetitions(live, packed, beside, source, monkeypatch):
    monkeypatch.setattr(comparison._sweep, "train", None)  # nothing is trained
    assert file_of(packed, beside).is_file()
    assert not file_of(packed, not beside).exists()
    there = {p.name for p in packed.iterdir()}
    assert not there & {"repetitions", "dense-seeds.npz", "comparison.json", "parts"}
    assert_same(comparison.read_repetition(packed, 0, 1), comparison.read_repetition(live, 0, 1))
    for name in TABLES:
        (packed / name).unlink()
    lines = []
    comparison.run_comparison(design(source), packed, progress=lines.append, command="command")
    assert lines == []
    for name in TABLES:
        assert (packed / name).read_bytes() == (live / name).read_bytes()


def test_a_packed_folder_is_gone_on_with(live, packed, beside, source):
    other = dataclasses.replace(design(source).config, dense_steps=21)
    with pytest.raises(ValueError, match="other settings: dense_steps"):
        comparison.run_comparison(dataclasses.replace(design(source), config=other), packed)
    lines = []
    comparison.run_comparison(design(source, "random"), packed, progress=lines.append)
    assert len(lines) == 2  # two folds of one method, from the dense models of the packed file
    after, _ = comparison.read_repetition(packed, 0, 0)
    assert list(after["runs"]) == ["gradual-magnitude@0.5", "magnitude@0.5", "random@0.5"]
    comparison.pack_repetitions(design(source, "random"), packed, beside=beside)
    assert not (packed / "repetitions").exists()
    record, rows = comparison.read_repetition(packed, 0, 0)
    assert record == after
    for name, values in comparison.read_repetition(live, 0, 0)[1].items():
        np.testing.assert_array_equal(rows[name], values)


def test_folders_are_packed_into_one_file_one_after_the_other(live, source, tmp_path):
    """Also one that has a file of its own; what they share takes no room twice."""
    kept = [comparison.read_repetition(live, 0, fold) for fold in (0, 1)]
    folders = [shutil.copytree(live, tmp_path / name) for name in ("one", "one-more", "on")]
    comparison.pack_repetitions(design(source), folders[0])
    assert file_of(folders[0], False).is_file()
    sizes = []
    for folder in folders:
        comparison.pack_repetitions(design(source), folder, beside=True)
        assert {p.name for p in folder.iterdir()} == {*TABLES, "summary.json"}
        sizes.append(file_of(folder, True).stat().st_size)
    assert sizes[2] < 1.5 * sizes[0]
    changed = file_of(folders[0], True).stat().st_mtime_ns
    comparison.pack_repetitions(design(source), folders[0], beside=True)  # nothing to do
    assert file_of(folders[0], True).stat().st_mtime_ns == changed
    assert {p.name for p in tmp_path.iterdir()} == {"one", "one-more", "on", "repetitions.xz"}
    for folder in folders:
        for fold in (0, 1):
            assert_same(comparison.read_repetition(folder, 0, fold), kept[fold])


def test_a_folder_takes_its_rows_out_again_and_is_made_anew(live, source, tmp_path):
    kept = comparison.read_repetition(live, 0, 1)
    one, other = (shutil.copytree(live, tmp_path / name) for name in ("one", "other"))
    for folder in (one, other):
        comparison.pack_repetitions(design(source), folder, beside=True)
    comparison.pack_repetitions(design(source), one)
    assert_same(comparison.read_repetition(one.rename(tmp_path / "renamed"), 0, 1), kept)
    assert comparison.read_repetition(one, 0, 1) == ({}, {})
    assert_same(comparison.read_repetition(other, 0, 1), kept)
    lines = []
    comparison.run_comparison(design(source), one, progress=lines.append)
    assert len(lines) > 4
    comparison.pack_repetitions(design(source), other)
    assert not (tmp_path / "repetitions.xz").exists()
    assert_same(comparison.read_repetition(other, 0, 1), kept)


def test_folders_are_packed_into_one_file_at_the_same_time(live, source, tmp_path):
    folders = [shutil.copytree(live, tmp_path / f"{i}") for i in range(6)]
    one = partial(comparison.pack_repetitions, design(source), beside=True)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, folders))
    for folder in folders:
        assert not (folder / "repetitions").exists()
        assert_same(*(comparison.read_repetition(at, 0, 1) for at in (folder, live)))


@pytest.mark.parametrize("harm", [lambda data: data[:-9], lambda data: b"no xz", lambda data: b""])
def test_a_damaged_file_is_told_by_its_name(live, packed, beside, source, harm):
    path = file_of(packed, beside)
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(RecordError, match=r"repetitions\.xz cannot be read"):
        comparison.read_repetition(packed, 0, 0)
    # Nor is it written over.
    damaged = path.read_bytes()
    shutil.copytree(live / "repetitions", packed / "repetitions")
    with pytest.raises(RecordError, match=r"repetitions\.xz cannot be read"):
        comparison.pack_repetitions(design(source), packed, beside=beside)
    assert path.read_bytes() == damaged
    assert (packed / "repetitions" / "0-0.json").is_file()


def test_floats_are_cut_to_digits_and_nothing_else_is():
    given = {"a": [0.123456789, (1e-9 / 3, None)], "b": 123456789, "c": "0.123456789", "d": True}
    cut = {"a": [0.1234568, [3.333333e-10, None]], "b": 123456789, "c": "0.123456789", "d": True}
    assert to_digits(given) == cut
    assert to_digits(to_digits(given)) == cut


def test_records_keep_no_more_digits(live):
    record, _ = comparison.read_repetition(live, 0, 0)
    assert record["runs"]
    assert record == to_digits(record)
    for run in record["runs"].values():
        assert run["course"]
        for _, *seen in run["course"]:
            assert seen == to_digits(seen, 4)


def test_a_published_table_is_computed_from_its_rows():
    """Three lines of twelve; what Holm adjusts depends on all of them."""
    folder = RESULTS / "claim" / "blond-300"
    whole = PRESETS["claim"]["small"]["blond-300"].design(None)
    some = dataclasses.replace(whole, methods=(whole.reference, "bilevel"))
    summary = comparison.summarize(some, folder)
    with (folder / "table.csv").open(newline="") as stream:
        published = {line["method"]: line for line in csv.DictReader(stream)}
    assert summary["repetitions"] == 10
    for line in summary["lines"]:
        known = published[line["method"]]
        told = {k: v for k, v in line.items() if known.get(k) and not k.endswith("_adjusted")}
        assert len(told) > 10
        for name, value in told.items():
            if name not in ("method", "seconds"):
                assert float(known[name]) == to_digits(value), name
