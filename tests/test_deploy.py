"""What ships: compact networks, files of every format, and what reads them without this library."""

from __future__ import annotations

import io
import json
from functools import cache
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fairbilevel as fb
from fairbilevel._trees import fill_named, flatten_named
from fairbilevel.cli import main
from fairbilevel.deploy._compact import SparseKernel
from fairbilevel.models import from_torch, to_torch

RNG = np.random.default_rng(0)
N = 600
Y, GROUP = RNG.integers(0, 2, N), RNG.integers(0, 2, N)
PIXELS = RNG.integers(0, 256, (N, 32, 32, 3)).astype(np.uint8)
NUMBERS = (RNG.normal(size=(N, 12)) * 3 + 5).astype(np.float32)
WIDTHS = {
    "mlp": 32, "cnn": 8, "resnet10": 8, "cifar-resnet": 4, "mobilenetv2": 8,
    "vgg19": 8, "vit:depth=2": 48,
    "resnet10:padding=symmetric,small_images=false": 4,  # a pooling, and torch's padding
}  # fmt: skip
ROWS = 64  # to compare on
FORMATS = ("stablehlo", "onnx", "safetensors", "npz")
# Families whose weights are written too: torch's names differ in these alone.
WEIGHTS_OF = ("mlp", "resnet10", "mobilenetv2", "vit:depth=2", "Own")
NEEDS = {"onnx": ("jax2onnx", "onnxruntime"), "safetensors": ("safetensors",)}


