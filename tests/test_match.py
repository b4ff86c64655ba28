"""Output biases that match the dense model: their optimum, where they are found, what they cost."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

import fairbilevel as fb
from fairbilevel._trees import flatten_named
from fairbilevel.train._match import RIDGE, dense_shift, matched, output_bias
from fairbilevel.train._plan import FORWARD_COST


def made(rows=400, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    dense = rng.normal(0, 2, (rows, classes))
    return dense + rng.normal(0, 1, (rows, classes)) + rng.normal(0, 1.5, classes), dense


@pytest.mark.parametrize("classes", [2, 4, 30])
def test_the_shift_is_the_minimum_that_a_general_optimizer_finds(classes):
    logits, dense = made(classes=classes)
    target = special.softmax(dense, 1)

    def divergence(b):
        own = special.log_softmax(logits + b, 1)
        return special.rel_entr(target, np.exp(own)).sum(1).mean() + RIDGE / 2 * b @ b

    found = dense_shift(logits, dense)
    best = optimize.minimize(divergence, np.zeros(classes), tol=1e-12)
    np.testing.assert_allclose(found, best.x - best.x.mean(), atol=2e-5)
    # Each class is as likely on average as the dense model has it, up to the ridge.
    mean = special.softmax(logits + found, 1).mean(0)
    np.testing.assert_allclose(mean, target.mean(0), atol=2 * RIDGE * np.abs(found).max())


def test_a_shift_of_the_dense_model_is_taken_back_and_one_never_told_stays_finite():
    _, dense = made()
    moved = dense + np.array([1.0, -0.5, 0.0, 0.7])
    np.testing.assert_allclose(
        dense_shift(moved, dense), -np.array([1.0, -0.5, 0.0, 0.7]) + 0.3, atol=0.02
    )
    np.testing.assert_allclose(dense_shift(dense, dense), 0, atol=1e-9)
    dense[:, 2] = -1e4  # the dense model never says it
    assert np.isfinite(dense_shift(moved, dense)).all()
    assert dense_shift(moved, dense)[2] < -2


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
def test_every_method_takes_it_and_ends_as_likely_as_the_dense_model(tiny_problem, name):
    problem = tiny_problem()
    problem.roles["tune"] = np.array([], int)  # without rows to tell, it is always done
    reference = fb.train.train_dense(problem, steps=100, batch_size=32, learning_rate=0.05, seed=0)
    rows = problem.roles["select"]
    target = special.softmax(reference.logits[rows], 1).mean(0)

    def solved(match_dense):
        options = {"sparsity": 0.9, "steps": 150, "batch_size": 32, "match_dense": match_dense}
        method = fb.methods.by_name(name, **options)
        solution = method.run(problem, reference)
        mean = special.softmax(problem.logits(solution.network, problem.inputs[rows]), 1).mean(0)
        return method.plan(problem, reference), solution, np.abs(mean - target).max()

    (plain, _, before), (plan, solution, after) = solved(False), solved(True)
    assert after < min(before, 0.002)
    assert plan.matching == pytest.approx(FORWARD_COST * len(rows) / 32)
    assert plan.matching <= 0.03 * 150
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
    assert matched(problem, network, wrong, rows)[0] is not network


def test_few_steps_pay_for_few_rows(tiny_problem):
    problem = tiny_problem()
    method = fb.pruners.GradualMagnitude(steps=40, batch_size=8, match_dense=True)
    rows = method.matching_rows(problem)
    assert len(rows) == int(0.03 * 40 / FORWARD_COST * 8) < len(problem.roles["select"])
    assert len(np.unique(rows)) == len(rows)
    assert set(rows) <= set(problem.roles["select"])
