"""What a run shows: its folder is as documented, runs are listed, TensorBoard reads its events."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path

import jax
import pytest

import fairbilevel as fb
from fairbilevel.cli import main
from fairbilevel.records import locked, read_json_lines
from fairbilevel.run import list_runs

PAGE = (Path(__file__).parent.parent / "docs/run_folder.md").read_text()
SOLVE = [
    "solve", "--model", "mlp", "--width", "16", "--batch-size", "64", "--dense-steps", "20",
]  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[Path, str]:
    """A run with everything that records know, and what the command printed."""
    path = tmp_path_factory.mktemp("seen") / "runs" / "all"
    options = ["--steps", "40", "--tensorboard"]
    passes = ["--precision", "bfloat16", "--accumulate", "2"]
    with pytest.MonkeyPatch.context() as patch:
        import io
        import sys

        out = io.StringIO()
        patch.setattr(sys, "stdout", out)
        assert main([*SOLVE, *options, *passes, "--out", str(path)]) == 0
    return path, out.getvalue()


@pytest.fixture(scope="module")
def folder(told) -> Path:
    return told[0]


@pytest.fixture(scope="module")
def diverged(folder) -> Path:
    path = folder.parent / "diverged"
    options = ["--dense-learning-rate", "1e30", "--no-baseline", "--steps", "10"]
    assert main([*SOLVE, *options, "--out", str(path)]) == 2
    return path


# ---------------------------------------------------------------- the page on the run folder

NAMES = {
    "GROUP": ("groups", "group_tolerance"),
    "ROLE": ("roles", "dense", "pruned", "baseline"),
    "CONSTRAINT": ("constraints",),
    "PACKAGE": ("versions",),
    "REASON": ("skipped",),
    "STATUS": ("hypergradient",),
    "LABEL": ("over", "constraints[].multipliers"),
    "CONSTRAINT.LABEL": ("violations", "multipliers"),
}  # fmt: skip


def documented(title: str) -> dict[str, bool]:
    """Fields of one of the page's tables, and whether they are always there."""
    section = PAGE.split(f"## Fields of `{title}`")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (yes|sometimes) \| \S", section, re.MULTILINE)
    assert len(rows) == len(dict(rows)) == section.count("\n| `")
    return {name: always == "yes" for name, always in rows}


def fields(value, known, path=""):
    """Paths of a record as the page writes them; a documented path is not looked into."""
    if path in known:
        return {path}
    if value is None and any(name.startswith(f"{path}.") for name in known):
        return set()
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(fields(v, known, f"{path}[]") for v in value))
    if not isinstance(value, dict):
        return {path}
    parent = path.removeprefix("feasibility.").rsplit(".", 1)[-1]
    for name, parents in NAMES.items():
        if parent in parents or path in parents:
            found = set()
            for key, inner in value.items():
                if f"{path}.{key}" in known:
                    found.add(f"{path}.{key}")
                elif name == "CONSTRAINT.LABEL":
                    assert isinstance(inner, dict)
                    found |= {f"{path}.{name}"}
                else:
                    found |= fields(inner, known, f"{path}.{name}")
            return found
    return set().union(
        *(fields(v, known, f"{path}.{key}" if path else key) for key, v in value.items())
    )


def test_the_page_names_every_field_of_the_metrics(folder, diverged):
    known = documented("metrics.jsonl")
    always = {name for name, is_always in known.items() if is_always}
    records = read_json_lines(folder / "metrics.jsonl")
    assert {r["phase"] for r in records} == {"dense", "bilevel", "finetune", "settle", "baseline"}
    seen = set()
    for record in records:
        found = fields(record, known)
        assert always <= found <= set(known)
        seen |= found
    assert seen == set(known) - {"hypergradient.STATUS"} or seen == set(known)
    for record in read_json_lines(diverged / "metrics.jsonl"):
        assert fields(record, known) <= set(known)


