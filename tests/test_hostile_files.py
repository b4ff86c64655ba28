"""Files that anybody may have made: read or refused in one sentence, never executed."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
import random
import shutil
import struct
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest

import fairbilevel as fb
from fairbilevel import fairness
from fairbilevel._npz import read_npz
from fairbilevel.cli import main
from fairbilevel.records import RecordError, read_arrays, read_json, read_json_lines
from fairbilevel.records._folder import seal


@pytest.fixture(scope="module")
def folder(tiny_data, tmp_path_factory):
    """A finished run."""
    problem = fb.FairPruningProblem(
        "mlp", tiny_data, constraints=[fairness.ExcessAccuracyGap(0.02)], width=12
    )
    solution = fb.solve(problem, sparsity=0.5, steps=20, dense_steps=20, batch_size=16)
    return fb.save_run(solution, tmp_path_factory.mktemp("hostile") / "run")


def npz(**members: bytes) -> io.BytesIO:
    """An archive of these bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    stream.seek(0)
    return stream


def npy(header: str, data: bytes = b"") -> bytes:
    """An array's file with this header."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def header(shape: str, kind: str = "<f8") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


def test_good_arrays_come_back(tmp_path):
    arrays = {
        "a": np.zeros((0, 3)),
        "b": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "c": np.array(3),
        "d": np.array(["x", "yy"]),
        "e": np.zeros(10**6),  # compresses a thousandfold, harmlessly
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = read_arrays(tmp_path / "a.npz")
    assert list(found) == list(arrays)
    for name, value in arrays.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
        found[name][...] = value  # writable, as numpy's own


@contextlib.contextmanager
def little_memory():
    """Fails where more than 32 MiB are taken."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


