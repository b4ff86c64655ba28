"""``fb.certify``, the ledger, the file, the command line: what is claimed, paid for, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from certified import certify

import fairbilevel as fb
from fairbilevel.certificates import GAPS, Certificate, Claim, Origin, verify
from fairbilevel.certificates._counts import GroupCounts, one_row_per_unit
from fairbilevel.certificates._ledger import read_ledger
from fairbilevel.cli import main
from fairbilevel.data import row_fingerprints
from fairbilevel.records._folder import seal


def predictions(rows=600, groups=3, damage=(0.02, 0.02, 0.02), seed=0):
    """Labels, dense and pruned predictions and groups of a binary task."""
    rng = np.random.default_rng(seed)
    group = np.arange(rows) % groups
    y = rng.integers(0, 2, rows)
    dense = np.where(rng.random(rows) < 0.95, y, 1 - y)
    hit = rng.random(rows) < np.asarray(damage)[group]
    return y, dense, np.where(hit, 1 - y, dense), group


def small(**options):
    options = {"gap": "worst-group-accuracy", "tolerance": 0.5, **options}
    return certify(*predictions(), **options)


class Tensor:
    """What other libraries hand over: anything that numpy can read."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype=dtype)


# ---------------------------------------------------------------- what it says


def test_counts_are_those_of_the_rows():
    y, dense, pruned, group = predictions(damage=(0.02, 0.1, 0.02))
    found = certify(y, dense, pruned, group, tolerance=0.03)
    for g, counts in enumerate(found.groups):
        own = group == g
        assert counts.rows == own.sum()
        assert counts.lost == ((dense == y) & (pruned != y))[own].sum()
        assert counts.won == ((dense != y) & (pruned == y))[own].sum()
        assert counts.dense_right == (dense == y)[own].sum()
        assert counts.pruned_right == (pruned == y)[own].sum()
    assert sum(f.share for f in found.findings) == pytest.approx(1)
    assert found.smallest_tolerance == max(f.bound for f in found.findings)


@pytest.mark.parametrize("gap", GAPS)
def test_every_gap_has_a_verdict_words_and_a_file(gap, tmp_path):
    options = {"tolerance": 0.9}
    if gap.startswith("equalized-loss"):
        options |= {"quantity": np.random.default_rng(1).random(600), "upper": 2.0}
    if gap == "worst-group-accuracy":
        options["tolerance"] = 0.5
    found = certify(*predictions(), gap=gap, **options)
    assert found.verdict == "certified"
    assert found.exit_code == 0
    assert "600 rows" in found.sentence
    assert "95 % confidence" in found.sentence
    assert "Not covered" in found.sentence
    again, differences = verify(found.save(tmp_path / "certificate.json"))
    assert differences == []
    assert (again.claim, again.groups) == (found.claim, found.groups)
    # At the smallest tolerance itself it is certified, just beyond it no more.
    step = 1e-9 if gap != "worst-group-accuracy" else -1e-9
    options["tolerance"] = found.smallest_tolerance
    assert certify(*predictions(), gap=gap, **options).verdict == "certified"
    options["tolerance"] = found.smallest_tolerance - step
    assert certify(*predictions(), gap=gap, **options).verdict != "certified"


def test_violated_and_undecided():
    harmed = predictions(1200, damage=(0.02, 0.6, 0.02))
    found = certify(*harmed, tolerance=0.1)
    assert (found.verdict, found.exit_code) == ("violated", 3)
    assert [f.verdict for f in found.findings] == ["certified", "violated", "certified"]
    assert "violated by 1" in found.sentence
    found = certify(*predictions(), tolerance=0.02)
    assert (found.verdict, found.exit_code) == ("undecided", 4)
    assert "undecided" in found.sentence
    assert found.more_rows is not None
    assert found.more_rows["sentence"] in found.sentences


