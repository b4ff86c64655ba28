"""Sweeps: the same outcome on every executor, no job twice, and nothing lost with a process."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sums import ONCE, SUMS, Sums, carried

from fairbilevel import _files, comparison, methods, pruners
from fairbilevel.cli import main
from fairbilevel.comparison import Comparison, _compare, _sweep
from fairbilevel.records import Attempts, _attempts
from fairbilevel.run import Config
from fairbilevel.sweeps import (
    Engine,
    Refused,
    _carry_out,
    carry_out,
    failures,
    status,
)

ROOT = Path(__file__).parents[1]
EXTRAS = {"submitit": "submitit", "dask": "distributed"}


def engine(name: str, processes: int = 2) -> Engine:
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name], reason=f"the extra {name!r} is not installed")
    return Engine(name, processes)


@pytest.fixture
def importable(monkeypatch):
    """``sums`` for processes that begin with nothing but their environment."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))


# ---------------------------------------------------------------- attempts


def test_one_alone_begins(tmp_path):
    found = []

    def begin():
        found.append(Attempts(tmp_path).begin("a job: 1/2"))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (attempt,) = filter(None, found)
    with attempt:
        assert Attempts(tmp_path).begin("a job: 1/2") is None
        assert Attempts(tmp_path).begin("another") is not None
        attempt.fail("no luck")
    again = Attempts(tmp_path).begin("a job: 1/2", most=2)
    assert again.number == 2
    with again:
        again.fail("nor now")
    assert Attempts(tmp_path).begin("a job: 1/2", most=2) is None
    assert {a.error for a in Attempts(tmp_path).all().values() if not a.running} >= {"nor now"}


def test_an_attempt_ends_with_its_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from fairbilevel.records import Attempts\n"
        "Attempts(Path(sys.argv[1])).begin('job'); print('begun', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout.readline() == b"begun\n"
    seen = Attempts(tmp_path)
    assert seen.all()["job"].running
    assert seen.begin("job") is None
    process.kill()
    process.communicate()
    assert "ended without a word" in seen.all()["job"].error
    assert seen.begin("job").number == 2


def test_another_machine_is_dead_once_it_is_silent(tmp_path, monkeypatch):
    """Where no lock tells, a file that nobody touches does, by the watcher's own clock."""
    monkeypatch.setattr(_attempts, "BEAT", 0.05)
    monkeypatch.setattr(_attempts, "SILENCE", 0.4)
    seen = Attempts(tmp_path)
    with seen.begin("job") as attempt:
        monkeypatch.setattr(_attempts, "_kernel", lambda: "another")
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert seen.all()["job"].running
            time.sleep(0.05)
    assert seen.all()["job"].running
    time.sleep(0.5)
    assert not seen.all()["job"].running
    assert seen.begin("job").number == attempt.number + 1


@pytest.mark.parametrize("told", [{"kernel": "another", "locked": True}, {"locked": False}])
def test_the_job_of_a_silent_machine_is_done_once_more(told, tmp_path, monkeypatch):
    """The watcher knows that it is dead; what does the job sees its file for the first time."""
    monkeypatch.setattr(_attempts, "SILENCE", 0.3)
    handed: list[str] = []
    call = _carry_out.Task.__call__
    monkeypatch.setattr(
        _carry_out.Task, "__call__", lambda self: (handed.append(self.name), call(self))[1]
    )
    sweep = Sums(tmp_path / "out")
    sweep.parts.mkdir(parents=True)
    told = {"kernel": _attempts._kernel(), "node": "n7", "process": 1, "ticket": "", **told}
    (sweep.parts / "0-total.attempt-1.json").write_text(json.dumps(told))
    carried(sweep, Engine())
    assert sweep.computed() == ONCE
    assert len(handed) == len(ONCE)


@pytest.mark.skipif(_files.fcntl is None, reason="no locks here")
def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    def unknown(handle, how):
        raise OSError(errno.ENOSYS, "flock")

    monkeypatch.setattr(_files.fcntl, "flock", unknown)
    with _files.locked(tmp_path):
        assert not _files.is_locked(tmp_path)
    with Attempts(tmp_path).begin("job"):
        assert Attempts(tmp_path).all()["job"].running
        assert Attempts(tmp_path).begin("job") is None


# ---------------------------------------------------------------- executors


