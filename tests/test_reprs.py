"""What objects say of themselves: a few facts, never their arrays, whatever names the data has."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import fairbilevel as fb

EVIL = "<b onclick=alert(1)>\x1b[2J\u202e"
LONGEST = 600


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """A solved problem with hostile names, read back, and a certificate."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(240, 6)).astype(np.float32), np.arange(240) % 2
    data = fb.data.from_arrays(
        x, y, (np.arange(240) // 2) % 3, classes=("a" + EVIL, "b"), groups=(EVIL, "g" * 900, "h")
    )
    limits = [
        fb.fairness.ExcessAccuracyGap(0.05),
        fb.fairness.AccuracyGap({"*": 0.3, "h": 0.1}),
    ]
    problem = fb.FairPruningProblem("mlp", data, constraints=limits, width=8)
    solution = fb.solve(
        problem, "magnitude", dense=problem.initial_network(), sparsity=0.5, steps=10, batch_size=16
    )
    path = fb.save_run(solution, tmp_path_factory.mktemp("runs") / "one")
    group = np.array(data.groups)[data.group]
    certificate = fb.certify(y, y, np.where(np.arange(240) < 40, 1 - y, y), group, tolerance=0.03)
    return {
        "problem": problem,
        "solution": solution,
        "reference": solution.reference,
        "network": solution.network,
        "layers": problem.layers,
        "structure": problem.structure,
        "data": data,
        "run": fb.load_run(path),
        "certificate": certificate,
    }


@pytest.mark.parametrize(
    "name",
    [
        "problem",
        "solution",
        "reference",
        "network",
        "layers",
        "structure",
        "data",
        "run",
        "certificate",
    ],
)
def test_a_representation_is_short_and_harmless(objects, name):
    shown = repr(objects[name])
    assert shown.startswith(type(objects[name]).__name__ + "(")
    assert 20 < len(shown) < LONGEST
    assert "\n" not in shown
    assert "Array(" not in shown
    assert not {"\x1b", "\u202e"} & set(shown)


def test_representations_say_what_matters(objects):
    said = {name: repr(value) for name, value in objects.items()}
    assert "mlp" in said["problem"]
    assert "240 rows" in said["problem"]
    assert "excess-accuracy-gap=0.05, accuracy-gap=0.1 to 0.3 by group" in said["problem"]
    kept = sum(int(mask.sum()) for mask in objects["solution"].masks.values())
    total = sum(mask.size for mask in objects["solution"].masks.values())
    assert f"50.0 % of the weights ({total - kept:,} of {total:,})" in said["solution"]
    assert "magnitude" in said["solution"]
    assert "no state" in said["network"]
    parameters = fb._trees.size(objects["network"].params)
    assert f"{parameters:,} parameters in 6 arrays" in said["network"]
    assert f"{total:,} weights" in said["layers"]
    accuracy = objects["run"].result.pruned["test"].accuracy
    assert f"accuracy on test {100 * accuracy:.1f} %" in said["run"]
    assert str(objects["run"].path) in said["run"]
    assert "excess-accuracy-gap, tolerance 3 points: " in said["certificate"]


def test_a_certificate_prints_its_sentence(objects):
    certificate = objects["certificate"]
    assert str(certificate) == certificate.sentence
    assert certificate.sentence.startswith("For rows like those in")


@pytest.mark.parametrize("name", ["problem", "solution", "certificate"])
def test_a_notebook_shows_an_escaped_table(objects, name):
    page = objects[name]._repr_html_()
    assert page.count("<tr>") == page.count("</tr>") > 2
    assert "onclick" not in page.replace("&lt;b onclick=alert(1)&gt;", "")
    assert not {"\x1b", "\u202e"} & set(page)


def test_a_network_with_state_says_so():
    network = fb.Network({"w": jnp.zeros((2, 3))}, {"mean": jnp.zeros(4)})
    assert repr(network) == "Network(6 parameters in 1 array; 4 numbers of state)"
