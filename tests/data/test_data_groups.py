"""Small groups and bins."""

from __future__ import annotations

import numpy as np
import pytest

from fairbilevel.data import DataError, from_arrays, handle_small_groups


def grouped(*sizes: int):
    g = np.repeat(np.arange(len(sizes)), sizes)
    x = np.random.default_rng(0).normal(size=(len(g), 2))
    return from_arrays(x, np.arange(len(g)) % 2, g, groups=tuple("abcdef"[: len(sizes)]))


def test_merge_pools_the_small():
    data, counted = handle_small_groups(grouped(50, 6, 40, 7), "merge", 10)
    assert data.groups == ("a", "c", "other (merged)")
    assert np.bincount(data.group).tolist() == [50, 40, 13]
    assert counted.tolist() == [True, True, True]
    assert data.merged == ("b", "d")
    assert "b (6), d (7)" in data.notes[-1]


def test_a_pool_that_stays_small_is_shown_only():
    data, counted = handle_small_groups(grouped(50, 2, 40, 3), "merge", 10)
    assert counted.tolist() == [True, True, False]
    assert "outside every claim" in data.notes[-1]


def test_report_only_keeps_the_groups():
    data, counted = handle_small_groups(grouped(50, 2, 40), "report-only", 10)
    assert data.groups == ("a", "b", "c")
    assert counted.tolist() == [True, False, True]
    assert "b" in data.notes[-1]


def test_nothing_small_changes_nothing():
    before = grouped(50, 40)
    for policy in ("merge", "report-only", "error"):
        after, counted = handle_small_groups(before, policy, 10)
        assert after.groups == before.groups
        assert counted.all()
        assert after.notes == before.notes


@pytest.mark.parametrize(
    ("policy", "least", "message"),
    [
        ("error", 10, r"fewer than 10 rows: b \(2\)"),
        ("merg", 10, "did you mean 'merge'"),
        ("report-only", 45, "a single group is left"),
        ("merge", 45, "a single group is left"),
        ("merge", 0, "at least 1"),
    ],
)
def test_refusals(policy, least, message):
    with pytest.raises(DataError, match=message):
        handle_small_groups(grouped(50, 2, 40), policy, least)


def test_merged_names_of_a_former_run_are_understood():
    from fairbilevel.data._assemble import assemble
    from fairbilevel.data._dataset import Options
    from fairbilevel.data._source import Request, Rows

    pd = pytest.importorskip("pandas")
    rows = Rows(
        "new",
        pd.DataFrame({"y": ["p", "q", "q"], "g": ["a", "b", "d"]}),
        lambda r: np.zeros((len(r), 2), np.float32),
        np.array(["0", "1", "2"]),
        target="y",
        group=("g",),
    )
    names = ("a", "c", "other (merged)")
    data = assemble(rows, Request(Options(), ("p", "q"), names, ("b", "d")))
    assert data.group.tolist() == [0, 2, 2]
    with pytest.raises(DataError, match="group 'b', which is outside a, c"):
        assemble(rows, Request(Options(), ("p", "q"), names))
