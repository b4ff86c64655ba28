"""What a network takes where it is served: counts by hand, times that are there, the report."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import fairbilevel as fb
from fairbilevel import devices, masks, models
from fairbilevel.cli import main
from fairbilevel.deploy import Speed
from fairbilevel.run import write_profile
from fairbilevel.run._folder import claim

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


@pytest.mark.parametrize(("name", "width"), [("resnet10", 16), ("mobilenetv2", 8)])
def test_a_pruned_network_holds_less(name, width):
    model = models.build(name, (16, 16, 3), 4, width=width)
    params, state = like = jax.eval_shape(model.init, KEY)
    row = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    layers = masks.find_layers(model.apply, params, state, row)
    hard = {c.name: (jnp.arange(c.size) < c.size // 2).astype(jnp.float32) for c in layers.channels}
    cut = jax.eval_shape(lambda p, s: masks.compact(hard, p, s, layers), *like)
    whole = masks.peak_activations(model.apply, *like, row)
    left = masks.peak_activations(model.apply, *cut, row)
    assert 16 * 16 * 3 * 4 < left < whole


# ---------------------------------------------------------------- the timing loop


def test_every_round_takes_each_call_once():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    found = devices.timed(calls, rounds=40)
    assert order[:3] == list("abc")  # one round is not counted
    assert [sorted(order[i : i + 3]) for i in range(0, len(order), 3)] == [list("abc")] * 41
    assert len({tuple(order[i : i + 3]) for i in range(3, len(order), 3)}) == 6
    for times in found.values():
        assert times.rounds == 40
        assert 0 <= times.low <= times.median <= times.high


def test_rounds_go_on_until_the_time_is_over(monkeypatch):
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(devices._timing.time, "perf_counter", lambda: next(clock))
    found = devices.timed({"a": lambda: None}, rounds=2, seconds=8.0)
    assert found["a"].rounds > 2
    assert found["a"].median == found["a"].low == found["a"].high == 500.0


# ---------------------------------------------------------------- a profile


def solved(granularity, sparsity, model="mlp"):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 10)).astype(np.float32)
    y, group = np.arange(300) % 3, np.arange(300) // 3 % 2
    options = {"width": 40} if model == "mlp" else {}
    problem = fb.FairPruningProblem(model, x, y, group, **options)
    return fb.solve(
        problem, "magnitude", dense=problem.initial_network(), sparsity=sparsity, steps=4,
        batch_size=16, granularity=granularity, budget="uniform",
        round_channels=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def solutions():
    return {"weight": solved("weight", 0.95), "filter": solved("filter", 0.5)}


@pytest.fixture(scope="module")
def profiles(solutions):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(fb.deploy.FORMATS["onnx"]), "writes_with", ("no_such_package",))
        return {
            name: fb.profile(solution, batch_sizes=[1, 4], seconds=0)
            for name, solution in solutions.items()
        }


# 10 numbers, layers of 40 and 20 neurons, 3 classes; biases everywhere.
LAYERS = (10 * 40, 40 * 20, 20 * 3)
BIASES = 40 + 20 + 3


def test_counts_at_granularity_weight(profiles):
    dense, pruned = profiles["weight"].dense, profiles["weight"].pruned
    kept = 20 + 40 + 60  # a twentieth of the hidden layers, all of the classifier
    for network in (dense, pruned):
        assert network.parameters == sum(LAYERS) + BIASES
        assert network.multiply_adds == sum(LAYERS)
        assert network.activation_bytes == 4 * (40 + 20)
        assert network.onnx_bytes is None
    assert (dense.kept_parameters, dense.kept_multiply_adds) == (sum(LAYERS) + BIASES, sum(LAYERS))
    assert (pruned.kept_parameters, pruned.kept_multiply_adds) == (kept + BIASES, kept)
    # Zeros are smaller only where they are compressed.
    assert pruned.file_bytes == dense.file_bytes > 4 * dense.parameters
    assert pruned.compressed_bytes < dense.compressed_bytes / 2


def test_counts_at_granularity_filter(profiles):
    pruned = profiles["filter"].pruned
    layers = 10 * 20 + 20 * 10 + 10 * 3
    assert pruned.parameters == pruned.kept_parameters == layers + 20 + 10 + 3
    assert pruned.multiply_adds == pruned.kept_multiply_adds == layers
    assert pruned.activation_bytes == 4 * (10 + 20)
    dense = profiles["filter"].dense
    assert dense.file_bytes - pruned.file_bytes == 4 * (dense.parameters - pruned.parameters)


class Residual(nnx.Module):
    """Two blocks that data can pass around."""

    def __init__(self, rngs):
        self.stem = nnx.Linear(10, 16, rngs=rngs)
        self.up = nnx.List([nnx.Linear(16, 24, rngs=rngs) for _ in range(2)])
        self.down = nnx.List([nnx.Linear(24, 16, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(nnx.relu(up(x)))
        return self.head(x)


def test_counts_at_granularity_block():
    found = fb.profile(solved("block", 0.5, Residual(nnx.Rngs(0))), batch_sizes=[2], seconds=0)
    block = 2 * 16 * 24
    assert found.dense.multiply_adds == 10 * 16 + 2 * block + 16 * 3
    assert found.pruned.multiply_adds == found.pruned.kept_multiply_adds == 10 * 16 + block + 16 * 3
    assert found.dense.parameters - found.pruned.kept_parameters == block + 24 + 16
    # One zero channel of the removed block stays in its arrays.
    assert (
        found.pruned.kept_parameters < found.pruned.parameters < found.dense.parameters - block / 2
    )
    # The stream beside a block's hidden layer.
    assert found.dense.activation_bytes == found.pruned.activation_bytes == 4 * (16 + 24 + 16)
    assert "Removed blocks are left out" in found.notes[0]


def test_times_are_there_for_every_way(profiles):
    weight, filters = profiles["weight"], profiles["filter"]
    assert weight.sparse_layers == ("hidden/0/kernel", "hidden/1/kernel")
    assert filters.sparse_layers == ()
    ways = {("jax", network, batch) for network in ("dense", "pruned") for batch in (1, 4)}
    sparse = {("jax", "sparse layers", batch) for batch in (1, 4)}
    for profile, expected in ((weight, ways | sparse), (filters, ways)):
        assert {(s.engine, s.network, s.batch) for s in profile.speeds} == expected
        for speed in profile.speeds:
            times = speed.times
            assert 0 < times.low <= times.median <= times.high
            assert times.rounds >= 5
            assert speed.rows_per_second == pytest.approx(1e3 * speed.batch / times.median)


def test_the_notes_say_what_cannot_be_gained(profiles):
    said = " ".join(profiles["weight"].notes)
    assert "nothing faster by themselves" in said
    assert "sparse_layers=True" in said
    assert "in hidden/0, hidden/1" in said
    assert "cut out" in " ".join(profiles["filter"].notes)
    for profile in profiles.values():
        assert "pip install 'fairbilevel[onnx]'" in " ".join(profile.notes)
        assert "Times are of this one machine" in profile.notes[-1]
        assert jax.devices()[0].device_kind in profile.notes[-1]


def test_a_factor_is_clear_where_the_middle_halves_lie_apart():
    dense = Speed("jax", "dense", 1, devices.Times(2.0, 1.9, 2.1, 9))
    for times, clear in (((1.0, 0.9, 1.1), True), ((1.0, 0.9, 1.9), False), ((4, 3, 5), True)):
        speed = Speed("jax", "pruned", 1, devices.Times(*map(float, times), 9))
        assert speed.beside(dense) == (2.0 / times[0], clear)


def test_a_profile_shows_itself_and_is_plain_json(profiles):
    for name, profile in profiles.items():
        assert repr(profile).startswith("Profile(mlp; file ")
        assert len(repr(profile)) < 600
        assert profile._repr_html_().count("<tr>") == len(profile.rows()) + 1
        content = profile.to_json()
        assert json.loads(json.dumps(content, allow_nan=False)) == content
        assert content["granularity"] == name
        assert content["pruned"]["parameters"] == profile.pruned.parameters
        assert {"machine", "versions"} <= set(content)
        for speed in content["speeds"]:
            if speed["network"] == "dense":
                assert (speed["times_as_fast"], speed["clear"]) == (1.0, False)


def test_onnx_runtime_is_timed_where_it_is_installed(solutions):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    found = fb.profile(solutions["filter"], batch_sizes=[2], seconds=0)
    assert {s.engine for s in found.speeds} == {"jax", "onnxruntime"}
    assert 0 < found.pruned.onnx_bytes < found.dense.onnx_bytes
    assert "ONNX Runtime on the CPU" in found.notes[-1]


def test_a_model_that_onnx_does_not_take_is_profiled_without(solutions, monkeypatch):
    pytest.importorskip("jax2onnx")

    def fail(*arguments):
        raise NotImplementedError("no such operation\nand more")

    monkeypatch.setattr(type(fb.deploy.FORMATS["onnx"]), "convert", fail)
    found = fb.profile(solutions["filter"], batch_sizes=[2], seconds=0)
    assert {s.engine for s in found.speeds} == {"jax"}
    assert found.pruned.onnx_bytes is None
    assert any(note.endswith("does not take this model: no such operation") for note in found.notes)


@pytest.mark.parametrize("sizes", [[], [0], [1, -3], [2, 2]])
def test_batch_sizes_that_are_none_are_refused(solutions, sizes):
    with pytest.raises(ValueError, match="batch_sizes must be different whole numbers"):
        fb.profile(solutions["filter"], batch_sizes=sizes)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(solutions, seconds):
    with pytest.raises(ValueError, match="seconds must be a number of at least 0"):
        fb.profile(solutions["filter"], seconds=seconds)


def test_bad_calls_of_profile_are_refused(solutions):
    with pytest.raises(ValueError, match="a str is no pruned network"):
        fb.profile("runs/mine")


# ---------------------------------------------------------------- in a run's folder


class Own(nnx.Module):
    """A network of one's own."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(10, 16, rngs=rngs)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def runs(solutions, tmp_path_factory):
    place = tmp_path_factory.mktemp("profiled")
    for name, solution in solutions.items():
        fb.save_run(solution, place / name)
    fb.save_run(solved("filter", 0.5, Own(nnx.Rngs(0))), place / "own")
    return place


