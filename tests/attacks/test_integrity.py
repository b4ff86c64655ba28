"""Files that were changed, lost or taken from elsewhere: runs and certificates."""

from __future__ import annotations

import json

import numpy as np
import pytest
from certified import certify

import fairbilevel as fb
from fairbilevel.certificates import verify
from fairbilevel.cli import main

from .test_classes import honest


def scaled(path):
    with np.load(path) as stored:
        arrays = {k: v * 1.5 if v.dtype.kind == "f" else v for k, v in stored.items()}
    fb.records.write_arrays(path, arrays)


def edited(name, change):
    def edit(run):
        values = json.loads((run / name).read_text())
        change(values)
        (run / name).write_text(json.dumps(values))

    return edit


CHANGES = {
    "sparse weights scaled": ("model/sparse.npz", lambda run: scaled(run / "model/sparse.npz")),
    "dense weights scaled": ("model/dense.npz", lambda run: scaled(run / "model/dense.npz")),
    "networks exchanged": (
        "model/dense.npz",
        lambda run: (run / "model/sparse.npz").replace(run / "model/dense.npz"),
    ),
    "a better result": (
        "result.json",
        edited("result.json", lambda v: v["pruned"]["test"].update(accuracy=1.0)),
    ),
    "another seed": ("config.json", edited("config.json", lambda v: v.update(seed=5))),
    "rows gone, another seed": (
        "config.json",
        lambda run: (
            (run / "rows.npz").unlink(),
            edited("config.json", lambda v: v.update(seed=5))(run),
        ),
    ),
    "rows gone": ("rows.npz", lambda run: (run / "rows.npz").unlink()),
    "another class order": (
        "model/model.json",
        edited("model/model.json", lambda v: v["classes"].reverse()),
    ),
    "a group that does not count": (
        "model/model.json",
        edited("model/model.json", lambda v: v.update(counted=[True, False])),
    ),
    "metrics cut": ("metrics.jsonl", lambda run: (run / "metrics.jsonl").write_text("")),
    "no manifest": ("manifest.json", lambda run: (run / "manifest.json").unlink()),
    "an empty manifest": ("manifest.json", lambda run: (run / "manifest.json").write_text("{}")),
    "a further file": ("model/more.npz", lambda run: (run / "model/more.npz").write_bytes(b"")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_whose_files_do_not_belong_together_is_refused(change, place, capsys):
    name, edit = CHANGES[change]
    edit(place / "run")
    new = ["--data", str(place / "rows.csv")]
    for words in (["evaluate", *new], ["report"], ["certify", "--tolerance", "60%"]):
        assert main([words[0], str(place / "run"), *words[1:]]) == 2
        said = capsys.readouterr().err
        assert name in said
        assert len(said.strip().splitlines()) == 1
    assert not (place / "run" / "certificate.json").exists()


def test_what_grows_with_a_run_does_not_break_it(place):
    (place / "run" / "notes.txt").write_text("mine")
    assert main(["certify", str(place / "run"), "--tolerance", "60%"]) in (0, 4)
    assert main(["report", str(place / "run")]) == 0
    assert fb.load_run(place / "run").classes == ("0", "1")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("certificate") / "certificate.json"
    y, dense, pruned, group = honest(600, lost=0.05)
    given = {"ids": np.arange(600), "dense_trained_on": "others", "notes": ["one", "two"]}
    certify(y, dense, pruned, group, tolerance=0.2, **given).save(path)
    return path.read_text()


def into(part, **values):
    return lambda v: v[part].update(values)


EDITS = {
    "fingerprint": into("context", fingerprint="0" * 64),
    "rows_read": into("context", rows_read=60_000),
    "left_out": into("context", left_out={"nothing": 0}),
    "duplicates": into("context", duplicates=3),
    "notes": into("context", notes=["one"]),
    "dense model": into("context", dense_model="better"),
    "pruned model": into("context", pruned_model="better"),
    "dense_trained_on": into("context", dense_trained_on="other others"),
    "alike": into("context", alike=7),
    "looks_counted": into("context", looks_counted=True),
    "data": into("context", data="the census"),
    "kind": into("context", kind="persons"),
    "confidence": into("claim", confidence=0.99),
    "look": into("claim", look=2),
    "verdict": lambda v: v.update(verdict="violated"),
    "conditional": lambda v: v.update(conditional=True),
    "statement": lambda v: v["statement"].append("And more."),
    "counts": lambda v: v["counts"][0].update(rows=v["counts"][0]["rows"] + 1),
    "group name": lambda v: v["counts"][0].update(group="b"),
    "digest": lambda v: v.update(digest="0" * 64),
    "no digest": lambda v: v.pop("digest"),
    "unknown field": lambda v: v.update(praise="perfect"),
    "unknown in context": into("context", praise="perfect"),
    "claimed is text": lambda v: v["counts"][0].update(claimed="no"),
    "claimed is a number": lambda v: v["counts"][0].update(claimed=1),
    "rows as float": lambda v: v["counts"][0].update(rows=float(v["counts"][0]["rows"])),
    "older schema": lambda v: v.update(schema_version=1),
    "newer schema": lambda v: v.update(schema_version=99),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_certificate_is_noticed(edit, written, tmp_path, capsys):
    values = json.loads(written)
    EDITS[edit](values)
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(values))
    assert main(["verify", str(path)]) in (1, 2)
    said = capsys.readouterr()
    assert "same:" not in said.out
    assert "Traceback" not in said.err


@pytest.mark.parametrize("name", ["verdict", "context", "smallest_tolerance", "counts"])
def test_a_field_given_twice_is_refused(name, written, tmp_path):
    path = tmp_path / "certificate.json"
    path.write_text(
        written.rstrip()[:-1] + f', "{name}": {json.dumps(json.loads(written)[name])}}}'
    )
    with pytest.raises(ValueError, match=f"two values of '{name}'"):
        verify(path)


def test_a_certificate_is_made_again_from_its_source(place, capsys):
    run, path = place / "run", place / "run" / "certificate.json"
    main(["certify", str(run), "--tolerance", "60%"])
    looks = (run / "ledger.json").read_text()
    assert main(["verify", str(path), "--run", str(run)]) == 0
    assert "computed again from the source" in capsys.readouterr().out
    assert (run / "ledger.json").read_text() == looks  # no look was taken
    # Counts that agree with themselves and with their digest, but not with the rows.
    forged = json.loads(path.read_text())
    for counts in forged["counts"]:
        for name in ("rows", "dense_right", "pruned_right"):
            counts[name] += 100
    made = fb.certificates.Certificate.from_json(forged)
    made.save(path)
    assert main(["verify", str(path)]) == 0
    assert main(["verify", str(path), "--run", str(run)]) == 1
    assert "do not agree" in capsys.readouterr().out


def test_a_certificate_is_made_again_from_predictions(tmp_path, capsys):
    columns = honest(600, lost=0.05)
    lines = ["y,dense,pruned,group", *(",".join(map(str, r)) for r in zip(*columns, strict=True))]
    rows = tmp_path / "rows.csv"
    rows.write_text("\n".join(lines))
    assert main(["certify", "--predictions", str(rows), "--tolerance", "20%"]) == 0
    words = ["verify", str(tmp_path / "rows.certificate.json"), "--predictions", str(rows)]
    assert main(words) == 0
    rows.write_text("\n".join(lines[:-1]))
    assert main(words) == 1
    assert "do not agree" in capsys.readouterr().out
