"""What a network takes where it is served: counts by hand, times that are there, the report."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fairbilevel import devices, masks, models

KEY = jax.random.key(0)


def peak(model, *row):
    """In numbers of four bytes."""
    like = jax.eval_shape(model.init, KEY)
    found = masks.peak_activations(model.apply, *like, jax.ShapeDtypeStruct((7, *row), jnp.float32))
    assert found % 4 == 0
    return found // 4


def function(f, **leaves):
    """A model of a function of parameters that have shapes only."""
    return models.from_function(
        f, lambda key: {name: jnp.zeros(sizes) for name, sizes in leaves.items()}
    )


# ---------------------------------------------------------------- activations, by hand


def test_an_mlp_holds_what_a_layer_reads_and_makes():
    assert peak(models.build("mlp", (10,), 3, width=8), 10) == 10 + 8
    assert peak(models.build("mlp", (4,), 9, width=32), 4) == 32 + 16


def test_a_cnn_holds_the_widest_pair_of_layers():
    # 8 x 8 pixels: 3 channels, then 4, then 8 at half the size, then 16 at a quarter.
    sizes = [64 * 3, 64 * 4, 16 * 8, 4 * 16, 16, 5]
    expected = max(a + b for a, b in itertools.pairwise(sizes))
    assert peak(models.build("cnn", (8, 8, 3), 5, width=4), 8, 8, 3) == expected


def conv(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_a_residual_block_keeps_what_it_adds():
    def block(p, x):  # 16 pixels; 2 channels, 6 inside
        return (x + conv(jax.nn.relu(conv(x, p["a"])), p["b"])).sum((1, 2))

    model = function(block, a=(3, 3, 2, 6), b=(3, 3, 6, 2))
    assert peak(model, 4, 4, 2) == 16 * (2 + 6 + 2)


def test_attention_holds_queries_keys_values_and_weights():
    def attention(p, x):  # 5 tokens of 6 numbers, one head
        q, k, v = (x @ p[w] for w in "qkv")
        return (jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v).sum(1)

    found = peak(function(attention, q=(6, 6), k=(6, 6), v=(6, 6)), 5, 6)
    # The row and three projections; the scores come when it and one transposed are gone.
    assert found == 4 * 30


def test_what_does_not_come_from_the_row_is_no_activation():
    def wide(p, x):
        gram = p["w"] @ p["w"].T  # 100 x 100, from parameters alone
        return x @ gram[:3] @ p["w"] + 0 * jnp.broadcast_to(p["b"], (1, 2))

    model = function(wide, w=(100, 2), b=(2,))
    assert peak(model, 3) == 3 + 100


def test_a_result_that_nobody_reads_is_not_made():
    def dead(p, x):
        x @ p["wide"]
        return x @ p["head"]

    assert peak(function(dead, wide=(4, 1000), head=(4, 2)), 4) == 4 + 2


def test_loops_and_branches_hold_their_bodies():
    def loop(p, x):
        def body(c, w):
            return jnp.tanh(c @ w) @ w.T, None

        return lax.scan(body, x, p["stack"])[0]

    # What the loop was given, its result, and of the body the wide array and the next narrow one.
    assert peak(function(loop, stack=(7, 4, 50)), 4) == 4 + 4 + 50 + 4

    def branch(p, x):
        return lax.cond(x.sum() > 0, lambda v: v @ p["up"] @ p["down"], lambda v: v, x)

    assert peak(function(branch, up=(4, 50), down=(50, 4)), 4) == 4 + 4 + 1 + 50 + 4

    def repeat(p, x):
        return lax.while_loop(lambda v: v.sum() > 1, lambda v: v @ p["up"] @ p["down"], x)

    assert peak(function(repeat, up=(4, 50), down=(50, 4)), 4) == 4 + 4 + 50 + 4


class Half(nnx.Module):
    """A network that computes in two bytes."""

    def __init__(self, rngs):
        self.first = nnx.Linear(10, 40, dtype=jnp.bfloat16, rngs=rngs)
        self.head = nnx.Linear(40, 4, dtype=jnp.bfloat16, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.first(x)))


def test_bytes_are_those_of_the_types():
    model = models.as_model(Half(nnx.Rngs(0)))
    like = jax.eval_shape(model.init, KEY)
    row = jax.ShapeDtypeStruct((1, 10), jnp.float32)
    # The row is rounded to half its size first; its float32 form is gone when 40 numbers are made.
    assert masks.peak_activations(model.apply, *like, row) == 2 * 10 + 2 * 40


@pytest.mark.parametrize("name", ["resnet10", "mobilenetv2", "vit", "vgg19"])
def test_a_pruned_network_holds_less(name):
    width = {"vit": 48, "mobilenetv2": 8}.get(name, 16)
    model = models.build(name, (32, 32, 3), 4, width=width)
    params, state = like = jax.eval_shape(model.init, KEY)
    row = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    layers = masks.find_layers(model.apply, params, state, row)
    hard = {c.name: (jnp.arange(c.size) < c.size // 2).astype(jnp.float32) for c in layers.channels}
    cut = jax.eval_shape(lambda p, s: masks.compact(hard, p, s, layers), *like)
    whole = masks.peak_activations(model.apply, *like, row)
    left = masks.peak_activations(model.apply, *cut, row)
    assert 32 * 32 * 3 * 4 < left < whole


# ---------------------------------------------------------------- the timing loop


def test_every_round_takes_each_call_once():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    found = devices.timed(calls, rounds=3)
    assert order == list("abc") * 4  # one round is not counted
    for times in found.values():
        assert times.rounds == 3
        assert 0 <= times.low <= times.median <= times.high


def test_rounds_go_on_until_the_time_is_over(monkeypatch):
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(devices._timing.time, "perf_counter", lambda: next(clock))
    found = devices.timed({"a": lambda: None}, rounds=2, seconds=8.0)
    assert found["a"].rounds > 2
    assert found["a"].median == found["a"].low == found["a"].high == 500.0
