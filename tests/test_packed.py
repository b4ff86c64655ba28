"""Packed repetitions: nothing is lost, and whoever reads or goes on sees no difference."""

from __future__ import annotations

import csv
import dataclasses
import shutil
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
@given(repetitions)
def test_what_is_packed_comes_back(found):
    packed = comparison._files.pack(found)
    assert packed == comparison._files.pack(found)
    back = comparison._files.unpack(packed)
    assert list(back) == list(found)
    for name, repetition in found.items():
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


@pytest.fixture
def packed(live, source, tmp_path):
    folder = shutil.copytree(live, tmp_path / "packed")
    comparison.pack_repetitions(design(source), folder)
    return folder


def test_tables_are_made_from_packed_repetitions(live, packed, source, monkeypatch):
    monkeypatch.setattr(comparison._sweep, "train", None)  # nothing is trained
    there = {p.name for p in packed.iterdir()}
    assert "repetitions.xz" in there
    assert not there & {"repetitions", "dense-seeds.npz", "comparison.json", "parts"}
    assert_same(comparison.read_repetition(packed, 0, 1), comparison.read_repetition(live, 0, 1))
    tables = ("table.md", "table.csv", "comparison.svg")
    for name in tables:
        (packed / name).unlink()
    lines = []
    comparison.run_comparison(design(source), packed, progress=lines.append, command="command")
    assert lines == []
    for name in tables:
        assert (packed / name).read_bytes() == (live / name).read_bytes()


def test_a_packed_folder_is_gone_on_with(live, packed, source):
    other = dataclasses.replace(design(source).config, dense_steps=21)
    with pytest.raises(ValueError, match="other settings: dense_steps"):
        comparison.run_comparison(dataclasses.replace(design(source), config=other), packed)
    lines = []
    comparison.run_comparison(design(source, "random"), packed, progress=lines.append)
    assert len(lines) == 2  # two folds of one method, from the dense models of the packed file
    after, _ = comparison.read_repetition(packed, 0, 0)
    assert list(after["runs"]) == ["gradual-magnitude@0.5", "magnitude@0.5", "random@0.5"]
    comparison.pack_repetitions(design(source, "random"), packed)
    assert not (packed / "repetitions").exists()
    record, rows = comparison.read_repetition(packed, 0, 0)
    assert record == after
    for name, values in comparison.read_repetition(live, 0, 0)[1].items():
        np.testing.assert_array_equal(rows[name], values)


@pytest.mark.parametrize("harm", [lambda data: data[:-9], lambda data: b"no xz", lambda data: b""])
def test_a_damaged_file_is_told_by_its_name(packed, harm):
    path = packed / "repetitions.xz"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(RecordError, match=r"repetitions\.xz cannot be read"):
        comparison.read_repetition(packed, 0, 0)


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
