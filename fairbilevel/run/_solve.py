"""One run from configuration to a finished folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairbilevel import export, hypergrad, systems
from fairbilevel.problem import Reference
from fairbilevel.pruners import GradualMagnitude, Pruner
from fairbilevel.records import MODEL, RESULT, SCHEMA_VERSION, TENSORBOARD, TensorBoard, write_json
from fairbilevel.run._config import SOLVER_OPTIONS, Config
from fairbilevel.run._folder import check_free, claim, finish, of_baseline
from fairbilevel.run._prepare import Prepared
from fairbilevel.run._result import build_result, command, describe_data, machine, versions
from fairbilevel.solver import BilevelSolver
from fairbilevel.train import Callback, Costs, DivergenceError, train_dense

# Options of every method, and the names they have in its class where these differ.
_COMMON = {
    "sparsity": "sparsity",
    "granularity": "granularity",
    "budget": "budget",
    "steps": "steps",
    "batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "multiplier_rule": "dual_rule",
    "dual_step": "dual_step",
    "buffer_size": "buffer_size",
    "seed": "seed",
}


def make_system(config: Config) -> Pruner | BilevelSolver:
    """The method that a configuration asks for.

    Of the solver's relatives and the pruners, what a configuration leaves at its default stays at
    the method's own.
    """
    system, default = systems.find(config.method), Config()
    names = {**_COMMON, **{name: name for name in SOLVER_OPTIONS if system.is_solver}}
    always = ("sparsity", "granularity", "steps", "batch_size", "seed")
    given = {
        field: getattr(config, name)
        for name, field in names.items()
        if field in system.options
        and (name in always or getattr(config, name) != getattr(default, name))
    }
    if "hypergradient" in given:
        given["hypergradient"] = hypergrad.by_name(config.hypergradient)
    return systems.by_name(config.method, **given)


def make_solver(config: Config) -> BilevelSolver:
    """The bilevel solver that a configuration asks for.

    Raises:
        ValueError: it asks for another method.
    """
    system = make_system(config)
    if not isinstance(system, BilevelSolver):
        raise ValueError(f"this command runs the bilevel solver, got --method {config.method}")
    return system


def make_baseline(config: Config) -> GradualMagnitude:
    """Gradual magnitude pruning under the same budget."""
    return GradualMagnitude(
        sparsity=config.sparsity,
        granularity=config.granularity,
        budget=config.budget,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        seed=config.seed,
    )


def run_folder(config: Config) -> Path:
    """Where a run goes: ``--out``, or a new folder below ``runs/``.

    Raises:
        ValueError: ``--out`` holds something that would be lost.
    """
    if config.out is not None:
        check_free(Path(config.out), config.overwrite)
        return Path(config.out)
    stem = Path(config.data.split("?")[0].replace("tfds:", "")).stem or "data"
    what = f"{config.granularity}-{config.sparsity:g}-seed{config.seed}"
    name = systems.find(config.method).name
    base = Path("runs") / (f"{stem}-{what}" if name == "bilevel" else f"{stem}-{name}-{what}")
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def dense_reference(
    prepared: Prepared, costs: Costs, callback: Callback = lambda record: None
) -> Reference:
    """The dense model that was given, or one trained as configured.

    Args:
        prepared: the problem.
        costs: where training is booked; untouched where the model was given.
        callback: receives the records of the training.

    Raises:
        DivergenceError: the loss is not finite.
    """
    config, problem = prepared.config, prepared.problem
    if prepared.dense is not None:
        return problem.refer(prepared.dense)
    return train_dense(
        problem,
        steps=config.dense_steps,
        batch_size=config.batch_size,
        learning_rate=config.dense_learning_rate,
        seed=config.seed,
        callback=callback,
        costs=costs,
    )


def solve_run(
    prepared: Prepared, path: Path, progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train, solve, compare, and write the run folder.

    Args:
        prepared: the problem.
        path: the run folder, free or to be overwritten.
        progress: receives every record of ``metrics.jsonl``.

    Returns:
        The result.

    Raises:
        DivergenceError: the loss is not finite; the folder then holds a result of status
            ``diverged`` and the last good network in ``model/last_good.npz``.
        ValueError: the masks cut the network; the result's status is ``failed``.
        OSError: the folder cannot be written.
    """
    config, problem = prepared.config, prepared.problem
    lines = claim(path, config.to_json(), config.overwrite)
    board = TensorBoard(path / TENSORBOARD) if config.tensorboard else None

    def record(entry: dict[str, Any]) -> None:
        lines.write(entry)
        if board is not None:
            board(entry)
        progress(entry)

    try:
        dense_costs = Costs()
        reference = dense_reference(prepared, dense_costs, record)
        solution = make_system(config).run(problem, reference, callback=record)
        baseline = None
        if config.compares:
            baseline = make_baseline(config).run(
                problem, reference, callback=lambda entry: record(of_baseline(entry))
            )
    except ValueError as error:
        _record_failure(path, prepared, error)
        raise
    finally:
        lines.close()
        if board is not None:
            board.close()
    result = build_result(
        solution,
        baseline,
        seed=config.seed,
        dense_costs=dense_costs if not prepared.dense else None,
    )
    finish(path, solution, result)
    return result


def _record_failure(path: Path, prepared: Prepared, error: ValueError) -> None:
    """What a run that could not end leaves: its diagnosis and, if it diverged, the last network
    whose loss was finite."""
    status: dict[str, Any] = {"status": "failed", "diagnosis": str(error)}
    if isinstance(error, DivergenceError):
        (path / MODEL).mkdir(exist_ok=True)
        export.save_network(path / MODEL / "last_good.npz", error.last_good)
        status |= {"status": "diverged", "phase": error.phase, "step": error.step}
    write_json(
        path / RESULT,
        {
            "schema_version": SCHEMA_VERSION,
            **status,
            "command": command(),
            "seed": prepared.config.seed,
            "versions": versions(),
            "machine": machine(prepared.problem),
            "data": describe_data(prepared.problem),
        },
    )
