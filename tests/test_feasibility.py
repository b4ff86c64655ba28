"""Tolerances that cannot be met: known in closed form, recognized by the run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fairbilevel as fb
from fairbilevel import fairness, report
from fairbilevel.fairness import Custom, ExcessAccuracyGap, WorstGroupAccuracy
from fairbilevel.train import INFEASIBLE, DualState, Watch

QUICK = {
    "sparsity": 0.3, "steps": 200, "batch_size": 32, "buffer_size": 8, "learning_rate": 0.05,
    "bilevel_share": 0.5, "distill": 0.0,
}  # fmt: skip


def opposite_labels():
    """Two groups with the same inputs and opposite labels.

    Whatever a model answers is right for one group and wrong for the other, row by row: their
    accuracies add up to 1, so no floor above 1/2 can be met. A probability ``p`` costs the groups
    ``-log p`` and ``-log (1 - p)``, at least ``2 log 2`` together: no bound on the worst group's
    loss below ``log 2`` can be met. Two rows with equal inputs are one unit, so that this holds for
    the rows of every role, not only on average.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    y = (x[:, 0] + 0.3 * x[:, 1] > 0).astype(int)
    return fb.data.from_arrays(
        np.concatenate([x, x]),
        np.concatenate([y, 1 - y]),
        np.repeat([0, 1], 300),
        classes=("no", "yes"),
        groups=("here", "there"),
        unit=np.tile(np.arange(300), 2),
    )


def cross_entropy(logits, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)[:, 0]


WORST_LOSS = Custom(
    name="worst-loss", true=cross_entropy, smooth=cross_entropy, bound="level", tolerance=0.3,
    steepness=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def infeasible():
    """A floor of 0.8 where one half is the most, and a loss of 0.3 where log 2 is the least."""
    problem = fb.FairPruningProblem(
        "mlp", opposite_labels(), width=8, constraints=[WorstGroupAccuracy(0.8), WORST_LOSS]
    )
    # From a network that serves the first group, so that there is something to learn.
    network = problem.initial_network(0)
    return fb.solve(problem, dense=network, multiplier_rule="nupi", dual_step=0.05, **QUICK)


def test_equal_inputs_share_a_role(infeasible):
    """What the closed form stands on."""
    problem = infeasible.problem
    for rows in (*problem.roles.values(), problem.select_duals):
        assert len(rows) % 2 == 0
        assert np.mean(problem.group[rows]) == 0.5


def test_an_infeasible_tolerance_is_recognized(infeasible):
    found = infeasible.feasibility
    assert found.status == INFEASIBLE == "infeasible within this budget"
    assert found.rows == len(infeasible.problem.select_duals)
    floor, loss = found.constraints
    assert floor.name == "worst-group-accuracy"
    assert floor.status == loss.status == INFEASIBLE
    # The smallest feasible tolerances are 1/2 and log 2: never passed, and nearly reached.
    assert 0.35 <= floor.tolerance <= 0.5
    assert np.log(2) - 1e-6 <= loss.tolerance <= 0.8
    assert floor.exceeded == pytest.approx(0.8 - floor.tolerance)
    # Which groups, by how much: a model right for one group is wrong for the other.
    accuracies = {name: 0.8 - d for name, d in floor.over.items()}
    assert set(accuracies) <= {"here", "there"}
    if len(accuracies) == 2:
        assert sum(accuracies.values()) == pytest.approx(1, abs=1e-9)
    assert max(floor.over.values()) >= 0.3


def test_the_multipliers_grew(infeasible):
    last = [r for r in infeasible.history if r["phase"] == "finetune"]
    totals = [sum(r["multipliers"]["worst-group-accuracy"].values()) for r in last]
    assert totals[-1] > totals[0] > 0


def test_a_feasible_tolerance_is_met():
    """The same rows under a floor and a loss within what is feasible."""
    easy = Custom(
        name="worst-loss", true=cross_entropy, smooth=cross_entropy, bound="level", tolerance=0.9
    )
    problem = fb.FairPruningProblem("mlp", opposite_labels(), width=8, constraints=[easy])
    solution = fb.solve(problem, dense=problem.initial_network(0), dual_step=0.05, **QUICK)
    assert solution.feasibility.status == "met"
    (reached,) = solution.feasibility.constraints
    assert reached.over == {}
    assert np.log(2) - 1e-6 <= reached.tolerance <= 0.9


def test_the_result_and_the_words_say_so(infeasible, tmp_path):
    fb.save_run(infeasible, tmp_path / "run")
    result = fb.records.read_result(tmp_path / "run")
    kept = result.feasibility
    assert kept.status == "infeasible within this budget"
    floor = kept.constraints[0]
    assert floor.name == "worst-group-accuracy"
    assert floor.tolerance_reached == infeasible.feasibility.constraints[0].tolerance
    assert floor.over == infeasible.feasibility.constraints[0].over
    words = report.verdict(result)
    reached = 100 * floor.tolerance_reached
    assert "Accuracy of the worst group: infeasible within this budget." in words
    assert f"the highest floor it reached is {reached:.1f} points" in words
    worst = max(floor.over, key=floor.over.get)
    assert f"“{worst}” {100 * floor.over[worst]:.1f} points under" in words
    assert "floor 80 points: not met" in words
    page = (tmp_path / "run" / "report.html").read_text()
    assert "infeasible within this budget" in page


class Course:
    """A watch that was shown these violations and multipliers of one group."""

    def __init__(self, tiny_problem, monkeypatch, violations, multipliers, last):
        problem = tiny_problem(ExcessAccuracyGap(0.02))
        self.network = problem.initial_network(0)
        self.watch = Watch(problem, problem.refer(self.network))
        shown = iter([*violations, last])

        def measure(network):
            v = next(shown)
            distances = {"many": -0.1, "some": -0.1, "few": v}
            return [fairness.Measurement(0.02 + v, v, distances)]

        monkeypatch.setattr(self.watch, "_measure", measure)
        for multiplier in multipliers:
            values = (jnp.array([0.0, 0.0, multiplier]),)
            self.watch.look(self.network, DualState(values, (), fairness.empty_buffers(3, 1)))

    def status(self):
        (reached,) = self.watch.assess(self.network).constraints
        return reached


@pytest.mark.parametrize(
    ("violations", "multipliers", "last", "status"),
    [
        ([0.3] * 6, [1, 2, 3, 4, 5, 6], 0.3, INFEASIBLE),
        ([0.3, 0.28, 0.29, 0.31, 0.27, 0.3], [1, 2, 3, 4, 5, 6], 0.3, INFEASIBLE),
        # Still shrinking; at rest because nothing presses; let go; too few looks; within a row.
        ([0.6, 0.5, 0.4, 0.35, 0.3, 0.3], [1, 2, 3, 4, 5, 6], 0.3, "not met"),
        ([0.3] * 6, [0] * 6, 0.3, "not met"),
        ([0.3] * 6, [6, 5, 4, 3, 2, 1], 0.3, "not met"),
        ([0.3] * 3, [1, 2, 3], 0.3, "not met"),
        ([0.01] * 6, [1, 2, 3, 4, 5, 6], 0.01, "not met"),
        ([0.3] * 6, [1, 2, 3, 4, 5, 6], 0.0, "met"),
    ],
)
def test_what_counts_as_infeasible(
    tiny_problem, monkeypatch, violations, multipliers, last, status
):
    course = Course(tiny_problem, monkeypatch, violations, multipliers, last)
    reached = course.status()
    assert reached.status == status
    assert reached.tolerance == pytest.approx(0.02 + min([*violations, last]))
    assert reached.over == ({"few": last} if last > 0 else {})
