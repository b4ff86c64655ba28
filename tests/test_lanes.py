"""Runs side by side: the numbers of each alone, computed together, whatever the lanes do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairbilevel import comparison, devices
from fairbilevel.comparison import Comparison
from fairbilevel.devices import Lanes, Program
from fairbilevel.run import Config
from fairbilevel.sweeps import Engine
from fairbilevel.train import Costs

ROOT = Path(__file__).parents[1]


class Counted:
    """A loop that a counter steers, and how often it was computed, for how many lanes."""

    def __init__(self):
        self.program = Program(self._walk, donate=True, steers=lambda state, count, step: (count,))
        self.widths = []
        together = self.program._together

        def seen(key, calls, width):
            self.widths.append(len(calls))
            return together(key, calls, width)

        self.program._together = seen

    @staticmethod
    def _walk(structure, state, count, step):
        def body(i, state):
            return jax.lax.cond(i % 2 == 0, lambda s: jnp.sin(s) + step, lambda s: s * s, state)

        return jax.lax.fori_loop(0, count, body, state)

    def __call__(self, start, counts, step):
        state = jnp.asarray(start)
        for count in counts:
            state = self.program("walk", state, np.int32(count), jnp.asarray(step))
        return np.asarray(state)


def together(width, jobs):
    """Results of all jobs, each in a lane of its own."""
    lanes, ready = Lanes(width), threading.Barrier(len(jobs))

    def run(job):
        with lanes.lane():
            ready.wait(60)  # all are in before the first asks
            return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


STARTS = [np.linspace(0, 1, 5, dtype=np.float32) * k for k in (1, 2, 3)]


def test_lanes_compute_what_each_would_alone():
    own, alone = Counted(), Counted()
    found = together(3, [lambda s=s: own(s, [4, 7], s[1]) for s in STARTS])
    for got, start in zip(found, STARTS, strict=True):
        np.testing.assert_allclose(got, alone(start, [4, 7], start[1]), rtol=1e-6)
    assert own.widths == [3, 3]
    assert alone.widths == []
    assert own.program.compiled == 1


def test_a_width_is_filled_up_and_never_exceeded():
    own, alone = Counted(), Counted()
    found = together(2, [lambda s=s: own(s, [4], s[1]) for s in STARTS])
    for got, start in zip(found, STARTS, strict=True):
        np.testing.assert_allclose(got, alone(start, [4], start[1]), rtol=1e-6)
    assert sorted(own.widths) == [1, 2]
    wide = Counted()
    filled = together(8, [lambda s=s: wide(s, [4], s[1]) for s in STARTS])
    np.testing.assert_allclose(filled, found, rtol=1e-6)
    assert wide.widths == [3]
    assert wide.program.compiled == 1  # of eight lanes, five of them copies


def test_what_steers_differently_is_computed_apart():
    """A branch or a length that is not common would be computed for all."""
    own = Counted()
    together(
        3, [lambda s=s, n=n: own(s, [n], s[1]) for s, n in zip(STARTS, (4, 4, 5), strict=True)]
    )
    assert sorted(own.widths) == [1, 2]


def test_lanes_that_fall_out_of_step_fall_in_again():
    own, other = Counted(), Program(lambda structure, x: x + 1)

    def job(start, more):
        for _ in range(more):  # as after a stage that diverged
            start = other("one", jnp.asarray(start))
        return own(start, [3, 3, 3], start[1])

    together(3, [lambda s=s, k=k: job(s, k) for k, s in enumerate(STARTS)])
    assert own.widths == [3, 3, 3]


def test_a_lane_that_fails_or_leaves_keeps_nobody_waiting():
    own = Counted()

    def fails():
        raise ZeroDivisionError

    def works(k):
        return own(STARTS[k], [4, 4], 0.5)

    lanes, ready = Lanes(3), threading.Barrier(3)

    def run(job, *arguments):
        with lanes.lane():
            ready.wait(60)
            return job(*arguments)

    with ThreadPoolExecutor(3) as pool:
        failed, left, worked = (
            pool.submit(run, fails),
            pool.submit(run, int),
            pool.submit(run, works, 2),
        )
        with pytest.raises(ZeroDivisionError):
            failed.result(60)
        assert left.result(60) == 0
        found = worked.result(60)
    np.testing.assert_allclose(found, Counted()(STARTS[2], [4, 4], 0.5), rtol=1e-6)


def test_an_error_reaches_the_lanes_that_asked():
    def broken(structure, x):
        raise ArithmeticError("no such thing")

    program, fine = Program(broken), Counted()

    def job(k):
        if k < 2:
            with pytest.raises(ArithmeticError, match="no such thing"):
                program("broken", jnp.zeros(2))
        return fine(STARTS[k], [2], 0.5)

    assert all(np.isfinite(x).all() for x in together(3, [lambda k=k: job(k) for k in range(3)]))


def test_time_is_shared():
    costs, passed, meet = [Costs(), Costs()], [0.0, 0.0], threading.Barrier(2)

    def job(k):
        begin = time.perf_counter()
        with costs[k].timed():
            time.sleep(0.2)
            meet.wait(60)  # both are in until both have slept
            share = devices.share_of_time()
        passed[k] = time.perf_counter() - begin
        meet.wait(60)
        return share

    assert together(2, [lambda k=k: job(k) for k in range(2)]) == [0.5, 0.5]
    for each, whole in zip(costs, passed, strict=True):
        assert 0.1 <= each.seconds <= whole / 2
    assert devices.share_of_time() == 1.0


def test_what_is_apart_waits_for_nobody():
    own, begun = Counted(), threading.Event()

    def job(k):
        if k:
            assert begun.wait(60)  # asks nothing before the other one has its result
            return own(STARTS[k], [2], 0.5)
        with devices.apart():
            assert devices.lanes() is None
            found = own(STARTS[0], [2], 0.5)
        begun.set()
        return found

    together(2, [lambda k=k: job(k) for k in range(2)])
    assert own.widths == [1]  # the one apart never came to the others
    assert devices.lanes() is None


def test_stopped_lanes_end():
    own = Counted()
    lanes, (there, asked, held) = Lanes(2), [threading.Event() for _ in range(3)]

    def waits():
        with lanes.lane():
            asked.set()
            own(STARTS[0], [2], 0.5)

    def never_asks():
        with lanes.lane():
            there.set()
            held.wait(60)

    with ThreadPoolExecutor(2) as pool:
        idle = pool.submit(never_asks)
        there.wait(60)
        waiting = pool.submit(waits)
        asked.wait(60)
        lanes.stop()
        held.set()
        idle.result(60)
        with pytest.raises(SystemExit, match="stopped"):
            waiting.result(60)
    assert own.widths == []


ALIKE = """
import sys
from pathlib import Path
import numpy as np
from fairbilevel import comparison
from fairbilevel.comparison import Comparison
from fairbilevel.devices import _program
from fairbilevel.run import Config
from fairbilevel.sweeps import Engine