class Own(nnx.Module):
    """A network of one's own, with everything that its mode changes."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), 2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.hidden = nnx.Linear(8, 16, rngs=rngs)
        self.head = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        return self.head(nnx.relu(self.hidden(self.dropout(x))))


def needs(name):
    for package in NEEDS.get(name, ()):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'fairbilevel[{name}]'")


@cache
def problem(name):
    x = NUMBERS if name == "mlp" else PIXELS
    if name == "own":
        return fb.FairPruningProblem(Own(nnx.Rngs(0)), x, Y, GROUP)
    if name == "cifar-resnet":  # of 8 layers: the built-in one has 56 of the same kind
        module = fb.models.CifarResNet(1, 3, 2, WIDTHS[name], rngs=nnx.Rngs(0))
        return fb.FairPruningProblem(module, x, Y, GROUP)
    return fb.FairPruningProblem(name, x, Y, GROUP, width=WIDTHS[name])


def solved(name, granularity, sparsity=0.5, **more):
    given = problem(name)
    options = {"sparsity": sparsity, "steps": 4, "batch_size": 16, "granularity": granularity}
    options |= more
    return fb.solve(given, "magnitude", dense=given.initial_network(), **options)


# Channels are cut out of every family. Removed weights are zeros in arrays of any family alike, so
# few stand for all: dense layers, convolutions, attention, torch's padding, a network of one's own.
ZEROS = ("mlp", "cnn", "vit:depth=2", "resnet10:padding=symmetric,small_images=false", "own")
EVERY = [(name, "filter") for name in (*WIDTHS, "own")] + [(name, "weight") for name in ZEROS]


def pruned(name, granularity):
    """A network under masks as a run's folder holds it, untrained: what is exported is all that
    matters here, and training every family takes minutes."""
    given = problem(name)
    network, layers = given.initial_network(), given.layers
    budget = fb.masks.Budget.of(layers, granularity, "uniform")
    keep = fb.masks.as_counts(budget.keep(0.5))

    @jax.jit  # one program, not one for each operation
    def cut(params):
        hard = budget.top_k(fb.masks.magnitude(params, layers, granularity), keep)
        return hard, fb.masks.apply(hard, params, layers, granularity)

    hard, params = cut(network.params)
    sparse = fb.Network(params, network.state)
    return given, fb.deploy.ModelFiles(
        given.model,
        sparse,
        network,
        hard,
        given.encoder,
        fb.deploy.model_description(given, granularity),
    )


@pytest.fixture(scope="module", params=EVERY, ids="-".join)
def network(request):
    return pruned(*request.param)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_answers_as_the_network_does(network, name, tmp_path, alone):
    needs(name)
    given, files = network
    if name in ("safetensors", "npz") and files.description["name"] not in WEIGHTS_OF:
        return
    file = tmp_path / f"network{fb.deploy.FORMATS[name].suffix}"
    # More than are compared at a time, where another size is compiled quickly.
    rows = 500 if files.description["name"] == "mlp" else ROWS
    inputs = given.data.inputs[:rows]
    made = fb.deploy.write_artifact(files, file, inputs=inputs)
    expected = given.logits(files.network, given.inputs[:rows])
    assert made.about["checked"] == {
        "rows": rows,
        "changed": 0,
        "largest_difference": made.about["checked"]["largest_difference"],
    }
    again = fb.read_artifact(file, model=given.model)
    if name in ("safetensors", "npz"):
        np.testing.assert_allclose(again.logits(inputs), expected, atol=1e-4)
    assert again.classes == ("0", "1")
    if name in ("stablehlo", "onnx"):
        found = alone(file, made.rows(inputs))
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert np.array_equal(found.argmax(-1), expected.argmax(-1))


def test_an_export_leaves_jax_as_it_was(tmp_path):
    needs("onnx")
    before = dict(vars(jnp))
    _, files = pruned("mlp", "weight")
    fb.deploy.write_artifact(files, tmp_path / "network.onnx", inputs=NUMBERS[:50])
    assert {n for n, value in before.items() if vars(jnp)[n] is not value} == set()
    assert jnp.cumsum(jnp.ones((2, 3)), 1)[0, -1] == 3


def test_what_is_left_runs_and_trains_as_any_network(network):
    given, files = network
    model, params, state = left = fb.compact(files)
    encoded = given.encoder.normalize(jnp.asarray(given.inputs[:ROWS]))
    apply = jax.jit(lambda p, s, x: model.apply(p, s, x, False, jax.random.key(0))[0])
    logits = apply(params, state, encoded)
    expected = given.logits(files.network, given.inputs[:ROWS])
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    whole = sum(leaf.size for leaf in jax.tree.leaves(files.network.params))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert size < whole if files.granularity == "filter" else size == whole
    module = left.module
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(module, encoded), logits, atol=1e-5)
    if given.model.name != "Own":
        return
    assert isinstance(module, Own)
    module.train()

    def loss(module):
        return optax.softmax_cross_entropy_with_integer_labels(module(encoded), Y[:ROWS]).mean()

    gradients = nnx.grad(loss)(module)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("granularity", ["weight", "filter"])
def test_wrapped_rules_keep_what_was_removed(granularity):
    solution = solved("cnn", granularity)
    layers = None if granularity == "weight" else solution.problem.layers
    rule = fb.masks.wrap(optax.adamw(1e-2), solution.masks, layers)
    params, state = solution.network.params, solution.network.state
    x = solution.problem.encoder.normalize(jnp.asarray(solution.problem.inputs[:64]))

    def loss(params):
        logits, _ = solution.problem.model.apply(params, state, x, False, jax.random.key(0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, Y[:64]).mean()

    slope, memory = jax.jit(jax.grad(loss)), rule.init(params)
    for _ in range(5):
        updates, memory = rule.update(slope(params), memory, params)
        params = optax.apply_updates(params, updates)
    before, after = (fb.masks.apply(solution.masks, p, solution.problem.layers, granularity)
                     for p in (solution.network.params, params))  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, after, params)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert any(jax.tree.leaves(moved))


def test_wrapped_rules_refuse_masks_of_other_parameters():
    solution = solved("cnn", "filter")
    rule = fb.masks.wrap(optax.sgd(0.1), solution.masks)
    params = solution.network.params
    with pytest.raises(ValueError, match="masks of filters need layers"):
        rule.update(params, rule.init(params), params)


def test_mostly_zero_dense_layers_are_multiplied_by_what_is_left():
    solution = solved("mlp", "weight", 0.95, budget="uniform")
    left = fb.compact(solution)
    x = solution.problem.encoder.normalize(jnp.asarray(solution.problem.inputs[:64]))
    plain, quick = (fb.deploy.forward(left, sparse_layers=s) for s in (False, True))
    for rows in (x, x[:3]):
        np.testing.assert_allclose(jax.jit(quick)(rows), plain(rows), atol=1e-5)
    dense, left_of_it = (str(jax.make_jaxpr(f)(x)).count("dot_general") for f in (plain, quick))
    assert dense - left_of_it >= 2


@pytest.mark.parametrize("shape", [(70, 90), (300, 40), (5, 3)])
@pytest.mark.parametrize("rows", [1, 3, 32])
def test_a_sparse_kernel_multiplies_as_its_dense_one(shape, rows):
    """Outputs without any weight, and some with many more than others."""
    rng = np.random.default_rng(rows)
    kernel = rng.normal(size=shape) * (rng.random(shape) < rng.random(shape[1]) ** 4)
    kernel[:, 0] = 0
    kernel[:, 1] = 1
    x = rng.normal(size=(rows, shape[0]))
    with jax.enable_x64(True):
        found = jax.jit(SparseKernel.of(kernel).__call__)(x)
    np.testing.assert_allclose(found, x @ kernel, atol=1e-12)


def test_nothing_left_of_a_kernel_gives_nothing():
    found = SparseKernel.of(np.zeros((4, 3), np.float32))(jnp.ones((2, 4)))
    assert (found == 0).all()
    assert found.shape == (2, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a table with text, missing numbers and groups, by the command line."""
    place = tmp_path_factory.mktemp("shipped")
    rng = np.random.default_rng(1)
    n = 500
    age = rng.integers(18, 90, n).astype(float)
    job = rng.choice(["clerk", "cook", "none"], n)
    pay = rng.lognormal(10, 1, n).round(2)
    label = np.where(age + 20 * (job == "cook") + rng.normal(size=n) * 10 > 55, "yes", "no")
    lines = ["age,job,pay,sex,label"]
    for i in range(n):
        shown = "" if i % 13 == 0 else f"{age[i]:g}"
        lines.append(f"{shown},{job[i]},{pay[i]},{'fm'[i % 2]},{label[i]}")
    (place / "rows.csv").write_text("\n".join(lines))
    words = ["--data", str(place / "rows.csv"), "--target", "label", "--group", "sex"]
    words += ["--model", "mlp", "--width", "16", "--steps", "40", "--dense-steps", "60"]
    words += ["--no-baseline", "--sparsity", "0.5", "--out", str(place / "run")]
    assert main(["solve", *words]) == 0
    return place


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("encoded", [False, True])
def test_a_table_goes_in_raw(run, name, encoded, tmp_path, capsys):
    needs(name)
    file = str(tmp_path / f"table{fb.deploy.FORMATS[name].suffix}")
    words = ["export", str(run / "run"), "--out", file]
    assert main([*words, "--encoded"] if encoded else words) == 0
    said = capsys.readouterr().out
    assert "changed verdicts 0" in said
    assert "float32 [rows, " in said
    loaded = fb.load_run(run / "run")
    read = fb.read_artifact(file)
    table = fb.data.read_table(run / "rows.csv").table
    np.testing.assert_allclose(read.logits(table), loaded.logits(table), atol=1e-4)
    columns = read.about["input"].get("columns")
    names = None if columns is None else [c["name"] for c in columns]
    assert names == (None if encoded else ["age", "job", "pay", "sex"])
    assert read.about["run"]["data"] == loaded.result.data.fingerprint