def test_the_page_names_every_field_of_the_result(folder, diverged):
    known = documented("result.json")
    result = json.loads((folder / "result.json").read_text())
    found = {re.sub(r"^(dense|pruned|baseline)\.", "NETWORK.", f) for f in fields(result, known)}
    assert {name for name, always in known.items() if always} <= found <= set(known)
    assert set(result["baseline"]) == {"fit", "select", "tune", "test"}
    assert result["schema_version"] == fb.records.SCHEMA_VERSION
    assert f"`schema_version` {fb.records.SCHEMA_VERSION}**" in PAGE
    failed = json.loads((diverged / "result.json").read_text())
    assert failed["status"] == "diverged"
    assert fields(failed, known) <= set(known) | {"layers", "constraints"}  # these are empty
    assert None not in (failed["diagnosis"], failed["phase"], failed["step"])
    assert failed["pruned"] == {}


def test_the_page_names_every_file(folder, diverged):
    section = PAGE.split("## Files")[1].split("\n## ")[0]
    known = set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))
    for path in (folder, diverged):
        for file in path.rglob("*"):
            name = str(file.relative_to(path))
            assert name in known or f"{name.split('/')[0]}/" in known or file.is_dir(), name


def test_an_unknown_field_would_be_noticed():
    known = documented("result.json")
    assert fields({"seed": 0, "new": {"deep": 1}}, known) == {"seed", "new.deep"}


# ---------------------------------------------------------------- what solve says


def test_solve_says_what_it_runs_on_and_what_compiling_took(told):
    path, printed = told
    result = json.loads((path / "result.json").read_text())
    machine, cost = result["machine"], result["cost"]
    assert machine["precision"] == "bfloat16"
    devices, kind = jax.device_count(), jax.devices()[0].device_kind
    assert f"{devices} device" in printed
    assert f"of kind {kind}" in printed
    assert f"jax {jax.__version__}" in printed
    assert printed.index("bfloat16, mesh:") < printed.index("compiled in")
    seconds = re.search(r"compiled in ([\d.,]+) s, ran ([\d.,]+) s", printed)
    assert seconds is not None
    compiled, ran = (float(text.replace(",", "")) for text in seconds.groups())
    assert compiled == pytest.approx(cost["compile_seconds"], abs=0.051)
    assert compiled + ran == pytest.approx(cost["seconds"], abs=0.11)


# ---------------------------------------------------------------- TensorBoard


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of the event files: length, its checksum, an Event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += length + 16
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_holds_the_numbers_of_the_metrics(folder):
    found = events(folder / "tensorboard")
    records = read_json_lines(folder / "metrics.jsonl")
    for phase in ("dense", "bilevel", "baseline"):
        own = [r for r in records if r["phase"] == phase]
        for tag, read in (
            ("loss", lambda r: r["loss"]),
            ("tune/loss", lambda r: r["tune"]["loss"]),
        ):
            expected = [(r["step"], pytest.approx(read(r), rel=1e-6)) for r in own]
            assert found[f"{phase}/{tag}"] == expected
    multipliers = [n for n in found if n.startswith("finetune/multipliers/excess-accuracy-gap/")]
    assert len(multipliers) == 10


def test_tensorboard_is_a_callback(tmp_path):
    with fb.TensorBoard(tmp_path) as board:
        board({"phase": "bilevel", "step": 3, "steps": 9, "loss": 0.5, "tune": {"loss": None}})
        board({"phase": "bilevel", "step": 6, "steps": 9, "loss": float("nan"), "sparsity": 1})
    assert events(tmp_path) == {"bilevel/loss": [(3, 0.5)], "bilevel/sparsity": [(6, 1.0)]}