def test_rates_of_answers():
    y = np.array([1, 1, 1, 0, 0] * 40)
    pruned = np.array([1, 1, 0, 1, 0] * 40)
    group = np.repeat([0, 1], 100)
    given = {"tolerance": 0.9}
    parity = certify(y, y, pruned, group, gap="demographic-parity", **given)
    assert [f.estimate for f in parity.findings] == [0.6, 0.6]
    opportunity = certify(y, y, pruned, group, gap="equal-opportunity", **given)
    assert [f.estimate for f in opportunity.findings] == pytest.approx([2 / 3, 2 / 3])
    odds = certify(y, y, pruned, group, gap="equalized-odds", **given)
    assert [f.estimate for f in odds.findings] == pytest.approx([2 / 3, 2 / 3, 0.5, 0.5])
    names = np.array(["no", "yes"])
    text = certify(
        names[y], names[y], names[pruned], group, gap="equalized-odds", positive="yes", **given
    )  # fmt: skip
    assert text.smallest_tolerance == odds.smallest_tolerance


def test_a_label_that_a_group_lacks_is_undecided():
    y = np.array([1, 0] * 100)
    group = y.copy()
    found = certify(y, y, y, group, gap="equal-opportunity", tolerance=0.9)
    assert found.verdict == "undecided"
    assert found.smallest_tolerance is None
    assert "there are no rows of 0 (1)" in found.sentence


def test_tensors_text_and_names():
    y, dense, pruned, group = predictions()
    plain = certify(y, dense, pruned, group, tolerance=0.05)
    wrapped = certify(*(Tensor(v) for v in (y, dense, pruned, group)), tolerance=0.05)
    assert wrapped.groups == plain.groups
    text = certify(
        *(np.array(["a", "b"], object)[v] for v in (y, dense, pruned)),
        group,
        groups=["x", "y", "z"],
        tolerance=0.05,
    )
    assert [g.group for g in text.groups] == ["x", "y", "z"]
    assert [g.lost for g in text.groups] == [g.lost for g in plain.groups]


def test_small_groups_are_outside_the_claim_but_part_of_the_average():
    y, dense, pruned, group = predictions()
    group = group.copy()
    group[:5] = 3
    found = certify(y, dense, pruned, group, tolerance=0.05)
    assert [f.group for f in found.findings] == ["0", "1", "2"]
    assert found.small == ["3"]
    assert "Too small to say: 3, 0.8 % of the rows." in found.sentence
    assert found.findings[0].share == found.groups[0].rows / 600
    assert found.to_json()["outside_the_claim"] == ["3"]


def test_one_row_of_each_person_counts():
    y, dense, pruned, group = predictions()
    unit = np.arange(600) // 2
    found = certify(y, dense, pruned, group, unit=unit, tolerance=0.05)
    assert sum(g.rows for g in found.groups) == 300
    assert (found.context.kind, found.context.rows_read) == ("persons", 600)
    assert "300 persons" in found.sentence
    chosen = one_row_per_unit(unit)
    assert len(chosen) == len(set(unit[chosen])) == 300
    assert 100 < (chosen % 2).sum() < 200
    np.testing.assert_array_equal(chosen, one_row_per_unit(unit))


def test_provenance_of_the_dense_model():
    assert small().conditional
    assert "valid only if the dense model never saw these rows" in small().sentence
    stated = small(dense_trained_on="CelebA, official training split")
    assert not stated.conditional
    assert "never saw" not in stated.sentence
    assert stated.to_json()["context"]["dense_trained_on"] == "CelebA, official training split"


# ---------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gap": "excess-acuracy-gap"}, "did you mean 'excess-accuracy-gap'"),
        ({"tolerance": 2.0}, "a fraction between 0 and 1"),
        ({"tolerance": float("nan")}, "a fraction between 0 and 1"),
        ({"confidence": 1.0}, "confidence must lie in"),
        ({"confidence": 95.0}, "confidence must lie in"),
        ({"bound": "best"}, "unknown bound 'best'"),
        ({"look": 0}, "at least 1"),
        ({"candidates": 0}, "at least 1"),
        ({"only_look": True, "look": 2}, "cannot be look 2"),
        ({"gap": "equalized-loss"}, "not certifiable without a quantity and its declared range"),
        ({"gap": "equalized-loss", "quantity": np.ones(600)}, "not certifiable"),
        ({"gap": "equalized-loss", "quantity": np.full(600, 3.0), "upper": 2.0}, "outside its"),
        ({"gap": "equalized-loss", "quantity": np.ones(600), "upper": -1.0}, "range"),
        ({"gap": "equal-opportunity", "positive": 7}, "no row has the positive class 7"),
        ({"min_group_rows": 10_000}, "no group is large enough"),
        ({"unit": np.arange(5)}, "unit has 5 rows where y has 600"),
        ({"ids": np.zeros(600)}, "ids occur more than once"),
        ({"claimed": [True]}, "1 values for 3 groups"),
        ({"groups": ["a", "b"]}, "must hold their indices"),
    ],
)
def test_bad_calls(change, message):
    with pytest.raises(ValueError, match=message):
        small(**change)


