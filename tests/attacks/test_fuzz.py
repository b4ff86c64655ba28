"""What the fuzzer found, each in its smallest form, and a few seconds of the fuzzer itself."""

from __future__ import annotations

import base64
import io
import json
import logging
import shutil
import tracemalloc
import warnings
import zipfile
import zlib

import jaxtyping
import numpy as np
import pytest

import fairbilevel as fb
from fairbilevel.certificates import _ledger, verify
from fairbilevel.cli import main
from fairbilevel.data import DataError, load
from fairbilevel.records import RecordError, read_arrays
from fairbilevel.records._folder import seal
from fairbilevel.run import list_runs
from fairbilevel.run._rows import read_rows
from tests.attacks import fuzz

# Changed files that each reader is given here; `python -m tests.attacks.fuzz` goes on for hours.
FILES = {
    "npz": 400,
    "run": 10,
    "artifacts": 30,
    "certificate": 60,
    "ledger": 150,
    "csv": 60,
    "parquet": 60,
    "predictions": 15,
    "images": 60,
    "arrays": 120,
    "checkpoints": 4,
}


@pytest.fixture(autouse=True)
def _unchecked():
    """As users run it: types are not checked for us."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("name", fuzz.READERS)
def test_changed_files_are_read_or_refused(name, tmp_path):
    tried = fuzz.Fuzz(fuzz.READERS[name], tmp_path / "f", seed=0)
    for _ in range(FILES[name]):
        tried.once()
    assert not tried.findings, "\n".join(tried.findings.values())
    assert tried.tried == FILES[name]
    assert tried.refused > FILES[name] / 10 or name in ("predictions", "checkpoints")


def as_npy(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def packed(method=zipfile.ZIP_DEFLATED, name="a.npy", content=None):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(name, as_npy(np.arange(4.0)) if content is None else content)
    return bytearray(stream.getvalue())


def damaged_lzma():
    found = packed(zipfile.ZIP_LZMA)
    found[60] ^= 0xFF
    return found


def versioned():
    """An archive of a version that nobody knows."""
    found = packed()
    at = found.index(b"PK\x01\x02")
    found[at + 6] = 80
    return found


def nameless():
    """An archive whose member's name begins with the zero that ends it."""
    return packed(name="qqq").replace(b"qqq", b"\0qq")


