"""Many devices: the same masks and numbers on 1, 2 and 4, in one process or two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from fairbilevel.cli import main
from fairbilevel.devices import Placement, Processes, collectives
from fairbilevel.train import Feed, stream_rows

ROOT = Path(__file__).parents[1]
PLACEMENTS = ("1", "2", "4", "4s")


def _start(script: list[str], devices: int, **environment: str) -> subprocess.Popen:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count="
    return subprocess.Popen(
        [sys.executable, *script],
        cwd=ROOT,
        env={
            **os.environ,
            "XLA_FLAGS": f"{flags}{devices}",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _finish(processes: list[subprocess.Popen]) -> list[str]:
    outputs = []
    try:
        for process in processes:
            output, _ = process.communicate(timeout=900)
            assert process.returncode == 0, output
            outputs.append(output)
    finally:
        for process in processes:
            with process:  # closes its pipe and waits
                process.kill()
    return outputs


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``run_on_devices`` wrote, two processes at a time."""
    out = tmp_path_factory.mktemp("devices")
    script = [str(ROOT / "tests" / "run_on_devices.py")]
    address = f"127.0.0.1:{_free_port()}"
    wide, several = {"JAX_ENABLE_X64": "1"}, {"PROCESSES": "2", "COORDINATOR": address}
    _finish(
        [
            _start([*script, str(out / "x64"), *PLACEMENTS], 4, **wide),
            _start([*script, str(out / "x32"), "1", "4", "4s"], 4),
        ]
    )
    _finish(
        [
            _start([*script, str(out / "processes"), "4"], 2, INDEX=str(i), **wide, **several)
            for i in range(2)
        ]
    )
    return out


def _compared(first: Path, second: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    a, b = np.load(first), np.load(second)
    assert set(a.files) == set(b.files)
    assert len(a.files) > 200
    return {name: (a[name], b[name]) for name in a.files}


@pytest.mark.parametrize("other", ["x64-2", "x64-4", "x64-4s", "processes-4"])
def test_float64_equal(results: Path, other: str):
    """Masks are the same bit by bit; weights and metrics differ by rounding alone."""
    for name, (a, b) in _compared(results / "x64-1.npz", results / f"{other}.npz").items():
        if "/mask/" in name:
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=name)


def test_float64_reaches_the_loss(results: Path):
    """The same run in float32 differs by more than float64's rounding, and not by much more."""
    pairs = _compared(results / "x64-1.npz", results / "x32-1.npz")
    a, b = pairs["solver/metric/0/loss"]
    assert 1e-10 < abs(a - b) < 1e-5


@pytest.mark.parametrize("other", ["x32-4", "x32-4s"])
def test_float32_close(results: Path, other: str):
    """At least 99.9 % of the mask's entries agree; metrics are within rounding's reach."""
    pairs = _compared(results / "x32-1.npz", results / f"{other}.npz")
    for method in ("solver", "pruner"):
        masks = [p for n, p in pairs.items() if n.startswith(f"{method}/mask/")]
        agree = np.concatenate([(a == b).ravel() for a, b in masks])
        assert agree.mean() >= 0.999
    for name, (a, b) in pairs.items():
        if name.endswith("loss"):
            np.testing.assert_allclose(a, b, rtol=1e-3, err_msg=name)
        elif "metric" in name:  # one row may fall to the other side
            np.testing.assert_allclose(a, b, atol=0.02, err_msg=name)


def test_runs_did_something(results: Path):
    """The equal masks are not the start's, and both networks learnt."""
    x64 = np.load(results / "x64-1.npz")
    for method in ("solver", "pruner"):
        last = max(int(n.split("/")[2]) for n in x64.files if n.startswith(f"{method}/metric/1"))
        losses = [float(x64[f"{method}/metric/{i}/loss"]) for i in (0, last)]
        assert losses[1] < losses[0] - 0.05
        masks = [x64[n] for n in x64.files if n.startswith(f"{method}/mask/")]
        assert 0.1 < np.concatenate([m.ravel() for m in masks]).mean() < 0.6
    last_multipliers = [x64[n] for n in x64.files if n.endswith("multipliers") and "solver" in n]
    assert max(m.max() for m in last_multipliers) > 0