def test_bad_columns():
    y, dense, pruned, group = predictions()
    with pytest.raises(ValueError, match="pruned_pred has 3 rows where y has 600"):
        certify(y, dense, pruned[:3], group, tolerance=0.1)
    with pytest.raises(ValueError, match="one value a row"):
        certify(y, np.zeros((600, 2)), pruned, group, tolerance=0.1)
    with pytest.raises(ValueError, match="all be numbers or all be text"):
        certify(y, dense.astype(str), pruned, group, tolerance=0.1)
    with pytest.raises(ValueError, match="group is missing in 1 of 600 rows"):
        certify(y, dense, pruned, np.where(np.arange(600) == 3, np.nan, group), tolerance=0.1)
    with pytest.raises(ValueError, match="at least two groups"):
        certify(y, dense, pruned, np.zeros(600), tolerance=0.1)
    with pytest.raises(ValueError, match="no rows to certify from"):
        certify([], [], [], [], tolerance=0.1)
    with pytest.raises(ValueError, match="name the positive class"):
        certify(y + 1, dense + 1, pruned + 1, group, gap="equalized-odds", tolerance=0.1)


# ---------------------------------------------------------------- the ledger


def ids(start=0, rows=600):
    return [f"row {i}" for i in range(start, start + rows)]


def test_looks_are_numbered_and_paid_for(tmp_path):
    ledger = tmp_path / "ledger.json"
    first = small(ledger=ledger, ids=ids())
    assert first.claim.look == 1
    assert first.claim.delta == pytest.approx(0.05 * 6 / np.pi**2)
    # The same question is the same look, another one is not.
    assert small(ledger=ledger, ids=ids()).claim.look == 1
    second = small(ledger=ledger, ids=ids(), tolerance=0.6)
    assert second.claim.look == 2
    assert second.claim.delta == pytest.approx(first.claim.delta / 4)
    # Rows that overlap have been looked at; others, if nobody says that the models differ.
    assert small(ledger=ledger, ids=ids(599)).claim.look == 3
    assert small(ledger=ledger, ids=ids(5000)).claim.look == 4
    assert len(read_ledger(ledger)) == 4


def test_other_models_at_other_rows_stand_apart(tmp_path):
    ledger = tmp_path / "ledger.json"

    def look(name, start, tolerance=0.5):
        models = {"dense_model": "d", "pruned_model": name, "tolerance": tolerance}
        return small(ledger=ledger, ids=ids(start), **models).claim.look

    assert look("a", 0) == 1
    assert look("b", 5000) == 1
    assert look("b", 0, 0.6) == 3  # rows of the first, models of the second
    assert look("a", 9000) == 2


def test_without_ids_every_certificate_counts(tmp_path):
    ledger = tmp_path / "ledger.json"
    y, dense, pruned, group = predictions()
    options = {"gap": "worst-group-accuracy", "tolerance": 0.5, "ledger": ledger}
    assert certify(y, dense, pruned, group, **options).claim.look == 1
    assert certify(y, dense, np.where(y, pruned, dense), group, **options).claim.look == 2
    found = certify(1 - y, 1 - dense, 1 - np.where(y, dense, pruned), group, **options)
    assert found.claim.look == 3
    assert "every certificate of the ledger counts" in " ".join(found.context.notes)


