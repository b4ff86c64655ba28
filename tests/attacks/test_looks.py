"""Looks that would not be counted: rows under other names, in another order, in parts."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
import pytest
from certified import certify

import fairbilevel as fb
from fairbilevel.certificates import RECORD
from fairbilevel.certificates._ledger import read_ledger
from fairbilevel.cli import main

from .test_classes import honest

ROWS = 600
ORDER = np.random.default_rng(3).permutation(ROWS)
IDS = np.arange(ROWS) + 7


def columns():
    return honest(ROWS, lost=0.05)


def look(ledger, *given, **options):
    options = {"tolerance": 0.3, "min_group_rows": 20, **options}
    return certify(*given, ledger=ledger, **options)


# The second look at the same rows, as somebody would take it who wants another first one.
WITHOUT_IDS = {
    "in another order": lambda y, d, p, g: tuple(v[ORDER] for v in (y, d, p, g)),
    "without one": lambda y, d, p, g: (y[1:], d[1:], p[1:], g[1:]),
    "labels of another type": lambda y, d, p, g: (y.astype(float), d, p, g),
    "labels as text": lambda y, d, p, g: (*(v.astype(str) for v in (y, d, p)), g),
    "classes exchanged": lambda y, d, p, g: (1 - y, 1 - d, 1 - p, g),
    "groups under other names": lambda y, d, p, g: (y, d, p, np.array(["x", "z"])[g]),
    "another part": lambda y, d, p, g: (y[300:], d[300:], p[300:], g[300:]),
}


@pytest.mark.parametrize("attack", WITHOUT_IDS)
def test_without_ids_it_is_another_look(attack, tmp_path):
    ledger, (y, dense, pruned, group) = tmp_path / "ledger.json", columns()
    assert look(ledger, y, dense, pruned, group).claim.look == 1
    again = WITHOUT_IDS[attack](y, dense, pruned, group)
    found = look(ledger, *again, tolerance=0.25)
    assert found.claim.look == 2
    assert found.claim.delta < 0.26 * fb.certificates.Claim().delta


RENAMED = {
    "as text": IDS.astype(str),
    "as floats": IDS.astype(float),
    "zero padded": np.char.zfill(IDS.astype(str), 8),
    "with spaces": np.char.add(" ", IDS.astype(str)),
    "as floats in text": np.char.add(IDS.astype(str), ".0"),
    "renumbered": IDS + 100_000,
    "renamed": np.char.add("row ", IDS.astype(str)),
    "one row in common": np.where(IDS == 7, 7, IDS + 100_000),
}


@pytest.mark.parametrize("attack", RENAMED)
def test_ids_in_another_form_are_another_look(attack, tmp_path):
    ledger = tmp_path / "ledger.json"
    assert look(ledger, *columns(), ids=IDS).claim.look == 1
    assert look(ledger, *columns(), ids=RENAMED[attack], tolerance=0.25).claim.look == 2


@pytest.mark.parametrize("named", [False, True])
def test_parts_of_a_file_are_no_first_looks(named, tmp_path):
    ledger, given = tmp_path / "ledger.json", honest(1600, lost=0.05)
    looks = []
    for part in range(8):
        rows = slice(200 * part, 200 * part + 200)
        models = {"dense_model": "d", "pruned_model": "p"} if named else {}
        ids = {"ids": np.arange(1600)[rows]} if named else {}
        looks.append(look(ledger, *(v[rows] for v in given), **ids, **models).claim.look)
    assert looks == list(range(1, 9))


def test_the_same_question_in_another_order_is_the_same_look(tmp_path):
    ledger, given = tmp_path / "ledger.json", columns()
    assert look(ledger, *given).claim.look == 1
    assert look(ledger, *(v[ORDER] for v in given)).claim.look == 1


def test_without_a_ledger_the_sentence_says_so(tmp_path):
    said = "Looks at these rows are not counted"
    assert said in certify(*columns(), tolerance=0.3).sentence
    assert said not in look(tmp_path / "ledger.json", *columns()).sentence


def test_a_ledger_that_is_gone_is_noticed(tmp_path):
    ledger = tmp_path / "ledger.json"
    look(ledger, *columns(), ids=IDS)
    look(ledger, *columns(), ids=IDS, tolerance=0.2)
    ledger.unlink()
    found = look(ledger, *columns(), ids=IDS, tolerance=0.1)
    assert found.claim.look == 3
    assert "2 looks at these rows or models were not in ledger.json" in found.context.notes[0]
    assert len(read_ledger(ledger)) == 3
    # The record itself may go; the ledger still counts.
    (tmp_path / RECORD).unlink()
    assert look(ledger, *columns(), ids=IDS, tolerance=0.15).claim.look == 4


def certified(run, *words):
    main(["certify", str(run), "--tolerance", "60%", *words])
    return json.loads((run / "certificate.json").read_text())


def test_a_run_that_is_copied_goes_on_counting(place):
    shutil.copytree(place / "run", place / "copy")
    assert certified(place / "run")["levels"]["look"] == 1
    assert certified(place / "copy", "--gap", "accuracy-gap")["levels"]["look"] == 2
    assert certified(place / "run", "--gap", "equalized-odds")["levels"]["look"] == 3


@pytest.mark.parametrize("gone", ["deleted", "another"])
def test_a_run_whose_ledger_is_not_used_goes_on_counting(gone, place):
    assert certified(place / "run")["levels"]["look"] == 1
    words = ["--gap", "accuracy-gap"]
    if gone == "deleted":
        (place / "run" / "ledger.json").unlink()
    else:
        words += ["--ledger", str(place / "fresh.json")]
    written = certified(place / "run", *words)
    assert written["levels"]["look"] == 2


def test_looks_taken_at_once_all_count(tmp_path):
    ledger, found = tmp_path / "ledger.json", []

    def take(k):
        found.append(look(ledger, *columns(), ids=IDS, tolerance=0.2 + k / 100).claim.look)

    threads = [threading.Thread(target=take, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
