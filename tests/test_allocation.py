"""Budgets in multiply-adds and parameters, round channel counts, sparsities of single layers."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fairbilevel as fb
from fairbilevel import masks
from fairbilevel.cli import main
from fairbilevel.masks import Allocation, Budget, layer_shares
from fairbilevel.masks._allocation import multiple_of
from fairbilevel.records import write_json
from fairbilevel.train._expected import data_expected, settings

UNITS = {"a": 64, "b": 24, "c": 8, "d": 40}


def random_scores(units, seed):
    rng = np.random.default_rng(seed)
    return {n: rng.normal(loc=rng.normal(), size=k).astype(np.float32) for n, k in units.items()}


def price(counts):
    """A cost that grows in every count, products of neighbours among it, as of convolutions."""
    a, b, c, d = (counts[n] for n in "abcd")
    return 9 * 3 * a + 4 * a * b + 2 * b * c + 3 * c * d + 50


def budget(kind="global"):
    return Budget(kind, UNITS, ("c",))


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["global", "uniform"])
def test_a_cost_is_met_within_one_unit(seed, kind):
    scores = random_scores(UNITS, seed)
    dense = price(UNITS)
    for sparsity in (0.1, 0.5, 0.9):
        allocation = Allocation.over(budget(kind), sparsity, of="multiply-adds", measure=price)
        kept = allocation.keep(sparsity, scores)
        allowed = (1 - sparsity) * dense
        assert price(kept) <= allowed + 1e-6
        for name, count in kept.items():
            if count < UNITS[name]:  # no unit more fits
                assert price({**kept, name: count + 1}) > allowed
        assert kept["c"] >= 1
        assert allocation.achieved(kept) == pytest.approx(1 - price(kept) / dense)


@pytest.mark.parametrize("seed", range(10))
def test_weights_of_equal_cost_are_ranked_as_without(seed):
    """Where every unit costs the same, counts are those of the best scores of all layers."""
    scores = random_scores(UNITS, seed)
    total = sum(UNITS.values())
    allocation = Allocation.over(
        budget(), 0.5, of="parameters", measure=lambda kept: sum(kept.values())
    )
    kept = allocation.keep(0.5, scores)
    plain = budget()
    hard = plain.top_k({n: jax.numpy.asarray(s) for n, s in scores.items()}, plain.keep(0.5))
    assert kept == {n: int(m.sum()) for n, m in hard.items()}
    assert sum(kept.values()) == total // 2


@pytest.mark.parametrize(
    ("size", "multiple", "step"),
    [
        (512, 8, 8),
        (128, 8, 8),
        (127, 8, 4),
        (64, 8, 4),
        (32, 8, 2),
        (31, 8, 1),
        (1, 8, 1),
        (200, 12, 12),
    ],
)
def test_multiples_leave_sixteen_numbers_to_choose_from(size, multiple, step):
    assert multiple_of(size, multiple) == step


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["global", "uniform"])
def test_rounded_counts(seed, kind):
    """Multiples everywhere, nothing emptied that was not, and the budget met within one chunk."""
    scores = random_scores(UNITS, seed)
    total = sum(UNITS.values())
    for sparsity in (0.1, 0.5, 0.8):
        allocation = Allocation.over(budget(kind), sparsity, multiple=8)
        rounded = allocation.keep(sparsity, scores)
        plain = Allocation.over(budget(kind), sparsity, shares={}).keep(sparsity)
        exact = Allocation.over(
            budget(kind), sparsity, of="units*", measure=lambda kept: sum(kept.values())
        ).keep(sparsity, scores)
        allowed = total - int(sparsity * total + 1e-9)
        assert sum(rounded.values()) <= allowed == sum(plain.values())
        for name, count in rounded.items():
            step = multiple_of(UNITS[name], 8)
            assert count % step == 0
            assert count > 0 or exact[name] == 0
            assert count == UNITS[name] or sum(rounded.values()) + step > allowed


def test_rounding_gives_way_where_it_would_empty_a_layer():
    scores = {"a": np.array([9.0] + [0.0] * 31), "b": np.array([8.0] + [0.0] * 31)}
    allocation = Allocation.over(Budget("global", {"a": 32, "b": 32}), 0.9, multiple=8)
    assert allocation.keep(0.9, scores) == {"a": 4, "b": 2}  # 6 units: multiples of 8 leave one out


def test_units_that_are_gone_do_not_come_back():
    scores = random_scores(UNITS, 3)
    scores["a"][10:] = -np.inf
    for multiple in (1, 8):
        allocation = Allocation.over(
            budget(), 0.2, of="multiply-adds", measure=price, multiple=multiple
        )
        assert allocation.keep(0.2, scores)["a"] <= 10


def test_sparsities_of_single_layers():
    scores = random_scores(UNITS, 4)
    shares = layer_shares(["a=0.25", "[bd]=50%", "d=0.75"], UNITS)
    assert shares == {"a": 0.25, "b": 0.5, "d": 0.75}
    allocation = Allocation.over(budget(), 0.5, shares={"a": 0.25, "d": 0.75})
    kept = allocation.keep(0.5, scores)
    assert (kept["a"], kept["d"]) == (48, 10)
    assert sum(kept.values()) == sum(UNITS.values()) // 2
    half_way = allocation.keep(0.25, scores)  # of a schedule: they come along
    assert (half_way["a"], half_way["d"]) == (56, 25)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a", "takes NAME=SHARE"),
        ("a=1", r"share in \[0, 1\)"),
        ("a=nan", "takes NAME=SHARE"),
        ("=0.5", "takes NAME=SHARE"),
        ("e=0.5", "'e', which is no prunable layer: .*choose from a, b, c, d"),
    ],
)
def test_layer_shares_that_are_none(text, said):
    with pytest.raises(ValueError, match=said):
        layer_shares([text], UNITS)


def test_sparsities_out_of_reach():
    with pytest.raises(ValueError, match=r"0.99 in multiply-adds cannot be reached: .* 1\.4 % by"):
        Allocation.over(budget(), 0.99, of="multiply-adds", measure=lambda kept: price(kept) + 80)
    with pytest.raises(ValueError, match="cannot be reached"):
        Allocation.over(budget(), 0.9, shares={"a": 0.0})


# ---------------------------------------------------------------- networks


@pytest.fixture(scope="module")
def problem():
    data = fb.data.load("digits")
    return fb.FairPruningProblem("cnn", data, width=8)


@pytest.fixture(scope="module")
def dense(problem):
    return problem.refer(problem.initial_network())


@pytest.mark.parametrize("method", ["bilevel", "gradual-magnitude", "hydra", "fairgrape", "snip"])
@pytest.mark.parametrize(
    ("granularity", "of"),
    [("filter", "multiply-adds"), ("filter", "parameters"), ("weight", "multiply-adds")],
)
def test_every_kind_of_method_ends_at_its_cost(problem, dense, method, granularity, of):
    solution = fb.solve(
        problem, method, dense=dense, sparsity=0.5, sparsity_of=of, granularity=granularity,
        steps=60, batch_size=16,
    )  # fmt: skip
    cost, allocation = solution.network_cost().to_json()[of.replace("-", "_")], solution.allocation
    assert cost["kept"] <= cost["dense"] / 2
    told = allocation.describe(solution.masks)
    assert told["of"] == of
    assert told["achieved_of"] == pytest.approx(1 - cost["kept"] / cost["dense"])
    counts = {n: int(m.sum()) for n, m in solution.masks.items()}
    further = []
    for name, count in counts.items():
        size = np.size(solution.masks[name])
        step = multiple_of(size, 8) if granularity == "filter" else 1
        assert count % step == 0
        assert count
        if count < size:
            further.append(allocation.measure({**counts, name: count + step}))
    # Units that a gradual method removed in a former round do not come back.
    nearest = max(further) if method == "gradual-magnitude" else min(further)
    assert nearest > cost["dense"] / 2
    for name, leaf in fb.compact(solution).params.items():
        assert jax.tree.leaves(leaf), name


def test_layers_that_stay(problem):
    names = [layer.name for layer in problem.layers]
    kept = fb.FairPruningProblem("cnn", problem.data, width=8, keep_layer=(names[0],))
    assert [layer.name for layer in kept.layers] == names[1:]
    assert [c.name for c in kept.layers.channels] == names[1:]
    solution = fb.solve(kept, "magnitude", dense=kept.initial_network(), sparsity=0.5, steps=20)
    first = solution.network.params["convolutions"][0]["kernel"]
    assert np.count_nonzero(np.asarray(first)) == first.size
    with pytest.raises(ValueError, match="keep_layer names 'nothing', which is no prunable layer"):
        fb.FairPruningProblem("cnn", problem.data, keep_layer=("nothing",))
    with pytest.raises(ValueError, match="keep_layer names every layer"):
        fb.FairPruningProblem("cnn", problem.data, keep_layer=("*",))


def test_a_cost_model_counts_what_a_cut_network_has(problem):
    """Parameters by count, and those of the arrays that are left."""
    layers, model = problem.layers, problem.cost_model("filter")
    network = problem.initial_network()
    rng = np.random.default_rng(0)
    for _ in range(5):
        hard = {
            c.name: jnp.asarray(rng.permutation(c.size) < rng.integers(1, c.size + 1), float)
            for c in layers.channels
        }
        params, _ = masks.compact(hard, network.params, network.state, layers)
        counts = {n: int(m.sum()) for n, m in hard.items()}
        left = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
        assert model.parameters(counts) == left


# ---------------------------------------------------------------- the command line

QUICK = ["--steps", "40", "--dense-steps", "30", "--no-baseline", "--batch-size", "32"]


def test_a_target_on_the_command_line(tmp_path, capsys):
    words = ["solve", *QUICK, "--granularity", "filter", "--out", str(tmp_path / "run")]
    words += ["--target", "multiply-adds=50%", "--layer-sparsity", "convolutions/0=0.25"]
    assert main(words) == 0
    said = capsys.readouterr()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["sparsity"]["of"] == "multiply-adds"
    assert (
        result["sparsity"]["multiply_adds"]["kept"]
        <= 0.5 * (result["sparsity"]["multiply_adds"]["dense"])
    )
    first = result["layers"][0]
    assert first["kept"] == 0.75 * first["prunable"]
    assert "of the multiply-adds were removed" in " ".join(said.out.split())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "of the multiply-adds were removed" in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "multiply-adds=0"], "takes the share that is left"),
        (["--target", "multiply-adds=150%"], "takes the share that is left"),
        (["--target=parameters=x"], "takes the share that is left"),
        (["--target", "multiply-adds=0.1%"], "cannot be reached"),
        (["--keep-layer", "convolution/0"], "did you mean 'convolutions/0'"),
        (["--layer-sparsity", "convolutions/0"], "NAME=SHARE"),
        (["--round-channels", "0"], "must be at least 1"),
    ],
)
def test_targets_that_are_none(words, said, capsys):
    assert main(["plan", "--granularity", "filter", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_target_stays_the_column_of_a_table(tmp_path, capsys):
    lines = ["age,income,sex"] + [f"{i % 50},{i % 2},{'fm'[i // 2 % 2]}" for i in range(600)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    words = ["plan", "--data", str(tmp_path / "t.csv"), "--target", "income", "--group", "sex"]
    assert main([*words, "--target=parameters=50%"]) == 0
    assert "table (t.csv)" in (out := capsys.readouterr().out)
    assert "50 % of the parameters to remove with some of 33,536 weights" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["solve", "--target", "parameters=50%", "--sparsity", "0.9"], "leave --sparsity out"),
        (["solve", "--round-channels", "8"], "at --granularity weight there are none to round"),
        (["plan", "--sparsity-of=parameters", "--target=parameters=50%"], "--sparsity-of out"),
        (["compare", "--target", "multiply-adds=50%"], "--sparsity-of multiply-adds with"),
        (["frontier", "--target", "multiply-adds=50%"], "--sparsity-of multiply-adds with"),
    ],
)
def test_a_target_beside_a_sparsity(words, said, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_a_plan_says_what_was_asked(capsys):
    assert main(["plan", "--target", "multiply-adds=40%"]) == 0
    assert "60 % of the multiply-adds to remove" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "changed", [{"layer_sparsity": ("convolutions/0=0.25",)}, {"sparsity_of": "parameters"}]
)
def test_checkpoints_remember_what_layers_keep(changed, problem):
    asked = {"sparsity": 0.5, "granularity": "filter", "steps": 40, "batch_size": 16}
    methods = (fb.BilevelSolver(**asked), fb.BilevelSolver(**asked, **changed))
    expected = [settings(method) for method in methods]
    assert expected[0] != expected[1]
    json.dumps(expected)
    kept = fb.FairPruningProblem("cnn", problem.data, width=8, keep_layer=("convolutions/0",))
    assert data_expected(kept) != data_expected(problem)


# ---------------------------------------------------------------- latency


@pytest.fixture(scope="module")
def by_hand(problem):
    """A table as it would be measured of the cnn, of a machine on which every entry that enters a
    layer takes a microsecond, times the channels that leave it."""
    model = problem.cost_model("filter")
    table = problem.measure_latency()
    products = []
    for p in table.products:
        grid = np.ones([len(c) for c in p.counts])
        for axis, counts in enumerate(p.counts):
            shape = [-1 if i == axis else 1 for i in range(grid.ndim)]
            grid = grid * np.reshape(counts, shape)
        products.append(dataclasses.replace(p, milliseconds=tuple(1e-3 * grid.ravel())))
    return model, masks.LatencyTable(tuple(products), 0.0, 1, "by hand")


def test_times_between_the_measured_ones_are_interpolated(problem, by_hand):
    model, table = by_hand
    milliseconds = table.of(model)
    units = {c.name: c.size for c in problem.layers.channels}
    rng = np.random.default_rng(0)
    for _ in range(50):
        kept = {name: int(rng.integers(size // 4 + 1, size + 1)) for name, size in units.items()}
        exact = sum(1e-3 * math.prod(kept[name] for name in p.sets) for p in table.products)
        assert milliseconds(kept) == pytest.approx(exact, rel=1e-6)  # products are multilinear


def attention(p, x):  # tokens of rows, two heads
    q, k, v = (jnp.einsum("btc,chd->bthd", x.reshape(*x.shape[:2], -1), p[w]) for w in "qkv")
    met = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return jnp.einsum("bhqk,bkhd,hdc->bc", met, v, p["out"]) @ p["head"]


def depthwise(p, x):
    x = convolved(x, p["into"])
    return convolved(x, p["each"], groups=x.shape[-1]).mean((1, 2)) @ p["head"]


def convolved(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def drawn(function, **shapes):
    def init(key):
        return {name: 0.1 * jax.random.normal(key, shape) for name, shape in shapes.items()}

    return fb.models.from_function(function, init)


TIMED = {
    "resnet10": "resnet10",
    "attention": drawn(attention, q=(24, 2, 8), k=(24, 2, 8), v=(24, 2, 8), out=(2, 8, 24),
                       head=(24, 2)),
    "depthwise": drawn(depthwise, into=(3, 3, 3, 16), each=(3, 3, 1, 16), head=(16, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMED)
def test_every_layer_of_a_network_is_timed(name):
    x = np.zeros((60, 8, 8, 3), np.uint8)
    x[:, 0, 0, 0] = np.arange(60)
    y = np.arange(60) % 2
    width = {"width": 8} if name == "resnet10" else {}
    problem = fb.FairPruningProblem(TIMED[name], x, y, y, **width)
    table, model = problem.measure_latency(), problem.cost_model("filter")
    whole = {c.name: c.size for c in problem.layers.channels}
    milliseconds = table.of(model)
    half = {n: max(1, size // 2) for n, size in whole.items()}
    assert 0 < milliseconds(half) <= milliseconds(whole)
    assert len(table.products) == len(model.trace.products)
    assert {p.kernel for p in table.products} >= {k.kernel for k in problem.layers.kernels}
    assert {s for p in table.products for s in p.sets} == set(whole)
    if problem.layers.blocks:
        blocks = table.of(problem.cost_model("block"))
        names = [b.name for b in problem.layers.blocks]
        assert blocks(dict.fromkeys(names, 0)) < blocks(dict.fromkeys(names, 1))
        assert blocks(dict.fromkeys(names, 1)) == pytest.approx(milliseconds(whole))


def test_a_target_in_latency_by_a_table(problem, dense, by_hand, tmp_path):
    model, table = by_hand
    path = tmp_path / "table.json"
    write_json(path, table.to_json())
    assert masks.LatencyTable.load(path) == table
    asked = {"sparsity": 0.5, "sparsity_of": "latency", "granularity": "filter", "steps": 10}
    solution = fb.solve(
        problem, "magnitude", dense=dense, latency_table=str(path), batch_size=16, **asked
    )
    kept = {n: int(np.sum(m)) for n, m in solution.masks.items()}
    assert table.of(model)(kept) <= 0.5 * table.of(model)({n: m.size for n, m in
                                                           solution.masks.items()})  # fmt: skip
    assert solution.allocation.describe(solution.masks)["of"] == "latency"
    other = fb.FairPruningProblem("mlp", problem.data, width=16)
    with pytest.raises(ValueError, match="of another network"):
        fb.solve(other, "magnitude", latency_table=table, batch_size=16, **asked)
    with pytest.raises(ValueError, match="single weights that are zero save no time"):
        fb.solve(problem, "magnitude", dense=dense, latency_table=table, sparsity_of="latency",
                 batch_size=16)  # fmt: skip
    with pytest.raises(ValueError, match="give both or neither"):
        fb.solve(problem, "magnitude", dense=dense, **asked)
    remembered = settings(fb.methods.by_name("magnitude", latency_table=table, **asked))
    assert remembered["latency_table"]["digest"] == table.digest


@pytest.mark.parametrize(
    "change",
    [
        lambda t: "no JSON",
        lambda t: json.dumps([]),
        lambda t: json.dumps(t | {"schema_version": 9}),
        lambda t: json.dumps(t | {"products": []}),
        lambda t: json.dumps(t | {"rest": float("nan")}),
        lambda t: json.dumps(t | {"products": [t["products"][0] | {"milliseconds": [1.0]}]}),
        lambda t: json.dumps(t | {"products": [t["products"][0] | {"counts": [[4, 2]]}]}),
    ],
)
def test_tables_that_are_none(change, by_hand, tmp_path, capsys):
    _, table = by_hand
    path = tmp_path / "table.json"
    path.write_text(change(table.to_json()))
    words = ["plan", "--granularity", "filter", "--target", "latency=50%"]
    assert main([*words, "--latency-table", str(path)]) == 2
    assert "table" in (error := capsys.readouterr().err)
    assert len(error.strip().splitlines()) == 1
    assert main([*words, "--latency-table", str(tmp_path / "none")]) == 2
    assert "no table of latencies can be read" in capsys.readouterr().err
    assert main(words) == 2
    assert "give both or neither" in capsys.readouterr().err