def test_candidates_share_a_look(tmp_path):
    ledger = tmp_path / "ledger.json"
    y, dense, pruned, group = predictions()
    options = {"gap": "worst-group-accuracy", "tolerance": 0.5, "ids": ids(), "ledger": ledger}
    looks = []
    for k in range(4):
        other = np.where(np.arange(600) < 4 * k, 1 - y, pruned)
        found = certify(y, dense, other, group, candidates=3, **options)
        looks.append(found.claim.look)
        assert found.claim.delta == pytest.approx(Claim(look=looks[-1]).delta / 3)
    assert looks == [1, 1, 1, 2]


def test_the_only_look_closes_rows(tmp_path):
    ledger = tmp_path / "ledger.json"
    found = small(ledger=ledger, ids=ids(), only_look=True)
    assert found.claim.delta == pytest.approx(0.05)
    assert small(ledger=ledger, ids=ids(), only_look=True).claim.look == 1
    with pytest.raises(ValueError, match="which closed them"):
        small(ledger=ledger, ids=ids(), tolerance=0.6)
    ledger = tmp_path / "others" / "ledger.json"
    small(ledger=ledger, ids=ids(5000))
    with pytest.raises(ValueError, match="nobody has looked at"):
        small(ledger=ledger, ids=ids(5000), only_look=True)


def test_a_mistake_costs_no_look_and_damage_is_not_forgotten(tmp_path):
    ledger = tmp_path / "ledger.json"
    with pytest.raises(ValueError, match="no group is large enough"):
        small(ledger=ledger, ids=ids(), min_group_rows=10_000)
    assert not ledger.exists()
    small(ledger=ledger, ids=ids())
    ledger.write_text(ledger.read_text().replace('"fingerprints": "', '"fingerprints": "!'))
    with pytest.raises(ValueError, match="damaged"):
        small(ledger=ledger, ids=ids())
    ledger.write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        small(ledger=ledger, ids=ids())


# ---------------------------------------------------------------- the file


def test_tampering_is_seen(tmp_path):
    path = certify(*predictions(), tolerance=0.03).save(tmp_path / "certificate.json")
    written = json.loads(path.read_text())

    def changed(edit):
        copy = json.loads(json.dumps(written))
        edit(copy)
        path.write_text(json.dumps(copy))
        return verify(path)[1]

    assert changed(lambda v: None) == []
    assert changed(lambda v: v.update(smallest_tolerance=0.01)) == ["smallest_tolerance"]
    assert changed(lambda v: v.update(verdict="certified")) == ["verdict"]
    assert "findings[0].high" in changed(lambda v: v["findings"][0].update(high=0.0))
    assert "levels.spent" in changed(lambda v: v["claim"].update(look=2))
    assert "smallest_tolerance" in changed(lambda v: v["counts"][0].update(rows=2000))
    assert changed(lambda v: v.update(praise="perfect")) == ["praise"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v["counts"][0].update(lost=-1), "contradict"),
        (lambda v: v["counts"][0].update(rows=1.5), "whole numbers"),
        (lambda v: v["counts"][0].update(rows="many"), "whole numbers"),
        (lambda v: v["counts"][0].pop("rows"), "malformed"),
        (lambda v: v["claim"].update(surprise=1), "malformed"),
        (lambda v: v["claim"].update(tolerance="small"), "malformed"),
        (lambda v: v["claim"].update(confidence=2.0), "confidence"),
        (lambda v: v["context"].update(left_out=5), "malformed"),
        (lambda v: v.update(counts=7), "malformed"),
        (lambda v: v.update(schema_version=99), "upgrade"),
        (lambda v: v.pop("counts"), "no certificate"),
    ],
)
def test_bad_calls_of_verify(edit, message, tmp_path):
    path = certify(*predictions(), tolerance=0.03).save(tmp_path / "certificate.json")
    written = json.loads(path.read_text())
    edit(written)
    path.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=message):
        verify(path)


def test_counts_survive_the_file():
    counts = GroupCounts("g", True, 4, 3, 3, 1, 1, quantity=(0, 3, 0, 1), quantity_total=2.5)
    assert GroupCounts.from_json(json.loads(json.dumps(counts.to_json()))) == counts
    assert isinstance(small(), Certificate)


