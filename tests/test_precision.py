"""Files in lower precision: what they hold, what they answer, and what that did to every group."""

from __future__ import annotations

import json
from importlib.util import find_spec

import jax.export
import numpy as np
import pytest
from test_deploy import NEEDS, needs, pruned, solved

import fairbilevel as fb
from fairbilevel.cli import main
from fairbilevel.records import write_json

NETWORKS = [(n, g) for n in ("mlp", "cnn", "resnet10") for g in ("weight", "filter")]
WRITTEN = (("onnx", "int8"), ("stablehlo", "bfloat16"), ("safetensors", "bfloat16"),
           ("npz", "bfloat16"))  # fmt: skip
WEIGHTS = ("safetensors", "npz")
SUFFIX = {name: kind.suffix for name, kind in fb.deploy.FORMATS.items()}


@pytest.fixture(scope="module", params=NETWORKS, ids="-".join)
def network(request):
    return pruned(*request.param)


@pytest.fixture(scope="module")
def solution():
    return solved("mlp", "weight")


def sizes(files, place, name, precision, inputs, **more):
    made = {}
    for given in ("float32", precision):
        file = place / f"{given}{SUFFIX[name]}"
        more["allow_changed"] = 1.0
        made[given] = fb.deploy.write_artifact(
            files, file, inputs=inputs, precision=given, calibration=inputs, **more
        )
    return made["float32"], made[precision]


@pytest.mark.parametrize(("name", "precision"), WRITTEN)
def test_a_smaller_file_answers_nearly_as_the_network(network, name, precision, tmp_path, alone):
    needs(name)
    given, files = network
    if name in WEIGHTS and files.granularity == "weight":
        return  # no other than at filters, but for its zeros
    inputs = given.data.inputs[:200]
    whole, made = sizes(files, tmp_path, name, precision, inputs)
    assert made.precision == precision
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.path.name for p in (whole, made))
    # Each rounding takes three nodes of a graph, which outweigh a few hundred parameters.
    large = whole.about["parameters"] > 5000
    if precision != "int8" or large:
        share = made.path.stat().st_size / whole.path.stat().st_size
        assert share < (0.8 if large else 1)
    expected = given.logits(files.network, given.inputs[:200])
    found = made.logits(inputs)
    # Of untrained networks logits are all alike: agreement is that of numbers, not of classes.
    apart = np.sqrt(np.mean((found - expected) ** 2)) / np.sqrt(np.mean(expected**2))
    assert apart < (0.1 if precision == "int8" else 0.02)
    checked = made.about["checked"]
    assert checked["rows"] == 200
    assert checked["changed"] == int((found.argmax(-1) != expected.argmax(-1)).sum())
    assert checked["largest_difference"] == pytest.approx(np.abs(found - expected).max(), rel=1e-3)
    if name in WEIGHTS:
        return
    there = alone(made.path, made.rows(inputs))
    assert there.dtype == np.float32
    # Batches of another size are compiled otherwise, and bfloat16 rounds between other operations.
    np.testing.assert_allclose(there, found, atol=1e-5 if precision == "int8" else 0.01)


def test_int8_takes_the_room_of_bytes(tmp_path):
    needs("onnx")
    import onnx
    from test_deploy import GROUP, PIXELS, Y

    problem = fb.FairPruningProblem("cnn", PIXELS, Y, GROUP, width=24)
    solution = fb.solve(
        problem, "magnitude", dense=problem.initial_network(), sparsity=0.5, steps=1, batch_size=8
    )
    whole, made = sizes(solution, tmp_path, "onnx", "int8", PIXELS[:64])
    assert made.path.stat().st_size < 0.4 * whole.path.stat().st_size
    proto = onnx.load_model(made.path)
    assert [p.key for p in proto.metadata_props] == ["fairbilevel"]
    kinds = {i.name: i.data_type for i in proto.graph.initializer if len(i.dims) == 4}
    assert set(kinds.values()) <= {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}
    large = [i for i in proto.graph.initializer if np.prod(i.dims) > 100]
    assert {i.data_type for i in large} == {onnx.TensorProto.INT8}
    # What the encoder does to raw rows comes before anything is rounded.
    order = [node.op_type for node in proto.graph.node if node.op_type != "DequantizeLinear"]
    assert order.index("Div") < order.index("QuantizeLinear")


