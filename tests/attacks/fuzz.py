"""Damaged and invented files for every reader: each is read, or refused in one sentence.

    python -m tests.attacks.fuzz --minutes 60 [--seed 0] [--only csv --only npz] [--keep FOLDER]

A sound file is made of every kind, changed at random (bytes flipped, cut, put elsewhere; values of
JSON, members of archives and cells of tables made strange) and read again. A finding is whatever
ends in another error than the documented one, takes more than ten seconds or two gigabytes, or is
accepted though it cannot be. Findings go to the folder given, each with its files and its trace.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

SECONDS, BYTES = 10, 2 * 2**30
ARTIFACTS = [".npz", ".stablehlo"]
ARTIFACTS += [".onnx"] if find_spec("jax2onnx") and find_spec("onnxruntime") else []
ARTIFACTS += [".safetensors"] if find_spec("safetensors") else []


class Hang(BaseException):
    """A reader took too long."""


class Accepted(AssertionError):
    """What was read cannot be."""


def claim(true: Any, what: str) -> None:
    """Refuse what a reader let through."""
    if not true:
        raise Accepted(what)


# ---------------------------------------------------------------- how files change

INTERESTING = [
    b"\0",
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    bytes(8),
    b'"',
    b"\n",
    b"PK\x01\x02",
    b"9" * 30,
]


def change_bytes(data: bytes, draw: random.Random) -> bytes:
    """Flip bits, cut, repeat, overwrite."""
    found = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4, 16])):
        at = draw.randrange(len(found) + 1)
        length = draw.choice([1, 2, 4, 16, 64, 1024])
        kind = draw.randrange(6)
        if kind <= 1 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del found[at : at + length]
        elif kind == 3:
            found[at:at] = found[draw.randrange(len(found) + 1) :][:length]
        elif kind == 4:
            piece = draw.choice(INTERESTING)
            found[at : at + len(piece)] = piece
        elif draw.random() < 0.3:
            del found[at:]
    return bytes(found)


STRANGE: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 0.5, 1e-320, 10**30, -(10**30), 2**63, 10**400, 1e308,
    float("nan"), float("inf"), float("-inf"), "", "a", "0", "../../etc/passwd", "\0", "\ud800",
    "a" * 3000, [], {}, [[]], [None], [1, 2], {"a": 1}, [[[[[[[[[]]]]]]]]],
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in inner:
        yield (*path, key)
        if isinstance(part, (dict, list)):
            yield from places(part, (*path, key))


def change_value(value: Any, draw: random.Random) -> Any:
    """Remove, replace, repeat or exchange parts of a JSON value."""
    if not isinstance(value, (dict, list)) or draw.random() < 0.01:
        return copy.deepcopy(draw.choice(STRANGE))
    value = copy.deepcopy(value)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        found = list(places(value))
        if not found:
            break
        *above, last = draw.choice(found)
        inner = value
        for key in above:
            inner = inner[key]
        kind = draw.random()
        if kind < 0.2:
            del inner[last]
        elif kind < 0.3 and isinstance(inner, list):
            inner.append(copy.deepcopy(inner[last]))
        elif kind < 0.4 and isinstance(inner[last], (int, float)):
            inner[last] = draw.choice([-1, 1, 0.5, 1e9, inner[last] * 2, -inner[last]])
        elif kind < 0.5:
            other = value
            for key in draw.choice(found):
                try:
                    other = other[key]
                except (KeyError, IndexError, TypeError):
                    break
            inner[last] = copy.deepcopy(other)
        elif kind < 0.55 and isinstance(inner, dict):
            inner[f"{last}2"] = inner.pop(last)
        else:
            inner[last] = copy.deepcopy(draw.choice(STRANGE))
    return value


def change_json(data: bytes, draw: random.Random) -> bytes:
    """Another value, or the same with a key twice or brackets without end."""
    text = json.dumps(change_value(json.loads(data), draw))
    if draw.random() < 0.05 and text.startswith("{"):
        text = '{"' + draw.choice(text.split('"')) + '": 1, ' + text[1:]
    if draw.random() < 0.02:
        text = text.replace("[", "[" * draw.choice([2, 2000, 200_000]), 1)
    return text.encode("utf-8", "surrogatepass")


def change_lines(data: bytes, draw: random.Random) -> bytes:
    """JSON lines with one changed, repeated or gone."""
    lines = data.splitlines()
    at = draw.randrange(len(lines))
    changed = draw.choice([[], [lines[at]] * 2, [change_json(lines[at], draw)]])
    return b"\n".join([*lines[:at], *changed, *lines[at + 1 :]]) + b"\n"


CELLS = [
    "", "?", "nan", "inf", "-1e400", "0x10", "1_000", "1,5", '"', '""', "'", "\0", "\t", ";", " ",
    "\r", "\n", "True", "1.0", "1", "9" * 400, "2020-01-01", "Ü", "\ufeff", "=1+1", "a" * 9000,
]  # fmt: skip


def change_table(data: bytes, draw: random.Random) -> bytes:
    """Cells, lines and columns of a table made strange."""
    text = data.decode()
    lines = [line.split(",") for line in text.splitlines()]
    for _ in range(draw.choice([1, 1, 2, 5])):
        if not lines:
            break
        at = draw.randrange(len(lines)) if draw.random() < 0.7 else 0
        kind, line = draw.randrange(8), lines[at]
        cell = draw.randrange(len(line)) if line else 0
        if kind <= 2 and line:
            line[cell] = draw.choice(CELLS)
        elif kind == 3:
            line.insert(cell, draw.choice(CELLS))
        elif kind == 4 and line:
            del line[cell]
        elif kind == 5:
            lines.insert(at, list(draw.choice(lines)))
        elif kind == 6:
            del lines[at + 1 :]
        else:
            value = draw.choice(CELLS)
            lines = [[value if i == cell else v for i, v in enumerate(one)] for one in lines]
    apart = draw.choice([",", ",", ",", ";", "\t", "|", ", "])
    found = draw.choice(["\n", "\n", "\r\n", "\r", "\n\n"]).join(apart.join(one) for one in lines)
    code = draw.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
    return found.encode(code, "replace")


def change_zip(data: bytes, draw: random.Random) -> bytes:
    """Members changed, renamed, repeated, emptied, said to be of another size or kind."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    out = io.BytesIO()
    at = draw.randrange(len(members))
    name, content = members[at]
    kind = draw.randrange(7)
    if kind == 0:
        del members[at]
    elif kind == 1:
        odd = [
            "",
            "../x.npy",
            "/x",
            "C:\\x",
            "a\0b.npy",
            "x" * 70000,
            "é.npy",
            name + "/",
            "A/" + name,
        ]
        members[at] = (draw.choice(odd), content)
    elif kind == 2:
        members[at] = (name, draw.choice([b"", bytes(100_000), *(c for _, c in members)]))
    elif kind == 3:
        members.append((name, content))
    else:
        members[at] = (name, change_member(content, draw))
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            with contextlib.suppress(ValueError, zipfile.LargeZipFile):
                entry = zipfile.ZipInfo(name[:60000])
                entry.compress_type = draw.choice([0, 8, 8, 12, 14])
                entry.external_attr = draw.choice([0o600 << 16] * 30 + [0o120777 << 16])
                archive.writestr(entry, content)
    found = out.getvalue()
    return change_bytes(found, draw) if draw.random() < 0.2 else found


