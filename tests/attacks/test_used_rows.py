"""Rows that the run has used, in another order, in part, or changed a little."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fairbilevel as fb
from fairbilevel.cli import main

from .conftest import table


def fit_rows(place: Path) -> list[str]:
    """Header and the lines that the run has used."""
    lines = (place / "rows.csv").read_text().split("\n")
    used = fb.data.split_roles(
        fb.data.load(str(place / "rows.csv"), fb.data.Options(target="label", group=("group",))),
        seed=0,
    )
    return [lines[0], *(lines[1 + i] for role in ("fit", "select", "tune") for i in used[role])]


def _add(amount, columns):
    def change(lines):
        rng = np.random.default_rng(0)
        out = [lines[0]]
        for line in lines[1:]:
            cells = line.split(",")
            for c in range(columns):
                cells[c] = str(round(float(cells[c]) + amount * rng.choice([-1, 1]), 6))
            out.append(",".join(cells))
        return out

    return change


def _shuffled(lines):
    return [lines[0], *np.random.default_rng(0).permutation(lines[1:]).tolist()]


# What is done to the used rows; all of them remain rows that the models have seen.
ATTACKS = {
    "as they are": lambda lines: lines,
    "shuffled": _shuffled,
    "reversed": lambda lines: [lines[0], *lines[:0:-1]],
    "without the first": lambda lines: [lines[0], *lines[2:]],
    "without the last": lambda lines: lines[:-1],
    "half of them": lambda lines: lines[: len(lines) // 2],
    "every second": lambda lines: [lines[0], *lines[1::2]],
    "one number a little larger": _add(0.001, 1),
    "one number very different": _add(5.0, 1),
    "all numbers a little different": _add(0.001, 8),
    "all numbers rounded": lambda lines: [
        lines[0],
        *(
            ",".join([*(f"{float(v):.2f}" for v in c[:8]), *c[8:]])
            for c in (line.split(",") for line in lines[1:])
        ),
    ],
    "among as many new ones": lambda lines: [*lines[:300], *table(300, 9)[1:]],
    "columns in another order": lambda lines: [
        ",".join(reversed(line.split(","))) for line in lines
    ],
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_used_rows_are_refused_or_counted(attack, place, capsys):
    (place / "new.csv").write_text("\n".join(ATTACKS[attack](fit_rows(place))))
    code = main(["certify", str(place / "run"), "--data", str(place / "new.csv"),
                 "--tolerance", "60%"])  # fmt: skip
    said = capsys.readouterr()
    if code == 2:
        assert "used by this run for fitting or choosing" in said.err
        assert len(said.err.strip().splitlines()) == 1
    else:
        (path,) = (place / "run").glob("certificate-*.json")
        written = json.loads(path.read_text())
        assert written["conditional"]
        assert written["context"]["alike"] > 0
        assert str(written["context"]["alike"]) in " ".join(written["statement"])
    assert "none of which is here" not in said.out + said.err
    assert code == 2 or attack in ("among as many new ones",)


@pytest.mark.parametrize("attack", ["shuffled", "without the first", "one number a little larger"])
def test_evaluate_says_that_rows_were_used(attack, place, capsys):
    (place / "new.csv").write_text("\n".join(ATTACKS[attack](fit_rows(place))))
    assert main(["evaluate", str(place / "run"), "--data", str(place / "new.csv")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "rows that the run was fitted or chosen on" in said


def test_new_rows_are_no_used_ones(place, capsys):
    (place / "new.csv").write_text("\n".join(table(900, 5)))
    words = ["--data", str(place / "new.csv"), "--tolerance", "60%"]
    assert main(["certify", str(place / "run"), *words]) == 0
    (path,) = (place / "run").glob("certificate-new.csv-*.json")
    written = json.loads(path.read_text())
    assert (written["conditional"], written["context"]["alike"]) == (False, 0)
    assert "none of which is here" in written["context"]["dense_trained_on"]
    assert main(["evaluate", str(place / "run"), "--data", str(place / "new.csv")]) == 0
    assert "fitted or chosen" not in " ".join(capsys.readouterr().out.split())


def test_copies_of_new_rows_count_once(place):
    head, *rows = table(60, 5)
    (place / "new.csv").write_text("\n".join([head, *rows * 20]))
    words = ["--data", str(place / "new.csv"), "--tolerance", "60%"]
    assert main(["certify", str(place / "run"), *words]) in (0, 2, 3, 4)
    (path,) = (place / "run").glob("certificate-new.csv-*.json")
    written = json.loads(path.read_text())
    assert (written["overall"]["rows"], written["context"]["kind"]) == (60, "distinct rows")
    assert written["context"]["rows_read"] == 1200
