"""Rows that are copies, columns that are exchanged, groups that are declared away."""

from __future__ import annotations

import certified
import numpy as np
import pytest

from fairbilevel.cli import main

from .test_classes import honest


def certify(*given, **options):
    return certified.certify(*given, **{"tolerance": 0.2, "min_group_rows": 20, **options})


# ---------------------------------------------------------------- copies

COPIES = {
    "one after the other": lambda v: np.tile(v, 20),
    "each row twenty times": lambda v: np.repeat(v, 20),
    "twice": lambda v: np.tile(v, 2),
    "twice and a half": lambda v: np.tile(v, 3)[: 5 * len(v) // 2],
    "by group": lambda v: np.concatenate([np.tile(v[0::2], 20), np.tile(v[1::2], 20)]),
}


@pytest.mark.parametrize("attack", COPIES)
def test_copies_count_once(attack):
    given = honest(60, lost=0.3)
    found = certify(*map(COPIES[attack], given))
    alone = certify(*given)
    assert sum(g.rows for g in found.groups) == 60
    assert found.smallest_tolerance == alone.smallest_tolerance
    assert any("are copies" in note for note in found.context.notes)


def test_clean_rows_that_are_copied_count_once():
    labels, *_, groups = (np.tile(v, 20) for v in honest(60))
    found = certify(labels, labels, labels, groups)
    assert sum(g.rows for g in found.groups) == 60
    assert found.smallest_tolerance > 0.08


HAND = np.array([1, 1, 0, 1, 0])
DOUBTFUL = {
    "copies in any order": tuple(
        np.tile(v, 20)[np.random.default_rng(0).permutation(1200)] for v in honest(60, lost=0.3)
    ),
    "a pattern of five rows": (*(np.tile(HAND, 60) for _ in range(3)), np.arange(300) // 150),
    "copies in order of outcome": tuple(
        np.repeat(v[np.lexsort(honest(60, lost=0.3))], 20) for v in honest(60, lost=0.3)
    ),
}


@pytest.mark.parametrize("attack", DOUBTFUL)
def test_what_may_be_copies_or_made_by_hand_is_said(attack):
    found = certify(*DOUBTFUL[attack], dense_trained_on="others", as_given=True)
    assert found.conditional
    assert "as if rows were copies" in found.sentence


@pytest.mark.parametrize("rows", [40, 200, 1000])
@pytest.mark.parametrize("order", ["mixed", "sorted by group", "sorted"])
def test_independent_rows_are_no_copies(rows, order):
    for seed in range(30):
        given = honest(rows, lost=0.1, seed=seed)
        if order == "sorted by group":
            given = tuple(v[np.argsort(given[3], kind="stable")] for v in given)
        if order == "sorted":
            given = tuple(v[np.lexsort(given)] for v in given)
        assert sum(g.rows for g in certify(*given).groups) == rows


def test_row_keys_that_repeat():
    given = honest(60, lost=0.3)
    keys = np.arange(60, dtype=np.uint64)
    tiled = [np.tile(v, 20) for v in given]
    found = certify(*tiled, row_keys=np.tile(keys, 20))
    assert sum(g.rows for g in found.groups) == 60
    with pytest.raises(ValueError, match="row_keys repeat"):
        certify(*tiled, row_keys=np.zeros(1200, np.uint64))


# ---------------------------------------------------------------- columns

y, dense, pruned, group = honest(600, lost=0.2)
better = np.where(np.random.default_rng(8).random(600) < 0.2, 1 - y, y)
wrong = 1 - dense

REFUSED = {
    "dense is pruned": ((y, better, dense, group), "as if the two were exchanged"),
    "classes in another order": ((y, wrong, 1 - pruned, group), "at random would get"),
    "y for pruned": ((y, dense, y, group), "as if the two were exchanged"),
    "labels for dense, negated": ((y, 1 - y, pruned, group), "at random would get"),
}


def written(path, columns):
    lines = ["y,dense,pruned,group"]
    path.write_text(
        "\n".join([*lines, *(",".join(map(str, row)) for row in zip(*columns, strict=True))])
    )
    return ["certify", "--predictions", str(path), "--tolerance", "20%"]


@pytest.mark.parametrize("attack", REFUSED)
def test_exchanged_columns_are_asked_about(attack, tmp_path, capsys):
    columns, message = REFUSED[attack]
    with pytest.raises(ValueError, match=message):
        certify(*columns)
    words = written(tmp_path / "rows.csv", columns)
    assert main(words) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    if "random" in message:  # not to be had: relative to such a model nothing means anything
        with pytest.raises(ValueError, match=message):
            certify(*columns, as_given=True)
    else:
        assert certify(*columns, as_given=True).verdict in ("certified", "undecided", "violated")
        assert main([*words, "--as-given"]) != 2


EQUAL = {
    "y for dense": ((y, y, pruned, group), "dense_pred equals y"),
    "dense for pruned": ((y, dense, dense, group), "pruned_pred equals dense_pred"),
    "the same column three times": ((y, y, y, group), "dense_pred equals y"),
}


@pytest.mark.parametrize("attack", EQUAL)
def test_equal_columns_are_said(attack, tmp_path, capsys):
    columns, message = EQUAL[attack]
    found = certify(*columns, dense_trained_on="others")
    assert found.conditional
    assert f"Conditional: valid only if it is no mistake that {message}" in found.sentence
    assert not certify(*columns, dense_trained_on="others", as_given=True).conditional
    main(written(tmp_path / "rows.csv", columns))
    assert message in " ".join(capsys.readouterr().out.split())


def test_the_sentence_says_both_accuracies():
    found = certify(y, dense, pruned, group)
    right = [100 * np.mean(y == v) for v in (dense, pruned)]
    assert f"dense {right[0]:.1f} %, pruned {right[1]:.1f} %" in found.sentence


# ---------------------------------------------------------------- groups declared away


def test_a_group_cut_into_small_ones_leaves_a_partial_verdict():
    cut = np.where(group == 1, 10 + np.arange(600) // 2 % 15, 0)
    cut[:200] = np.where(cut[:200] == 0, 1, cut[:200])
    found = certify(y, dense, pruned, cut, min_group_rows=50, tolerance=0.05)
    assert (found.verdict, found.exit_code) == ("partial", 5)
    assert "50.0 % of the rows belong to others" in found.sentence
    assert "50.0 % of the rows." in found.sentence
    assert found.smallest_tolerance >= 0


def test_a_group_left_out_of_the_claim_leaves_a_partial_verdict():
    found = certify(y, dense, pruned, group, claimed=[True, False])
    assert (found.verdict, found.exit_code) == ("partial", 5)
    # What is violated or undecided stays so.
    assert certify(y, dense, pruned, group, claimed=[False, True], tolerance=0.01).exit_code != 5


def test_a_few_rows_outside_the_claim_are_named():
    few = group.copy()
    few[:12] = 2
    found = certify(y, dense, pruned, few, tolerance=0.3)
    assert found.verdict == "certified"
    assert "Too small to say: 2, 2.0 % of the rows." in found.sentence