widths, answer = [], _program.Program._together
def seen(self, key, calls, width):
    if self.steers is not None:
        widths.append(len(calls))
    return answer(self, key, calls, width)
_program.Program._together = seen
config = Config("digits", model="mlp", width=16, steps=40, dense_steps=40, max_rows=900,
                constraint=("accuracy-gap=1%",), min_group_rows=1, compile_cache="off")
design = Comparison(config, ("ceag", "hydra", "bilevel"), (0.9,), "ceag", folds=3,
                    dense_seeds=0)
out = Path(sys.argv[1])
for name, width in (("local", 1), ("vmap", 3)):
    comparison.run_comparison(design, out / name, executor=Engine(name, width))
assert widths and set(widths) == {3}, widths
for fold in range(3):
    one, other = (np.load(out / n / "repetitions" / f"0-{fold}.npz") for n in ("local", "vmap"))
    assert sorted(one) == sorted(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
"""


def test_a_comparison_by_vmap_is_the_one_of_each_run_alone(tmp_path):
    """In 64 bits, where rounding decides no row: every row's outcome, of three methods
    on three folds, all of whose steps are computed three at a time."""
    done = subprocess.run(
        [sys.executable, "-c", ALIKE, str(tmp_path)],
        env=os.environ | {"JAX_ENABLE_X64": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_runs_that_share_devices_do_not_go_side_by_side():
    Engine("vmap", 2).check_devices(1)
    Engine("local", 2).check_devices(4)
    with pytest.raises(ValueError, match="give --devices 1"):
        Engine("vmap", 2).check_devices(4)


def test_a_stopped_comparison_goes_on_by_vmap(tmp_path):
    config = Config("digits", model="mlp", width=8, steps=8, dense_steps=8, max_rows=600,
                    min_group_rows=1)  # fmt: skip
    design = Comparison(config, ("gradual-magnitude", "magnitude"), (0.8,), folds=3, dense_seeds=0)
    lines: list[str] = []

    def stops(line):
        lines.append(line)
        if "gradual-magnitude" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparison.run_comparison(
            design, tmp_path / "c", executor=Engine("vmap", 3), progress=stops
        )
    known = comparison.comparison_status(design, tmp_path / "c")
    assert (known.running, known.failed) == (0, 0)
    comparison.run_comparison(design, tmp_path / "c", executor=Engine("vmap", 3))
    assert comparison.comparison_status(design, tmp_path / "c").done == 6