def test_predictions_of_a_file_are_those_of_the_run(run, tmp_path, capsys):
    file = str(tmp_path / "table.stablehlo")
    assert main(["export", str(run / "run"), "--out", file]) == 0
    out = {}
    for model in (file, str(run / "run")):
        out[model] = tmp_path / f"answers{len(out)}.csv"
        words = ["predict", model, "--data", str(run / "rows.csv"), "--out", str(out[model])]
        assert main([*words, "--run", str(run / "run")]) == 0
    assert "accuracy on 500 labelled rows" in capsys.readouterr().out
    first, second = (path.read_text().splitlines() for path in out.values())
    assert first[0] == second[0]
    assert first[0].startswith("id,group,y,dense,pruned,model,dense_p_no,dense_p_yes,pruned_p_no")
    for a, b in zip(first[1:], second[1:], strict=True):
        assert a.split(",")[:5] == b.split(",")[:5]
    digest = fb.read_artifact(file).digest
    assert f"sha256:{digest}" in first[1]
    words = ["certify", "--predictions", str(out[file]), "--tolerance", "40%"]
    assert main([*words, "--dense-trained-on", "other rows"]) in (0, 3, 4)
    written = json.loads(out[file].with_suffix(".certificate.json").read_text())
    assert written["context"]["pruned_model"] == digest


