"""Residual blocks as units: found, removed, not computed any more."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fairbilevel as fb
from fairbilevel import deploy, masks, models

ROW = jax.ShapeDtypeStruct((2, 16, 16, 3), np.float32)


def found(model, sample=ROW):
    params, state = model.init(jax.random.key(0))
    return params, state, masks.find_layers(model.apply, params, state, sample)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet10", ["blocks/0"]),
        ("resnet18", [f"blocks/{i}" for i in (0, 1, 3, 5, 7)]),
        ("mobilenetv2", [f"blocks/{i}" for i in (2, 4, 5, 7, 8, 9, 11, 12, 14, 15)]),
        ("cnn", []),
    ],
)
def test_blocks_of_built_in_models(name, expected):
    model = models.build(name, (16, 16, 3), 4, width=4)
    _, _, layers = found(model)
    assert [block.name for block in layers.blocks] == expected


def test_both_halves_of_a_transformers_layer():
    model = models.build("vit", (16, 16, 3), 4, width=16)
    _, _, layers = found(model)
    assert len(layers.blocks) == 2 * len(model.init(jax.random.key(0))[0]["blocks"])
    assert len({block.name for block in layers.blocks}) == len(layers.blocks)
    kinds = [len(block.kernels) for block in layers.blocks]
    assert kinds[:2] == [4, 2]  # query, key, value, projection; then the hidden layer's two


@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_a_removed_block_changes_nothing_but_itself(name):
    """The masked network, and what is left of it, beside one whose branch is replaced by zeros."""
    model = models.build(name, (16, 16, 3), 4, width=16 if name == "vit" else 4)
    params, state, layers = found(model)
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(p.dtype), params)
    x = jnp.asarray(rng.normal(size=ROW.shape), np.float32)
    gone = layers.blocks[1::2]
    hard = {b.name: jnp.asarray([float(b not in gone)]) for b in layers.blocks}
    z = masks.apply(hard, noisy, layers, "block")
    named = masks.expand(hard, noisy, layers, "block")
    zeroed = sum(int(np.size(m)) for m in jax.tree.leaves(named) if not np.any(m))
    assert zeroed
    apply = jax.jit(lambda p: model.apply(p, state, x, False, jax.random.key(0))[0])
    masked = apply(z)
    # Whatever a removed block held before, its mask leaves nothing of it.
    other = jax.tree.map(lambda p: p + 1.0, noisy)
    mixed = jax.tree.map(lambda m, a, b: a if np.any(m) else b, named, noisy, other)
    np.testing.assert_array_equal(masked, apply(masks.apply(hard, mixed, layers, "block")))
    small, less = masks.compact(masks.filters_of(hard, layers), z, state, layers)
    ours = jax.jit(deploy.forward(deploy.Compact(model, small, less)))(x)
    np.testing.assert_allclose(ours, masked, atol=2e-5)
    whole = jax.make_jaxpr(lambda x: model.apply(z, state, x, False, jax.random.key(0))[0])(x)
    left = jax.make_jaxpr(deploy.forward(deploy.Compact(model, small, less)))(x)
    cost = masks.cost(model.apply, params, state, x, layers, hard, "block")
    assert cost.multiply_adds * len(x) == products(left.jaxpr)
    assert products(whole.jaxpr) == cost.dense_multiply_adds * len(x)
    members = {m.leaf for b in gone for m in b.members}
    assert cost.dense_parameters - cost.parameters == sum(
        int(np.size(leaf))
        for leaf_name, leaf in fb._trees.flatten_named(params).items()
        if leaf_name in members
    )


def products(jaxpr):
    """Multiply-adds of what is used of a program."""
    from jax.interpreters import partial_eval

    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True], instantiate=True)
    return sum(masks._record.multiply_adds_of(eqn) for eqn in jaxpr.eqns)


class Shared(nnx.Module):
    """Two blocks that share a layer, and one whose shortcut has weights."""

    def __init__(self, rngs):
        self.shared = nnx.Linear(8, 8, rngs=rngs)
        self.own = nnx.Linear(8, 8, rngs=rngs)
        self.turned = nnx.Linear(8, 8, rngs=rngs)
        self.constant = nnx.Linear(8, 8, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        x = x + nnx.relu(self.shared(x))
        x = x + self.own(nnx.relu(self.shared(x)))
        x = self.turned(x) + nnx.relu(x)
        return self.head(x + nnx.sigmoid(self.constant(x)))


def test_what_is_no_block():
    """Shared weights belong to nobody, and a sigmoid of zero is no zero."""
    model = models.as_model(Shared(nnx.Rngs(0)))
    _, _, layers = found(model, jax.ShapeDtypeStruct((2, 8), np.float32))
    assert [block.name for block in layers.blocks] == ["own"]


class Deep(nnx.Module):
    """Five blocks of two layers, one after the other."""

    def __init__(self, rngs):
        pairs = range(5)
        self.first = nnx.Linear(12, 8, rngs=rngs)
        self.into = nnx.List([nnx.Linear(8, 8 + 4 * i, rngs=rngs) for i in pairs])
        self.out = nnx.List([nnx.Linear(8 + 4 * i, 8, rngs=rngs) for i in pairs])
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        for into, out in zip(self.into, self.out, strict=True):
            x = x + out(nnx.relu(into(x)))
        return self.head(x)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 12)).astype(np.float32)
    y, group = (x[:, 0] > 0).astype(int), np.arange(400) // 2 % 2
    gap = fb.fairness.ExcessAccuracyGap(0.05)
    return fb.FairPruningProblem(Deep(nnx.Rngs(0)), x, y, group, constraints=gap)


@pytest.mark.parametrize("method", ["bilevel", "gradual-magnitude", "snip", "fairgrape"])
def test_methods_remove_blocks(method, problem, tmp_path):
    dense = problem.refer(problem.initial_network())
    solution = fb.solve(
        problem, method, dense=dense, sparsity=0.5, granularity="block", steps=30, batch_size=16
    )
    kept = {n: int(m.sum()) for n, m in solution.masks.items()}
    assert sum(kept.values()) == 3  # of five
    cost = solution.network_cost()
    assert cost.multiply_adds < cost.dense_multiply_adds
    fb.save_run(solution, tmp_path / "run")
    run = fb.load_run(tmp_path / "run", model=Deep(nnx.Rngs(1)))
    x = problem.data.inputs[:50]
    np.testing.assert_allclose(run.logits(x), solution.logits(x), atol=1e-5)
    artifact = fb.export(run, tmp_path / "m.stablehlo", inputs=problem.data.inputs)
    assert artifact.about["checked"]["changed"] == 0
    dense_file = deploy.write_artifact(
        solution_of_all(solution), tmp_path / "d.stablehlo", inputs=x
    )
    assert artifact.path.stat().st_size < dense_file.path.stat().st_size


def solution_of_all(solution):
    """The same with nothing removed."""
    import dataclasses

    network = solution.reference.network
    every = {n: jnp.ones_like(m) for n, m in solution.masks.items()}
    return dataclasses.replace(solution, network=network, masks=every)


def test_a_share_of_blocks_by_cost(problem):
    method = fb.BilevelSolver(granularity="block", sparsity=0.2, sparsity_of="multiply-adds")
    allocation = method.allocation(problem)
    counts = allocation.keep(
        0.2, masks.magnitude(problem.initial_network().params, problem.layers, "block")
    )
    assert set(counts.values()) == {0, 1}
    assert 0.2 <= allocation.achieved(counts) < 0.35


def test_models_without_blocks():
    data = fb.data.load("digits")
    problem = fb.FairPruningProblem("cnn", data, width=4)
    with pytest.raises(ValueError, match="nothing to prune at granularity 'block'"):
        fb.solve(problem, granularity="block")
