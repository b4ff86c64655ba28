"""What Python code hands over by mistake: one sentence each, before any work."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from flax import linen, nnx

import fairbilevel as fb
from fairbilevel import fairness
from fairbilevel.cli import main

N = 240
RNG = np.random.default_rng(0)
GROUP = np.arange(N) // 2 % 2
Y = np.arange(N) % 2
X = (RNG.normal(size=(N, 4)) + 2 * Y[:, None]).astype(np.float32)
QUICK = {"sparsity": 0.5, "steps": 60, "batch_size": 16}


class Net(nnx.Module):
    """Two layers."""

    def __init__(self, rngs, width=8):
        self.hidden = nnx.Linear(4, width, rngs=rngs)
        self.classifier = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        return self.classifier(nnx.relu(self.hidden(x)))


def problem(model="mlp", x=X, y=Y, group=GROUP, **options):
    if model == "mlp":
        options.setdefault("width", 8)
    return fb.FairPruningProblem(model, x, y, group, **options)


@pytest.fixture(scope="module")
def own():
    """A problem of the module above."""
    return problem(Net(nnx.Rngs(0)))


def changed(**roles):
    drawn = dict(fb.data.split_roles(fb.data.from_arrays(X, Y, GROUP)))
    for name, rows in roles.items():
        if rows is None:
            del drawn[name]
        else:
            drawn[name] = rows(drawn) if callable(rows) else rows
    return drawn


def refused(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- rows, labels, groups


def with_mark(values, marked=-1):
    return np.where(np.arange(N) % 10 == 0, marked, values)


ROWS = {
    "no x": ({"x": None}, "x is None"),
    "no y": ({"y": None}, "arrays need x, y and group"),
    "no group": ({"group": None}, "arrays need x, y and group"),
    "x of text": ({"x": X.astype(str)}, "type <U"),
    "x of objects": ({"x": np.array([{}] * N)}, "type object"),
    "x of complex numbers": ({"x": X + 1j}, "type complex"),
    "x of one axis": ({"x": X[:, 0]}, r"shape \(240,\)"),
    "x of a number": ({"x": 3}, r"shape \(\)"),
    "x without rows": ({"x": X[:0], "y": Y[:0], "group": GROUP[:0]}, r"shape \(0, 4\)"),
    "x without columns": ({"x": X[:, :0]}, r"shape \(240, 0\)"),
    "x with NaN": ({"x": np.where(X > 2, np.nan, X)}, "missing or infinite numbers"),
    "x too short": ({"x": X[:-1]}, "y has shape"),
    "y too short": ({"y": Y[:-1]}, "y has shape"),
    "group too long": ({"group": np.append(GROUP, 0)}, "group has shape"),
    "y of one class": ({"y": 0 * Y}, "a single class"),
    "a single group": ({"group": 0 * GROUP}, "a single group"),
    "y that marks missing labels": ({"y": with_mark(Y)}, "y is -1 in 24 of 240 rows"),
    "groups that mark missing ones": ({"group": with_mark(GROUP)}, "group is -1 in 24"),
    "y with NaN": ({"y": with_mark(Y.astype(float), np.nan)}, "target 'y' is missing"),
    "y with None": ({"y": with_mark(Y.astype(object), None)}, "target 'y' is missing"),
    "regression": ({"y": X[:, 0]}, "regression is not supported"),
    "regression of few values": ({"y": Y + 0.5}, "regression is not supported"),
    "y of many whole numbers": ({"y": np.arange(N)}, "240 different numbers"),
    "one-hot y": ({"y": np.eye(2)[Y]}, "several labels a row are not supported"),
    "multi-label y": ({"y": RNG.integers(0, 2, (N, 5))}, "several labels a row"),
    "y in a column": ({"y": Y[:, None]}, r"y\.argmax\(1\)"),
    "groups in two columns": ({"group": np.stack([GROUP, Y], 1)}, "group has shape"),
}


@pytest.mark.parametrize("case", ROWS)
def test_bad_calls_with_rows(case):
    given, message = ROWS[case]
    refused(lambda: problem(**given), message)


def test_signs_are_two_classes():
    assert problem(y=2 * Y - 1).data.classes == ("-1", "1")


# ---------------------------------------------------------------- roles and groups that count


ROLES = {
    "all rows in each role": (
        dict.fromkeys(fb.data.ROLES, np.arange(N)),
        "240 rows have the roles fit and select",
    ),
    "a role that is missing": (changed(tune=None), "roles lack tune"),
    "a role that is none": (changed() | {"tets": np.arange(3)}, "did you mean 'test'"),
    "rows that are not there": (changed(test=np.array([N])), f"row {N}, outside the {N} rows"),
    "rows counted from the end": (changed(test=np.array([-1])), "row -1, outside"),
    "a row twice": (changed(test=lambda r: np.repeat(r["test"], 2)), "more than once"),
    "a mask instead of rows": (changed(test=lambda r: np.isin(np.arange(N), r["test"])), "bool"),
    "numbers that are not whole": (changed(test=lambda r: r["test"] + 0.0), "float64"),
    "no test rows": (changed(test=np.array([], int)), "no rows in role test"),
    "no select rows": (changed(select=np.array([], int)), "give select more rows"),
    "one group in tune": (
        changed(tune=lambda r: r["tune"][GROUP[r["tune"]] == 0]),
        "group '1' .* no rows in role tune",
    ),
    "one class in fit": (changed(fit=lambda r: r["fit"][Y[r["fit"]] == 0]), "class '1' .* in role"),
    "a list": ([np.arange(3)] * 5, "given: list"),
}


@pytest.mark.parametrize("case", ROLES)
def test_bad_calls_with_roles(case):
    given, message = ROLES[case]
    refused(lambda: problem(roles=given), message)


def test_roles_of_ones_own_may_leave_rows_out():
    roles = changed(certify=np.array([], int))
    assert len(problem(roles=roles).roles["certify"]) == 0


@pytest.mark.parametrize(
    "counted", [[True], np.ones(3, bool), [0, 1], np.array([1.0, 0.0]), "01", [False, False], True]
)
def test_bad_calls_with_counted(counted):
    refused(lambda: problem(counted=counted), "counted holds one truth value for each of the 2")


# ---------------------------------------------------------------- constraints


@pytest.mark.parametrize(
    "constraints",
    ["excess-accuracy-gap=2%", fairness.ExcessAccuracyGap, [fairness.AccuracyGap], {"a": 1}, 0.02,
     None, [None], [[fairness.AccuracyGap()]]],
    ids=str,
)  # fmt: skip
def test_bad_calls_with_constraints(constraints):
    refused(lambda: problem(constraints=constraints), "constraints are objects such as")


def test_one_constraint_needs_no_list(own):
    gap = fairness.ExcessAccuracyGap(0.1)
    assert problem(constraints=gap).constraints == (gap,)
    method = fb.BilevelSolver(constraints=gap, **QUICK)
    assert method.enforced(own) == (gap,)


@pytest.mark.parametrize("kind", [
    fairness.AccuracyGap, fairness.DegradationGap, fairness.ExcessAccuracyGap,
    fairness.AbsoluteExcessAccuracyGap, fairness.DemographicParity, fairness.EqualOpportunity,
    fairness.EqualizedOdds,
])  # fmt: skip
def test_bad_calls_with_points(kind):
    refused(lambda: kind(2), r"a fraction of at most 1, got 2: 2 points are 0\.02")
    refused(lambda: kind({"*": 0.02, "women": 5}), "5 points are")
    assert fairness.EqualizedLoss(2).tolerance == 2  # nats


@pytest.mark.parametrize("tolerance", ["2%", None, True, [0.1, "0.2"], {"*": "1"}, object(), {0.1}])
def test_bad_calls_with_tolerances(tolerance):
    refused(lambda: fairness.ExcessAccuracyGap(tolerance), "is a number such as 0.02")


# ---------------------------------------------------------------- models


def bare(params, x):
    return x @ params


MODELS = {
    "None": (None, "a NoneType is no model yet"),
    "a number": (3, "a int is no model yet"),
    "a function": (bare, r"fb\.models\.from_function"),
    "a constructor": (Net, r"fb\.models\.from_nnx"),
    "a linen module": (linen.Dense(2), r"fb\.models\.from_linen"),
    "parameters": ({"kernel": X}, "a dict is no model yet"),
    "a linen module of other columns": (
        fb.models.from_linen(linen.Dense(2), X[:1, :3]),
        r"does not take rows of shape \[4",
    ),
    "a name that is none": ("resnet-18", "did you mean 'resnet18'"),
    "an image model": ("cnn", "wants images"),
    "one logit": (fb.models.from_function(lambda p, x: x @ p, X[:4, :1]), "gives 1 logits a row"),
    "no logits": (fb.models.from_function(lambda p, x: (x @ p).sum(), X[:4, :2]), "shape "),
    "pairs": (fb.models.from_function(lambda p, x: (x @ p, x), X[:4, :2]), "several arrays"),
    "other columns": (fb.models.from_function(bare, X[:3, :2]), r"does not take rows of shape \[4"),
}


@pytest.mark.parametrize("case", MODELS)
def test_bad_calls_with_models(case):
    model, message = MODELS[case]
    refused(lambda: problem(model), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 10**8}, "5,000,000,650,000,002 parameters, .* GiB are there"),
        ({"width": 0}, "width must be at least 1"),
        ({"model": Net(nnx.Rngs(0)), "width": 8}, "width is for built-in models"),
        ({"model": Net(nnx.Rngs(0)), "remat": True}, "remat is for built-in models"),
        ({"precision": "float16"}, "precision is float32 or bfloat16"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"role_fractions": {"fit": 1.5, "test": -0.5}}, "sum to 1"),
        ({"role_fractions": {"train": 0.5, "test": 0.5}}, "role fractions name 'train'"),
        ({"normalize": "fitt"}, "did you mean 'fit'"),
        ({"normalize": None}, "give fit, none, or mean and deviation"),
        ({"normalize": 0.5}, "give fit, none, or mean and deviation"),
        ({"normalize": (0.5,)}, "give fit, none, or mean and deviation"),
        ({"normalize": (0.0, 0.0)}, "deviations above 0"),
        ({"normalize": (0.0, -1.0)}, "deviations above 0"),
        ({"normalize": (np.nan, 1.0)}, "give finite numbers"),
        ({"normalize": ("a", 1.0)}, "give finite numbers"),
        ({"normalize": ([0, 0, 0], 1.0)}, "3 numbers as mean for 4 entries"),
    ],
)
def test_bad_options_of_problems(options, message):
    refused(lambda: problem(**options), message)


def test_images_are_normalized_on_the_scale_of_one():
    pixels = RNG.integers(0, 256, (N, 4, 4, 3), dtype=np.uint8)
    refused(lambda: problem(x=pixels, normalize=(127.5, 127.5)), "divide by 255")


# ---------------------------------------------------------------- dense models


def test_a_dense_model_in_every_form_is_the_same(own):
    net = Net(nnx.Rngs(1))
    params = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    forms = (net, nnx.state(net), nnx.state(net, nnx.Param), params, (params, {}),
             fb.Network(params, {}))  # fmt: skip
    solved = [fb.solve(own, "magnitude", dense=dense, **QUICK) for dense in forms[:1]]
    assert np.array_equal(
        solved[0].reference.network.params["hidden"]["kernel"], params["hidden"]["kernel"]
    )
    for form in forms:
        found = own.network(form)
        assert found.state == {}
        for layer in ("hidden", "classifier"):
            assert np.array_equal(found.params[layer]["kernel"], params[layer]["kernel"])


DENSE = {
    "a path": ("runs/mine", "runs/mine does not exist"),
    "a number": (3, "is no dense model"),
    "arrays alone": ([X, X], "is no dense model"),
    "three parts": (({}, {}, {}), "is no dense model"),
    "an empty dictionary": ({}, "have no entry 'classifier/bias'"),
    "a wider module": (Net(nnx.Rngs(0), 9), r"has shape \(9, 2\), the model wants \(8, 2\)"),
    "another module": (nnx.Linear(4, 2, rngs=nnx.Rngs(0)), "have no entry"),
    "state that the model has not": (
        (nnx.to_pure_dict(nnx.state(Net(nnx.Rngs(0)), nnx.Param)), {"mean": X}),
        "whose state knows no 'mean'",
    ),
    "weights that are not finite": (
        fb.Network(
            {"hidden": {"kernel": np.full((4, 8), np.nan), "bias": np.zeros(8)},
             "classifier": {"kernel": np.zeros((8, 2)), "bias": np.zeros(2)}}, {}
        ),
        "'hidden/kernel' holds values not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DENSE)
def test_bad_calls_with_dense_models(own, case):
    dense, message = DENSE[case]
    refused(lambda: fb.solve(own, "magnitude", dense=dense, **QUICK), message)


def test_bad_calls_with_a_reference_of_other_rows(own):
    other = problem(Net(nnx.Rngs(0)), X[:-40], Y[:-40], GROUP[:-40])
    reference = other.refer(other.initial_network())
    refused(
        lambda: fb.solve(own, "magnitude", dense=reference, **QUICK),
        "200 rows and the problem 240",
    )


# ---------------------------------------------------------------- solving, and what comes of it


SOLVE = {
    "no problem": (lambda p: fb.solve("mlp"), "takes a fb.FairPruningProblem"),
    "a data set": (lambda p: fb.solve(p.data), "got a Dataset"),
    "a class for a method": (lambda p: fb.solve(p, fb.BilevelSolver), "the method is a name"),
    "no method": (lambda p: fb.solve(p, None), "the method is a name"),
    "an unknown method": (lambda p: fb.solve(p, "snipp"), "did you mean 'snip'"),
    "an unknown option": (lambda p: fb.solve(p, "snip", sparsty=0.5), "no option 'sparsty'"),
    "an unknown option in text": (lambda p: fb.solve(p, "snip:foo=1"), "no option 'foo'"),
    "no sparsity": (lambda p: fb.solve(p, sparsity=1.0), r"must lie in \[0, 1\)"),
    "options beside a method": (
        lambda p: fb.solve(p, fb.BilevelSolver(), sparsity=0.5),
        "the method brings its options",
    ),
    "no steps": (lambda p: fb.solve(p, "lottery", steps=0), "steps must be at least 1"),
    "no dense steps": (lambda p: fb.solve(p, "magnitude", dense_steps=0, **QUICK), "at least 1"),
}


@pytest.mark.parametrize("case", SOLVE)
def test_bad_calls_of_solve(own, case):
    call, message = SOLVE[case]
    refused(lambda: call(own), message)


def test_bad_calls_of_what_is_solved(own, tmp_path):
    net = Net(nnx.Rngs(0))
    solution = fb.solve(own, "magnitude", dense=net, **QUICK)
    refused(lambda: solution.evaluate("tset"), "unknown role 'tset': did you mean 'test'")
    refused(lambda: solution.evaluate("certify"), "certify rows are looked at once")
    refused(lambda: solution.predict(X[:, :3]), "rows have shape")
    refused(lambda: solution.predict(None), "type object")
    path = fb.save_run(solution, tmp_path / "run")
    refused(lambda: fb.load_run(path), "pass it as model")
    refused(lambda: fb.load_run(path, model=bare), r"fb\.models\.from_function")
    refused(lambda: fb.load_run(path, model=Net(nnx.Rngs(0), 9)), "does not fit the model")
    read = fb.load_run(path, model=Net(nnx.Rngs(5)))
    assert np.array_equal(read.predict(X), solution.predict(X))
    refused(lambda: fb.save_run(solution, path), "already holds a run")
    refused(lambda: fb.solve(own, dense=SimpleNamespace(params={})), "is no dense model")


def test_a_dense_run_that_used_the_test_rows_is_refused(made, capsys, tmp_path):
    words = ["solve", "--data", str(made / "rows.csv"), "--target", "label", "--group", "group"]
    words += ["--model", "mlp", "--width", "8", "--steps", "10", "--no-baseline"]
    words += ["--dense", str(made / "run")]
    assert main([*words, "--seed", "1", "--out", str(tmp_path / "leak")]) == 2
    said = capsys.readouterr().err
    assert "test rows were used for fitting or choosing" in said
    assert not (tmp_path / "leak").exists()
    assert main([*words, "--out", str(tmp_path / "same")]) == 0