def test_a_certificate_of_the_file_that_ships(run, tmp_path, capsys):
    file = tmp_path / "table.stablehlo"
    assert main(["export", str(run / "run"), "--out", str(file)]) == 0
    words = ["certify", str(run / "run"), "--artifact", str(file), "--tolerance", "60%"]
    out = tmp_path / "certificate.json"
    assert main([*words, "--out", str(out)]) in (0, 4)
    assert json.loads(out.read_text())["context"]["pruned_model"] == fb.read_artifact(file).digest
    again = ["verify", str(out), "--run", str(run / "run"), "--artifact", str(file)]
    assert main(again) == 0
    assert main(again[:4]) == 1  # of the run's own network
    assert "pruned_model" in capsys.readouterr().out


TORCH = {  # entries of timm's state dictionaries, and some of their names
    "resnet18": (122, ["conv1.weight", "layer1.0.bn1.running_var", "layer4.0.downsample.1.bias",
                       "layer2.1.conv2.weight", "fc.weight"]),
    "resnet50": (320, ["layer1.0.downsample.0.weight", "layer3.5.conv3.weight", "bn1.weight"]),
    "mobilenetv2": (314, ["conv_stem.weight", "blocks.0.0.conv_pw.weight", "conv_head.weight",
                          "blocks.6.0.conv_pwl.weight", "blocks.1.1.bn3.num_batches_tracked"]),
    "vit": (152, ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.11.mlp.fc2.bias",
                  "blocks.0.attn.qkv.weight", "blocks.3.attn.proj.weight", "head.bias"]),
}  # fmt: skip
TIMM = {"resnet18": "resnet18", "resnet50": "resnet50", "mobilenetv2": "mobilenetv2_100",
        "vit": "vit_tiny_patch16_224"}  # fmt: skip


def arrays_of(name, pixels=32):
    model = fb.models.build(name, (pixels, pixels, 3), 10)
    trees = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    arrays = {}
    for part, tree in zip(("param", "state"), trees, strict=True):
        for leaf, value in flatten_named(tree).items():
            drawn = rng.normal(size=value.shape) * 0.05
            arrays[f"{part}/{leaf}"] = np.abs(drawn + 1 * (part == "state")).astype(np.float32)
    return model, arrays


@pytest.mark.parametrize("name", TORCH)
def test_weights_go_to_torch_and_back(name):
    _, arrays = arrays_of(name)
    theirs, made = to_torch(name, arrays)
    count, names = TORCH[name]
    assert len(theirs) == count
    assert set(names) <= theirs.keys()
    back = from_torch(name, theirs, made)
    assert back.keys() == arrays.keys()
    for key, values in arrays.items():
        np.testing.assert_array_equal(back[key], values)