def test_tensorboard_that_is_missing_is_one_sentence(tmp_path, monkeypatch, capsys):
    import importlib.util
    import sys

    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"pip install 'fairbilevel\[tensorboard\]'"):
        fb.TensorBoard(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([*SOLVE, "--tensorboard", "--out", str(tmp_path / "run")]) == 2
    assert "pip install" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- fairbilevel runs


@pytest.fixture
def many(folder, diverged, tmp_path) -> Path:
    """Runs in every state, damaged ones and what is no run."""
    top = tmp_path / "many"
    shutil.copytree(folder, top / "good")
    shutil.copytree(folder, top / "deeper" / "still" / "certified")
    (top / "deeper/still/certified/certificate.json").write_text('{"verdict": "certified"}')
    shutil.copytree(diverged, top / "diverged")
    for name in ("unfinished", "cut", "newer", "odd", "wrong", "bytes", "config"):
        shutil.copytree(folder, top / name)
    (top / "unfinished/result.json").unlink()
    (top / "cut/result.json").write_text('{"schema_version": 1, "stat')
    result = json.loads((folder / "result.json").read_text())
    (top / "newer/result.json").write_text(json.dumps({**result, "schema_version": 99}))
    # Valid JSON whose values are of any kind.
    odd = {
        **result,
        "pruned": [1],
        "data": 3,
        "method": ["m"],
        "constraints": {"a": 1},
    }
    (top / "odd/result.json").write_text(json.dumps(odd))
    (top / "wrong/result.json").write_text("[" * 50_000)
    (top / "bytes/result.json").write_bytes(b"\xff\xfe\x00")
    (top / "config/config.json").write_text("[]")
    (top / "foreign").mkdir()
    (top / "foreign/notes.txt").write_text("nothing of ours")
    (top / ".hidden").mkdir()
    (top / "link").symlink_to(top)
    return top


def test_runs_are_listed_whatever_their_state(many, folder):
    listed = {str(Path(r.path).relative_to(many)): r for r in list_runs(many)}
    assert {name: r.status for name, r in listed.items()} == {
        "bytes": "damaged",
        "config": "damaged",
        "cut": "damaged",
        "deeper/still/certified": "completed",
        "diverged": "diverged",
        "foreign": "no run",
        "good": "completed",
        "newer": "damaged",
        "odd": "damaged",
        "unfinished": "unfinished",
        "wrong": "damaged",
    }
    result = json.loads((folder / "result.json").read_text())
    good = listed["good"]
    assert good.data == "digits"
    assert good.method == "bilevel"
    assert good.sparsity == 0.9
    assert good.dense_accuracy == result["dense"]["test"]["accuracy"]
    assert good.accuracy == result["pruned"]["test"]["accuracy"]
    assert good.largest_gap == result["pruned"]["test"]["gaps"]["excess_accuracy"]["largest"]
    kept = result["pruned"]["test"]["constraints"]["excess-accuracy-gap"]["violation"] <= 0
    # Groups of nine test rows settle nothing.
    assert good.limits == ("in doubt" if kept else "not kept")
    assert (good.certificate, listed["deeper/still/certified"].certificate) == (None, "certified")
    assert "not finite" in (listed["diverged"].note or "")
    assert "upgrade" in (listed["newer"].note or "")
    again = f"fairbilevel solve --resume {many / 'unfinished'} goes on with it"
    assert re.fullmatch(
        rf"at step \d+ of \d+ of the baseline phase; {re.escape(again)}",
        listed["unfinished"].note or "",
    )
    with locked(many / "unfinished"):
        assert [r.status for r in list_runs(many / "unfinished")] == ["running"]
    assert all(r.note and "\n" not in r.note for r in listed.values() if r.status == "damaged")


def test_the_command_runs_prints_a_table_or_json(many, capsys):
    assert main(["runs", str(many)]) == 0
    printed = capsys.readouterr().out
    assert "Traceback" not in printed
    for word in (
        "good",
        "completed",
        "unfinished",
        "diverged",
        "foreign: no run:",
        "cut: damaged:",
    ):
        assert word in printed
    assert main(["runs", str(many), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed == [run.to_json() for run in list_runs(many)]
    assert main(["runs", str(many / "good"), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert one["status"] == "completed"


def test_the_list_of_runs_fits_the_terminal(many, monkeypatch, capsys):
    shutil.copytree(many / "good", many / "a-name-of-a-run-that-is-rather-long-for-a-table")
    result = json.loads((many / "good/result.json").read_text())
    long = {**result, "method": "gradual-magnitude", "data": {**result["data"], "name": "d" * 30}}
    (many / "good/result.json").write_text(json.dumps(long))

    def widest(columns: str | None) -> int:
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns is not None:
            monkeypatch.setenv("COLUMNS", columns)
        assert main(["runs", str(many)]) == 0
        lines = capsys.readouterr().out.splitlines()
        # What is damaged is said in a sentence, which is never cut.
        return max(len(line) for line in lines if ": " not in line)

    assert widest(None) <= 80
    assert widest("60") <= 60
    assert 80 < widest("140") <= 140


def test_the_command_runs_without_any(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 2
    assert "there is no folder runs" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    assert main(["runs"]) == 0
    assert "no runs below runs" in capsys.readouterr().out