@pytest.mark.parametrize("name", ["here", "local", "dask", "threads"])
def test_every_executor_does_every_job_once(name, tmp_path, importable):
    sweep = Sums(tmp_path)
    if name == "threads":
        with ThreadPoolExecutor(3) as pool:
            carry_out(sweep, pool)
    else:
        carried(sweep, Engine() if name == "here" else engine(name))
    assert sweep.computed() == ONCE
    assert sweep.sums() == SUMS
    assert str(status(sweep)) == "6 of 6 runs done"
    assert not list(sweep.parts.glob("*.attempt-*"))


@pytest.mark.parametrize("name", ["local", "submitit", "dask"])
def test_a_killed_process_costs_its_job_alone(name, tmp_path, importable):
    totals = 1 if name == "submitit" else 2  # a new process for every job there
    sweep = Sums(tmp_path, kill=("0-1", 1), seconds=0.2, totals=totals)
    carried(sweep, engine(name))
    assert sweep.computed() == {n: 1 + (n == "0-1") for n in ONCE if int(n[0]) < totals}
    assert sweep.sums() == SUMS[: 3 * totals]


def test_a_job_that_always_dies_is_told_and_tried_again_by_the_next_call(tmp_path):
    sweep = Sums(tmp_path, kill=("1-2", 2))
    lines = carried(sweep, engine("local"))
    assert sweep.computed() == {**ONCE, "1-2": 2}
    (error,) = failures(sweep).items()
    assert error[0] == "1-2"
    assert "died" in error[1] or "ended without a word" in error[1]
    assert sum("1-2 failed" in line for line in lines) == 2
    assert str(status(sweep)) == "5 of 6 runs done, 1 failed"
    carried(sweep, Engine())
    assert sweep.computed() == {**ONCE, "1-2": 3}
    assert sweep.sums() == SUMS


def test_what_raises_is_retried_once(tmp_path):
    sweep = Sums(tmp_path / "once", fail=("0-0", 1))
    carried(sweep, Engine())
    assert sweep.computed() == {**ONCE, "0-0": 2}
    sweep = Sums(tmp_path / "always", fail=("0-total", 9))
    carried(sweep, Engine())
    assert sweep.computed() == {"0-total": 2, **{n: 1 for n in ONCE if n.startswith("1")}}
    assert failures(sweep) == {f"0-{i}": "0-total: RuntimeError: no luck" for i in range(3)}
    told = json.loads((sweep.parts / "0-total.attempt-2.json").read_text())
    assert "raise RuntimeError" in told["trace"]


def test_two_calls_on_one_folder_share_the_work(tmp_path):
    """Started at the same time, each with processes of its own."""
    code = (
        "import sys; from pathlib import Path; from tests.sums import Sums, carried\n"
        "from fairbilevel.sweeps import Engine\n"
        "if __name__ == '__main__':\n"
        "    sweep = Sums(Path(sys.argv[1]), seconds=0.3); carried(sweep, Engine())\n"
        "    print(sweep.sums())"
    )
    script = tmp_path / "call.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    calls = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "out")],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for _ in range(2)
    ]
    for call in calls:
        assert call.communicate(timeout=120)[0].decode().split() == str(SUMS).split()
    assert Sums(tmp_path / "out").computed() == ONCE


def test_what_nobody_can_do_ends_it(tmp_path):
    class Hopeless(Sums):
        def run(self, name):
            raise Refused("there are no data")

    with pytest.raises(Refused, match="there are no data"):
        carried(Hopeless(tmp_path), Engine())
    assert not list((tmp_path / "parts").iterdir())


def test_a_job_that_is_queued_again_has_not_begun(tmp_path):
    """What Slurm preempts ends by ``SystemExit``, after ``checkpoint`` has been asked."""

    class Preempted(Sums):
        def run(self, name):
            raise SystemExit(-1)

    sweep = Preempted(tmp_path)
    task = _carry_out.Task(sweep, "0-total", 0, 2, "ticket")
    with pytest.raises(SystemExit):
        task()
    assert not list(sweep.parts.iterdir())
    pytest.importorskip("submitit", reason="the extra 'submitit' is not installed")
    assert task.checkpoint().function == task


