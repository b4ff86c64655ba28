"""Checkpoints: what comes back is bit by bit what went in, wherever a run is interrupted."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fairbilevel as fb
from fairbilevel import devices, fairness, train
from fairbilevel.records import CheckpointError, Checkpoints, Interrupted

GAP = fairness.ExcessAccuracyGap(0.02)


def state(value: float = 1.0):
    return {
        "weights": jnp.arange(6.0).reshape(2, 3) * value,
        "half": jnp.full((3,), value, jnp.bfloat16),
        "none": jnp.zeros((0, 4)),
        "count": jnp.asarray(7, jnp.int32),
        "key": jax.random.key(3),
    }


def bits(tree):
    def bare(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return str(leaf.dtype), np.shape(leaf), np.asarray(leaf).tobytes()

    return [bare(leaf) for leaf in jax.tree.leaves(tree)]


def written(folder, steps, expected=None, **options):
    """Checkpoints of these steps, whose state and description tell the step."""
    checkpoints = Checkpoints(folder, every=0, **options)
    activity = checkpoints.activity("part", expected or {"seed": 1})
    for step in steps:
        # Good ones in the middle: the best is neither the first nor the newest.
        activity.save(
            step, lambda s=step: state(s), lambda s=step: {"step": s}, score=-abs(step - 2.0)
        )
    checkpoints.close()


def read(folder, expected=None, say=lambda sentence: None):
    checkpoints = Checkpoints(folder, say=say)
    try:
        return checkpoints.activity("part", expected or {"seed": 1}).resume(lambda about: state())
    finally:
        checkpoints.close()


def test_what_comes_back_is_what_went_in(tmp_path):
    written(tmp_path / "c", [1, 2, 3])
    found, about = read(tmp_path / "c")
    assert about["step"] == 3
    assert bits(found) == bits(state(3))
    draws = [jax.random.normal(s["key"], (4,)) for s in (found, state())]
    np.testing.assert_array_equal(*draws)


def test_the_newest_and_the_best_are_kept(tmp_path):
    written(tmp_path / "c", range(1, 8), keep=2)
    left = {int(p.name) for p in (tmp_path / "c" / "part").iterdir() if p.name.isdigit()}
    assert left == {2, 6, 7}


def test_nothing_there(tmp_path):
    assert read(tmp_path / "c") is None
    assert not (tmp_path / "c").exists()


def test_not_due_is_not_written(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", every=1000)
    activity = checkpoints.activity("part", {})

    def never():
        raise AssertionError("made although nothing is written")

    activity.save(1, never, never)
    activity.save(2, state, dict, last=True)
    checkpoints.close()
    assert [p.name for p in (tmp_path / "c" / "part").iterdir()] == ["2"]


def test_a_copy_is_written(tmp_path):
    """What was saved may be donated, and so overwritten, at once."""
    checkpoints = Checkpoints(tmp_path / "c", every=0)
    values = np.ones(300_000, np.float32)
    before = values.copy()
    checkpoints.activity("part", {}).save(1, lambda: {"v": values}, dict)
    values[:] = -1
    checkpoints.close()
    found, _ = checkpoints.activity("part", {}).resume(lambda about: {"v": values})
    np.testing.assert_array_equal(found["v"], before)


def damage(path, how):
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "flipped":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "emptied", "flipped", "removed"])
@pytest.mark.parametrize("part", ["state", "about"])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path, how, part):
    written(tmp_path / "c", [1, 2, 3])
    # Which of its files hold the arrays differs from one writing to the next.
    for path in (tmp_path / "c" / "part" / "3" / part).rglob("*"):
        if path.is_file() and path.stat().st_size:
            damage(path, how)
    said = []
    found, about = read(tmp_path / "c", say=said.append)
    assert about["step"] == 2
    assert bits(found) == bits(state(2))
    assert len(said) == 1
    assert "checkpoint 3 of part is damaged" in said[0]
    # What was damaged is gone: the run writes its own third again.
    written(tmp_path / "c", [3])
    assert read(tmp_path / "c")[1]["step"] == 3


def test_what_another_process_cannot_read_is_left_out(tmp_path, monkeypatch):
    """Whatever this one sees: all of them go on from the same."""
    written(tmp_path / "c", [1, 2])
    answers = iter([False, True])

    def all_say(yes):
        assert yes  # here it is whole
        return next(answers)

    monkeypatch.setattr(devices, "all_say", all_say)
    said = []
    assert read(tmp_path / "c", say=said.append)[1]["step"] == 1
    assert "checkpoint 2 of part is damaged (another process cannot read it)" in said[0]


def test_changed_numbers_are_noticed(tmp_path):
    """A checkpoint that reads well and says something else than was written is no checkpoint."""
    written(tmp_path / "c", [1, 2])
    path = tmp_path / "c" / "part" / "2" / "about" / "metadata"
    stored = json.loads(path.read_text())
    stored["body"]["step"] = 5
    path.write_text(json.dumps(stored))
    assert read(tmp_path / "c")[1]["step"] == 1


def test_other_settings_are_refused_by_name(tmp_path):
    written(tmp_path / "c", [1], {"seed": 1, "steps": 100, "data": "a"})
    with pytest.raises(CheckpointError, match="steps was 100 and is 200; data was a and is b"):
        read(tmp_path / "c", {"seed": 1, "steps": 200, "data": "b"})
    assert read(tmp_path / "c", {"seed": 1, "steps": 100, "data": "a"}) is not None


def test_another_schema_is_refused(tmp_path, monkeypatch):
    from fairbilevel.records import _checkpoints

    written(tmp_path / "c", [1])
    schema = _checkpoints.CHECKPOINT_SCHEMA
    monkeypatch.setattr(_checkpoints, "CHECKPOINT_SCHEMA", schema + 1)
    told = f"have schema {schema}, this version of fairbilevel goes on"
    with pytest.raises(CheckpointError, match=told):
        read(tmp_path / "c")


@pytest.mark.parametrize("options", [{"every": -1.0}, {"every": float("nan")}, {"keep": 0}])
def test_bad_options(tmp_path, options):
    with pytest.raises(ValueError, match="must be"):
        Checkpoints(tmp_path, **options)


# Runs that are stopped on their way and gone on with.


def solved(problem, name, folder, stop_after=None):
    """Dense model and method; stopped after so many records, if asked."""
    checkpoints = Checkpoints(folder, every=0) if folder is not None else None
    records = []

    def callback(record):
        records.append(record)
        if len(records) == stop_after:
            checkpoints.request_stop("SIGTERM")

    options = {"sparsity": 0.6, "steps": 60, "batch_size": 16, "seed": 0}
    costs = train.Costs()
    try:
        dense = train.train_dense(
            problem, steps=40, batch_size=16, callback=callback, costs=costs,
            checkpoints=checkpoints,
        )  # fmt: skip
        method = fb.methods.by_name(name, **options)
        solution = method.run(problem, dense, callback=callback, checkpoints=checkpoints)
    finally:
        if checkpoints is not None:
            checkpoints.close()
    return solution, records


def timeless(records):
    times = ("seconds", "compile_seconds", "waiting")
    return [{k: v for k, v in r.items() if k not in times} for r in records]


# One of each kind of run: multipliers and a watch, scores that learn, a rewinding, fair training
# before and after.
@pytest.mark.parametrize("name", ["bilevel", "hydra", "lottery", "equalized-loss-both"])
def test_stopped_again_and_again_a_run_ends_the_same(tmp_path, tiny_problem, name):
    problem = tiny_problem(GAP)
    whole, records = solved(problem, name, None)
    total = len(records)
    # While the dense model is trained, in the first stages of the method, near its end.
    for stop_after in (7, 22, total - 2):
        with pytest.raises(Interrupted, match="SIGTERM"):
            solved(problem, name, tmp_path / "c", stop_after)
    again, replayed = solved(problem, name, tmp_path / "c")
    assert timeless(replayed) == timeless(records)
    assert bits((again.network.params, again.network.state)) == bits(
        (whole.network.params, whole.network.state)
    )
    assert bits((again.masks, again.scores)) == bits((whole.masks, whole.scores))
    assert again.costs.gradient_evaluations == whole.costs.gradient_evaluations
    assert again.multipliers == whole.multipliers
    assert again.feasibility == whole.feasibility


def test_solve_goes_on_and_refuses_other_options(tmp_path, tiny_problem):
    problem = tiny_problem(GAP)
    options = {"sparsity": 0.5, "steps": 40, "batch_size": 16, "dense_steps": 20}
    seen = []
    first = fb.solve(problem, checkpoints=tmp_path / "c", callback=seen.append, **options)
    again = fb.solve(problem, checkpoints=tmp_path / "c", **options)  # nothing left to do
    assert bits(first.masks) == bits(again.masks)
    assert again.history == first.history
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.2 and is 0\.01"):
        fb.solve(problem, checkpoints=tmp_path / "c", learning_rate=0.01, **options)


# Divergence: back, and on with smaller steps.


def jolt(size, at):
    """Sign descent whose step is ``size`` once, and 0.01 else."""

    def update(updates, count, params=None):
        factor = jnp.where(count == at, size, 0.01)
        return jax.tree.map(lambda u: -factor * jnp.sign(u), updates), count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def test_a_run_that_explodes_goes_back_and_on_with_smaller_steps(tmp_path, tiny_problem):
    """A step of 40 and one of 10 end beyond the bound, one of 2.5 does not."""
    problem = tiny_problem(GAP)
    dense = train.train_dense(problem, steps=40, batch_size=16, optimizer=jolt(40.0, 7))
    assert [r["step_scale"] for r in dense.rollbacks] == [1 / 4, 1 / 16]
    for rollback in dense.rollbacks:
        # Segments of two steps: the fourth is taken back.
        assert (rollback["phase"], rollback["step"], rollback["back_to"]) == ("dense", 8, 6)
        assert rollback["loss"].startswith("exploding")
    solver = fb.BilevelSolver(
        sparsity=0.5, steps=60, batch_size=16, buffer_size=2, inner_optimizer=jolt(40.0, 7)
    )
    solution = solver.run(problem, dense)
    assert {r["phase"] for r in solution.rollbacks} == {"bilevel", "finetune"}
    assert np.isfinite(np.asarray(jax.tree.leaves(solution.network.params)[0])).all()
    assert any("went back to step" in w for w in solution.warnings)
    # On the record of the run folder, the dense model's too.
    folder = fb.save_run(solution, tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    assert result["rollbacks"] == [*dense.rollbacks, *solution.rollbacks]
    assert sum("of the dense phase: the run went back" in w for w in result["warnings"]) == 2


def test_what_no_step_size_helps_stops_with_its_diagnosis(tiny_problem):
    problem = tiny_problem()
    with pytest.raises(fb.DivergenceError, match="4 returns to it with smaller") as caught:
        train.train_dense(problem, steps=40, batch_size=16, optimizer=jolt(jnp.inf, 7))
    assert caught.value.retreats == train.RETREATS
    assert caught.value.step == 9  # the loss of the step after shows it first
    assert np.isfinite(np.asarray(jax.tree.leaves(caught.value.last_good.params)[0])).all()


def test_a_run_without_divergence_says_nothing_of_it(tiny_problem):
    dense = train.train_dense(tiny_problem(), steps=20, batch_size=16)
    assert dense.rollbacks == ()


def test_smaller_steps_survive_an_interruption(tmp_path, tiny_problem):
    """A run that went back, was stopped and is gone on with ends as the one that was not."""
    problem = tiny_problem()

    def dense(checkpoints, callback=lambda record: None):
        return train.train_dense(
            problem, steps=40, batch_size=16, optimizer=jolt(40.0, 7), checkpoints=checkpoints,
            callback=callback,
        )  # fmt: skip

    whole = dense(None)
    checkpoints = Checkpoints(tmp_path / "c", every=0)

    def stop(record):
        if record["step"] == 20:
            checkpoints.request_stop("SIGINT")

    with pytest.raises(Interrupted):
        dense(checkpoints, stop)
    checkpoints.close()
    again = dense(Checkpoints(tmp_path / "c", every=0))
    assert again.rollbacks == whole.rollbacks
    assert bits(again.network.params) == bits(whole.network.params)
