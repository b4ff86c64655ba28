"""Output biases that match the dense model: their optimum, where they are found, what they cost."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import fairbilevel as fb
from fairbilevel._trees import flatten_named
from fairbilevel.train._finished import class_shift, matched, output_bias
from fairbilevel.train._plan import FORWARD_COST


def made(rows=6000, classes=4, seed=0):
    """Labels, and logits of a dense model and of one that leans towards some classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    dense = rng.normal(0, 1, (rows, classes)) + 2.0 * np.eye(classes)[y]
    pruned = dense + rng.normal(0, 0.7, (rows, classes)) + rng.normal(0, 0.8, classes)
    return y, dense, pruned


def losses(y, dense, pruned):
    """Accuracy that each class loses."""
    lost = (dense.argmax(1) == y).astype(int) - (pruned.argmax(1) == y)
    return np.array([lost[y == c].mean() for c in range(dense.shape[1])]), lost


def spread(values, y):
    share = np.bincount(y) / len(y)
    return share @ (values - share @ values) ** 2


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_all_classes_lose_alike(classes):
    *fitted, others = zip(*[np.split(a, [6000]) for a in made(20_000, classes)], strict=True)
    y, dense, pruned = fitted[0]
    shift = class_shift(pruned, y, dense.argmax(1) == y)
    before, lost = losses(y, dense, pruned)
    after, _ = losses(y, dense, pruned + shift)
    assert shift.mean() == pytest.approx(0, abs=1e-12)
    # Down to what empirical Bayes calls noise, and to a few rows a class.
    noise = np.mean([lost[y == c].var() / (y == c).sum() for c in range(classes)])
    assert spread(before, y) > 20 * noise
    assert spread(after, y) < 0.5 * noise
    # With rows that it was not fitted to as well.
    y, dense, pruned = others
    assert spread(losses(y, dense, pruned + shift)[0], y) < spread(before, y) / 10


def test_two_classes_against_the_threshold_that_a_search_finds():
    y, dense, pruned = made(classes=2, rows=20_000)
    right = dense.argmax(1) == y
    margin = pruned[:, 1] - pruned[:, 0]

    def difference(threshold):
        lost = right.astype(int) - ((margin > threshold) == y)
        return lost[y == 1].mean() - lost[y == 0].mean()

    found = class_shift(pruned, y, right)
    threshold = optimize.bisect(difference, -5, 5)
    # The excess is shrunken by its noise: a hundredth here.
    assert found[0] - found[1] == pytest.approx(threshold, abs=0.03)


def test_what_may_be_noise_moves_nothing():
    rng = np.random.default_rng(0)
    y = np.arange(600) % 3
    moved = []
    for _ in range(20):
        dense = rng.normal(0, 1, (600, 3)) + 2.0 * np.eye(3)[y]
        pruned = dense + rng.normal(0, 0.7, (600, 3))  # no class is harder hit
        moved.append(np.abs(class_shift(pruned, y, dense.argmax(1) == y)).max())
    assert np.sum(np.array(moved) == 0) >= 17  # a test at 5 %
    dense = 5.0 * np.eye(3)[y]
    np.testing.assert_array_equal(class_shift(dense, y, dense.argmax(1) == y), 0)


def test_a_class_that_is_missing_or_lost_for_good_stays_finite():
    y, dense, pruned = made(classes=4)
    keep = y != 2
    assert np.isfinite(class_shift(pruned[keep], y[keep], (dense.argmax(1) == y)[keep])).all()
    pruned[:, 1] = -1e4
    shift = class_shift(pruned, y, dense.argmax(1) == y)
    assert np.isfinite(shift).all()
    assert shift[1] > 0


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet10", "mobilenetv2", "vgg19", "vit"])
def test_built_in_models_have_a_bias_of_their_outputs(name):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 8, 8, 3)).astype(np.float32)
    if name == "mlp":
        x = x.reshape(90, -1)[:, :5]
    y, group = np.arange(90) % 3, np.arange(90) % 2
    problem = fb.FairPruningProblem(name, x, y, group, width=8)
    network = problem.initial_network()
    path = output_bias(problem, network)
    assert flatten_named(network.params)[path].shape == (3,)
    rows = problem.roles["select"]
    shifted, told = matched(problem, network, problem.refer(network), rows)
    assert not told
    rest = {k: v for k, v in flatten_named(shifted.params).items() if k != path}
    for key, value in rest.items():
        np.testing.assert_array_equal(value, flatten_named(network.params)[key])