def test_data_parallel_sends_gradients_once(results: Path):
    """Each of the two gradients once, sums by channel, a batch's outcomes, and nothing else."""
    sent = json.loads((results / "x32-4.json").read_text())
    size = sent["bytes"]
    assert sent["once"] == []
    # On fit and on select. The second could leave out the classifier, which is not pruned.
    assert size["gradients of weights"] == 2 * sent["weights"]
    assert set(size) == {
        "gradients of weights",
        "sums by channel (normalization, biases)",
        "outcomes of a batch (buffers, violations)",
        "scalars (losses, norms)",
    }
    # Of a norm: two moments a pass and two sums of its gradient, besides scale's and shift's.
    assert size["sums by channel (normalization, biases)"] <= 8 * sent["vectors"]
    assert size["outcomes of a batch (buffers, violations)"] <= 6 * 64 * 4
    assert size["scalars (losses, norms)"] <= 64
    assert all(
        what == ["outcomes of a batch (buffers, violations)"]
        for kind, what in sent["kinds"]
        if kind != "all-reduce"
    )


def test_split_parameters_gather_no_scores(results: Path):
    """Weights are gathered to compute with, at most once a pass; thresholds only count."""
    sent = json.loads((results / "x32-4s.json").read_text())
    size = sent["bytes"]
    assert "other" not in size
    assert sent["held"] < 0.6 * sent["weights"]
    assert size["parameters, gathered"] <= 3 * sent["weights"]
    assert size["gradients of weights"] == 2 * sent["weights"]
    # After its last step a call says once whether its numbers are finite.
    assert sent["once"] == ["threshold counts and flags"]
    # 32 halvings of one integer a set of scores, whatever their number.
    assert size["threshold counts and flags"] <= 4 * 32 * 4


def test_collectives_by_hand():
    """A program written out: loops multiply, branches and calls are followed."""
    text = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(f32[] %a, f32[] %b)
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %r = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce(%x, %y), to_apply=%add, metadata={op_name="a/b"}
  %c = f32[4]{0} conditional(%i, %u, %v), branch_computations={%one, %two}
}

%one (u: f32[4]) -> f32[4] {
  ROOT %g = f32[8]{0} all-gather(%u), dimensions={0}
}

%two (v: f32[4]) -> f32[4] {
  ROOT %v2 = f32[4]{0} negate(%v)
}

%open (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %i = (f32[4]{0}) while(%t), body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}

%inner (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %h = f32[2]{0} all-reduce(%x), to_apply=%add
}