# ---------------------------------------------------------------- the command line: predictions


def write_predictions(path, columns=("y", "dense", "pruned", "group"), extra=None, **options):
    values = dict(zip(columns, (v.tolist() for v in predictions(**options)), strict=True))
    values |= extra or {}
    lines = [
        ",".join(values),
        *(",".join(map(str, row)) for row in zip(*values.values(), strict=True)),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*words):
    return main(["certify", *map(str, words)])


def test_exit_codes_and_files(tmp_path, capsys):
    path = write_predictions(tmp_path / "mine.csv")
    assert run("--predictions", path, "--tolerance", "30%") == 0
    out = capsys.readouterr().out
    assert out.startswith("Smallest certified tolerance: ")
    assert "Verdict: certified (conditional)" in out
    written = json.loads((tmp_path / "mine.certificate.json").read_text())
    assert written["claim"]["tolerance"] == 0.3
    assert main(["verify", str(tmp_path / "mine.certificate.json")]) == 0
    assert "same: certified" in capsys.readouterr().out
    assert run("--predictions", path, "--tolerance", "1%") == 4
    assert "Look 2 at these rows" in capsys.readouterr().out
    assert len(read_ledger(tmp_path / "ledger.json")) == 2
    harmed = write_predictions(tmp_path / "harmed.csv", damage=(0.0, 0.7, 0.0))
    options = ["--out", tmp_path / "c.json", "--ledger", tmp_path / "l.json", "--json"]
    assert run("--predictions", harmed, "--tolerance", "0.02", *options) == 3
    assert json.loads(capsys.readouterr().out)["verdict"] == "violated"
    (tmp_path / "c.json").write_text((tmp_path / "c.json").read_text().replace("violated", "x"))
    assert main(["verify", str(tmp_path / "c.json")]) == 1
    assert "different" in capsys.readouterr().out


def test_columns_are_the_users(tmp_path):
    extra = {"who": [f"p{i // 3}" for i in range(600)], "nats": [0.5] * 600}
    path = write_predictions(tmp_path / "mine.csv", ("label", "d", "p", "race"), extra)
    names = ["--y", "label", "--dense", "d", "--pruned", "p", "--group", "race", "--unit", "who"]
    more = ["--gap", "equalized-loss", "--quantity", "nats", "--upper", "4", "--tolerance", "2.5"]
    assert run("--predictions", path, *names, *more) == 0
    written = json.loads((tmp_path / "mine.certificate.json").read_text())
    assert written["context"]["kind"] == "persons"
    assert written["overall"]["rows"] == 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a run folder, or --predictions"),
        (["--predictions", "mine.csv", "somewhere"], "one of the two"),
        (["--predictions", "mine.csv"], "wants a --tolerance"),
        (["--predictions", "none.csv", "--tolerance", "3%"], "there is no file"),
        (["--predictions", "mine.csv", "--tolerance", "3"], "ambiguous"),
        (["--predictions", "mine.csv", "--tolerance", "much"], "a fraction such as"),
        (
            ["--predictions", "mine.csv", "--tolerance", "3%", "--gap", "parity"],
            "demographic-parity",
        ),
        (["--predictions", "mine.csv", "--tolerance", "3%", "--confidence", "95"], "confidence"),
        (["--predictions", "mine.csv", "--tolerance", "3%", "--group", "grup"], "mean 'group'"),
        (["--predictions", "mine.csv", "--tolerance", "3%", "--data", "x"], "belongs to a run"),
        (["--predictions", "empty.csv", "--tolerance", "3%"], "empty.csv is empty"),
        (["--predictions", "gaps.csv", "--tolerance", "3%"], "is empty in 1 rows"),
        (["no/such/run", "--tolerance", "3%"], "there is no run folder"),
        (["--predictions", "mine.csv", "--tolerence", "3%"], "--tolerance"),
    ],
)
def test_bad_words(words, message, tmp_path, monkeypatch, capsys, tree):
    monkeypatch.chdir(tmp_path)
    write_predictions(tmp_path / "mine.csv")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "gaps.csv").write_text("y,dense,pruned,group\n1,1,,a\n0,0,0,b\n")
    before = tree(tmp_path)
    assert main(["certify", *words]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": 1}'])
def test_what_is_no_certificate(text, tmp_path, capsys):
    path = tmp_path / "certificate.json"
    path.write_text(text)
    assert main(["verify", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "none.json")]) == 2


