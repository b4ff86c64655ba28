"""Models trained elsewhere, and models of tokens: inputs reach them as they were trained."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fairbilevel as fb
from fairbilevel.cli import main
from fairbilevel.data import Encoder

ROWS, WORDS, LENGTH = 320, 30, 6
QUICK = {"sparsity": 0.5, "steps": 60, "batch_size": 16}


def clouds(scale=1.0, shift=0.0):
    """Two classes of three numbers far from zero, and groups that mean nothing."""
    rng = np.random.default_rng(0)
    y, group = np.arange(ROWS) % 2, np.arange(ROWS) // 2 % 2
    x = 3 * (2 * y[:, None] - 1) + rng.normal(size=(ROWS, 3))
    return (scale * x + shift).astype(np.float32), y, group


def sum_of(threshold):
    """A network that answers 1 where the sum of a row is above a threshold, in two layers."""

    def apply(params, x):
        return (jnp.tanh((x - threshold) @ params["hidden"])) @ params["out"]

    hidden = jnp.tile(jnp.ones((3, 1)), (1, 4))
    out = jnp.tile(jnp.array([[-1.0, 1.0]]), (4, 1))
    return fb.models.from_function(apply, {"hidden": hidden, "out": out}, name="threshold")


def accuracy(problem):
    reference = problem.refer(problem.initial_network())
    return float(reference.correct[problem.roles["test"]].mean()), reference.warnings


# ---------------------------------------------------------------- inputs as elsewhere


def test_a_model_trained_elsewhere_sees_its_own_inputs():
    """Raw numbers around 10: standardized ones all lie below the threshold."""
    x, y, group = clouds(shift=10)
    model = sum_of(10.0)
    fitted, (doubt,) = accuracy(fb.FairPruningProblem(model, x, y, group))
    assert fitted == pytest.approx(0.5, abs=0.1)
    assert "the given dense model is right on 49.3 % of the rows" in doubt
    assert "normalize" in doubt
    assert "another order than 0, 1" in doubt
    for normalize in ("none", (0.0, 1.0), "0,1", ([0, 0, 0], 1), "0,0,0,1,1,1"):
        found = accuracy(fb.FairPruningProblem(model, x, y, group, normalize=normalize))
        assert found == (1.0, ()), normalize
    shifted = fb.FairPruningProblem(sum_of(0.0), x, y, group, normalize=(10.0, 2.0))
    assert accuracy(shifted) == (1.0, ())


def test_classes_in_another_order_are_doubted():
    x, y, group = clouds()
    right, doubts = accuracy(fb.FairPruningProblem(sum_of(0.0), x, 1 - y, group, normalize="none"))
    assert right == 0.0
    assert "right on 0.0 % of the rows" in doubts[0]


def test_doubts_reach_the_report_and_the_file(tmp_path):
    x, y, group = clouds(shift=10)
    problem = fb.FairPruningProblem(sum_of(10.0), x, y, group)
    solution = fb.solve(problem, "magnitude", dense=problem.initial_network(), **QUICK)
    assert any("the given dense model is right on 49.3 %" in w for w in solution.warnings)
    path = fb.save_run(solution, tmp_path / "run")
    assert json.loads((path / "result.json").read_text())["warnings"] == list(solution.warnings)
    page = " ".join((path / "report.html").read_text().split())  # numbers keep to their signs
    assert "he given dense model is right on 49.3 %" in page


def test_a_model_that_is_trained_here_is_not_doubted(tiny_problem):
    solution = fb.solve(tiny_problem(), "magnitude", dense_steps=1, **QUICK)
    assert not solution.reference.warnings


def test_what_becomes_of_images():
    rng = np.random.default_rng(0)
    y, group = np.arange(40) % 2, np.arange(40) // 2 % 2
    pixels = rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    data = fb.data.from_arrays(pixels, y, group)
    raw = pixels.astype(np.float32)

    def seen(normalize):
        encoder = Encoder.fit(data, np.arange(30), normalize)
        assert Encoder.from_json(json.loads(json.dumps(encoder.to_json()))) == encoder
        return np.asarray(encoder.normalize(jnp.asarray(encoder.transform(pixels))))

    assert np.array_equal(seen("none"), raw)
    assert np.allclose(seen("0,1"), raw / 255)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert np.allclose(seen((mean, std)), (raw / 255 - mean) / np.array(std), atol=1e-5)
    text = ",".join(map(str, mean + std))
    assert np.array_equal(seen(text), seen((mean, std)))
    assert np.allclose(seen("fit")[:30].mean((0, 1, 2)), 0, atol=1e-5)


def test_a_table_is_left_as_it_is(tmp_path):
    lines = ["a,b,label,group"]
    lines += [f"{i},{'xyz'[i % 3]},{i % 2},{i // 2 % 2}" for i in range(60)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines))
    data = fb.data.load(path, fb.data.Options(target="label", group=("group",)))
    encoder = Encoder.fit(data, np.arange(40), "none")
    assert np.array_equal(encoder.transform(data.inputs)[:, 0], np.arange(60))
    with pytest.raises(ValueError, match="column by column"):
        Encoder.fit(data, np.arange(40), (0.0, 1.0))


def test_a_run_keeps_how_inputs_are_normalized(tmp_path, monkeypatch, capsys):
    """Solve, evaluate, load, and the dense model of a run in another one."""
    monkeypatch.chdir(tmp_path)
    x, y, group = clouds(shift=10)
    np.savez("rows.npz", x=x, y=y, group=group)
    base = ["solve", "--data", "rows.npz", "--width", "4", "--steps", "60", "--no-baseline"]
    base += ["--batch-size", "16", "--sparsity", "0.5", "--dense-steps", "20"]
    assert main([*base, "--normalize", "10,2", "--out", "first"]) == 0
    assert json.loads((tmp_path / "first/config.json").read_text())["normalize"] == "10,2"
    run = fb.load_run("first")
    assert (run.encoder.mean, run.encoder.std) == ((10.0,) * 3, (2.0,) * 3)
    assert main(["evaluate", "first", "--data", "rows.npz"]) == 0
    capsys.readouterr()
    assert main([*base, "--dense", "first", "--out", "second"]) == 2
    assert "made with --normalize 10.0,2.0, and here it is fit" in capsys.readouterr().err
    words = [*base, "--dense", "first", "--normalize", "10.0,2", "--out", "second"]
    assert main([*words, "--seed", "1"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "of 48 test rows were used for fitting or choosing by the run first" in said
    assert not (tmp_path / "second").exists()
    assert main(words) == 0


# ---------------------------------------------------------------- tokens


class Text(nnx.Module):
    """The mean of words' vectors, and two layers."""

    def __init__(self, rngs, rounds=False):
        self.words = nnx.Embed(WORDS, 8, rngs=rngs)
        self.hidden = nnx.Linear(8, 12, rngs=rngs)
        self.classifier = nnx.Linear(12, 2, rngs=rngs)
        self.rounds = rounds

    def __call__(self, x):
        words = jnp.round(x).reshape(-1, LENGTH).astype(jnp.int32) if self.rounds else x
        return self.classifier(nnx.relu(self.hidden(self.words(words).mean(1))))