HOSTILE = {
    "a giant shape": npy(header("(1000000000000,)")),
    "a shape beyond any integer": npy(header(f"({10**40},)")),
    "more than it holds": npy(header("(4,)"), bytes(8)),
    "less than it holds": npy(header("(1,)"), bytes(64)),
    "a negative shape": npy(header("(-1,)"), bytes(8)),
    "objects": npy(header("(1,)", "|O"), pickle.dumps(print)),
    "no magic": b"NOTNUMPY" + bytes(100),
    "an unknown version": b"\x93NUMPY\x09\x00" + bytes(100),
    "a header that is code": npy("__import__('os').system('true')"),
    "a header of brackets": npy("(" * 5000),
    "a giant header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 1000,
    "nothing": b"",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_arrays_are_refused_at_once(what, tmp_path):
    archive = npz(a=HOSTILE[what])
    with little_memory(), pytest.raises(ValueError, match=r"."):
        read_npz(archive)
    (tmp_path / "a.npz").write_bytes(npz(a=HOSTILE[what]).getvalue())
    with pytest.raises(RecordError, match="cannot be read as stored arrays"):
        read_arrays(tmp_path / "a.npz")


def test_a_decompression_bomb():
    bomb = npz(a=npy(header(f"({2**24},)"), bytes(2**27)))
    assert len(bomb.getvalue()) < 2**18
    with little_memory(), pytest.raises(ValueError, match="would grow more than 1000-fold"):
        read_npz(bomb)


def test_an_array_twice():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for again in (False, True):
            expected = (
                pytest.warns(UserWarning, match="Duplicate") if again else contextlib.nullcontext()
            )
            with expected:
                archive.writestr("a.npy", npy(header("(1,)"), bytes(8)))
    stream.seek(0)
    with pytest.raises(ValueError, match="twice"):
        read_npz(stream)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "1" * 10_000, '{"a": ', "\x00", "{'a': 1}", '{"a": 1}}']
)
def test_hostile_json(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(RecordError, match="cannot be read as JSON"):
        read_json(path)
    path.write_text(f"{text}\n{{}}\n")
    with pytest.raises(RecordError, match="line 1 of"):
        read_json_lines(path)


def test_a_giant_json_file(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**30)  # sparse: takes no room
    with pytest.raises(RecordError, match="is larger than"):
        read_json(tmp_path / "a.json")


def places(value, path=()):
    """Paths to everything in a JSON value."""
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    elif isinstance(value, list):
        for key, inner in enumerate(value[:3]):
            found += places(inner, (*path, key))
    return found


STRANGE = [None, True, -1, 0, 10**30, 1e308, "", "../../etc/passwd", "a" * 5000, [], {}, [[]]]


def mutated(value, random):
    """A JSON value with something removed or made strange."""
    value = copy.deepcopy(value)
    *above, last = random.choice([p for p in places(value) if p])
    inner = value
    for key in above:
        inner = inner[key]
    if random.random() < 0.3:
        del inner[last]
    else:
        inner[last] = random.choice(STRANGE)
    return value


def survives(folder):
    """Reading a folder gives a run, of no more numbers than its files hold, or one sentence, in
    little memory; whether it gave a run."""
    said = "nothing"
    tracemalloc.start()
    try:
        run = fb.load_run(folder)
        arrays = (vars(run.network), vars(run.dense), run.masks)
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
        assert held < 100 * sum(p.stat().st_size for p in (folder / "model").iterdir())
        run.predict(np.zeros((2, 6), np.float32))
    except ValueError as error:
        said = str(error).strip()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert said
    assert peak < 2**25  # bytes: some four megabytes are what a sound folder takes
    return said == "nothing"


@pytest.mark.parametrize("name", ["model/model.json", "result.json", "config.json"])
def test_a_run_with_strange_json(folder, tmp_path, name):
    copied = tmp_path / "run"
    shutil.copytree(folder, copied)
    original = json.loads((folder / name).read_text())
    draw = random.Random(0)
    refused = 0
    for _ in range(25):
        changed = mutated(original, draw)
        (copied / name).write_text(json.dumps(changed))
        refused += not survives(copied)
    assert refused or name != "model/model.json"


@pytest.mark.parametrize("name", ["model/sparse.npz", "model/dense.npz"])
def test_a_run_with_damaged_arrays(folder, tmp_path, name):
    copied = tmp_path / "run"
    shutil.copytree(folder, copied)
    data = (folder / name).read_bytes()
    draw = random.Random(1)
    refused = 0
    for _ in range(25):
        changed = bytearray(data)
        if draw.random() < 0.3:
            del changed[draw.randrange(len(data)) :]
        for _ in range(draw.choice([1, 1, 4, 64])):
            if changed:
                changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        (copied / name).write_bytes(bytes(changed))
        refused += not survives(copied)
    assert refused > 5


def test_a_report_of_strange_metrics(folder, tmp_path, capsys):
    """The page is made of what is there, or refused in one sentence."""
    draw = random.Random(2)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    for number in range(8):
        copied = tmp_path / str(number)
        shutil.copytree(folder, copied)
        which = draw.randrange(len(lines))
        changed = [*lines]
        changed[which] = json.dumps(mutated(json.loads(lines[which]), draw))
        (copied / "metrics.jsonl").write_text("\n".join(changed) + "\n")
        capsys.readouterr()
        code = main(["report", str(copied)])
        err = capsys.readouterr().err
        assert code in (0, 2)
        assert "Traceback" not in err


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("file", ["sparse.npz", "dense.npz"])
def test_a_network_that_is_not_finite_is_none(file, value, folder, tmp_path, capsys):
    """The largest of logits that are no numbers is the first: it would answer class 0 always."""
    run = shutil.copytree(folder, tmp_path / "run")
    arrays = read_arrays(run / "model" / file)
    name = next(n for n, v in arrays.items() if v.dtype.kind == "f" and v.size)
    arrays[name].flat[-1] = value
    np.savez(run / "model" / file, **arrays)
    seal(run, (run / "result.json").read_text())
    with pytest.raises(RecordError, match=rf"{file} holds no network: .* not finite"):
        fb.load_run(run)
    assert main(["certify", str(run), "--tolerance", "50%"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "not finite" in line
    assert not (run / "certificate.json").exists()