# ---------------------------------------------------------------- the command line: runs


def images(rows, seed):
    """Small pictures of two classes, and groups."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % 2
    x = rng.integers(0, 120, (rows, 6, 6, 1)) + 100 * y[:, None, None, None]
    return {
        "x": x.astype(np.uint8),
        "y": y,
        "group": np.array(["a", "b"])[np.arange(rows) // 2 % 2],
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("certify")
    np.savez(place / "mine.npz", **images(900, 0))
    words = ["--model", "mlp", "--width", "8", "--steps", "30", "--dense-steps", "30"]
    words += ["--data", str(place / "mine.npz"), "--no-baseline", "--sparsity", "0.5"]
    assert main(["solve", *words, "--out", str(place / "run")]) == 0
    return place


@pytest.fixture
def place(finished, tmp_path) -> Path:
    """A copy of the run, its data where it was."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path


def test_a_run_is_certified_from_its_own_rows(place, capsys):
    assert "No certificate has been computed" in (place / "run" / "report.html").read_text()
    code = run(place / "run", "--tolerance", "30%")
    written = json.loads((place / "run" / "certificate.json").read_text())
    assert code == {"certified": 0, "violated": 3, "undecided": 4}[written["verdict"]]
    result = json.loads((place / "run" / "result.json").read_text())
    assert written["overall"]["rows"] == result["data"]["roles"]["certify"]
    assert "fit rows of this run" in written["context"]["dense_trained_on"]
    assert not written["conditional"]
    assert "(conditional)" not in capsys.readouterr().out
    # The counts are those of the saved networks on the rows of role certify.
    loaded = fb.load_run(place / "run")
    data = fb.data.load(loaded.config["data"])
    rows = fb.data.split_roles(data, seed=0)["certify"]
    for name, dense in (("dense_right", True), ("pruned_right", False)):
        right = loaded.logits(data.inputs[rows], dense=dense).argmax(-1) == data.y[rows]
        for g, counts in enumerate(written["counts"]):
            assert counts[name] == right[data.group[rows] == g].sum()
    page = (place / "run" / "report.html").read_text()
    assert "What untouched rows prove" in page
    assert "No certificate has been computed" not in page
    assert main(["report", str(place / "run")]) == 0
    assert "Certificate: For rows like those in" in " ".join(capsys.readouterr().out.split())
    run(place / "run", "--tolerance", "30%", "--gap", "equalized-odds")
    assert json.loads((place / "run" / "certificate.json").read_text())["levels"]["look"] == 2


def test_a_plan_tells_what_rows_can_certify(finished, capsys):
    words = ["--data", str(finished / "mine.npz"), "--model", "mlp", "--width", "8"]
    assert main(["plan", *words, "--constraint", "excess-accuracy-gap=5%"]) == 0
    out = capsys.readouterr().out
    # ln(1/delta)/tolerance, delta being what the first of many looks may spend.
    least = int(np.ceil(np.log(0.05 * 6 / np.pi**2) / np.log(0.95)))
    assert f"a group needs {least} certify rows at the very least" in out
    assert "with 80 % power" in out
    assert "450 (10 times as many)" in out