@pytest.fixture
def run(runs, tmp_path):
    def copied(name):
        shutil.copytree(runs / name, tmp_path / name)
        return tmp_path / name

    return copied


FAST = ["--seconds", "0", "--batch-sizes", "1,2"]


@pytest.mark.parametrize("name", ["weight", "filter"])
def test_the_command_writes_the_file_and_the_report(run, name, capsys):
    path = run(name)
    before = {p.name for p in path.iterdir()}
    assert "What it takes to serve" not in (path / "report.html").read_text()
    assert main(["profile", str(path), *FAST]) == 0
    shown = capsys.readouterr().out
    assert "Multiply-adds a row" in shown
    assert "Times are of this one machine" in shown
    assert {p.name for p in path.iterdir()} - before == {"profile.json"}
    content = json.loads((path / "profile.json").read_text())
    assert content["schema_version"] == 2
    assert {speed["batch"] for speed in content["speeds"]} == {1, 2}
    page = (path / "report.html").read_text()
    section = page[page.index("What it takes to serve") :]
    assert ("sparse_layers=True" in section) == (name == "weight")
    assert f"{content['dense']['multiply_adds']:,}" in section
    assert "config.json, metrics.jsonl, result.json and profile.json" in page
    fb.load_run(path)  # its manifest says nothing of what was added
    # Over the first, as JSON.
    assert main(["profile", str(path), *FAST, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((path / "profile.json").read_text())
    # A new run takes it away.
    claim(path, {}, overwrite=True).close()
    assert not (path / "profile.json").exists()


def test_layers_are_timed_into_a_file(run, tmp_path, capsys):
    path, file = run("filter"), tmp_path / "layers.json"
    assert main(["profile", str(path), "--batch-sizes", "3", "--layers", str(file)]) == 0
    assert str(file) in capsys.readouterr().out.replace("\n", "")
    table, loaded = masks.LatencyTable.load(file), fb.load_run(path)
    assert table.batch == 3
    assert {p.kernel for p in table.products} >= {k.kernel for k in loaded.layers.kernels}
    assert not (path / "profile.json").exists()


def test_a_profile_of_another_network_is_not_shown(run):
    path, other = run("filter"), run("weight")
    assert main(["profile", str(other), *FAST]) == 0
    shutil.copy(other / "profile.json", path / "profile.json")
    assert main(["report", str(path)]) == 0
    page = (path / "report.html").read_text()
    assert "profile.json in the run folder is not of this run’s network" in page
    assert "Activations" not in page
    found = fb.profile(fb.load_run(other), seconds=0)
    with pytest.raises(ValueError, match="not of the network in"):
        write_profile(fb.load_run(path), found)


def test_a_model_of_ones_own_is_profiled_in_python(run, capsys):
    path = run("own")
    assert main(["profile", str(path), *FAST]) == 2
    said = capsys.readouterr().err
    assert "not a built-in one: pass it as model=... to fb.load_run" in said
    loaded = fb.load_run(path, model=Own(nnx.Rngs(0)))
    content = write_profile(loaded, fb.profile(loaded, seconds=0))
    assert content["pruned"]["parameters"] == 10 * 8 + 8 + 8 * 3 + 3
    assert "What it takes to serve" in (path / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "damage", "message"),
    [
        (["--batch-sizes", "0"], None, "whole numbers of at least 1, got 0"),
        (["--batch-sizes", "1,x"], None, "--batch-sizes are whole numbers"),
        (["--batch-sizes", ""], None, "--batch-sizes are whole numbers"),
        (["--seconds", "-1"], None, "seconds must be a number of at least 0"),
        (["--seconds", "nan"], None, "seconds must be a number of at least 0"),
        (["--batches", "1"], None, "--batch-sizes"),
        (["--layers", "nowhere/layers.json"], None, "no folder nowhere to write --layers to"),
        ([], lambda run: run.rename(run.parent / "elsewhere"), "there is no run folder"),
        ([], lambda run: (run / "result.json").unlink(), "did not finish"),
        ([], lambda run: (run / "model" / "sparse.npz").write_text("x"), "sparse.npz"),
    ],
)
def test_what_cannot_be_profiled(run, words, damage, message, tmp_path, capsys):
    path = run("filter")
    if damage is not None:
        damage(path)
    assert main(["profile", str(path), *words]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err
    assert not list(tmp_path.rglob("profile.json"))


def test_the_guide_to_the_folder_names_every_field(run):
    path = run("weight")
    assert main(["profile", str(path), *FAST]) == 0
    page = (Path(__file__).parents[1] / "docs/run_folder.md").read_text()
    section = page.split("## Fields of `profile.json`")[1].split("\n## ")[0]
    known = set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))

    def fields(value, name=""):
        if name in ("machine", "sparse_layers", "notes"):
            return {name}
        if name == "versions":
            return {"versions.PACKAGE"}
        if isinstance(value, list):
            return set().union(*(fields(v, f"{name}[]") for v in value))
        if isinstance(value, dict):
            name = "NETWORK" if name in ("dense", "pruned") else name
            return set().union(*(fields(v, f"{name}.{k}".lstrip(".")) for k, v in value.items()))
        return {name}

    assert fields(json.loads((path / "profile.json").read_text())) == known