ARCHIVES = {
    "a damaged LZMA member": damaged_lzma,
    "an LZMA member": lambda: packed(zipfile.ZIP_LZMA),
    "a bzip2 member": lambda: packed(zipfile.ZIP_BZIP2),
    "a member without a name": nameless,
    "an unknown version": versioned,
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_archives(what, tmp_path):
    for name in ("a.npz", "a.zip"):
        (tmp_path / name).write_bytes(ARCHIVES[what]())
        with pytest.raises(DataError) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(RecordError, match="cannot be read as stored arrays"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("letter", [0x110000, 0xFFFFFFFF, 0xD800, 0xDFFF])
@pytest.mark.parametrize("order", "<>")
def test_text_of_letters_that_there_are_not(letter, order, tmp_path):
    array = np.full(3, letter, f"{order}u4").view(f"{order}U1")
    with (tmp_path / "a.npz").open("wb") as file:
        file.write(packed(content=as_npy(array)))
    with pytest.raises(RecordError, match="text that is none"):
        read_arrays(tmp_path / "a.npz")
    good = np.array(["ä", "𝄞", ""]).astype(f"{order}U3")
    (tmp_path / "a.npz").write_bytes(packed(content=as_npy(good)))
    assert read_arrays(tmp_path / "a.npz")["a"].tolist() == ["ä", "𝄞", ""]


@pytest.mark.parametrize("value", [1e300, np.inf, 2.0**40])
def test_labels_beyond_any_index(value, tmp_path):
    y = np.where(np.arange(8) % 2, value, 0.0)
    names = {"classes": ["a", "b"], "group": np.arange(8) // 4}
    np.savez(tmp_path / "d.npz", x=np.ones((8, 2)), y=y, **names)
    with pytest.raises(DataError, match=r"y is .* in row 1, outside the 2 classes"):
        load(tmp_path / "d.npz")


def test_what_pillow_warns_of_is_kept_from_the_reader(tmp_path):
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(stream, "TIFF")
    raw = bytearray(stream.getvalue())
    raw[8] ^= 0x40  # it says that it has more tags than it has
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for name in ("a/0.tif", "b/1.tif"):
            archive.writestr(name, bytes(raw))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load(tmp_path / "i.zip")) == 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    fuzz.make_run(folder)
    return folder / "run"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("role", np.zeros(3, [("a", int)])),
        ("role", np.full(240, 9, np.uint8)),
        ("role", np.zeros(240, np.int64)),
        ("unit", np.zeros(7, np.uint64)),
        ("content", np.zeros(240, "M8[s]")),
        ("coarse", np.zeros(240, np.uint32)),
        ("coarse", None),
        ("scale", np.zeros(4, np.float32)),
        ("scale", np.full(4, np.nan, np.float32)),
    ],
)
def test_rows_that_no_run_writes(name, value, run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    arrays = read_arrays(copied / "rows.npz") | {name: value}
    np.savez(copied / "rows.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(RecordError, match=f"rows.npz .*{name}|roles"):
        read_rows(copied)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("constraints",), 0.5),
        (("constraints",), {"a": 1}),
        (("pruned", "test", "groups", "a"), [{}, 1]),
        (("pruned", "test", "gaps", "accuracy"), {"largest": 10**400}),
        (("sparsity",), 10**400),
        (("dense", "test", "accuracy"), -(10**400)),
    ],
)
def test_runs_are_listed_whatever_their_results_hold(path, value, run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    result = json.loads((copied / "result.json").read_text())
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    seal(copied, json.dumps(result))
    (found,) = list_runs(copied)
    assert found.status in ("completed", "damaged")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("width",), {}),
        (("width",), -3),
        (("width",), True),
        (("name",), ["mlp"]),
        (("classes",), ["a", "a"]),
        (("classes",), "ab"),
        (("classes",), [0, 1]),
        (("groups",), []),
        (("counted",), [1, 1]),
        (("counted",), [True]),
        (("input_shape",), [4.0]),
        (("input_shape",), [[]]),
        (("granularity",), None),
        (("layers", 0, "shape"), [[], 8]),
        (("layers", 0, "shape"), {}),
        (("layers", 0, "name"), 3),
        (("layers",), 0.5),
        (("channels",), [None]),
    ],
)
def test_models_that_no_run_writes(path, value, run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    description = json.loads((copied / "model" / "model.json").read_text())
    inner = description
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (copied / "model" / "model.json").write_text(json.dumps(description))
    seal(copied, (copied / "result.json").read_text())
    with pytest.raises(RecordError, match=r"model.json lacks or distorts|sparse.npz is damaged"):
        fb.load_run(copied)


@pytest.mark.parametrize("line", ["null", "3", "[]", '"phase"', "NaN"])
def test_metrics_that_are_no_records(line, run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    with (copied / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    seal(copied, (copied / "result.json").read_text())
    with pytest.raises(RecordError, match=r"metrics.jsonl, line \d+ of \d+, is no JSON object"):
        fb.load_run(copied)


def test_what_a_damaged_checkpoint_leaves_behind_is_not_logged(tmp_path, caplog):
    fuzz.make_checkpoints(tmp_path)
    fuzz.read_checkpoints(tmp_path)
    log = logging.getLogger("asyncio")
    log.error("Future exception was never retrieved: DATA_LOSS [tensorstore_spec=...]")
    log.error("anything else")
    assert [record.getMessage() for record in caplog.records] == ["anything else"]


def ledger(tmp_path, **changes):
    """A ledger of one look with something changed."""
    path = tmp_path / "ledger.json"
    _ledger.take_look(path, np.arange(9, dtype=np.uint64), {"gap": "x"}, [1])
    written = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            del written["looks"][0][name]
        else:
            written["looks"][0][name] = value
    path.write_text(json.dumps(written))
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"look": 0},
        {"look": -1},
        {"look": float("inf")},
        {"look": 1e308},
        {"look": True},
        {"look": "1"},
        {"candidates": 0},
        {"candidates": 10**400},
        {"only_look": "no"},
        {"known": 2},
        {"questions": []},
        {"questions": ["a", "b"]},
        {"questions": "a"},
        {"questions": [None]},
        {"terms": ["x"]},
        {"models": 3},
        {"rows": 8},
        {"rows": 10},
        {"rows": -9},
        {"rows": None},
        {"fingerprints": "eA"},
        {"fingerprints": "Ü"},
        {"fingerprints": base64.b64encode(zlib.compress(bytes(71))).decode()},
        {"fingerprints": base64.b64encode(zlib.compress(bytes(73))).decode()},
    ],
    ids=str,
)
def test_ledgers_of_impossible_looks(changes, tmp_path):
    path = ledger(tmp_path, **changes)
    before = path.read_bytes()
    with pytest.raises(RecordError, match=r"ledger.json is damaged"):
        _ledger.read_ledger(path)
    with pytest.raises(RecordError, match=r"ledger.json is damaged"):
        _ledger.take_look(path, np.arange(3, dtype=np.uint64), {"gap": "y"}, [2])
    assert path.read_bytes() == before


