"""What a caller from Python gets wrong: one sentence each, before any work."""

from __future__ import annotations

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import fairbilevel as fb
from fairbilevel.cli import main
from fairbilevel.fairness import DemographicParity, ExcessAccuracyGap

RNG = np.random.default_rng(0)
N = 200
X = RNG.normal(size=(N, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)
GROUP = RNG.integers(0, 2, N)
EVERY = np.arange(N)
ROLES = dict(zip(fb.data.ROLES, np.split(EVERY, [80, 120, 150, 160]), strict=True))


def problem(**given):
    given = {"model": "mlp", "x": X, "y": Y, "group": GROUP, "width": 8, "roles": ROLES, **given}
    return fb.FairPruningProblem(**given)


def without(*names):
    return {k: v for k, v in ROLES.items() if k not in names}


WRONG = {
    "regression": ({"y": X[:, 1]}, "regression is not supported"),
    "one-hot labels": ({"y": np.eye(2)[Y]}, "one class a row"),
    "several labels a row": ({"y": np.ones((N, 3), int)}, "not supported"),
    "no rows": ({"x": None}, "x is None"),
    "no labels": ({"y": None}, "arrays need x, y and group"),
    "a constraint by name": ({"constraints": ["excess-accuracy-gap"]}, "constraints are objects"),
    "a tolerance for constraints": ({"constraints": [0.02]}, "constraints are objects"),
    "a class for a constraint": ({"constraints": [ExcessAccuracyGap]}, "constraints are objects"),
    "counted of another length": ({"counted": np.ones(3, bool)}, "counted has shape"),
    "counted as a number": ({"counted": True}, "counted has shape"),
    "every row in every role": ({"roles": dict.fromkeys(ROLES, EVERY)}, "more than one role"),
    "test rows in fit": ({"roles": {**ROLES, "test": ROLES["fit"]}}, "more than one role"),
    "a row twice": ({"roles": {**ROLES, "fit": np.array([1, 1, 2])}}, "more than one role"),
    "no select": ({"roles": without("select")}, "roles lack select"),
    "fit alone": ({"roles": {"fit": EVERY}}, "roles lack select, tune, certify, test"),
    "rows that are not there": ({"roles": {**ROLES, "test": np.array([N])}}, "outside the 200"),
    "negative rows": ({"roles": {**ROLES, "test": np.array([-1])}}, "outside the 200"),
    "a mask for row numbers": ({"roles": {**ROLES, "test": EVERY > 160}}, "row numbers"),
    "broken row numbers": ({"roles": {**ROLES, "test": np.array([160.5])}}, "row numbers"),
    "a function for a model": ({"model": lambda x: x}, "from_function"),
    "a linen module for a model": ({"model": nn.Dense(2)}, "from_linen"),
    "no model": ({"model": None}, "not NoneType"),
    "a class for a model": ({"model": nnx.Linear}, "not ModuleMeta"),
    "an unknown model": ({"model": "mpl"}, "mlp"),
    "a width no machine holds": ({"width": 10**8}, "take a smaller width"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_problem_that_is_none(case):
    given, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as error:
        problem(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [ExcessAccuracyGap, DemographicParity])
@pytest.mark.parametrize("tolerance", [2, 5.0, (0.02, 3.0), {"0": 2}, -0.1, float("nan"), True])
def test_tolerances_that_no_share_can_have(kind, tolerance):
    with pytest.raises(ValueError, match="tolerance of"):
        kind(tolerance)


def test_one_constraint_needs_no_list():
    limit = ExcessAccuracyGap(0.02)
    assert problem(constraints=limit).constraints == problem(constraints=[limit]).constraints


@pytest.fixture(scope="module")
def known():
    return problem()


class Own(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(4, 8, rngs=rngs)
        self.outer = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.outer(nnx.relu(self.inner(x)))


NO_DENSE = {
    "a number": (3, "dense must be a Network"),
    "a dictionary": ({}, "dense must be a Network"),
    "a path": ("runs/mine", r"fb\.load_run\('runs/mine'\)\.dense"),
    "a Path": (Path("runs/mine"), r"fb\.load_run\('runs/mine'\)\.dense"),
    "a pair of numbers": ((1, 2), "dense must be a Network"),
    "nothing in a pair": (({}, {}), "are not those of"),
    "another model": (Own(nnx.Rngs(0)), "are not those of"),
    "another width": (lambda p: problem(width=4).model.init(jax.random.key(0)), "are not those of"),
}


@pytest.mark.parametrize("case", NO_DENSE)
def test_a_dense_model_that_is_none(case, known):
    dense, message = NO_DENSE[case]
    if callable(dense) and not isinstance(dense, nnx.Module):
        dense = dense(known)
    with pytest.raises(ValueError, match=message) as error:
        fb.solve(known, sparsity=0.5, dense=dense, steps=10)
    assert "\n" not in str(error.value)


def test_a_module_and_a_pair_are_dense_models():
    own = Own(nnx.Rngs(0))
    theirs = problem(model=own, width=None)
    options = {"sparsity": 0.5, "steps": 4, "batch_size": 16}
    solution = fb.solve(theirs, "magnitude", dense=own, **options)
    params, state = fb.models.split_nnx(own)
    again = fb.solve(theirs, "magnitude", dense=(params, state), **options)
    np.testing.assert_array_equal(solution.reference.logits, again.reference.logits)


def test_a_dense_model_that_knows_nothing_is_told():
    """Trained on other inputs than those it gets here: nothing else would show it."""
    given = problem()
    params, state = given.model.init(jax.random.key(0))
    flipped = given.refer(fb.problem.Network(params, state))
    (warning,) = flipped.warnings
    assert "commonest class alone" in warning
    trained = fb.train.train_dense(given, steps=150, batch_size=32, seed=0)
    assert given.refer(trained.network).warnings == ()


def test_a_dense_run_that_used_the_test_rows_is_refused(made, capsys, tmp_path):
    words = ["solve", "--data", str(made / "rows.csv"), "--target", "label", "--group", "group"]
    words += ["--model", "mlp", "--width", "8", "--steps", "10", "--no-baseline"]
    words += ["--dense", str(made / "run")]
    assert main([*words, "--seed", "1", "--out", str(tmp_path / "leak")]) == 2
    said = capsys.readouterr().err
    assert "test rows were used for fitting or choosing" in said
    assert not (tmp_path / "leak").exists()
    assert main([*words, "--out", str(tmp_path / "same")]) == 0


LINES = {
    "a width no machine holds": (["--width", "100000000"], "smaller width"),
    "an unknown option of a method": (["--method", "snip:foo=1"], "foo"),
    "no constraint beside another": (
        ["--constraint", "none", "--constraint", "accuracy-gap=2%"],
        "none",
    ),
    "images of arrays without any": (["--image-size", "16"], "image"),
}


@pytest.mark.parametrize("case", LINES)
def test_options_that_cannot_be_are_refused_before_any_work(case, made, tmp_path, capsys):
    words, message = LINES[case]
    given = ["--data", str(made / "rows.csv"), "--target", "label", "--group", "group"]
    out = ["--model", "mlp", "--out", str(tmp_path / "run"), *words]
    assert main(["solve", *given, *out]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "config.json").exists()