def change_member(data: bytes, draw: random.Random) -> bytes:
    """An array's header or another member's bytes."""
    if data.startswith(b"\x93NUMPY") and draw.random() < 0.8:
        array = np.load(io.BytesIO(data))
        odd = [
            array[..., None], array.ravel()[:-1], array.astype(str), array[None][:0],
            np.asfortranarray(array.T), array.astype("S3"), np.zeros(3, [("a", int)]),
            np.zeros(2, "M8[s]"), np.zeros((1,) * 30), np.array(draw.choice([1e308, -1.0, np.nan])),
        ]  # fmt: skip
        if array.dtype.kind in "fiu":
            odd += [array.astype(t) for t in (complex, np.float16, ">f8", bool, np.uint8, np.int8)]
            odd += [np.full(array.shape, v) for v in (np.nan, np.inf, 0, -1.0, 1e300, 3)]
        out = io.BytesIO()
        np.save(out, draw.choice(odd))
        return out.getvalue()
    return change_bytes(data, draw)


CHANGES = {
    ".json": (change_json, change_json, change_bytes),
    ".jsonl": (change_lines, change_bytes),
    ".csv": (change_table, change_table, change_bytes),
    ".npz": (change_zip, change_bytes),
    ".zip": (change_zip, change_zip, change_bytes),
}


