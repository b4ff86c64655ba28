"""Predictions that are no classes: every row would count as wrong, in both models alike."""

import numpy as np
import pytest

import fairbilevel as fb
from fairbilevel.cli import main


def honest(rows=600, lost=0.2, seed=0):
    """Two groups of labels and answers; the second loses a fifth of its rows."""
    rng = np.random.default_rng(seed)
    group, y = np.arange(rows) % 2, rng.integers(0, 2, rows)
    dense = np.where(rng.random(rows) < 0.97, y, 1 - y)
    return y, dense, np.where((rng.random(rows) < lost) & (group == 1), 1 - dense, dense), group


NAMES = np.array(["cat", "dog"])

# Each turns honest columns into ones that mean something else.
ATTACKS = {
    "probabilities": lambda y, d, p: (y, 0.9 * d + 0.05, 0.8 * p + 0.1),
    "one column of probabilities": lambda y, d, p: (y, d, 0.8 * p + 0.1),
    "logits": lambda y, d, p: (y, 3.7 * d - 1.2, 3.1 * p - 1.1),
    "random numbers": lambda y, d, p: (y, *np.random.default_rng(0).random((2, len(y)))),
    "labels from 1": lambda y, d, p: (y + 1, d, p),
    "predictions from 1": lambda y, d, p: (y, d + 1, p + 1),
    "signs": lambda y, d, p: (2 * y - 1, d, p),
    "names beside indices in text": lambda y, d, p: (NAMES[y], d.astype(str), p.astype(str)),
    "1.0 beside 1": lambda y, d, p: (y.astype(str), d.astype(float).astype(str), p.astype(str)),
    "trailing spaces": lambda y, d, p: (NAMES[y], *(np.char.add(NAMES[v], " ") for v in (d, p))),
    "capitals": lambda y, d, p: (NAMES[y], np.char.upper(NAMES[d]), NAMES[p]),
    "percent": lambda y, d, p: (y, 100 * d, 100 * p),
    "infinite": lambda y, d, p: (y, np.where(d, np.inf, 0.0), p),
    "dates": lambda y, d, p: tuple(v.astype("datetime64[D]") for v in (y, d, p)),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_predictions_that_are_no_classes_are_refused(attack):
    y, dense, pruned, group = honest()
    with pytest.raises(ValueError, match=r"_pred holds|y must hold numbers or text|y holds") as e:
        fb.certify(*ATTACKS[attack](y, dense, pruned), group, tolerance=0.03)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", [int, np.uint8, float, bool, str, "names"])
def test_honest_columns_of_every_kind_say_the_same(kind):
    *columns, group = honest()
    expected = fb.certify(*columns, group, tolerance=0.03)
    columns = [NAMES[c] if kind == "names" else c.astype(kind) for c in columns]
    found = fb.certify(*columns, group, tolerance=0.03)
    assert found.verdict == expected.verdict
    assert found.smallest_tolerance == expected.smallest_tolerance


def test_a_class_that_labels_lack_is_declared():
    y, dense, pruned, group = honest()
    pruned = np.where(np.arange(len(y)) % 50 == 0, 2, pruned)
    with pytest.raises(ValueError, match=r"pruned_pred holds 2 in 12 of 600 rows, .* only 0, 1"):
        fb.certify(y, dense, pruned, group, tolerance=0.03)
    found = fb.certify(y, dense, pruned, group, tolerance=0.03, classes=[0, 1, 2])
    assert sum(g.rows for g in found.groups) == 600
    with pytest.raises(ValueError, match="y holds 1"):
        fb.certify(y, dense, pruned, group, tolerance=0.03, classes=[0, 2])


def test_the_command_line_refuses_and_takes_declared_classes(tmp_path, capsys):
    y, dense, pruned, group = honest()
    path = tmp_path / "rows.csv"

    def certify(pruned, *words):
        lines = ["y,dense,pruned,group", *map("{},{},{},{}".format, y, dense, pruned, group)]
        path.write_text("\n".join(lines))
        code = main(["certify", "--predictions", str(path), "--tolerance", "40%", *words])
        return code, capsys.readouterr().err

    code, said = certify(0.8 * pruned + 0.1)
    assert (code, len(said.strip().splitlines())) == (2, 1)
    assert "pruned_pred holds 0." in said
    assert not list(tmp_path.glob("*.json"))  # no certificate, and no look at the rows
    pruned = np.where(np.arange(len(y)) % 50 == 0, 2, pruned)
    assert certify(pruned)[0] == 2
    assert certify(pruned, "--classes", "0,1,2")[0] == 0