def test_new_rows_are_taken_and_used_ones_refused(place, finished, capsys):
    np.savez(place / "new.npz", **images(400, 7))
    options = ["--tolerance", "5%", "--gap", "equalized-loss-signed", "--upper", "3"]
    assert run(place / "run", "--data", place / "new.npz", *options) in (0, 3, 4)
    (path,) = (place / "run").glob("certificate-new.npz-*.json")
    written = json.loads(path.read_text())
    assert written["overall"]["rows"] == 400
    assert written["claim"]["quantity"] == "loss clipped at 3"
    assert run(place / "run", "--data", finished / "mine.npz", "--tolerance", "5%") == 2
    assert "were used by this run for fitting or choosing" in capsys.readouterr().err
    # One row in another file, under another number, is enough.
    old, new = images(900, 0), images(400, 7)
    roles = fb.data.split_roles(fb.data.load(finished / "mine.npz"), seed=0)
    new["x"][17] = old["x"][roles["tune"][0]]
    np.savez(place / "mixed.npz", **new)
    assert run(place / "run", "--data", place / "mixed.npz", "--tolerance", "5%") == 2
    assert "1 of 400 rows" in capsys.readouterr().err
    # A row that the report showed is told; a picture seen twice counts once.
    new["x"][17] = old["x"][roles["test"][0]]
    new["x"][23] = new["x"][22]
    np.savez(place / "shown.npz", **new)
    assert run(place / "run", "--data", place / "shown.npz", "--tolerance", "5%") in (0, 3, 4)
    (path,) = (place / "run").glob("certificate-shown.npz-*.json")
    context = json.loads(path.read_text())["context"]
    assert any("1 rows are test rows" in note for note in context["notes"])
    assert any("1 clusters, 1 of them with conflicting labels" in n for n in context["notes"])
    assert (context["duplicates"], context["kind"]) == (2, "distinct images")
    # Each question has a line of its own in the list of runs.
    written = sorted((place / "run").glob("certificate-*.json"))
    capsys.readouterr()
    assert main(["runs", str(place)]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if "certificate-" in line]
    verdicts = [json.loads(p.read_text())["verdict"] for p in written]
    assert listed == [f"run/{p.name}: {v}" for p, v in zip(written, verdicts, strict=True)]


def changed(run, name, values):
    """Another file of a run, with a manifest that fits it."""
    (run / name).write_text(json.dumps(values))
    seal(run, (run / "result.json").read_text())


def test_what_a_run_cannot_certify(place, finished, capsys, tmp_path):
    config = json.loads((place / "run" / "config.json").read_text())
    np.savez(tmp_path / "changed.npz", **images(900, 1))
    changed(place / "run", "config.json", config | {"data": str(tmp_path / "changed.npz")})
    assert run(place / "run", "--tolerance", "5%") == 2
    assert "has changed since the run" in capsys.readouterr().err
    changed(place / "run", "config.json", {"seed": 0})
    assert run(place / "run", "--tolerance", "5%") == 2
    assert "saved from Python" in capsys.readouterr().err
    changed(place / "run", "config.json", config | {"seed": 1})
    assert run(place / "run", "--tolerance", "5%") == 2
    assert "put together from several runs" in capsys.readouterr().err
    (place / "run" / "rows.npz").unlink()
    changed(place / "run", "config.json", config)
    np.savez(place / "new.npz", **images(400, 7))
    assert run(place / "run", "--data", place / "new.npz", "--tolerance", "5%") == 2
    assert "nobody can tell which rows it has used" in capsys.readouterr().err
    assert not (place / "run" / "certificate.json").exists()


def test_a_given_dense_model_is_conditional(place, finished, capsys):
    result = json.loads((place / "run" / "result.json").read_text())
    result["cost"]["dense_gradient_evaluations"] = 0
    changed(place / "run", "result.json", result)
    run(place / "run", "--tolerance", "30%")
    assert "(conditional)" in capsys.readouterr().out
    run(place / "run", "--tolerance", "30%", "--dense-trained-on", "other people")
    assert "(conditional)" not in capsys.readouterr().out
    # From a former run its files tell: the same draw of rows, or another one.
    other = place / "dense"
    shutil.copytree(finished / "run", other)
    config = json.loads((place / "run" / "config.json").read_text())
    changed(place / "run", "config.json", config | {"dense": str(other)})
    run(place / "run", "--tolerance", "30%")
    assert "(conditional)" not in capsys.readouterr().out
    rows = fb.records.read_arrays(other / "rows.npz")
    roles = fb.data.ROLES
    rows["role"] = np.where(
        rows["role"] == roles.index("certify"), roles.index("fit"), rows["role"]
    )
    fb.records.write_arrays(other / "rows.npz", rows)
    assert run(place / "run", "--tolerance", "30%") == 2
    assert "the dense model comes from" in capsys.readouterr().err


