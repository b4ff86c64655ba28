"""One repetition: its problem, a dense model, and what is kept of a method's run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from fairbilevel import data as fb_data
from fairbilevel import fairness, run
from fairbilevel.comparison._design import OUTCOME_ROLES, ROLES, Comparison
from fairbilevel.data import Dataset
from fairbilevel.masks import CutNetworkError
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.records import to_digits
from fairbilevel.run import read_data
from fairbilevel.train import Costs, DivergenceError, Solution, train_dense

# Repetitions of a process share what they read.
read_once = functools.lru_cache(maxsize=1)(read_data)


def build_problem(
    comparison: Comparison, data: Dataset, counted: np.ndarray, round_: int, fold: int
) -> FairPruningProblem:
    """The problem of one fold."""
    config = comparison.config
    seed = config.seed + round_
    roles = fb_data.fold_roles(data, fold, comparison.folds, seed=seed, counted=counted)
    return run.build_problem(config, data, counted, roles, seed, config.placement())


def run_seed(comparison: Comparison, round_: int, fold: int) -> int:
    """Seed of a repetition's dense model and runs: each its own."""
    return comparison.folds * (comparison.config.seed + round_) + fold


def start_repetition(
    comparison: Comparison, round_: int, fold: int
) -> tuple[FairPruningProblem, Reference, Costs]:
    """The problem and dense model of one repetition, trained from its seed, and what that cost."""
    data, counted = read_once(comparison.config)
    problem = build_problem(comparison, data, counted, round_, fold)
    return (problem, *train(comparison, problem, run_seed(comparison, round_, fold)))


def train(
    comparison: Comparison, problem: FairPruningProblem, seed: int
) -> tuple[Reference, Costs]:
    """A dense model as the comparison trains it, and what that cost."""
    config, costs = comparison.config, Costs()
    reference = train_dense(
        problem,
        steps=config.dense_steps,
        batch_size=config.batch_size,
        learning_rate=config.dense_learning_rate,
        seed=seed,
        costs=costs,
    )
    return reference, costs


def describe_dense(
    problem: FairPruningProblem, reference: Reference, costs: Costs, seed: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A repetition's record without runs, and what is kept of its rows."""
    rows: dict[str, np.ndarray] = {"counted": problem.counted}
    for role in OUTCOME_ROLES:
        chosen = problem.roles[role]
        rows |= {
            f"{role}/id": problem.data.ids[chosen],
            f"{role}/group": problem.group[chosen],
            f"{role}/label": problem.y[chosen],
            f"{role}/dense": reference.correct[chosen],
        }
    record = {
        "seed": seed,
        "groups": list(problem.groups),
        "classes": list(problem.data.classes),
        "roles": {role: len(chosen) for role, chosen in problem.roles.items()},
        "model": problem.model.name,
        "dense": {
            role: fairness.performance(
                reference.correct[chosen],
                reference.loss[chosen],
                problem.group[chosen],
                problem.groups,
            )
            for role, chosen in ((role, problem.roles[role]) for role in ROLES)
        },
        "dense_gradient_evaluations": costs.gradient_evaluations,
        "dense_seconds": costs.seconds,
        "runs": {},
    }
    return to_digits(record), rows


def run_method(
    comparison: Comparison,
    problem: FairPruningProblem,
    reference: Reference,
    method: str,
    sparsity: float,
    seed: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One method: what the record keeps, and whether each row is right.

    Raises:
        ValueError: the method cannot be run: too few steps, say.
    """
    try:
        chosen = comparison.method(method, sparsity, seed)
        solution: Solution = chosen.run(problem, reference)
    except (CutNetworkError, DivergenceError) as error:
        return _failed(problem, reference, error)
    entry: dict[str, Any] = {
        "gradient_evaluations": solution.costs.gradient_evaluations,
        "seconds": solution.costs.seconds,
        "compile_seconds": solution.costs.compile_seconds,
        "sparsity": solution.allocation.describe(solution.masks),
        **solution.network_cost().to_json(),
        "warnings": list(solution.warnings),
        "constant_answer": solution.constant_answer,
        "course": [_place(line) for line in solution.history],
    }
    return _with_roles(entry, lambda role: _evaluate(problem, solution.network, reference, role))


def _place(line: dict[str, Any]) -> list[Any]:
    """Of a logged line: work done, accuracy and largest gap on tune, as fine as a picture is."""
    tune = line["tune"]
    seen = [tune["accuracy"], tune.get("max_excess_accuracy_gap")]
    return [line["gradient_evaluations"], *to_digits(seen, 4)]


def _with_roles(
    entry: dict[str, Any], evaluated: Callable[[str], tuple[dict[str, Any], np.ndarray]]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """An entry with every role's summary, and the rows that are kept one by one."""
    found = {role: evaluated(role) for role in ROLES}
    entry |= {role: summary for role, (summary, _) in found.items()}
    return to_digits(entry), {role: found[role][1] for role in OUTCOME_ROLES}


def _evaluate(
    problem: FairPruningProblem, network: Network, reference: Reference, role: str
) -> tuple[dict[str, Any], np.ndarray]:
    """Performance, gaps and excess losses on a role, and whether each row is right."""
    chosen = problem.roles[role]
    outcomes = problem.outcomes(network, reference, chosen)
    group, correct = problem.group[chosen], np.asarray(outcomes.correct).astype(bool)
    summary: dict[str, Any] = {
        "performance": fairness.performance(
            correct,
            np.asarray(outcomes.loss),
            group,
            problem.groups,
            label=problem.y[chosen],
            answer=np.asarray(outcomes.answer),
            classes=problem.data.classes,
        ),
        "gaps": fairness.gaps(
            reference.correct[chosen], correct, group, problem.groups, problem.counted
        ),
    }
    excess = np.asarray(outcomes.loss, float) - reference.loss[chosen]
    by_group, _ = fairness.group_rates(excess, group, len(problem.groups))
    summary["excess_loss"] = {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(problem.groups, by_group, strict=True)
    }
    return summary, correct


def _failed(
    problem: FairPruningProblem, reference: Reference, error: CutNetworkError | DivergenceError
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A run without a network stays in the table.

    A diverged one counts with its last network whose loss was finite, a cut network with what it
    would answer at best: always the commonest class of fit.
    """
    entry: dict[str, Any] = {
        "failed": "diverged" if isinstance(error, DivergenceError) else "cut",
        "diagnosis": str(error),
        "gradient_evaluations": None,
        "seconds": None,
    }
    if isinstance(error, DivergenceError):
        last = error.last_good
        return _with_roles(entry, lambda role: _evaluate(problem, last, reference, role))
    answer = np.bincount(problem.y[problem.roles["fit"]]).argmax()

    def constant(role: str) -> tuple[dict[str, Any], np.ndarray]:
        chosen = problem.roles[role]
        correct, group = problem.y[chosen] == answer, problem.group[chosen]
        loss = np.full(len(chosen), np.log(len(problem.data.classes)), np.float32)
        dense = reference.correct[chosen]
        gaps = fairness.gaps(dense, correct, group, problem.groups, problem.counted)
        performance = fairness.performance(correct, loss, group, problem.groups)
        return {"performance": performance, "gaps": gaps}, correct

    return _with_roles(entry, constant)