class Bare(nn.Module):
    """A bias of the right length that is no bias of the outputs, and none that is."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(3)(x))
        return nn.Dense(3, use_bias=False)(x)


def test_a_model_without_such_a_bias_is_left_as_it_is_and_said_to_be(tiny_data):
    module = Bare()

    def init(key):
        return module.init(key, jnp.zeros((1, 6)))["params"], {}

    def apply(params, state, x, train, key):
        return module.apply({"params": params}, x), state

    problem = fb.FairPruningProblem(fb.models.Model(init, apply, "bare"), tiny_data)
    network = fb.Network(*init(jax.random.key(0)))
    assert output_bias(problem, network) is None
    solution = fb.solve(problem, dense=network, sparsity=0.5, steps=20, batch_size=16)
    (told,) = [w for w in solution.warnings if "biases" in w]
    assert "no parameter of model 'bare' is added to its outputs" in told


@pytest.mark.parametrize("name", ["bilevel", "gradual-magnitude", "hydra", "snip"])
def test_every_method_takes_it_and_pays_for_it(name, tiny_problem, monkeypatch):
    problem = tiny_problem()
    problem.roles["tune"] = np.array([], int)  # without rows to tell, it is always done
    reference = fb.train.train_dense(problem, steps=100, batch_size=32, learning_rate=0.05, seed=0)
    seen = []

    def watched(*arguments):
        found = matched(*arguments)
        seen.append((arguments[1], found[0], arguments[3]))
        return found

    monkeypatch.setattr("fairbilevel.train._method_run.matched", watched)

    def solved(match_dense):
        options = {"sparsity": 0.9, "steps": 150, "batch_size": 32, "match_dense": match_dense}
        method = fb.methods.by_name(name, **options)
        return method.plan(problem, reference), method.run(problem, reference), method

    (plain, _, _), (plan, solution, method) = solved(False), solved(True)
    ((before, after, rows),) = seen
    np.testing.assert_array_equal(rows, method.matching_rows(problem))
    assert set(problem.roles["select"]) <= set(rows)
    y, dense = problem.y[rows], reference.logits[rows]
    of = [spread(losses(y, dense, problem.logits(n, problem.inputs[rows]))[0], y)
          for n in (before, after)]  # fmt: skip
    assert of[1] <= of[0]
    assert plan.matching == pytest.approx(FORWARD_COST * len(rows) / 32)
    assert plan.matching <= 0.05 * 150
    assert solution.costs.gradient_evaluations == pytest.approx(plan.evaluations)
    assert plan.evaluations == pytest.approx(plain.evaluations, abs=1)
    assert any("output biases" in line for line in plan.describe())


def test_it_is_left_alone_where_it_costs_accuracy(tiny_problem):
    """A dense model that says one class too often: matching it would cost rows."""
    problem = tiny_problem()
    network = fb.train.train_dense(
        problem, steps=100, batch_size=32, learning_rate=0.05, seed=0
    ).network
    path = output_bias(problem, network)

    def moved(by):
        return fb.Network(
            jax.tree_util.tree_map_with_path(
                lambda p, leaf: leaf + by if fb._trees.path_name(p) == path else leaf,
                network.params,
            ),
            network.state,
        )

    wrong = problem.refer(moved(jnp.array([4.0, 0.0, 0.0])))
    rows = problem.roles["select"]
    assert matched(problem, network, wrong, rows)[0] is network
    problem.roles["tune"] = np.array([], int)
    biased = flatten_named(matched(problem, network, wrong, rows)[0].params)[path]
    # Towards what the dense model says too often.
    assert (biased - flatten_named(network.params)[path]).argmax() == 0
    assert np.abs(biased - flatten_named(network.params)[path]).max() > 0.1


def test_what_the_dense_model_only_remembers_is_no_loss(tiny_problem):
    """All of one class right on the rows that it was fitted to, on tune no better than before: the
    biases would favour that class, cost no accuracy to speak of, and make classes lose unalike."""
    problem = tiny_problem()
    reference = fb.train.train_dense(problem, steps=20, batch_size=32, learning_rate=0.02, seed=0)
    fitted = np.concatenate([problem.roles[r] for r in ("fit", "select")])
    network, tune, y = reference.network, problem.roles["tune"], problem.y
    correct = reference.correct.copy()
    correct[fitted] = np.where(y[fitted] == 2, True, reference.correct[fitted])
    remembered = dataclasses.replace(reference, correct=correct)
    kept = matched(problem, network, remembered, fitted)[0]
    assert kept is network
    problem.roles["tune"] = np.array([], int)
    moved = matched(problem, network, remembered, fitted)[0]
    before, after = (problem.judge(n, tune)[0].astype(int) for n in (network, moved))
    assert (before != after).any()
    assert (before - after).sum() <= np.sqrt(np.abs(before - after).sum())


def test_few_steps_pay_for_few_rows(tiny_problem):
    problem = tiny_problem()
    method = fb.pruners.GradualMagnitude(steps=40, batch_size=8, match_dense=True)
    rows = method.matching_rows(problem)
    assert len(rows) == int(0.05 * 40 / FORWARD_COST * 8) < len(problem.roles["select"])
    assert len(np.unique(rows)) == len(rows)
    assert set(rows) <= set(problem.roles["select"])