def test_slurm_is_told_its_options(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="the extra 'submitit' is not installed")
    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    told = {"partition": "gpu", "time": 60, "array_parallelism": 20, "setup": "module load cuda"}
    with Engine("submitit", 2, told).open(Sums(tmp_path / "out")) as (executor, at_once):
        assert executor.cluster == "slurm"
        assert at_once is None
        text = executor._executor._make_submission_file_text("true", "id")
    for line in ("--partition=gpu", "--time=60", "module load cuda"):
        assert line in text
    assert executor._executor.parameters["array_parallelism"] == 20


# ---------------------------------------------------------------- comparisons


def design(source, names=("magnitude", "random"), dense_seeds=0):
    config = Config(data=str(source), model="mlp", width=8, dense_steps=20, steps=20, batch_size=32)
    return Comparison(config, names, (0.5,), reference=names[0], folds=2, dense_seeds=dense_seeds)


@pytest.fixture(scope="module")
def done(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "serial"
    comparison.run_comparison(design(source), folder)
    return folder


@pytest.fixture(scope="module")
def one(source, tmp_path_factory):
    """With a single method: a job takes seconds to begin where each gets a new process."""
    folder = tmp_path_factory.mktemp("one") / "serial"
    comparison.run_comparison(design(source, ("magnitude",)), folder)
    return folder


@pytest.fixture
def counted(monkeypatch) -> Callable[[], list[str]]:
    """Names of the methods that run in this process."""
    ran: list[str] = []
    run_method = _sweep.run_method

    def counting(comparison, problem, reference, method, *rest):
        ran.append(method)
        return run_method(comparison, problem, reference, method, *rest)

    monkeypatch.setattr(_sweep, "run_method", counting)
    return lambda: ran


@pytest.mark.parametrize("name", ["local", "submitit", "dask"])
def test_a_table_is_the_same_on_every_executor(name, one, source, tmp_path, importable):
    asked = design(source, ("magnitude",))
    (tmp_path / "out/parts/submitit-killed").mkdir(parents=True)  # what a killed call left
    (tmp_path / "out/comparison.json").write_bytes((one / "comparison.json").read_bytes())
    comparison.run_comparison(asked, tmp_path / "out", executor=engine(name))
    assert (tmp_path / "out/table.csv").read_bytes() == (one / "table.csv").read_bytes()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in one.iterdir()}
    for fold in range(2):
        paths = [folder / f"repetitions/0-{fold}.npz" for folder in (one, tmp_path / "out")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_run_starts_from_the_stored_dense_model(done, source, tmp_path, monkeypatch):
    """Trained once a repetition, whatever the number of runs."""
    trained, train = [], _sweep.train
    monkeypatch.setattr(_sweep, "train", lambda *a: trained.append(a[-1]) or train(*a))
    comparison.run_comparison(design(source), tmp_path / "out")
    assert trained == [0, 1]
    assert (tmp_path / "out/table.csv").read_bytes() == (done / "table.csv").read_bytes()


def test_an_older_folder_is_gone_on_with(done, source, tmp_path, counted):
    """It has a repetition's two files and nothing else; its lines stay as they are."""
    folder = Path(shutil.copytree(done, tmp_path / "old"))
    before = (folder / "table.csv").read_text().splitlines()
    three = design(source, ("magnitude", "random", "snip"))
    assert str(comparison.comparison_status(three, folder)) == "4 of 6 runs done"
    comparison.run_comparison(three, folder)
    assert counted() == ["snip", "snip"]
    after = (folder / "table.csv").read_text().splitlines()
    # The lines but for Holm's adjustment, which is over the whole table.
    assert after[1] == before[1]
    assert after[2].split(",")[:20] == before[2].split(",")[:20]
    assert not (folder / "parts").exists()
    assert len(list((folder / "repetitions").iterdir())) == 4


@pytest.mark.parametrize("broken", ["write_arrays", "write_json"])
def test_a_merge_that_is_cut_short_loses_nothing(
    broken, done, source, tmp_path, monkeypatch, counted
):
    def cut(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_sweep, broken, cut)
        with pytest.raises(KeyboardInterrupt):
            comparison.run_comparison(design(source), tmp_path / "out")
    assert len(counted()) == 4
    comparison.summarize(design(source), tmp_path / "out")  # reads parts as well
    comparison.run_comparison(design(source), tmp_path / "out")
    assert len(counted()) == 4
    assert (tmp_path / "out/table.csv").read_bytes() == (done / "table.csv").read_bytes()
    assert not (tmp_path / "out/parts").exists()


def test_comparisons_with_other_methods_share_a_folder(source, tmp_path, counted):
    """The second finds the runs of both, whose parts the first had merged."""
    comparison.run_comparison(design(source, ("magnitude", "random")), tmp_path / "out")
    comparison.run_comparison(design(source, ("magnitude", "snip")), tmp_path / "out")
    assert sorted(counted()) == ["magnitude"] * 2 + ["random"] * 2 + ["snip"] * 2
    comparison.run_comparison(design(source, ("magnitude", "random", "snip")), tmp_path / "out")
    assert len(counted()) == 6


@pytest.mark.parametrize("times", [1, 9])
def test_a_run_that_raises_is_one_line_of_the_table(times, source, tmp_path, monkeypatch):
    class Broken(pruners.Random):
        def run(self, problem, reference, **_):
            failed.append(1)
            if len(failed) <= times:
                raise RuntimeError("out of luck")
            return super().run(problem, reference)

    failed: list[int] = []
    real = methods.by_name
    monkeypatch.setattr(
        methods, "by_name", lambda n, **o: Broken(**o) if n == "random" else real(n, **o)
    )
    folder = tmp_path / "out"
    summary = comparison.run_comparison(design(source), folder)
    if times == 1:
        assert summary["errors"] == []
        assert len(failed) == 3
        return
    assert len(failed) == 4
    assert [line["method"] for line in summary["lines"]] == ["dense", "magnitude"]
    assert (
        "| round 0 fold 1: random@0.5 | RuntimeError: out of luck |"
        in (folder / "table.md").read_text()
    )
    rows = (folder / "table.csv").read_text().splitlines()
    assert rows[-1].endswith("round 0 fold 1: random@0.5: RuntimeError: out of luck")
    assert summary["repetitions"] == 2


def test_the_reference_failing_everywhere_is_told(source, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(_sweep, "run_method", broken)
    with pytest.raises(ValueError, match=r"no finished repetition.*out of luck"):
        comparison.run_comparison(design(source), tmp_path / "out")


def test_files_of_another_dense_model_are_refused(done, source, tmp_path):
    folder = Path(shutil.copytree(done, tmp_path / "other"))
    for path in (folder / "repetitions").glob("*.npz"):
        rows = dict(np.load(path))
        rows["test/dense"] = ~rows["test/dense"]
        np.savez(path, **rows)
    with pytest.raises(ValueError, match="holds another dense model"):
        comparison.run_comparison(design(source, ("magnitude", "snip")), folder)


def test_other_rows_are_refused(done, source, tmp_path):
    """Their folds would test on what the dense models there have been fitted to."""
    folder = Path(shutil.copytree(done, tmp_path / "other"))
    rows = dict(np.load(source))
    rows["y"][:3] = 1 - rows["y"][:3]
    np.savez(tmp_path / source.name, **rows)
    with pytest.raises(ValueError, match="on other rows: the data have changed"):
        comparison.run_comparison(design(tmp_path / source.name, ("magnitude", "snip")), folder)


def test_two_may_begin_a_folder_at_once(source, tmp_path):
    """One sees the other's half-written design."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".comparison.json.x1y2").touch()
    _compare._claim(design(source), folder)
    assert (folder / "comparison.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--executor", "ray"], "unknown executor 'ray': choose from local, vmap, submitit, dask"),
        (["--executor", "submitit"], "pip install 'fairbilevel[submitit]'"),
        (["--executor", "dask"], "pip install 'fairbilevel[dask]'"),
        (["--slurm-partition", "gpu"], "--slurm-partition is for --executor submitit"),
        (["--slurm-time"], "--slurm-time wants a value"),
        (["--processes", "-1"], "processes must be at least 1"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "frontier"])
def test_bad_executors_get_one_sentence(command, words, said, capsys, tmp_path, monkeypatch):
    for module in EXTRAS.values():
        monkeypatch.setitem(sys.modules, module, None)
    assert main([command, "--out", str(tmp_path / "out"), *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_slurm_options_that_do_not_exist_or_apply(capsys, tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="the extra 'submitit' is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    for option, said in (("--slurm-tim", "did you mean 'time'?"), ("--slurm-time", "has no srun")):
        words = ["--executor", "submitit", option, "60", "--out", str(tmp_path / "out")]
        assert main(["compare", *words]) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