def test_a_new_run_in_the_folder_keeps_the_ledger(place):
    run(place / "run", "--tolerance", "30%")
    assert (place / "run" / "certificate.json").exists()
    loaded = json.loads((place / "run" / "config.json").read_text())
    words = ["--model", "mlp", "--width", "8", "--steps", "10", "--dense-steps", "10"]
    words += ["--data", loaded["data"], "--no-baseline", "--sparsity", "0.5", "--overwrite"]
    assert main(["solve", *words, "--out", str(place / "run")]) == 0
    assert not (place / "run" / "certificate.json").exists()
    assert len(read_ledger(place / "run" / "ledger.json")) == 1
    run(place / "run", "--tolerance", "30%", "--gap", "accuracy-gap")
    assert json.loads((place / "run" / "certificate.json").read_text())["levels"]["look"] == 2


def test_fingerprints_know_rows_again():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 3)).astype(np.float32)
    y, group = np.arange(8) % 2, np.arange(8) // 4
    first = row_fingerprints(fb.data.from_arrays(x, y, group, ids=[f"i{k}" for k in range(8)]))
    back = row_fingerprints(
        fb.data.from_arrays(x[::-1], y[::-1], group[::-1], ids=[f"i{k}" for k in range(8)][::-1])
    )
    np.testing.assert_array_equal(first.row, back.row[::-1])
    other = row_fingerprints(fb.data.from_arrays(x, y, group, ids=[f"j{k}" for k in range(8)]))
    np.testing.assert_array_equal(first.content, other.content)
    assert not np.isin(first.row, other.row).any()


# ---------------------------------------------------------------- a solution


def test_a_solution_is_certified_from_its_own_rows(tmp_path):
    data = np.random.default_rng(0)
    x = data.normal(size=(1200, 5)).astype(np.float32)
    y, group = (x[:, 0] > 0).astype(int), data.integers(0, 2, 1200)
    problem = fb.FairPruningProblem("mlp", x, y, group, width=8)
    solution = fb.solve(problem, sparsity=0.3, steps=20, dense_steps=40, batch_size=32)
    found = fb.certify(solution, tolerance=0.3)
    rows = problem.roles["certify"]
    assert sum(g.rows for g in found.groups) == len(rows)
    logits = [problem.logits(n, problem.rows(rows)) for n in (
        solution.reference.network, solution.network
    )]  # fmt: skip
    by_hand = fb.certify(
        y[rows], *(found.argmax(-1) for found in logits), group[rows], tolerance=0.3,
        origin=Origin(dense_trained_on="the fit rows"),
    )  # fmt: skip
    assert found.verdict == by_hand.verdict
    assert found.smallest_tolerance == by_hand.smallest_tolerance
    assert not found.conditional
    assert (
        found.context.dense_trained_on
        == f"the {len(problem.roles['fit'])} fit rows of this problem"
    )
    # A run does not know where such data is; the command's own runs are certified above.
    run = fb.load_run(fb.save_run(solution, tmp_path / "run"))
    with pytest.raises(ValueError, match="saved from Python"):
        fb.certify(run, tolerance=0.3)
    with pytest.raises(ValueError, match="brings its own predictions"):
        fb.certify(solution, y[rows], y[rows], group[rows], tolerance=0.3)
    # A dense model from elsewhere may have seen these rows.
    given = fb.solve(
        problem, sparsity=0.3, steps=20, batch_size=32, dense=solution.reference.network
    )
    assert fb.certify(given, tolerance=0.3).conditional
    none = fb.FairPruningProblem(
        "mlp",
        x,
        y,
        group,
        width=8,
        role_fractions={"fit": 0.5, "select": 0.2, "tune": 0.1, "test": 0.2, "certify": 0.0},
    )
    with pytest.raises(ValueError, match="no certify rows"):
        fb.certify(fb.solve(none, sparsity=0.3, steps=20, dense_steps=20), tolerance=0.3)