def texts(kind=np.int64):
    """Texts of one class hold words of one half of the vocabulary."""
    rng = np.random.default_rng(1)
    y, group = np.arange(ROWS) % 2, np.arange(ROWS) // 2 % 2
    words = rng.integers(0, WORDS // 2, (ROWS, LENGTH)) + WORDS // 2 * y[:, None]
    return words.astype(kind), y, group


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.int64, np.uint16])
def test_tokens_reach_an_embedding_as_they_are(kind):
    x, y, group = texts(kind)
    problem = fb.FairPruningProblem(Text(nnx.Rngs(0)), x, y, group)
    assert problem.encoder.kind == "integer"
    seen = problem.normalize(jnp.asarray(problem.inputs))
    assert seen.dtype == jnp.int32
    assert np.array_equal(seen, x)
    assert [layer.name for layer in problem.layers.kernels] == ["hidden"]


def test_texts_are_classified_pruned_and_read_back(tmp_path):
    x, y, group = texts()
    problem = fb.FairPruningProblem(
        Text(nnx.Rngs(0)), x, y, group, constraints=fb.fairness.ExcessAccuracyGap(0.1)
    )
    solution = fb.solve(problem, sparsity=0.5, steps=200, batch_size=32, dense_steps=100)
    assert solution.evaluate("test").accuracy > 0.9
    path = fb.save_run(solution, tmp_path / "run")
    run = fb.load_run(path, model=Text(nnx.Rngs(3)))
    assert np.array_equal(run.logits(x), solution.logits(x))
    with pytest.raises(ValueError, match="type float32; this run was fitted on integer inputs"):
        run.predict(x.astype(float))
    with pytest.raises(ValueError, match="synflow sends ones through the network"):
        fb.solve(problem, "synflow", dense=solution.reference, **QUICK)


@pytest.mark.parametrize("rounds", [False, True])
def test_tokens_that_would_become_other_words_are_refused(rounds):
    x, y, group = texts()
    if rounds:  # takes any numbers, and would look up standardized ones
        model = Text(nnx.Rngs(0), rounds=True)
        for given in (x, x.astype(np.float32)):
            with pytest.raises(ValueError, match="'Text' turns its inputs into whole numbers"):
                fb.FairPruningProblem(model, given, y, group)
            problem = fb.FairPruningProblem(model, given, y, group, normalize="none")
            assert np.array_equal(problem.normalize(jnp.asarray(problem.inputs)), x)
        return
    model = Text(nnx.Rngs(0))
    with pytest.raises(ValueError, match="takes whole numbers alone: give x as int32"):
        fb.FairPruningProblem(model, x.astype(np.float32), y, group)
    with pytest.raises(ValueError, match="whole numbers, which are not standardized"):
        fb.FairPruningProblem(model, x, y, group, normalize=(0.0, 1.0))


def test_whole_numbers_are_numbers_to_other_models():
    """Counts are standardized as before, and their rows are told by the same fingerprints."""
    x, y, group = texts()
    whole, decimal = (fb.data.from_arrays(a, y, group) for a in (x, x.astype(np.float32)))
    assert whole.fingerprint == decimal.fingerprint
    assert np.array_equal(whole.content, decimal.content)
    prints = [fb.data.row_fingerprints(data) for data in (whole, decimal)]
    assert np.array_equal(prints[0].row, prints[1].row)
    problems = [fb.FairPruningProblem("mlp", data, width=4) for data in (whole, decimal)]
    assert np.array_equal(problems[0].inputs, problems[1].inputs)
    assert problems[0].encoder == problems[1].encoder
    assert problems[0].encoder.kind == "vector"


def test_a_quantized_hidden_layer_rounds_no_inputs():
    """Rounding behind parameters is the model's own business."""

    def apply(params, x):
        chosen = jnp.argmax(x @ params["gate"], -1)
        hidden = jnp.round(x @ params["hidden"]).astype(jnp.int32).astype(jnp.float32)
        return jax.nn.one_hot(chosen, 4) * hidden @ params["out"]

    model = fb.models.from_function(
        apply, {"gate": jnp.ones((3, 4)), "hidden": jnp.ones((3, 4)), "out": jnp.ones((4, 2))}
    )
    assert not fb.models.rounds_inputs(model, (3,))
    assert fb.models.refusal(model, (3,), jnp.float32) is None
