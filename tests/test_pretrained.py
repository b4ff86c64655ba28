"""Networks trained elsewhere are read whole, or refused in one sentence."""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import fairbilevel as fb
from fairbilevel._trees import flatten_named
from fairbilevel.cli import main
from fairbilevel.models import to_torch
from fairbilevel.pretrained import model_of, read
from fairbilevel.pretrained._checkpoint import PENALTIES, _features

pytest.importorskip("safetensors", reason="the extra safetensors is not installed")
from safetensors.numpy import load_file, save, save_file

TIMM = {"resnet18": "resnet18", "resnet34": "resnet34", "resnet50": "resnet50",
        "mobilenetv2": "mobilenetv2_100", "vit": "vit_tiny_patch16_224"}  # fmt: skip
COUNTER = "num_batches_tracked"

# ---------------------------------------------------------------- timm's tensors, by rule


def norm(name, width):
    shapes = {
        f"{name}.{end}": (width,) for end in ("weight", "bias", "running_mean", "running_var")
    }
    return shapes | {f"{name}.{COUNTER}": ()}


def dense(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def resnet(counts, bottleneck=False, width=64, classes=1000, stem=7):
    """ResNet of timm: ``conv1``, ``bn1``, ``layer1`` to ``layer4``, ``fc``."""
    found = {"conv1.weight": (width, 3, stem, stem)} | norm("bn1", width)
    inputs = width
    for stage, count in enumerate(counts):
        inside = width * 2**stage
        outputs = inside * (4 if bottleneck else 1)
        for block in range(count):
            at = f"layer{stage + 1}.{block}"
            sizes = [(inputs, inside, 3), (inside, inside, 3)]
            if bottleneck:
                sizes = [(inputs, inside, 1), (inside, inside, 3), (inside, outputs, 1)]
            for i, (before, behind, kernel) in enumerate(sizes, 1):
                found[f"{at}.conv{i}.weight"] = (behind, before, kernel, kernel)
                found |= norm(f"{at}.bn{i}", behind)
            if block == 0 and (stage or inputs != outputs):
                found[f"{at}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                found |= norm(f"{at}.downsample.1", outputs)
            inputs = outputs
    return found | dense("fc", inputs, classes)


def mobilenet(width=32, classes=1000):
    """MobileNetV2 of timm: ``conv_stem``, ``blocks.STAGE.BLOCK``, ``conv_head``."""
    found = {"conv_stem.weight": (width, 3, 3, 3)} | norm("bn1", width)
    found["blocks.0.0.conv_dw.weight"] = (width, 1, 3, 3)
    found["blocks.0.0.conv_pw.weight"] = (width // 2, width, 1, 1)
    found |= norm("blocks.0.0.bn1", width) | norm("blocks.0.0.bn2", width // 2)
    inputs = width // 2
    for stage, (outputs, count) in enumerate(
        ((24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1)), 1
    ):
        outputs = outputs * width // 32
        for block in range(count):
            at, inside = f"blocks.{stage}.{block}", 6 * inputs
            found[f"{at}.conv_pw.weight"] = (inside, inputs, 1, 1)
            found[f"{at}.conv_dw.weight"] = (inside, 1, 3, 3)
            found[f"{at}.conv_pwl.weight"] = (outputs, inside, 1, 1)
            found |= norm(f"{at}.bn1", inside) | norm(f"{at}.bn2", inside)
            found |= norm(f"{at}.bn3", outputs)
            inputs = outputs
    last = 1280 * width // 32
    found["conv_head.weight"] = (last, inputs, 1, 1)
    return found | norm("bn2", last) | dense("classifier", last, classes)


def transformer(width=192, depth=12, patch=16, side=14, classes=1000):
    """Vision transformer of timm with a class token."""
    found = {"cls_token": (1, 1, width), "pos_embed": (1, side**2 + 1, width)}
    found |= {"patch_embed.proj.weight": (width, 3, patch, patch)}
    found |= {"patch_embed.proj.bias": (width,)}
    for block in range(depth):
        at = f"blocks.{block}"
        for name in ("norm1", "norm2"):
            found |= {f"{at}.{name}.weight": (width,), f"{at}.{name}.bias": (width,)}
        found |= dense(f"{at}.attn.qkv", width, 3 * width) | dense(f"{at}.attn.proj", width, width)
        found |= dense(f"{at}.mlp.fc1", width, 4 * width)
        found |= dense(f"{at}.mlp.fc2", 4 * width, width)
    return found | {"norm.weight": (width,), "norm.bias": (width,)} | dense("head", width, classes)


RULES = {
    "resnet18": resnet((2, 2, 2, 2)),
    "resnet34": resnet((3, 4, 6, 3)),
    "resnet50": resnet((3, 4, 6, 3), True),
    "mobilenetv2": mobilenet(),
    "vit": transformer(),
}
NARROW = {
    "resnet18": resnet((2, 2, 2, 2), width=4, classes=3),
    "resnet34": resnet((3, 4, 6, 3), width=2, classes=3),
    "resnet50": resnet((3, 4, 6, 3), True, 2, 3),
    "mobilenetv2": mobilenet(8, 3),
    "vit": transformer(64, 2, 4, 4, 3),
}


@pytest.mark.parametrize("name", TIMM)
def test_names_and_shapes_are_those_of_timm(name):
    timm = pytest.importorskip("timm", reason="timm and torch are not installed")
    theirs = timm.create_model(TIMM[name]).state_dict()
    assert {key: tuple(values.shape) for key, values in theirs.items()} == RULES[name]


@pytest.mark.parametrize("name", TIMM)
def test_every_tensor_has_one_place(name):
    """Tensors of timm and arrays of ours, one to one; counters of batches are all that is left."""
    trees = jax.eval_shape(fb.models.build(name, (224, 224, 3), 1000).init, jax.random.key(0))
    arrays = {
        f"{part}/{leaf}": np.broadcast_to(np.float32(0), value.shape)
        for part, tree in zip(("param", "state"), trees, strict=True)
        for leaf, value in flatten_named(tree).items()
    }
    theirs, made = to_torch(name, arrays)
    assert {key: values.shape for key, values in theirs.items()} == RULES[name]
    assert theirs.keys() - made.keys() == {key for key in RULES[name] if key.endswith(COUNTER)}
    places = [ours for parts in made.values() for ours, _ in parts]
    assert sorted(places) == sorted(arrays)


# ---------------------------------------------------------------- reading


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes.items():
        if name.endswith(COUNTER):
            arrays[name] = np.array(7)
            continue
        values = rng.normal(size=shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        near_one = name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight"))
        arrays[name] = (1 + 0.1 * np.tanh(values) if near_one else values).astype(np.float32)
    return arrays


@pytest.fixture
def file(tmp_path):
    def write(arrays, name="net.safetensors", **metadata):
        path = tmp_path / name
        save_file(arrays, path, metadata or {"format": "pt"})
        return path

    return write


def images(pixels=16, classes=3, rows=240):
    rng = np.random.default_rng(1)
    y, group = np.arange(rows) % classes, np.arange(rows) // classes % 2
    x = rng.integers(0, 120, (rows, pixels, pixels, 3)) + 60 * y[:, None, None, None]
    return x.clip(0, 255).astype(np.uint8), y, group


def problem_of(path, pixels=16, classes=3, name="auto", **options):
    name, width = model_of(path, name)
    return fb.FairPruningProblem(name, *images(pixels, classes), width=width, **options)


@pytest.mark.parametrize("name", NARROW)
def test_weights_are_read_and_written_back(name, file):
    """By ``auto``: the architecture is that of the file."""
    arrays = drawn(NARROW[name])
    path = file(arrays)
    problem = problem_of(path)
    given = read(path).network(problem)
    assert fb.models.family_of(problem.model.name) == name
    assert not given.new_head
    ours = {f"param/{n}": np.asarray(v) for n, v in flatten_named(given.network.params).items()}
    ours |= {f"state/{n}": np.asarray(v) for n, v in flatten_named(given.network.state).items()}
    back, _ = to_torch(name, ours)
    assert back.keys() == arrays.keys()
    for key, values in back.items():
        if not key.endswith(COUNTER):
            np.testing.assert_array_equal(values, arrays[key])


@pytest.mark.parametrize(("name", "pixels"), [
    ("resnet18", 64), ("resnet34", 33), ("resnet50", 32), ("mobilenetv2", 48), ("vit", 224),
    ("vit", 64),
])  # fmt: skip
def test_logits_are_those_of_timm(name, pixels, file):
    timm = pytest.importorskip("timm", reason="timm and torch are not installed")
    torch = pytest.importorskip("torch", reason="timm and torch are not installed")
    kind = {"num_classes": 3, **({"img_size": pixels} if name == "vit" else {})}
    whole = {
        k: v.shape for k, v in timm.create_model(TIMM[name], num_classes=3).state_dict().items()
    }
    arrays = drawn({key: tuple(shape) for key, shape in whole.items()})
    path = file(arrays)
    problem = problem_of(path, pixels, name=name, normalize="imagenet")
    module = timm.create_model(TIMM[name], **kind).eval()
    theirs = {key: torch.from_numpy(values.copy()) for key, values in arrays.items()}
    if name == "vit" and pixels != 224:
        side = pixels // 16
        resample = timm.layers.resample_abs_pos_embed
        theirs["pos_embed"] = resample(theirs["pos_embed"], (side, side), num_prefix_tokens=1)
    module.load_state_dict(theirs)
    raw = problem.inputs[:3].astype(np.float32) / 255
    rows = (raw - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    with torch.no_grad():
        there = module(torch.from_numpy(rows.transpose(0, 3, 1, 2).astype(np.float32))).numpy()
    given = read(path).network(problem).network
    x, key = problem.normalize(jnp.asarray(problem.inputs[:3])), jax.random.key(0)
    here, _ = problem.model.apply(given.params, given.state, x, False, key)
    size = max(1.0, float(np.abs(there).max()))
    assert np.ptp(there) > 0.01
    np.testing.assert_allclose(here, there, atol=1e-4 * size, rtol=0)


def test_half_precision_and_a_small_stem(file):
    arrays = drawn(resnet((2, 2, 2, 2), width=4, classes=3, stem=3))
    half = {k: v if k.endswith(COUNTER) else v.astype(jnp.bfloat16) for k, v in arrays.items()}
    path = file(half)
    assert model_of(path) == ("resnet18:padding=symmetric,small_images=true", 4)
    given = read(path).network(problem_of(path))
    assert "a convolution of 3x3, which is taken for one of stride 1" in given.notes[0]
    stem = np.asarray(given.network.params["stem"]["kernel"])
    expected = arrays["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(stem, expected, rtol=1e-2)


def test_positions_of_other_images_are_resampled(file):
    """An embedding that is the same everywhere stays so, the class token's stays what it is."""
    arrays = drawn(NARROW["vit"])
    arrays["pos_embed"][0, 1:] = np.arange(64)
    path = file(arrays)
    given = read(path).network(problem_of(path, 24))
    assert "was resampled from 4x4 to 6x6 patches" in given.notes[0]
    found = np.asarray(given.network.params["position"])
    assert found.shape == (1, 37, 64)
    np.testing.assert_array_equal(found[0, 0], arrays["pos_embed"][0, 0])
    np.testing.assert_allclose(found[0, 1:], np.tile(np.arange(64.0), (36, 1)), atol=1e-4)


def test_names_of_the_user_win(file):
    path = file(drawn(NARROW["vit"]))
    assert model_of(path, "vit:heads=2") == ("vit:depth=2,heads=2,patch=4", 64)
    assert model_of(path, "vit", 32)[1] == 32
    path = file(drawn(NARROW["resnet18"]), "other.safetensors")
    assert model_of(path, "resnet18:padding=same")[0].startswith("resnet18:padding=same,")


# ---------------------------------------------------------------- a classifier of other classes


def test_a_classifier_of_other_classes_is_trained_anew(file):
    arrays = drawn(NARROW["vit"])
    path = file(arrays)
    problem = problem_of(path, classes=2)
    solution = fb.solve(problem, "magnitude", dense=path, sparsity=0.5, steps=4, batch_size=16)
    (said,) = (w for w in solution.warnings if "classifier" in w)
    rows = len(problem.roles["fit"])
    assert said == (
        f"the classifier of {path} answers 3 classes and the data has 2: it was replaced by a new "
        f"one, trained on the {rows} rows of fit while all layers before it stayed as they are"
    )
    network = solution.reference.network
    np.testing.assert_array_equal(network.params["token"], arrays["cls_token"])
    found = solution.reference.correct[problem.roles["test"]].mean()
    assert found > 0.9
    # A stationary point of the penalized loss, for one of the penalties.
    head = {k: np.asarray(v, np.float64) for k, v in network.params["classifier"].items()}
    seen = _features(problem, network, 64)(problem.inputs[problem.roles["fit"]])
    z, std = (seen - seen.mean(0)) / seen.std(0), seen.std(0)
    logits = seen @ head["kernel"] + head["bias"]
    chance = fb.problem.probabilities(logits)
    apart = chance - np.eye(2)[problem.y[problem.roles["fit"]]]
    slope, plane = z.T @ apart / len(z), head["kernel"] * std[:, None]
    left = [np.abs(2 * slope + p * 2 * plane).max() for p in PENALTIES]
    assert min(left) < 1e-2
    np.testing.assert_allclose(apart.mean(0), 0, atol=1e-2)


def test_a_file_without_classifier(file):
    arrays = {k: v for k, v in drawn(NARROW["vit"]).items() if not k.startswith("head.")}
    path = file(arrays)
    given = read(path).network(problem_of(path))
    assert given.new_head
    assert "is not there and the data has 3" in given.notes[0]


# ---------------------------------------------------------------- what is refused


def without(name):
    return lambda arrays: {k: v for k, v in arrays.items() if k != name}


def changed(name, make):
    return lambda arrays: {**arrays, name: make(arrays.get(name))}


REFUSED = {
    "a missing tensor": (without("layer2.0.conv1.weight"), "lacks 'layer2.0.conv1.weight'"),
    "one too many": (
        changed("layer1.0.se.fc1.weight", lambda _: np.zeros((4, 4, 1, 1), np.float32)),
        "holds 'layer1.0.se.fc1.weight', which has no place in resnet18",
    ),
    "another shape": (
        changed("layer1.0.conv1.weight", lambda a: a[:, :2].copy()),
        r"'layer1.0.conv1.weight' of shape \[4, 2, 3, 3\], and resnet18 here has \[4, 4, 3, 3\]",
    ),
    "another input": (
        changed("conv1.weight", lambda a: a[:, :1].copy()),
        r"'conv1.weight' of shape \[4, 1, 7, 7\]",
    ),
    "a deep stem": (
        lambda a: {("conv1.0.weight" if k == "conv1.weight" else k): v for k, v in a.items()},
        "has no convolution 'conv1.weight'",
    ),
    "a stem of 5x5": (
        changed("conv1.weight", lambda a: a[..., :5, :5].copy()), "of 3x3 or 7x7",
    ),
    "integers": (changed("fc.bias", lambda a: a.astype(np.int8)), "'fc.bias' as int8"),
    "no number": (changed("bn1.bias", lambda a: a * np.nan), "values in 'bn1.bias' that are not"),
    "another classifier": (
        changed("fc.weight", lambda a: a[:, :5].copy()),
        r"'fc.weight' of shape \[3, 5\]",
    ),
    "a longer network": (lambda _: drawn(NARROW["resnet34"]), "timm's resnet34, not resnet18"),
    "a transformer": (lambda _: drawn(NARROW["vit"]), "timm's vit, not resnet18"),
    "nothing": (lambda _: {"a": np.zeros(2, np.float32)}, "it holds 'a'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def narrow():
    return fb.FairPruningProblem(
        "resnet18:padding=symmetric,small_images=false", *images(), width=4
    )


@pytest.mark.parametrize("case", REFUSED)
def test_other_files_are_refused_in_a_sentence(case, file, narrow):
    change, said = REFUSED[case]
    path = file(change(drawn(NARROW["resnet18"])))
    with pytest.raises(ValueError, match=said) as error:
        read(path).network(narrow)
    assert len(str(error.value).splitlines()) == 1
    assert str(path) in str(error.value)


def test_other_models_of_the_problem_are_refused(file):
    path = file(drawn(NARROW["resnet18"]))
    given = read(path)
    plain = fb.FairPruningProblem("resnet18", *images(), width=4)
    with pytest.raises(ValueError, match="is of the model 'resnet18:padding=symmetric,small"):
        given.network(plain)
    with pytest.raises(ValueError, match=r"which are read for resnet10, .* not for cnn"):
        model_of(path, "cnn")
    own = fb.FairPruningProblem(fb.models.CNN(3, 3, 4, rngs=nnx.Rngs(0)), *images())
    with pytest.raises(ValueError, match="which are read for built-in models"):
        given.network(own)
    arrays = drawn(transformer(96, 1, 4, 4, 3))
    with pytest.raises(ValueError, match="tokens of 96 entries, and no shape tells"):
        model_of(file(arrays, "other.safetensors"))


def test_damaged_files_and_other_kinds(file, tmp_path, monkeypatch):
    good = save(drawn(NARROW["vit"]))
    cases = {
        "cut.safetensors": (good[:-5], "cannot be read as safetensors"),
        "empty.safetensors": (b"", "cannot be read as safetensors"),
        "net.stablehlo": (b"ML\xefR" + b"0" * 40, "holds a program .StableHLO and the like."),
        "net.onnx": (b"\x08\x07", "holds a program"),
        "unnamed": (b"ML\xefR" + b"0" * 40, "it has no weights to prune"),
        "net.pth": (b"PK\x03\x04", "is pickled, and nothing pickled is read"),
        "net.txt": (b"hello", "is neither safetensors nor a folder of Orbax"),
    }
    for name, (data, said) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=said) as error:
            read(tmp_path / name)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ValueError, match="absent does not exist"):
        read(tmp_path / "absent")
    with pytest.raises(ValueError, match="has pruned and exported"):
        read(file(drawn(NARROW["vit"]), fairbilevel="{}"))
    with pytest.raises(ValueError, match="is no checkpoint of Orbax"):
        read(tmp_path)
    path = file(drawn(NARROW["vit"]), "later.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"needs safetensors: pip install 'fairbilevel\[safetens"):
        read(path)


# ---------------------------------------------------------------- Orbax


@pytest.fixture(scope="module")
def module():
    return fb.models.MobileNetV2(3, 3, 2, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def folders(module, tmp_path_factory):
    """The same network as five people would keep it."""
    place = tmp_path_factory.mktemp("orbax")
    state = nnx.state(module)
    params, rest = fb.models.named_arrays(state)
    alone = nnx.to_pure_dict(nnx.state(module, (nnx.Param, nnx.BatchStat)))
    with ocp.StandardCheckpointer() as writer:
        writer.save(place / "state", state)
        parts = {
            "params": params,
            "batch_stats": nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)),
        }
        writer.save(place / "parts", parts)
        writer.save(place / "training", {"model": state, "opt_state": {"count": np.int32(3)}})
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(place / "tree", alone)
    with ocp.CheckpointManager(place / "steps") as manager:
        manager.save(3, args=ocp.args.StandardSave(alone))
    assert rest
    return place


@pytest.fixture(scope="module")
def mobile():
    return fb.FairPruningProblem("mobilenetv2", *images(), width=2)


@pytest.mark.parametrize("name", ["state", "parts", "training", "tree", "steps/3"])
def test_orbax_folders_are_read(name, module, folders, mobile):
    problem = mobile
    given = read(folders / name).network(problem)
    expected = problem.network(module)
    for one, other in (
        (given.network.params, expected.params),
        (given.network.state, expected.state),
    ):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)
    assert given.notes == ()


@pytest.mark.parametrize("beside", ["ema", "mu", "grads"])
def test_averages_and_moments_are_not_taken_for_weights(beside, tmp_path):
    problem = fb.FairPruningProblem("mlp", *images(), width=4)
    params = jax.tree.map(np.asarray, problem.initial_network(0).params)
    other = jax.tree.map(np.zeros_like, params)
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(tmp_path / "two", {beside: other, "params": params})
        writer.save(tmp_path / "none", {beside: other, "slow": params})
        inside = {beside: {"params": other}, "train": {"params": params}}
        writer.save(tmp_path / "inside", inside)
    given = read(tmp_path / "two").network(problem).network.params
    jax.tree.map(np.testing.assert_array_equal, given, params)
    for name, told in (("none", f"'{beside}', 'slow'"), ("inside", f"'{beside}/params', 'train/")):
        with pytest.raises(ValueError, match=f"more than once, as {told}"):
            read(tmp_path / name).network(problem)


def test_orbax_folders_of_other_models_are_refused(tmp_path):
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "cnn", nnx.state(fb.models.CNN(3, 3, 2, rngs=nnx.Rngs(0))))
    given = read(tmp_path / "cnn")
    with pytest.raises(ValueError, match=r"' of shape .* and model 'cnn' has"):
        given.network(fb.FairPruningProblem("cnn", *images(), width=4))
    with pytest.raises(ValueError, match="lacks 'hidden/0/bias'"):
        given.network(fb.FairPruningProblem("mlp", *images(), width=2))
    two = fb.FairPruningProblem("cnn", *images(classes=2), width=2)
    assert "answers 3 classes and the data has 2" in given.network(two).notes[0]
    small = fb.models.MLP(3, 2, (4,), rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(small, nnx.Param))
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "more", {**params, "gate": np.zeros(2, np.float32)})
    x, y, group = (
        np.random.default_rng(0).normal(size=(80, 3)),
        np.arange(80) % 2,
        np.arange(80) // 2 % 2,
    )
    with pytest.raises(ValueError, match="holds 'gate', which has no place in model"):
        read(tmp_path / "more").network(fb.FairPruningProblem(small, x, y, group))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "_METADATA").write_text("{")
    with pytest.raises(ValueError, match="bad cannot be read as a checkpoint of Orbax") as error:
        read(tmp_path / "bad")
    assert len(str(error.value).splitlines()) == 1


# ---------------------------------------------------------------- the user's way in


def test_a_run_from_a_file_is_loaded_exported_and_certified(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # Quiet blocks, or numbers double from each to the next and training diverges.
    arrays = drawn(NARROW["resnet18"])
    file({k: v * np.float32(0.1) if k.endswith("bn2.weight") else v for k, v in arrays.items()})
    x, y, group = images(classes=2)
    np.savez("rows.npz", x=x, y=y, group=group)
    words = ["solve", "--data", "rows.npz", "--model", "resnet18", "--dense", "net.safetensors"]
    words += ["--normalize", "imagenet", "--width", "4", "--steps", "8", "--batch-size", "16"]
    words += ["--sparsity", "0.5", "--no-baseline", "--method", "magnitude", "--out", "run"]
    assert main(words) == 0
    said = "the classifier of net.safetensors answers 3 classes and the data has 2"
    assert said in " ".join(capsys.readouterr().out.split())
    assert said[1:] in (tmp_path / "run/report.html").read_text()
    run = fb.load_run("run")
    assert run.description["name"] == "resnet18:padding=symmetric,small_images=false"
    assert run.encoder.mean == (0.485, 0.456, 0.406)
    stem = load_file("net.safetensors")["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(run.dense.params["stem"]["kernel"], stem)
    for kind in ("npz", "safetensors"):
        assert main(["export", "run", "--out", f"net-{kind}.{kind}"]) == 0
        there = fb.read_artifact(f"net-{kind}.{kind}").logits(x)
        np.testing.assert_allclose(there, run.logits(x), atol=1e-5)
    assert main(["certify", "run", "--tolerance", "60%"]) in (0, 4)
    context = json.loads((tmp_path / "run/certificate.json").read_text())["context"]
    assert context["dense_trained_on"] is None  # nobody said
    assert main([*words[:-2], "--model", "resnet50", "--out", "other"]) == 2
    error = capsys.readouterr().err
    assert "holds timm's resnet18, not resnet50: give --model resnet18" in error
    assert len(error.splitlines()) == 1
    words[words.index("--dense") + 1] = "run"
    assert main([*words[:-2], "--out", "other"]) == 2
    assert "give --model resnet18:padding=symmetric,small_images=f" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