@pytest.mark.parametrize(("name", "options"), [
    ("resnet18", ":padding=symmetric"), ("resnet50", ":padding=symmetric"),
    ("mobilenetv2", ":padding=symmetric"), ("vit", ""),
])  # fmt: skip
def test_timm_reads_the_weights(name, options):
    """timm's own module answers as ours does, where strided convolutions are padded as torch's."""
    timm = pytest.importorskip("timm", reason="timm and torch are not installed")
    torch = pytest.importorskip("torch", reason="timm and torch are not installed")
    model, arrays = arrays_of(name + options, 224)
    theirs, _ = to_torch(model.name, arrays)
    module = timm.create_model(TIMM[name], num_classes=10).eval()
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in theirs.items()})
    x = np.random.default_rng(1).normal(size=(2, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    like = jax.eval_shape(model.init, jax.random.key(0))
    own = [{k.split("/", 1)[1]: v for k, v in arrays.items() if k.startswith(part)}
           for part in ("param", "state")]  # fmt: skip
    params, state = (fill_named(tree, named) for tree, named in zip(like, own, strict=True))
    logits, _ = model.apply(params, state, jnp.asarray(x), False, jax.random.key(0))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


# ---------------------------------------------------------------- what cannot be


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place, solution = tmp_path_factory.mktemp("files"), solved("mlp", "weight")
    for name in FORMATS:
        if all(find_spec(p) for p in NEEDS.get(name, ())):
            fb.export(solution, place / f"net{fb.deploy.FORMATS[name].suffix}")
    return place


def newer(data, name):
    """The same file, of a version to come."""
    if name != "npz":
        for mark in (b'"schema_version": ', b'\\"schema_version\\": '):
            data = data.replace(mark + b"1", mark + b"7")
        return data
    with np.load(io.BytesIO(data)) as read:
        arrays = dict(read)
    arrays["fairbilevel"] = np.array(
        str(arrays["fairbilevel"]).replace('version": 1', 'version": 7')
    )
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_refused(files, name, tmp_path, capsys):
    needs(name)
    suffix = fb.deploy.FORMATS[name].suffix
    good = (files / f"net{suffix}").read_bytes()
    file = tmp_path / f"bad{suffix}"
    np.savez(tmp_path / "rows.npz", x=NUMBERS)
    middle = len(good) // 3
    for data in (
        good[: len(good) // 2], good[:-20], b"", b"nonsense" * 40,
        # Every bit of a byte: of one alone it can be that the same zeros are copied from elsewhere.
        good[:middle] + bytes([good[middle] ^ 0xFF]) + good[middle + 1 :],
        newer(good, name),
    ):  # fmt: skip
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"bad\.") as caught:
            fb.read_artifact(file)
        assert "\n" not in str(caught.value)
        assert main(["predict", str(file), "--data", str(tmp_path / "rows.npz")]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_the_ending_need_not_tell(files, name, tmp_path):
    needs(name)
    held = (files / f"net{fb.deploy.FORMATS[name].suffix}").read_bytes()
    (tmp_path / "net.bin").write_bytes(held)
    assert fb.read_artifact(tmp_path / "net.bin").format == name
    made = fb.export(solved("mlp", "weight"), tmp_path / "network", name)
    assert made.format == name
    assert made.path == tmp_path / "network"


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "net.bin").write_bytes(b"nothing of ours")
    with pytest.raises(ValueError, match="is no file written by fairbilevel export"):
        fb.read_artifact(tmp_path / "net.bin")


def test_a_runtime_that_cannot_load_it_is_named(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise fb.deploy._format.Damaged("it says no")

    monkeypatch.setattr(fb.deploy._stablehlo.StableHLO, "run", refuse)
    with pytest.raises(ValueError, match="cannot be written as stablehlo: it says no"):
        fb.export(solved("mlp", "weight"), tmp_path / "net.stablehlo")
    assert not list(tmp_path.iterdir())


def test_rows_of_another_shape_are_refused(files, tmp_path, capsys):
    np.savez(tmp_path / "rows.npz", x=NUMBERS[:, :5])
    words = ["predict", str(files / "net.stablehlo"), "--data", str(tmp_path / "rows.npz")]
    assert main(words) == 2
    assert "rows have shape (5,)" in capsys.readouterr().err


def test_a_file_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    solution = solved("mlp", "weight")
    right = fb.deploy.forward

    def wrong(*arguments, **options):
        function = right(*arguments, **options)
        return lambda x: function(x) + jnp.array([0.0, 3.0])

    monkeypatch.setattr("fairbilevel.deploy._stablehlo.forward", wrong)
    with pytest.raises(ValueError, match="answers otherwise than the run"):
        fb.export(solution, tmp_path / "net.stablehlo")
    assert not list(tmp_path.iterdir())


def test_bad_calls_of_export(tmp_path):
    solution = solved("mlp", "weight")
    for call, message in (
        (lambda: fb.export(solution, tmp_path / "net.pb"), "ends in none of .stablehlo"),
        (lambda: fb.export(solution, tmp_path / "net", "tflite"), "tflite"),
        (lambda: fb.export(solution, tmp_path / "no" / "net.npz"), "there is no folder"),
        (lambda: fb.export(solution.network, tmp_path / "net.npz"), "is no pruned network"),
        (lambda: fb.compact(None), "is no pruned network"),
        (lambda: fb.read_artifact(tmp_path / "no.npz"), "does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not list(tmp_path.iterdir())
