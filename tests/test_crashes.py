"""``fairbilevel solve`` killed, stopped, locked out, starved of disk: nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.crash_safety import command, differing, kill
from fairbilevel._files import HeldError
from fairbilevel.cli import main
from fairbilevel.records import locked, read_json_lines

OPTIONS = [
    "--model", "mlp", "--width", "16", "--steps", "40", "--dense-steps", "60", "--sparsity", "0.5",
    "--checkpoint-every", "0", "--no-baseline",
]  # fmt: skip


@pytest.fixture(scope="module")
def options(source):
    return ["--data", str(source), *OPTIONS]


def ended(folder, options):
    """The command in this process, which is another one than any that was killed."""
    assert main(["solve", *options, "--out", str(folder)]) == 0


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    ended(folder, options)
    return folder


def wait_for(path: Path, process):
    """Until a file or folder is there, or the process ended."""
    until = time.monotonic() + 300
    while not path.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert path.exists(), process.communicate()[1]


@pytest.fixture(scope="module")
def half_done(options, tmp_path_factory):
    """A run stopped by SIGTERM once it had checkpoints: its folder, exit code and last words."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    process = subprocess.Popen(
        command(folder, options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(folder / "checkpoints" / "dense", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    return folder, process.returncode, err


def copied(half_done, tmp_path):
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", str(half_done[0]), str(folder)], check=True)
    return folder


@pytest.mark.parametrize("records", [3, 27])
def test_killed_at_any_moment_the_same_command_ends_the_same(
    undisturbed, options, tmp_path, records
):
    """Two moments here, of the dense model and of the method's; ``python -m
    experiments.crash_safety`` takes twenty."""
    assert kill(tmp_path / "run", options, 0.01, records_first=records) is not None
    assert not (tmp_path / "run" / "result.json").exists()
    ended(tmp_path / "run", options)
    assert differing(undisturbed, tmp_path / "run") == []
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_sigterm_writes_a_checkpoint_and_says_how_to_go_on(half_done):
    folder, code, err = half_done
    assert code == 128 + signal.SIGTERM
    assert err.splitlines()[-1].endswith(f"go on with: fairbilevel solve --resume {folder}")
    assert "Traceback" not in err
    assert not (folder / "result.json").exists()
    assert [e["event"] for e in read_json_lines(folder / "events.jsonl")] == [
        "started",
        "interrupted",
    ]


def test_resume_ends_the_same(undisturbed, half_done, options, tmp_path, capsys):
    folder = copied(half_done, tmp_path)
    assert main(["solve", "--resume", str(folder)]) == 0
    assert differing(undisturbed, folder) == []
    # It is complete now: once more does nothing, and says so.
    before = (folder / "result.json").read_bytes()
    for words in (["--resume", folder], [*options, "--out", folder, "--resume"]):
        capsys.readouterr()
        assert main(["solve", *map(str, words)]) == 0
        assert "is complete" in capsys.readouterr().out
    assert (folder / "result.json").read_bytes() == before


@pytest.mark.parametrize("by_name", [True, False])
def test_killed_between_the_result_and_the_end(undisturbed, options, tmp_path, by_name, capsys):
    """All is computed; the report was not written, or checkpoints were not all removed."""
    folder = copied((undisturbed,), tmp_path)
    before = (folder / "result.json").read_bytes()
    words = ["--resume", folder] if by_name else [*options, "--out", folder]
    (folder / "report.html").unlink()
    (folder / "checkpoints" / "method").mkdir(parents=True)
    assert main(["solve", *map(str, words)]) == 0
    assert "is complete" in capsys.readouterr().out
    assert (folder / "report.html").is_file()
    assert not (folder / "checkpoints").exists()
    assert (folder / "result.json").read_bytes() == before


def test_a_truncated_newest_checkpoint(undisturbed, half_done, tmp_path, capfd):
    folder = copied(half_done, tmp_path)
    steps = sorted((folder / "checkpoints" / "dense").iterdir(), key=lambda p: int(p.name))
    for path in steps[-1].rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert main(["solve", "--resume", str(folder)]) == 0
    err = capfd.readouterr().err
    assert f"checkpoint {steps[-1].name} of dense is damaged" in err
    assert "Traceback" not in err
    assert differing(undisturbed, folder) == []


def fails(words, capfd, *messages):
    capfd.readouterr()
    assert main([str(w) for w in words]) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1, err
    for message in messages:
        assert message in err
    return err


def test_a_changed_option_is_shown(half_done, options, tmp_path, capfd, tree):
    folder = copied(half_done, tmp_path)
    before = tree(folder)
    for words in (
        ["solve", *options, "--sparsity", "0.8", "--out", folder],
        ["solve", "--resume", folder, "--sparsity", "0.8"],
    ):
        fails(words, capfd, "sparsity was 0.5 and is 0.8")
    assert tree(folder) == before


def test_changed_data_are_refused(half_done, source, tmp_path, capfd):
    folder, good = copied(half_done, tmp_path), source.read_bytes()
    arrays = dict(np.load(source))
    arrays["x"][3, 1] += 1
    try:
        np.savez(source, **arrays)
        fails(["solve", "--resume", folder], capfd, "belong to another run: data was")
    finally:
        source.write_bytes(good)
    assert main(["solve", "--resume", str(folder)]) == 0


def test_another_checkpoint_schema(half_done, tmp_path, capfd, monkeypatch):
    from fairbilevel.records import _checkpoints

    folder, written = copied(half_done, tmp_path), _checkpoints.CHECKPOINT_SCHEMA
    monkeypatch.setattr(_checkpoints, "CHECKPOINT_SCHEMA", written + 1)
    fails(["solve", "--resume", folder], capfd, f"have schema {written}")
    assert not (folder / "result.json").exists()


def test_two_runs_on_one_folder(half_done, tmp_path, capfd):
    folder = copied(half_done, tmp_path)
    with locked(folder):
        fails(["solve", "--resume", folder], capfd, f"process {os.getpid()} is writing to")
        with pytest.raises(HeldError, match="is writing to"), locked(folder):
            pass
    with locked(folder):
        pass
    assert not (folder / ".lock").exists()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import sys, time, pathlib; from fairbilevel.records import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(HeldError, match=f"process {process.pid} is writing"), locked(tmp_path):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with locked(tmp_path):
        pass


def test_without_an_out_the_same_command_finds_its_unfinished_run(half_done, tmp_path, monkeypatch):
    from fairbilevel.run import Config, run_folder

    monkeypatch.chdir(tmp_path)
    stored = json.loads((half_done[0] / "config.json").read_text())
    config = Config.from_mapping({**stored, "out": None})
    path, goes_on = run_folder(config)
    assert not goes_on
    subprocess.run(["mkdir", "-p", "runs"], check=True)
    subprocess.run(["cp", "-r", str(half_done[0]), str(path)], check=True)
    assert run_folder(config) == (path, True)
    with locked(path):  # somebody works on it
        other, goes_on = run_folder(config)
    assert other != path
    assert not goes_on
    other, goes_on = run_folder(Config(**{**vars(config), "steps": 41}))
    assert other != path
    assert not goes_on


def test_a_full_disk(options, tmp_path):
    """No file may grow beyond 24 KiB, as on a disk that fills up; with room it goes on."""
    words = command(tmp_path / "run", [*options, "--width", "256"])
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 24; exec "$@"', "bash", *words],
        capture_output=True,
        text=True,
        # The cache of compiled programs, here one of its own, feels the limit and says nothing.
        env={
            **{k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"},
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("fairbilevel: error: cannot write a checkpoint in")
    assert "File too large" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert main(words[3:]) == 0


def test_resume_alone_begins_nothing(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (["--resume"], ["--resume", "--out", "new"]):
        fails(["solve", *OPTIONS, *words], capfd, "began no run that could be gone on with")
    fails(["solve", "--resume", "new"], capfd, "there is no run in new to go on with")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(capfd):
    fails(["solve", *OPTIONS, "--out", "/proc/run"], capfd, "/proc/run")