%cond (p: (s32[], f32[4])) -> pred[] {
  ROOT %t = pred[] constant(true)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %w = (f32[4]{0}) while(%t), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %o = (f32[4]{0}) while(%t), condition=%cond, body=%open
  ROOT %q = (f32[2]{0}, f32[8]{0}) all-gather-start(f32[2]{0} %k), dimensions={0}
}
"""
    found = collectives(text)
    assert [(c.kind, c.times, c.bytes, c.looped) for c in found] == [
        ("all-reduce", 5, 5 * (16 + 12), False),
        ("all-gather", 5, 5 * 32, False),
        ("all-reduce", 3, 3 * 8, True),  # in each round of a loop of any length
        ("all-gather", 1, 32, False),
    ]
    assert found[0].source == "a/b"
    with pytest.raises(ValueError, match="no HLO text"):
        collectives("nothing")


def _of_four(**fields: Any) -> Placement:
    """A placement over four devices that need not be there, for what is decided by shapes."""
    placement = object.__new__(Placement)
    mesh = jax.sharding.AbstractMesh((4,), ("data",))
    for name, value in {"mesh": mesh, **fields}.items():
        object.__setattr__(placement, name, value)
    return placement


def test_largest_axis_is_split():
    shapes = frozenset({(3, 3, 8, 16), (12, 6), (5, 7), (16,)})
    split = _of_four(shard_params=True, parameters=shapes)
    assert split.sharding((3, 3, 8, 16)).spec == PartitionSpec(None, None, None, "data")
    assert split.sharding((12, 6)).spec == PartitionSpec("data", None)
    assert split.sharding((5, 7)).spec == PartitionSpec()  # nothing divides
    assert split.sharding((16,)).spec == PartitionSpec()  # vectors stay whole
    assert split.sharding((8, 16)).spec == PartitionSpec()  # no parameter's shape
    copied = _of_four(shard_params=False, parameters=shapes)
    assert copied.sharding((12, 6)).spec == PartitionSpec()


def test_refusals(tiny_problem: Any):
    with pytest.raises(ValueError, match="7 devices were asked for, and 1 is there"):
        Placement.over(7)
    with pytest.raises(ValueError, match="'all' or a number, got 'few'"):
        Placement.over("few")
    with pytest.raises(ValueError, match="one axis 'data'"):
        Placement(Mesh(np.asarray(jax.devices()), ("rows",)))
    with pytest.raises(ValueError, match="choose a multiple of 4 such as 28, or fewer"):
        _of_four().check_batch(30)
    with pytest.raises(ValueError, match="together"):
        Processes("127.0.0.1:1000")
    with pytest.raises(ValueError, match="host:port"):
        Processes("here", 2, 0)
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        Processes("127.0.0.1:1000", 2, 2)
    feed = Feed(tiny_problem(), None, 0)
    for wrong in ({"0": -1}, {"0": True}, {"x": 3}, {"0": "3"}):
        with pytest.raises(ValueError, match="counts rows by stream"):
            feed.restore(wrong)


def test_one_device_is_left_alone(tiny_problem: Any):
    """By default, with one device, nothing is placed: arrays are where JAX puts them."""
    problem = tiny_problem()
    assert problem.placement.alone
    batch = Feed(problem, None, 0).take(problem.roles["fit"], 0, 2, 33)
    assert isinstance(batch.x.sharding, jax.sharding.SingleDeviceSharding)
    assert problem.placement.description == "1 device"


def test_feed_order(tiny_problem: Any):
    """Rows are those of seed, stream and position, whatever is taken between and at a time: lengths
    and sizes that change, two streams, entries that fill up a program, a restart."""
    problem = tiny_problem()
    fit, select = problem.roles["fit"], problem.roles["select"]
    feed = Feed(problem, None, 3)
    asked = [(fit, 0, 2, 20, None), (select, 1, 3, 5, 8), (fit, 0, 2, 20, 4), (fit, 0, 1, 7, 1)]
    asked += [(select, 1, 3, 20, None), (select, 0, 1, 20, 2), (fit, 0, 1, 20, None)]
    position = {0: 0, 1: 0}
    for count, (rows, stream, steps, size, length) in enumerate(asked):
        if count == 4:  # go on elsewhere, from plain JSON
            state = json.loads(json.dumps(feed.state()))
            feed = Feed(problem, None, 3)
            feed.restore(state)
        batch = feed.take(rows, stream, steps, size, length=length)
        assert batch.x.shape[:2] == (length or steps, size)
        chosen = stream_rows(rows, 3, stream, position[stream], size * steps).reshape(steps, size)
        np.testing.assert_array_equal(batch.x[:steps], problem.inputs[chosen])
        np.testing.assert_array_equal(batch.group[:steps], problem.group[chosen])
        position[stream] += size * steps
    assert feed.state() == {str(stream): at for stream, at in position.items()}


def test_processes_that_do_not_come():
    """One sentence and exit code 2, after the timeout."""
    code = (
        "from fairbilevel.devices import Processes;"
        f"Processes('127.0.0.1:{_free_port()}', 2, 0, timeout=2).start()"
    )
    process = _start(["-c", code], 1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "did not find each other" in output
    assert "within 2 seconds" in output
    assert "Traceback" not in output


def test_a_dead_process_ends_the_other_and_both_go_on(source: Path, tmp_path: Path):
    """One sentence within a minute, and a checkpoint from which both go on."""
    words = [
        "-u", "-m", "fairbilevel", "solve", "--data", str(source), "--model", "mlp", "--width", "8",
        "--method", "magnitude", "--sparsity", "0.5", "--steps", "20", "--dense-steps", "60",
        "--batch-size", "32", "--no-baseline", "--checkpoint-every", "0", "--process-count", "2",
    ]  # fmt: skip

    def start() -> list[subprocess.Popen]:
        address = f"127.0.0.1:{_free_port()}"
        more = ["--out", str(tmp_path / "killed"), "--coordinator", address]
        return [_start([*words, *more, "--process-id", str(i)], 1) for i in range(2)]

    begun = start()
    try:
        place, end = tmp_path / "killed" / "checkpoints", time.monotonic() + 300
        while not any(place.glob("*/*")) and time.monotonic() < end:
            time.sleep(0.05)
        begun[1].kill()
        killed = time.monotonic()
        output, _ = begun[0].communicate(timeout=120)
        assert time.monotonic() - killed < 60
    finally:
        for process in begun:
            process.kill()
            process.communicate()
    assert begun[0].returncode == 1, output
    assert "another process of the run ended" in output
    assert "Traceback" not in output
    assert not (tmp_path / "killed" / "result.json").exists()
    again = _finish(start())[0]
    assert "going on with the run" in again
    result = json.loads((tmp_path / "killed" / "result.json").read_text())
    assert result["status"] == "completed"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("solve --devices 7", "7 devices were asked for"),
        ("solve --devices few", "--devices is 'all' or a number from 1 up, got 'few'"),
        ("solve --coordinator here:1", "together"),
        ("plan --coordinator here:1 --process-count 2 --process-id 0", "only `fairbilevel solve`"),
    ],
)
def test_command_line_refuses(
    words: str, sentence: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: Any
):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    assert sentence in capsys.readouterr().err