def change(path: Path, data: bytes, draw: random.Random) -> bytes:
    """A file's content changed as befits its kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return draw.choice(CHANGES.get(path.suffix, (change_bytes,)))(data, draw)


# ---------------------------------------------------------------- who reads them


@dataclass(frozen=True)
class Reader:
    """One way in.

    Attributes:
        name: for the command line.
        make: writes sound files into an empty folder.
        changed: pattern of the files that change.
        read: reads them; refuses with ``ValueError``.
        renewed: whether reading may itself change the folder.
    """

    name: str
    make: Callable[[Path], Any]
    changed: str
    read: Callable[[Path], Any]
    renewed: bool = False


def make_npz(folder: Path) -> None:
    from fairbilevel.records import write_arrays

    arrays = {"a": np.arange(12.0).reshape(3, 4), "b": np.array(["x", "yy"]), "c": np.array(3)}
    write_arrays(folder / "a.npz", arrays | {"d": np.zeros((0, 3), np.uint8)}, compressed=True)


def read_npz(folder: Path) -> None:
    from fairbilevel.records import read_arrays

    arrays = read_arrays(folder / "a.npz")
    claim(not any(a.dtype.hasobject for a in arrays.values()), "an array of objects")


def tiny_data() -> Any:
    """240 rows of 4 numbers, two classes and two groups."""
    import fairbilevel as fb

    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(240, 4)).astype(np.float32), np.arange(240) % 2
    return fb.data.from_arrays(x, y, np.arange(240) // 2 % 2, classes=("a", "b"), groups=("g", "h"))


def make_run(folder: Path) -> None:
    import fairbilevel as fb

    gap = fb.fairness.ExcessAccuracyGap(0.02)
    problem = fb.FairPruningProblem("mlp", tiny_data(), constraints=[gap], width=8)
    solution = fb.solve(problem, sparsity=0.5, steps=10, dense_steps=10, batch_size=16)
    fb.save_run(solution, folder / "run")


def seal(run: Path) -> None:
    """Make the manifest of three changed runs in four fit their files, as a forger would."""
    from fairbilevel.records._folder import seal

    text = (run / "result.json").read_bytes()
    if sum(p.stat().st_size for p in run.rglob("*")) % 4:
        with contextlib.suppress(Exception):
            seal(run, json.dumps(json.loads(text)))


def read_run(folder: Path) -> None:
    import fairbilevel as fb
    from fairbilevel.run import list_runs
    from fairbilevel.run._rows import read_rows

    seal(folder / "run")
    (summary,) = list_runs(folder / "run")
    json.dumps(summary.to_json())
    run = fb.load_run(folder / "run")
    for names in (run.classes, run.groups):
        claim(all(isinstance(n, str) for n in names), f"names {names!r:.80}")
        claim(len(set(names)) == len(names) > 1, f"names {names!r:.80}")
    claim(isinstance(run.config, dict), "a configuration that is none")
    claim(all(isinstance(m, dict) for m in run.metrics), "metrics that are none")
    logits = run.logits(np.ones((2, 4), np.float32))
    claim(logits.shape == (2, len(run.classes)), f"logits of shape {logits.shape}")
    claim(np.isfinite(logits).all(), "logits that are not finite")
    used = read_rows(folder / "run")
    for found in (used.met, used.equal, used.near):
        found(tiny_data())


def make_artifacts(folder: Path) -> None:
    import fairbilevel as fb

    problem = fb.FairPruningProblem("mlp", tiny_data(), width=8)
    solution = fb.solve(problem, "magnitude", sparsity=0.5, dense_steps=10, batch_size=16)
    for suffix in ARTIFACTS:
        fb.export(solution, folder / f"m{suffix}")


def read_artifacts(folder: Path) -> None:
    import fairbilevel as fb

    read = 0
    for suffix in ARTIFACTS:
        try:
            artifact = fb.read_artifact(folder / f"m{suffix}")
            logits = artifact.logits(np.ones((2, 4), np.float32))
        except ValueError as error:
            refusal = error
            continue
        read += 1
        json.dumps(artifact.about)
        repr(artifact)
        claim(logits.shape == (2, len(artifact.classes)), f"logits of shape {logits.shape}")
        claim(np.isfinite(logits).all(), "logits that are not finite")
    if read < len(ARTIFACTS):
        raise refusal


def make_certificate(folder: Path) -> None:
    import fairbilevel as fb

    draw = np.random.default_rng(0)
    y, group, flip = draw.integers(0, 2, 900), np.arange(900) % 3, draw.random(900) < 0.05
    rows = y, y, np.where(flip, 1 - y, y), group
    fb.certify(*rows, tolerance=0.05).save(folder / "certificate.json")
    loss = {"gap": "equalized-loss", "quantity": draw.random(900), "upper": 1.0}
    fb.certify(*rows, tolerance=0.05, **loss).save(folder / "loss.json")


def read_certificate(folder: Path) -> None:
    from fairbilevel.certificates import verify

    for name in ("certificate.json", "loss.json"):
        found, differences = verify(folder / name)
        if not differences:
            claim(found.exit_code in (0, 3, 4, 5), found.verdict)
            claim(0 < found.claim.confidence < 1, "confidence")
            for g in found.groups:
                claim(0 <= g.lost <= g.rows and 0 <= g.won <= g.rows, f"counts {g}")


def make_ledger(folder: Path) -> None:
    from fairbilevel.certificates._ledger import take_look

    for rows, only in ((range(1, 20), False), (range(5, 30), False), (range(50, 60), True)):
        prints, models = np.array(rows, np.uint64), ["dense", str(rows)]
        asked = {"gap": "x"}, [len(rows)]
        take_look(folder / "ledger.json", prints, *asked, models=models, only_look=only)


def read_ledger(folder: Path) -> None:
    from fairbilevel.certificates import _ledger

    looks = _ledger.read_ledger(folder / "ledger.json")
    for look in looks:
        claim(look.look >= 1 and look.candidates >= 1, f"look {look.look} of {look.candidates}")
        claim(len(look.questions) <= look.candidates, "more questions than candidates")
        claim(len(look.fingerprints), "a look at nothing")
    rows = np.array(range(5, 15), np.uint64)
    number = _ledger.take_look(folder / "ledger.json", rows, {"gap": "y"}, [1], models=["a", "b"])
    claim(number.number >= 1, f"look {number}")
    _ledger.read_ledger(folder / "ledger.json")


def make_table(folder: Path) -> None:
    draw = np.random.default_rng(0)
    lines = ["age,job,score,sex,y"]
    for i in range(12):
        job = ("clerk", "cook", '"a; b"', "?")[draw.integers(4)]
        lines.append(
            f"{20 + i},{job},{draw.normal():.3f},{'fm'[i % 2]},{['no', 'yes'][i // 2 % 2]}"
        )
    (folder / "t.csv").write_text("\n".join(lines) + "\n")


def make_parquet(folder: Path) -> None:
    import pandas as pd

    make_table(folder)
    table = pd.read_csv(folder / "t.csv")
    table["job"] = table["job"].astype("category")
    table.to_parquet(folder / "t.parquet")
    (folder / "t.csv").unlink()


def read_table(folder: Path) -> None:
    from fairbilevel.data import Encoder, Options, load, split_roles

    (file,) = folder.iterdir()
    data = load(file, Options(target="y", group=("sex",)))
    sound(data)
    with contextlib.suppress(ValueError):
        split_roles(data)
    encoder = Encoder.fit(data, np.arange(len(data) // 2 + 1))
    claim(np.isfinite(encoder.transform(data.inputs)).all(), "inputs that are not finite")
    claim(Encoder.from_json(encoder.to_json()) == encoder, "an encoder that does not come back")


def sound(data: Any) -> None:
    """What holds of every data set."""
    claim(len(data) > 0, "no rows")
    for index, names in ((data.y, data.classes), (data.group, data.groups)):
        claim(((index >= 0) & (index < len(names))).all(), "indices outside the names")
        claim(len(set(names)) == len(names) > 1, f"names {names!r:.80}")
        claim(all(isinstance(n, str) and n for n in names), f"names {names!r:.80}")
        claim(not any("\0" in n or "\n" in n for n in names), f"names {names!r:.80}")
    claim(len(set(data.ids.tolist())) == len(data), "ids twice")
    if not data.is_table:
        claim(np.isfinite(data.inputs).all(), "inputs that are not finite")
    assert data.fingerprint


def make_predictions(folder: Path) -> None:
    draw = np.random.default_rng(0)
    lines = ["id,y,dense,pruned,group"]
    for i in range(150):
        y = draw.integers(2)
        lines.append(f"r{i},{y},{y},{y if draw.random() < 0.9 else 1 - y},{'ab'[i % 2]}")
    (folder / "p.csv").write_text("\n".join(lines) + "\n")


def read_predictions(folder: Path) -> None:
    code, said = command("certify", "--predictions", folder / "p.csv", "--tolerance", "10%")
    claim(code in (0, 2, 3, 4), f"exit code {code}")
    claim(code == 2 or (folder / "p.certificate.json").is_file(), "no certificate")
    claim(code != 2 or len(said.splitlines()) == 1, f"said {said!r}")


def command(*words: Any) -> tuple[int, str]:
    """Exit code of a command, and what it says on standard error."""
    from fairbilevel.cli import main

    with (
        contextlib.redirect_stderr(io.StringIO()) as err,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        code = main([str(w) for w in words])
    return code, err.getvalue()


def make_images(folder: Path) -> None:
    from PIL import Image

    with zipfile.ZipFile(folder / "i.zip", "w") as archive:
        lines = ["file,label,group"]
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            out, form = io.BytesIO(), ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "PNG")[i]
            Image.fromarray(pixels).save(out, form)
            archive.writestr(f"{i}.{form.lower()}", out.getvalue())
            lines.append(f"{i}.{form.lower()},{'ab'[i % 2]},{'gh'[i // 2 % 2]}")
        archive.writestr("labels.csv", "\n".join(lines))


def read_images(folder: Path) -> None:
    from fairbilevel.data import load

    data = load(folder / "i.zip")
    sound(data)
    claim(data.inputs.dtype == np.uint8 and data.inputs.ndim == 4, "no images")


def make_arrays(folder: Path) -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(12, 3)), np.arange(12) % 2
    np.savez(
        folder / "d.npz", x=x, y=y, group=np.arange(12) // 6, classes=["r", "g"], w=x[:, 0] ** 2
    )


def read_data_arrays(folder: Path) -> None:
    from fairbilevel.data import load

    sound(load(folder / "d.npz"))


def make_checkpoints(folder: Path) -> None:
    from fairbilevel.records import Checkpoints

    kept = Checkpoints(folder / "c", every=0)
    activity = kept.activity("part", {"seed": 1})
    for step in (1, 2):
        activity.save(step, lambda s=step: checkpoint(s), lambda s=step: {"step": s})
    kept.close()


def checkpoint(step: int) -> dict[str, Any]:
    """A state that says which step it is of."""
    return {"w": np.full((2, 3), float(step)), "n": np.array([step])}


def read_checkpoints(folder: Path) -> None:
    from fairbilevel.records import Checkpoints

    kept = Checkpoints(folder / "c")
    try:
        found = kept.activity("part", {"seed": 1}).resume(lambda about: checkpoint(0))
    finally:
        kept.close()
    if found is not None:
        state, about = found
        same = np.array_equal(state["w"], checkpoint(about["step"])["w"])
        claim(same and about["step"] in (1, 2), f"a state that nobody saved: {found}")


READERS = {
    reader.name: reader
    for reader in (
        Reader("npz", make_npz, "*.npz", read_npz),
        Reader("run", make_run, "run/**/*.[jn]*", read_run, renewed=True),
        Reader("artifacts", make_artifacts, "m.*", read_artifacts),
        Reader("certificate", make_certificate, "*.json", read_certificate),
        Reader("ledger", make_ledger, "*.json", read_ledger, renewed=True),
        Reader("csv", make_table, "*.csv", read_table),
        Reader("parquet", make_parquet, "*.parquet", read_table),
        Reader("predictions", make_predictions, "*.csv", read_predictions, renewed=True),
        Reader("images", make_images, "*.zip", read_images),
        Reader("arrays", make_arrays, "*.npz", read_data_arrays),
        Reader("checkpoints", make_checkpoints, "c/**/*", read_checkpoints, renewed=True),
    )
}


# ---------------------------------------------------------------- the loop


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """At most so many seconds and so many bytes more than now."""

    def late(*_: Any) -> None:
        raise Hang(f"more than {SECONDS} s")

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Fuzz:
    """One reader's sound files, and what came of changed ones."""

    def __init__(self, reader: Reader, folder: Path, seed: int):
        self.reader, self.draw = reader, random.Random(f"{reader.name} {seed}")
        self.sound, self.work = folder / "sound", folder / "work"
        self.sound.mkdir(parents=True)
        reader.make(self.sound)
        self.files = sorted(p for p in self.sound.glob(reader.changed) if p.is_file())
        shutil.copytree(self.sound, self.work)
        reader.read(self.work)  # what is sound is read
        self.tried = self.refused = 0
        self.seconds = 0.0
        self.findings: dict[str, str] = {}

    def once(self) -> str | None:
        """Change a file and read it; a new finding's trace."""
        chosen = self.draw.choice(self.files)
        target = self.work / chosen.relative_to(self.sound)
        if self.reader.renewed:
            shutil.rmtree(self.work)
            shutil.copytree(self.sound, self.work)
        sound = chosen.read_bytes()
        target.write_bytes(change(chosen, sound, self.draw))
        self.tried += 1
        began = time.process_time()
        try:
            with bounded(), warnings.catch_warnings():
                warnings.simplefilter("error")
                self.reader.read(self.work)
        except ValueError as error:
            self.refused += 1
            if not str(error).strip():
                return self._found(error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return self._found(error)
        finally:
            self.seconds += time.process_time() - began
        if not self.reader.renewed:
            target.write_bytes(sound)
        return None

    def keep(self, folder: Path) -> None:
        """Keep the newest finding's files and trace, and begin again from sound files."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.work, folder / "files")
        (folder / "trace.txt").write_text(list(self.findings.values())[-1], errors="replace")
        shutil.rmtree(self.work)
        shutil.copytree(self.sound, self.work)

    def _found(self, error: BaseException) -> str | None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "fairbilevel" in f.filename] or frames
        key = f"{type(error).__name__} {ours[-1].filename}:{ours[-1].lineno}"
        if isinstance(error, Accepted):
            key = f"Accepted {str(error)[:12]}"
        if key in self.findings:
            return None
        self.findings[key] = "".join(traceback.format_exception(error))
        return f"{self.reader.name}: {key}: {str(error)[:200]}"


def main() -> None:
    """Take turns among the readers until the time is over; say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="of processor time in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(READERS))
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    all_of_them = [Fuzz(READERS[n], folder / n, options.seed) for n in options.only or READERS]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        while sum(f.seconds for f in all_of_them) < 60 * options.minutes:
            fuzz = min(all_of_them, key=lambda f: f.seconds)
            if told := fuzz.once():
                print(told, flush=True)
                fuzz.keep(options.keep / f"{fuzz.reader.name}-{options.seed}-{len(fuzz.findings)}")
    for f in all_of_them:
        print(
            f"{f.reader.name}: {f.seconds / 60:.1f} min, {f.tried} files, {f.refused} refused, "
            f"{len(f.findings)} findings"
        )
    shutil.rmtree(folder)
    sys.exit(any(f.findings for f in all_of_them))


if __name__ == "__main__":
    main()
