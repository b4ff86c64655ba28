"""One run from configuration to a finished folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fairbilevel import deploy, devices, pretrained
from fairbilevel.problem import Reference
from fairbilevel.records import (
    CHECKPOINTS,
    MODEL,
    RESULT,
    TENSORBOARD,
    CheckpointError,
    Checkpoints,
    Interrupted,
    JsonLines,
    MachineResult,
    Result,
    TensorBoard,
    locked,
    write_json,
)
from fairbilevel.run._config import Config
from fairbilevel.run._folder import claim, finish, first_event, of_baseline, stopping, write_event
from fairbilevel.run._prepare import Prepared
from fairbilevel.run._result import build_result, command, describe_data, machine, versions
from fairbilevel.train import Callback, Costs, DivergenceError, Solution, train_dense

BASELINE = "gradual-magnitude"


def dense_reference(
    prepared: Prepared,
    costs: Costs,
    callback: Callback = lambda record: None,
    checkpoints: Checkpoints | None = None,
) -> Reference:
    """The dense model that was given, or one trained as configured, which is booked."""
    config, problem = prepared.config, prepared.problem
    if prepared.dense is not None:
        return pretrained.refer(problem, prepared.dense)
    return train_dense(
        problem,
        steps=config.dense_steps,
        batch_size=config.batch_size,
        learning_rate=config.dense_learning_rate,
        seed=config.seed,
        callback=callback,
        costs=costs,
        checkpoints=checkpoints,
    )


def solve_run(
    prepared: Prepared,
    path: Path,
    progress: Callable[[dict[str, Any]], None],
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Result:
    """Train, solve, compare, and write the run folder.

    Checkpoints go below ``path/checkpoints`` until the run ends. SIGTERM and Ctrl-C end it after
    the next one.

    Args:
        prepared: the problem.
        path: the run folder, free or to be overwritten, or with a run to go on with.
        progress: receives every record of ``metrics.jsonl``.
        resume: go on with the unfinished run in the folder.
        say: is told what a user should know.

    Returns:
        The result.

    Raises:
        DivergenceError: the loss is not finite or exploded, with smaller steps too; the folder then
            holds a result of status ``diverged`` and the last good network in
            ``model/last_good.npz``.
        Interrupted: a signal asked to stop, and a checkpoint was written.
        CheckpointError: a checkpoint cannot be written, or those there are of another run.
        CutNetworkError: the masks cut the network; the result's status is ``failed``.
        OSError: the folder cannot be written.
    """
    config = prepared.config
    with contextlib.ExitStack() as held:

        def begin() -> JsonLines:
            held.enter_context(locked(path))
            return claim(path, config.to_json(), config.overwrite, resume=resume)

        lines = devices.on_first(begin)
        assert lines is not None  # this is the first process
        return _solve_locked(prepared, path, lines, progress, resume, say)


def checkpoints_of(
    path: Path, config: Config, say: Callable[[str], None] = lambda sentence: None
) -> Checkpoints:
    """Where the checkpoints of what goes on in a folder are written, as configured."""
    return Checkpoints(
        path / CHECKPOINTS, every=config.checkpoint_every, keep=config.checkpoint_keep, say=say
    )


def _solutions(
    prepared: Prepared, record: Callback, checkpoints: Checkpoints
) -> tuple[Solution, Solution | None, Costs]:
    """The method's, the baseline's if there is one, and what the dense model cost."""
    config, problem, costs = prepared.config, prepared.problem, Costs()
    reference = dense_reference(prepared, costs, record, checkpoints)
    solution = prepared.method.run(problem, reference, callback=record, checkpoints=checkpoints)
    baseline = None
    if config.compares:
        method = config.build(BASELINE)
        told = of_baseline(method.plan(problem, reference).weight_updates)
        baseline = method.run(
            problem,
            reference,
            callback=lambda entry: record(told(entry)),
            checkpoints=checkpoints.below("baseline"),
        )
    checkpoints.close()
    return solution, baseline, costs


def _solve_locked(
    prepared: Prepared,
    path: Path,
    lines: JsonLines,
    progress: Callable[[dict[str, Any]], None],
    resume: bool,
    say: Callable[[str], None],
) -> Result:
    config = prepared.config
    event = partial(write_event, path)
    typed = (first_event(path, "command") if resume else None) or command()
    event("resumed" if resume else "started", command=command(), versions=versions())

    def told(sentence: str) -> None:
        event("note", text=sentence)
        say(sentence)

    def record(entry: dict[str, Any]) -> None:
        lines.write(entry)
        if board is not None:
            board(entry)
        progress(entry)

    if resume:  # all records come again
        shutil.rmtree(path / TENSORBOARD, ignore_errors=True)
    board = TensorBoard(path / TENSORBOARD) if config.tensorboard else None
    checkpoints = checkpoints_of(path, config, told)
    try:
        with stopping(checkpoints, say):
            solution, baseline, dense_costs = _solutions(prepared, record, checkpoints)
    except (CheckpointError, Interrupted) as error:
        event("interrupted", reason=str(error))
        raise
    except ValueError as error:
        if devices.lost_others(error):  # what there is can be gone on with
            event("interrupted", reason="another process ended")
            raise
        _record_failure(path, prepared, error, typed)
        checkpoints.discard()
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
        typed=typed,
    )
    finish(path, solution, result)
    event("completed")
    checkpoints.discard()
    return result


def follow_run(prepared: Prepared, path: Path) -> None:
    """What the other processes of a run do while the first one writes: the same computations.

    Args:
        prepared: the problem.
        path: the run folder, on a file system that all processes see.

    Raises:
        DivergenceError: the loss is not finite or exploded, with smaller steps too.
        Interrupted: a signal asked to stop, and a checkpoint was written.
        CutNetworkError: the masks cut the network.
    """
    config = prepared.config
    devices.on_first(lambda: None)  # the first process has claimed the folder
    checkpoints = checkpoints_of(path, config)
    with stopping(checkpoints, lambda sentence: None):
        solution, baseline, _ = _solutions(prepared, lambda record: None, checkpoints)
    build_result(solution, baseline, seed=config.seed)
    checkpoints.discard()


def _record_failure(path: Path, prepared: Prepared, error: ValueError, typed: str) -> None:
    """What a run that could not end leaves: its diagnosis and, if it diverged, the last network
    whose loss was finite."""
    status: dict[str, Any] = {"status": "failed", "diagnosis": str(error)}
    if isinstance(error, DivergenceError):
        (path / MODEL).mkdir(exist_ok=True)
        deploy.save_network(path / MODEL / "last_good.npz", error.last_good)
        status |= {"status": "diverged", "phase": error.phase, "step": error.step}
    result = Result(
        **status,
        command=typed,
        seed=prepared.config.seed,
        versions=versions(),
        machine=MachineResult(**machine(prepared.problem)),
        data=describe_data(prepared.problem),
    )
    write_json(path / RESULT, result.to_json())