def test_bfloat16_is_stored_and_computed(tmp_path):
    given, files = pruned("cnn", "filter")
    inputs = given.data.inputs[:64]
    for name in ("stablehlo", "npz", "safetensors"):
        if all(find_spec(p) for p in NEEDS.get(name, ())):
            made = sizes(files, tmp_path, name, "bfloat16", inputs)[1]
            assert made.about["precision"] == "bfloat16"
    data = (tmp_path / "bfloat16.stablehlo").read_bytes()
    program = jax.export.deserialize(bytearray(data)).mlir_module()
    products = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    assert len(products) >= 3  # in a program for several platforms, of each
    assert all("f32" not in line.split(" : ")[-1] for line in products)
    # The same numbers by numpy alone.
    with np.load(tmp_path / "bfloat16.npz") as read:
        names = [n for n in read.files if read[n].dtype == np.uint16]
        bits = {n: read[n] for n in names}
        assert all(read[n].dtype == np.float32 for n in read.files if n.startswith("state/"))
    kept = fb.compact(files)
    from fairbilevel._trees import flatten_named

    assert {f"param/{n}" for n in flatten_named(kept.params)} == set(bits)
    for n, leaf in flatten_named(kept.params).items():
        again = (bits[f"param/{n}"].astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_allclose(again, np.asarray(leaf), rtol=2**-8)


# ---------------------------------------------------------------- by group


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a table whose classes overlap, so that rounding changes verdicts."""
    place = tmp_path_factory.mktemp("lower")
    rng = np.random.default_rng(3)
    n = 1600
    x = rng.normal(size=(n, 6))
    pay, sex = rng.lognormal(8, 1, n), rng.choice(["f", "m", "x"], n, p=[0.3, 0.6, 0.1])
    label = np.where(x[:, 0] + x[:, 1] * (sex == "f") + rng.normal(size=n) > 0, "yes", "no")
    lines = ["a,b,c,d,e,f,pay,sex,label"]
    lines += [f"{','.join(f'{v:.4f}' for v in x[i])},{pay[i]:.2f},{sex[i]},{label[i]}"
              for i in range(n)]  # fmt: skip
    (place / "rows.csv").write_text("\n".join(lines))
    words = ["--data", str(place / "rows.csv"), "--target", "label", "--group", "sex"]
    words += ["--model", "mlp", "--width", "16", "--steps", "40", "--dense-steps", "60"]
    words += ["--no-baseline", "--sparsity", "0.5", "--out", str(place / "run")]
    assert main(["solve", *words]) == 0
    return place


def rows_of(place, role):
    from fairbilevel.run._evaluate import role_rows

    return role_rows(fb.load_run(place / "run"), role, "")


@pytest.mark.parametrize(("name", "precision"), WRITTEN[:3])
def test_what_it_did_to_every_group(run, name, precision, tmp_path, capsys):
    needs(name)
    file = tmp_path / f"net{SUFFIX[name]}"
    words = ["export", str(run / "run"), "--out", str(file), "--precision", precision]
    assert main(words) == 0
    said = capsys.readouterr().out
    loaded, read, test = fb.load_run(run / "run"), fb.read_artifact(file), rows_of(run, "test")
    answers = {
        "dense": loaded.logits(test.inputs, dense=True).argmax(-1),
        "pruned": loaded.logits(test.inputs).argmax(-1),
        "file": read.logits(test.inputs).argmax(-1),
    }
    told = read.about["by_group"]
    right = {name: answer == test.y for name, answer in answers.items()}
    assert told["rows_of"] == "test"
    lost = {}
    for g, group in enumerate(test.groups):
        mine = test.group == g
        for model, hits in right.items():
            assert told[model]["group_accuracy"][group] == pytest.approx(hits[mine].mean())
            lost[model, group] = right["dense"][mine].mean() - hits[mine].mean()
        changed = int((answers["file"] != answers["pruned"])[mine].sum())
        assert told["changed"][group] == changed
        for gaps, model in (("gaps", "pruned"), ("file_gaps", "file")):
            beyond = lost[model, group] - (right["dense"].mean() - right[model].mean())
            assert told[gaps]["excess_accuracy_gap"][group] == pytest.approx(beyond, abs=1e-9)
        won = [int((right["pruned"] & ~right["file"])[mine].sum()),
               int((~right["pruned"] & right["file"])[mine].sum())]  # fmt: skip
        assert told["step_gaps"]["discordant"][group] == won
    # The pruned network's numbers are those that the report shows.
    shown = fb.load_run(run / "run").result.pruned["test"]
    assert told["pruned"]["group_accuracy"] == {n: g.accuracy for n, g in shown.groups.items()}
    assert told["gaps"]["max_excess_accuracy_gap"] == shown.gaps.excess_accuracy.largest
    assert sum(told["changed"].values()) == read.about["checked"]["changed"]
    row = next(line.split() for line in said.splitlines() if line.split()[:1] == ["m"])
    assert row[1] == str(told["file"]["group_size"]["m"])
    assert row[6] == f"{100 * told['file']['group_accuracy']['m']:.1f}"
    assert row[8] == str(told["changed"]["m"])
    record = json.loads((run / "run" / f"export-{name}-{precision}.json").read_text())
    assert record["digest"] == read.digest
    assert record["bytes"] == file.stat().st_size
    assert record["by_group"] == told
    page = (run / "run" / "report.html").read_text()
    assert "What lower precision did to every group" in page
    assert read.digest in page
    fb.load_run(run / "run")  # a record is no damage


def test_it_is_certified_as_any_other_file(run, tmp_path, capsys):
    needs("onnx")
    file, place = tmp_path / "net.onnx", run / "run"
    assert main(["export", str(place), "--out", str(file), "--precision", "int8"]) == 0
    digest = fb.read_artifact(file).digest
    assert main(["certify", str(place), "--artifact", str(file), "--tolerance", "60%"]) in (0, 4)
    (path,) = place.glob("certificate-net.onnx-*.json")
    assert json.loads(path.read_text())["context"]["pruned_model"] == digest
    again = ["verify", str(path), "--run", str(place), "--artifact", str(file)]
    assert main(again) == 0
    assert main(again[:4]) == 1
    page = (place / "report.html").read_text()
    section = page[page.index("precision-heading") :]
    assert "Certified" in section
    assert json.loads(path.read_text())["statement"][0].split(",")[0] in section
    out = tmp_path / "answers.csv"
    words = ["predict", str(file), "--data", str(run / "rows.csv"), "--out", str(out)]
    assert main([*words, "--run", str(place)]) == 0
    words = ["certify", "--predictions", str(out), "--tolerance", "60%"]
    assert main([*words, "--dense-trained-on", "other rows"]) in (0, 3, 4)
    written = json.loads(out.with_suffix(".certificate.json").read_text())
    assert written["context"]["pruned_model"] == digest
    capsys.readouterr()


def test_select_rows_calibrate_and_other_data_is_judged(run, tmp_path, capsys):
    needs("onnx")
    file = tmp_path / "net.onnx"
    words = ["export", str(run / "run"), "--out", str(file), "--precision", "int8"]
    assert main([*words, "--data", str(run / "rows.csv")]) == 0
    about = fb.read_artifact(file).about
    select = len(rows_of(run, "select"))
    assert about["calibration"] == {"rows": select, "of": select}
    assert f"calibrated on {select} of {select} select rows" in capsys.readouterr().out
    assert about["by_group"]["rows_of"].endswith("(rows.csv)")
    assert about["by_group"]["rows"] == 1600


def test_calibration_rows_are_spread_over_the_data():
    from fairbilevel.deploy._onnx import MOST, chosen

    np.testing.assert_array_equal(chosen(50), np.arange(50))
    many = chosen(10_000)
    assert len(np.unique(many)) == MOST
    assert (many[0], many[-1]) == (0, 9_999)
    assert np.diff(many).max() - np.diff(many).min() <= 1


def test_rows_without_labels_are_compared_and_not_judged(solution, tmp_path):
    made = fb.export(
        solution, tmp_path / "net.npz", precision="bfloat16",
        inputs=solution.problem.data.inputs[:50], allow_changed=0.5,
    )  # fmt: skip
    assert made.about["checked"]["rows"] == 50
    assert "by_group" not in made.about
    whole = fb.export(solution, tmp_path / "net.npz", precision="bfloat16", allow_changed=0.5)
    test = len(solution.problem.roles["test"])
    assert whole.about["checked"]["rows"] == whole.about["by_group"]["rows"] == test
    assert whole.about["by_group"]["groups"] == list(solution.problem.groups)


# ---------------------------------------------------------------- what cannot be


def test_bad_calls(solution, run, tmp_path, capsys):
    kept = tmp_path / "net.stablehlo"
    kept.write_bytes(b"as it was")
    (tmp_path / "net.onnx").write_bytes(b"as it was")
    for words, message in (
        (["net.stablehlo", "--precision", "int8"], "stablehlo is written in float32 or bfloat16"),
        (["net.onnx", "--precision", "bfloat16"], "which is for stablehlo, safetensors, npz"),
        (["net.npz", "--precision", "int8"], "which is for onnx"),
        (["net.npz", "--precision", "int4"], "int4"),
        (["net.npz", "--allow-changed", "5%"], "in float32 none may be"),
        (["net.npz", "--precision", "bfloat16", "--allow-changed", "200%"], "between 0 and 1"),
        (["net.npz", "--precision", "bfloat16", "--allow-changed", "some"], "a tolerance is"),
    ):
        given = [str(tmp_path / words[0]), *words[1:]]
        assert main(["export", str(run / "run"), "--out", *given]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1 or "int4" in message
    with pytest.raises(ValueError, match="unknown precision 'int4'"):
        fb.export(solution, tmp_path / "net.npz", precision="int4")
    assert {p.name for p in tmp_path.iterdir()} == {"net.stablehlo", "net.onnx"}
    assert all(p.read_bytes() == b"as it was" for p in tmp_path.iterdir())


def test_garbage_is_refused_unless_asked_for(solution, tmp_path, monkeypatch):
    file = tmp_path / "net.stablehlo"
    file.write_bytes(b"as it was")
    right = fb.deploy.forward

    def turned(*arguments, **options):
        function = right(*arguments, **options)
        return lambda x: -function(x)

    monkeypatch.setattr("fairbilevel.deploy._stablehlo.forward", turned)
    with pytest.raises(ValueError, match=r"bfloat16 \d+ of \d+ rows get another class .* 0\.1"):
        fb.export(solution, file, precision="bfloat16")
    assert file.read_bytes() == b"as it was"
    made = fb.export(solution, file, precision="bfloat16", allow_changed=1)
    assert made.about["checked"]["changed"] > 0.1 * made.about["checked"]["rows"]

    def infinite(*arguments, **options):
        function = right(*arguments, **options)
        return lambda x: function(x) / 0

    monkeypatch.setattr("fairbilevel.deploy._stablehlo.forward", infinite)
    with pytest.raises(ValueError, match="not finite"):
        fb.export(solution, file, precision="bfloat16", allow_changed=1)
    assert list(tmp_path.iterdir()) == [file]


def test_too_few_rows_to_calibrate_on(tmp_path):
    needs("onnx")
    rng = np.random.default_rng(0)
    x, y, group = rng.normal(size=(120, 4)), rng.integers(0, 2, 120), rng.integers(0, 2, 120)
    problem = fb.FairPruningProblem("mlp", x.astype(np.float32), y, group, width=8)
    solution = fb.solve(
        problem, "magnitude", dense=problem.initial_network(), sparsity=0.5, steps=2, batch_size=8
    )
    with pytest.raises(ValueError, match="at least 32 select rows to calibrate on, and there are"):
        fb.export(solution, tmp_path / "net.onnx", precision="int8")
    assert not list(tmp_path.iterdir())


def test_a_run_without_its_data_says_what_to_do(solution, tmp_path):
    needs("onnx")
    loaded = fb.load_run(fb.save_run(solution, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"export the solution from Python \(fb\.export\)"):
        fb.export(loaded, tmp_path / "net.onnx", precision="int8", inputs=loaded)
    assert not (tmp_path / "net.onnx").exists()


def test_packages_that_are_missing_are_named(solution, tmp_path, monkeypatch):
    monkeypatch.setattr("fairbilevel.deploy._format.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'fairbilevel\[onnx\]'"):
        fb.export(solution, tmp_path / "net.onnx", precision="int8")
    assert not list(tmp_path.iterdir())


def test_a_precision_that_is_none_is_damage(solution, tmp_path):
    made = fb.export(solution, tmp_path / "net.npz")
    with np.load(made.path) as read:
        arrays = dict(read)
    arrays["fairbilevel"] = np.array(str(arrays["fairbilevel"]).replace('"float32"', '"int9"', 1))
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=r"bad\.npz cannot be used"):
        fb.read_artifact(tmp_path / "bad.npz")


def test_the_report_bears_any_record(run):
    place = run / "run"
    odd = {"groups": ["<b>", 1], "changed": {"<b>": None}, "file": [], "counted_groups": {}}
    for value in ({}, {"by_group": 3}, {"checked": {"rows": 0, "changed": "x"}, "by_group": odd}):
        path = place / "export-npz-bfloat16.json"
        write_json(path, value)
        try:
            fb.run._folder.report.write_report(place)
            assert "<b>1" not in (place / "report.html").read_text()
        finally:
            path.unlink()


def test_a_new_run_in_the_folder_forgets_them(solution, tmp_path):
    fb.save_run(solution, tmp_path / "run")
    write_json(tmp_path / "run" / "export-onnx-int8.json", {})
    fb.save_run(solution, tmp_path / "run", overwrite=True)
    assert not list((tmp_path / "run").glob("export-*"))