def test_a_ledger_that_would_fill_the_memory(tmp_path):
    bomb = base64.b64encode(zlib.compress(bytes(2**27), 1)).decode()
    path = ledger(tmp_path, fingerprints=bomb)
    tracemalloc.start()
    with pytest.raises(RecordError, match="does not hold the 9 rows"):
        _ledger.read_ledger(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_a_certificate_with_a_number_of_hundreds_of_digits(tmp_path):
    fuzz.make_certificate(tmp_path)
    path = tmp_path / "certificate.json"
    written = json.loads(path.read_text())
    written["findings"][0]["rows"] = 10**400
    path.write_text(json.dumps(written))
    _, places = verify(path)
    assert "findings[0].rows" in places


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("claim", "candidates", float("inf")),
        ("claim", "candidates", 1.5),
        ("claim", "candidates", 2**31),
        ("claim", "look", True),
        ("claim", "look", 10**400),
        ("claim", "only_look", "no"),
        ("counts", "quantity_bins", 10**12),
        ("counts", "quantity_bins", -1),
        ("counts", "quantity_bins", float("nan")),
    ],
)
def test_certificates_of_impossible_numbers(part, name, value, tmp_path):
    fuzz.make_certificate(tmp_path)
    path = tmp_path / "loss.json"
    written = json.loads(path.read_text())
    inner = written[part] if part == "claim" else written[part][0]
    inner[name] = value
    path.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"loss.json: ") as caught:
        verify(path)
    assert len(str(caught.value)) < 300


def test_predictions_with_a_field_too_many_everywhere(tmp_path, capsys):
    """The first column would be taken for row names, and every other for the one before it."""
    lines = [f"{i % 2},{i % 2},{i % 2},{i // 2 % 2}," for i in range(400)]
    (tmp_path / "p.csv").write_text("\n".join(["y,dense,pruned,group", *lines]))
    words = ["certify", "--predictions", str(tmp_path / "p.csv"), "--tolerance", "50%"]
    assert main(words) == 2
    assert "5 fields in line 2 where its header has 4" in capsys.readouterr().err
    (tmp_path / "p.csv").write_text("\n".join(["y,dense,pruned,group", *(li[:-1] for li in lines)]))
    assert main(words) == 0


def test_parquet_with_bytes_that_are_no_text(tmp_path):
    fuzz.make_parquet(tmp_path)
    sound = (tmp_path / "t.parquet").read_bytes()
    for code, said in ((b"\x00", "bytes that are no text"), (b"\xff", "cannot be read")):
        (tmp_path / "t.parquet").write_bytes(sound.replace(b"cook", code * 4))
        with pytest.raises(DataError, match=rf"column 'job' .*{said}|not a readable"):
            fuzz.read_table(tmp_path)
        damaged = sound.replace(b"\x01\x00\x00\x00m", b"\x01\x00\x00\x00" + code)
        assert damaged != sound
        (tmp_path / "t.parquet").write_bytes(damaged)
        with pytest.raises(DataError, match=rf"column 'sex' .*{said}"):
            fuzz.read_table(tmp_path)


@pytest.mark.parametrize("text", [b"[]", b"3", b"null"])
def test_a_configuration_that_is_none(text, tmp_path):
    fuzz.make_run(tmp_path)
    (tmp_path / "run" / "config.json").write_bytes(text)
    (tmp_path / "run" / "manifest.json").unlink()
    fuzz.seal(tmp_path / "run")
    with pytest.raises(RecordError):
        fb.load_run(tmp_path / "run")
