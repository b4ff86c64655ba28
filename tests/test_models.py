"""Built-in models have the published sizes; adapters keep modes, statistics and modules apart."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fairbilevel import _trees, masks, models

KEY = jax.random.key(0)


def parameters(model):
    params, _ = jax.eval_shape(model.init, KEY)
    return _trees.size(params)


def same(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "size", "classes", "published"),
    [
        # torchvision's models of these names
        ("resnet18", 224, 1000, 11_689_512),
        ("resnet34", 224, 1000, 21_797_672),
        ("resnet50", 224, 1000, 25_557_032),
        ("mobilenetv2", 224, 1000, 3_504_872),
        ("vgg19", 224, 1000, 143_678_248),
        # Touvron et al. 2021, table 1: 5 M
        ("vit", 224, 1000, 5_717_416),
        # He et al. 2016, table 6: 0.85 M; the usual CIFAR version of VGG-19: 20.04 M
        ("cifar-resnet56", 32, 10, 853_018),
        ("vgg19", 32, 10, 20_040_522),
    ],
)
def test_published_numbers_of_parameters(name, size, classes, published):
    assert parameters(models.build(name, (size, size, 3), classes)) == published


def resnet_size(blocks, channels, classes, width, kernel):
    """Convolutions, two norm vectors each, classifier, counted by hand."""
    total, inputs = kernel**2 * channels * width + 2 * width, width
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage
        for block in range(count):
            total += 9 * inputs * outputs + 9 * outputs**2 + 4 * outputs
            if block == 0 and (stage > 0 or inputs != outputs):
                total += inputs * outputs + 2 * outputs
            inputs = outputs
    return total + inputs * classes + classes


@pytest.mark.parametrize(
    ("name", "blocks", "size", "width"),
    [
        ("resnet10", (1, 1, 1, 1), 224, None),
        ("resnet10", (1, 1, 1, 1), 32, 16),
        ("resnet18", (2, 2, 2, 2), 32, 8),
        ("resnet18", (2, 2, 2, 2), 65, None),
    ],
)
def test_residual_networks_by_formula(name, blocks, size, width):
    kernel = 3 if size <= 64 else 7
    built = models.build(name, (size, size, 3), 7, width=width)
    assert parameters(built) == resnet_size(blocks, 3, 7, width or 64, kernel)


def test_mlp_and_cnn_by_formula():
    assert parameters(models.build("mlp", (8, 8, 1), 10)) == (
        64 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10
    )
    assert parameters(models.build("mlp", (5,), 2, width=1)) == 5 + 1 + 1 + 1 + 2 + 2
    assert parameters(models.build("cnn", (8, 8, 1), 10, width=4)) == (
        9 * (1 * 4 + 4 * 8 + 8 * 16) + 2 * (4 + 8 + 16) + 16 * 10 + 10
    )


@pytest.mark.parametrize(
    ("size", "before_the_mean"), [(224, (7, 7)), (64, (8, 8)), (32, (4, 4)), (9, (2, 2))]
)
def test_residual_networks_shrink_images_as_published(size, before_the_mean):
    shapes = []

    model = models.build("resnet18", (size, size, 3), 5, width=2)
    params, state = jax.eval_shape(model.init, KEY)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda p, s, x: model.apply(p, s, x, False, KEY)[0])(params, state, x)

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                shapes.append(eqn.outvars[0].aval.shape)
            for value in eqn.params.values():
                if hasattr(value, "jaxpr"):
                    walk(value.jaxpr)

    walk(jaxpr.jaxpr)
    assert shapes[-1] == (1, *before_the_mean, 16)
    assert len(shapes) == 20  # 17 and three shortcuts


@pytest.mark.parametrize(("size", "left"), [(224, 7), (32, 4)])
def test_mobilenet_shrinks_images_as_published(size, left):
    model = models.build("mobilenetv2", (size, size, 3), 5, width=2)
    shapes = jax.eval_shape(model.init, KEY)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda p, s, x: model.apply(p, s, x, False, KEY)[0])(*shapes, x)
    found = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    assert found[-1].outvars[0].aval.shape == (1, left, left, 80)
    assert len(found) == 52
    assert sum(e.params["feature_group_count"] > 1 for e in found) == 17


@pytest.mark.parametrize("name", models.NAMES)
def test_built_in_models_classify(name):
    model = models.build(name, (8, 8, 3), 4, width=2)
    shapes = jax.eval_shape(model.init, KEY)
    x = jax.ShapeDtypeStruct((3, 8, 8, 3), jnp.float32)
    for train in (True, False):
        apply = partial(model.apply, train=train, key=KEY)
        logits, after = jax.eval_shape(apply, *shapes, x)
        assert logits.shape == (3, 4)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, shapes[1])
    assert model.name == name


def test_refused_builds():
    with pytest.raises(ValueError, match="unknown model 'resnet-18': did you mean 'resnet18'"):
        models.build("resnet-18", (8, 8, 3), 4)
    with pytest.raises(ValueError, match=r"wants images \[height, width, channels\].*--model mlp"):
        models.build("cnn", (12,), 4)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        models.build("mlp", (12,), 4, width=0)
    for name, said in (
        ("resnet18:paddding=same", "model 'resnet18' has no option 'paddding': did you mean"),
        ("resnet18:padding=valid", "model 'resnet18:padding=valid': unknown padding 'valid'"),
        ("resnet18:small_images=1", "small_images must be true or false, got '1'"),
        ("vit:depth=101", "depth must be at most 100, got 101"),
        ("vit:heads=0", "heads must be at least 1, got 0"),
        ("mlp:depth=2", "model 'mlp' has no option 'depth': it has none"),
    ):
        with pytest.raises(ValueError, match=said):
            models.build(name, (16, 16, 3), 4)
    with pytest.raises(ValueError, match="images of 16x16 pixels hold no patch of 32x32"):
        jax.eval_shape(models.build("vit:patch=32", (16, 16, 3), 4).init, KEY)


def paddings(name):
    """Of every convolution and pooling of 32 pixels with a stride."""
    model = models.build(name, (32, 32, 3), 5, width=2)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, KEY)
    jaxpr = jax.make_jaxpr(lambda p, s, x: model.apply(p, s, x, False, KEY)[0])(*shapes, x)
    found = set()

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            p = eqn.params
            if eqn.primitive.name == "conv_general_dilated" and p["window_strides"] == (2, 2):
                found.add((eqn.invars[1].aval.shape[0], p["padding"]))
            if eqn.primitive.name == "reduce_window_max":
                found.add(("pool", p["padding"][1:3]))
            for value in p.values():
                if hasattr(value, "jaxpr"):
                    walk(value.jaxpr)

    walk(jaxpr.jaxpr)
    return found


def test_padding_of_strided_convolutions():
    """As JAX and TensorFlow, or as torch."""
    none, one, three = ((0, 0), (0, 0)), ((1, 1), (1, 1)), ((3, 3), (3, 3))
    behind, odd = ((0, 1), (0, 1)), ((2, 3), (2, 3))
    large = ":small_images=false"
    assert paddings("resnet18") == {(1, none), (3, behind)}
    assert paddings(f"resnet18{large}") == {(1, none), (3, behind), (7, odd), ("pool", behind)}
    # The pooling's own padding is an operation before it.
    both = f"{large},padding=symmetric"
    for name in ("resnet18", "resnet50"):
        assert paddings(name + both) == {(1, none), (3, one), (7, three), ("pool", none)}
    assert paddings("mobilenetv2") == {(3, behind)}
    assert paddings(f"mobilenetv2{both}") == {(3, one)}


def test_a_transformer_of_other_patches_depth_and_heads():
    params, _ = jax.eval_shape(
        models.build("vit:patch=8,depth=3,heads=6", (32, 32, 3), 5).init, KEY
    )
    assert len(params["blocks"]) == 3
    assert params["embedding"]["kernel"].shape == (8, 8, 3, 192)
    assert params["blocks"][0]["attention"]["query"]["kernel"].shape == (192, 6, 32)


# ---------------------------------------------------------------- adapters: the same net three ways


class NnxNet(nnx.Module):
    def __init__(self, *, rngs):
        self.first = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.first(x)))))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(6, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, name="head")(x)


class LinenDeterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        x = nn.Dropout(0.5, deterministic=deterministic)(nn.relu(nn.Dense(6)(x)))
        return nn.Dense(3)(x)


def full_form(params, state, x, train, key):
    x = x @ params["first"]
    if train:
        mean = x.mean(0)
        state = {"mean": 0.5 * state["mean"] + 0.5 * mean}
    else:
        mean = state["mean"]
    x = jax.nn.relu(x - mean)
    if train:
        x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0)
    return x @ params["head"], state


def full_params(key):
    one, two = jax.random.split(key)
    return {"first": jax.random.normal(one, (4, 6)), "head": jax.random.normal(two, (6, 3))}


MODELS = {
    "nnx constructor": lambda: models.from_nnx(lambda rngs: NnxNet(rngs=rngs)),
    "nnx module": lambda: models.from_nnx(NnxNet(rngs=nnx.Rngs(3))),
    "linen": lambda: models.from_linen(LinenNet(), jnp.zeros((1, 4))),
    "function": lambda: models.from_function(full_form, full_params, {"mean": jnp.zeros(6)}),
}
X = jax.random.normal(jax.random.key(9), (16, 4)) + 2


@pytest.mark.parametrize("kind", MODELS)
def test_modes_statistics_and_dropout(kind):
    model = MODELS[kind]()
    params, state = model.init(KEY)
    apply = jax.jit(model.apply, static_argnums=3)
    other = jax.random.key(1)

    calm, unchanged = apply(params, state, X, False, KEY)
    assert same(unchanged, state)
    np.testing.assert_array_equal(calm, apply(params, state, X, False, other)[0])

    noisy, moved = apply(params, state, X, True, KEY)
    assert not same(moved, state)
    assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, state)
    np.testing.assert_array_equal(noisy, apply(params, state, X, True, KEY)[0])
    assert np.any(noisy != apply(params, state, X, True, other)[0])
    # Evaluation uses the statistics it is given.
    assert np.any(apply(params, moved, X, False, KEY)[0] != calm)
    # Statistics do not depend on dropout behind them, and move half way to the batch's mean.
    assert same(moved, apply(params, state, X, True, other)[1])


@pytest.mark.parametrize("kind", MODELS)
def test_init_follows_its_key(kind):
    model = MODELS[kind]()
    one, same_again, other = (model.init(k)[0] for k in (KEY, KEY, jax.random.key(1)))
    assert same(one, same_again)
    if kind == "nnx module":  # a built module is the start of every run
        assert same(one, other)
    else:
        assert not same(one, other)


def test_a_users_module_is_left_as_it_was():
    module = NnxNet(rngs=nnx.Rngs(0))
    module.eval()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    model = models.from_nnx(module)
    params, state = model.init(KEY)
    for train in (True, False):
        model.apply(params, state, X, train, KEY)
    assert module.norm.use_running_average is True
    assert module.dropout.deterministic is True
    assert same(jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Param))), before)
    np.testing.assert_array_equal(module.norm.mean[...], np.zeros(6))
    # And what was handed out are copies: a donated parameter does not take the module's along.
    jax.jit(lambda p: p, donate_argnums=0)(params)
    assert np.isfinite(module(X)).all()


def test_nnx_and_linen_agree_on_the_same_numbers():
    linen, other = MODELS["linen"](), MODELS["nnx constructor"]()
    params, state = linen.init(KEY)
    nnx_params, nnx_state = other.init(KEY)
    assert jax.tree.structure(params) == jax.tree.structure(nnx_params)
    left = linen.apply(params, state, X, False, KEY)[0]
    right = other.apply(params, nnx_state, X, False, KEY)[0]
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
    _, moved = linen.apply(params, state, X, True, KEY)
    _, nnx_moved = other.apply(params, nnx_state, X, True, KEY)
    np.testing.assert_allclose(
        moved["batch_stats"]["norm"]["mean"], nnx_moved["norm"]["mean"], rtol=1e-5, atol=1e-6
    )


def test_linen_deterministic_argument():
    model = models.from_linen(LinenDeterministic(), jnp.zeros((1, 4)))
    params, state = model.init(KEY)
    calm = model.apply(params, state, X, False, KEY)[0]
    np.testing.assert_array_equal(calm, model.apply(params, state, X, False, jax.random.key(1))[0])
    assert np.any(model.apply(params, state, X, True, KEY)[0] != calm)
    assert model.name == "LinenDeterministic"


def test_bare_functions():
    model = models.from_function(lambda p, x: x @ p["w"], {"w": jnp.ones((4, 3))})
    params, state = model.init(KEY)
    assert state == {}
    logits, after = model.apply(params, state, X, True, KEY)
    np.testing.assert_allclose(logits, X @ np.ones((4, 3)), rtol=1e-6)
    assert after == {}


@pytest.mark.parametrize("count", [0, 1, 3, 4, 6])
def test_functions_of_another_arity(count):
    arguments = ", ".join(f"a{i}" for i in range(count))
    function = eval(f"lambda {arguments}: None")
    with pytest.raises(ValueError, match=f"takes {count} arguments"):
        models.from_function(function, {})


FAMILIES = {
    "MLP": lambda rngs: models.MLP(128, 3, (8, 4), rngs=rngs),
    "CNN": lambda rngs: models.CNN(2, 3, 4, rngs=rngs),
    "ResNet, basic": lambda rngs: models.ResNet((1, 1), 2, 3, 4, rngs=rngs),
    "ResNet, bottleneck": lambda rngs: models.ResNet((1, 1), 2, 3, 4, bottleneck=True, rngs=rngs),
    "ResNet, large images": lambda rngs: models.ResNet((1,), 2, 3, 4, False, rngs=rngs),
    "CifarResNet": lambda rngs: models.CifarResNet(1, 2, 3, 4, rngs=rngs),
    "MobileNetV2": lambda rngs: models.MobileNetV2(
        2, 3, 8, stages=((1, 16, 1, 1), (6, 24, 2, 2)), rngs=rngs
    ),
    "VGG": lambda rngs: models.VGG((8, 8, 2), 3, 4, rngs=rngs),
    "ViT": lambda rngs: models.ViT((8, 8, 2), 3, 4, 12, 2, rngs=rngs),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_models_train_and_prune_at_both_granularities(family):
    """One compiled step serves dense training and both kinds of mask; the loss falls, removed
    weights stay where they were, gradients reach every parameter."""
    model = models.from_nnx(FAMILIES[family], name=family)
    params, state = jax.jit(model.init)(KEY)
    x = jax.random.normal(jax.random.key(1), (16, 8, 8, 2))
    y = jnp.arange(16) % 3

    def loss(z, state):
        logits, moved = model.apply(z, state, x, True, KEY)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)
        return -jnp.mean(picked), moved

    @jax.jit
    def step(params, state, factors):
        z = jax.tree.map(jnp.multiply, factors, params)
        (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(z, state)
        params = jax.tree.map(lambda p, m, g: p - 0.02 * m * g, params, factors, gradient)
        return params, moved, value, gradient

    def spread(granularity, hard, params):
        whole = masks.expand(hard, params, layers, granularity)
        return jax.tree.map(lambda m, p: jnp.broadcast_to(m, p.shape) + 0 * p, whole, params)

    layers = masks.select_layers(masks.find_layers(model.apply, params, state, x))
    factors = {"dense": jax.tree.map(jnp.ones_like, params)}
    for granularity in ("weight", "filter"):
        budget = masks.Budget.of(layers, granularity, "global")
        scores = jax.jit(masks.magnitude, static_argnums=(1, 2))(params, layers, granularity)
        hard = jax.jit(budget.top_k)(scores, masks.as_counts(budget.keep(0.3)))
        kept = sum(float(m.sum()) for m in hard.values())
        assert kept == budget.prunable - int(0.3 * budget.prunable + 1e-9)
        factors[granularity] = jax.jit(spread, static_argnums=0)(granularity, hard, params)
    for kind, multipliers in factors.items():
        now, statistics, first, gradient = step(params, state, multipliers)
        if kind == "dense":
            # A key's bias shifts all of a token's attention alike: softmax does not see it.
            for name, leaf in _trees.flatten_named(gradient).items():
                assert np.isfinite(leaf).all(), name
                assert np.any(leaf != 0) or name.endswith("key/bias"), name
        for _ in range(5):
            now, statistics, last, _ = step(now, statistics, multipliers)
        assert last < first, kind
        changed = 0
        for m, a, b in zip(*map(jax.tree.leaves, (multipliers, now, params)), strict=True):
            assert not np.any((m == 0) & (a != b))  # removed weights stay where they were
            changed += int(np.any(a != b))
        assert changed > 1
    assert step._cache_size() == 1
