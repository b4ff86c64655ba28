"""Several sparsities and tolerances solved in one compiled program."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairbilevel import _trees, _xla, masks
from fairbilevel.masks import CubicSchedule
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.solver._bilevel import BilevelSolver
from fairbilevel.solver._run import BilevelRun
from fairbilevel.solver._step import BilevelState, inner_steps
from fairbilevel.train import (
    RECALIBRATION_BATCHES,
    REFRESH_BATCHES,
    STREAM_DUALS,
    STREAM_FIT,
    STREAM_REFRESH,
    STREAM_SELECT,
    Costs,
    Solution,
    WeightLoop,
    WeightState,
    dual_batches,
    masked,
    multiplier_record,
    settled_statistics,
)


@dataclass(frozen=True)
class Candidate:
    """One point to solve for.

    Attributes:
        sparsity: share of units to remove, in [0, 1).
        tolerance: of every constraint of the problem, in place of its own.
    """

    sparsity: float
    tolerance: float


def solve_many(
    solver: BilevelSolver,
    problem: FairPruningProblem,
    reference: Reference,
    candidates: Sequence[Candidate],
) -> list[Solution]:
    """The bilevel solver at several sparsities and tolerances, compiled once.

    All candidates see the same batches. They run side by side (``vmap``), on CPU networks with
    convolutions one after the other inside the program, where batched convolutions are slow. Unlike
    ``BilevelSolver.run`` nothing stops early: tune only judges the final networks.

    Args:
        solver: options; its own sparsity is not used.
        problem: with at least one constraint if tolerances are to matter.
        reference: the dense model.
        candidates: what to solve for.

    Raises:
        ValueError: no candidates, one that cannot be reached, or a run that diverged.
    """
    if not candidates:
        raise ValueError("give at least one candidate")
    for candidate in candidates:
        if not candidate.tolerance >= 0:
            raise ValueError(f"a tolerance must be at least 0, got {candidate.tolerance}")
        dataclasses.replace(solver, sparsity=candidate.sparsity)  # refuses a bad sparsity
    if not (solver.constrain_masks and solver.constrain_weights):
        raise ValueError("a frontier wants constraints on masks and weights alike")
    for constraint in problem.constraints if solver.constraints is None else solver.constraints:
        if not isinstance(constraint.tolerance, (int, float)):
            raise ValueError(
                f"{constraint.name} has a tolerance for each group: a frontier varies one number"
            )
    tightest = max(c.sparsity for c in candidates)
    run = BilevelRun(
        dataclasses.replace(solver, sparsity=tightest), problem, reference, lambda record: None
    )
    begin = time.perf_counter()
    keeps = [_keeps(run, c.sparsity) for c in candidates]
    program = _Program(run, _moves(keeps))
    slack = jnp.asarray([c.tolerance for c in candidates], jnp.float32)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *keeps)
    ends = jax.block_until_ready(program(stacked, slack))
    seconds = (time.perf_counter() - begin) / len(candidates)
    solutions = []
    for index, candidate in enumerate(candidates):
        end = jax.tree.map(lambda leaf, i=index: leaf[i], ends)
        if not np.isfinite(end.loss):
            raise ValueError(
                f"the loss is not finite at sparsity {candidate.sparsity:g} and tolerance "
                f"{candidate.tolerance:g}: lower the learning rate"
            )
        solutions.append(program.solution(candidate, end, seconds))
    return solutions


def _keeps(run: BilevelRun, sparsity: float) -> Any:
    """The budget's counts of every stage, stacked."""
    schedule = CubicSchedule(sparsity, run.options.budget_share)
    counts = [
        masks.as_counts(run.budget.keep(schedule((stage + 1) / run.stages)))
        for stage in range(run.stages)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *counts)


def _moves(keeps: Sequence[Any]) -> np.ndarray:
    """bool ``[stages]``: where any candidate's budget differs from the stage before."""
    counts = np.stack(
        [np.concatenate([np.ravel(leaf) for leaf in stage]) for stage in _stages(keeps)]
    )
    return np.concatenate([[True], np.any(counts[1:] != counts[:-1], axis=1)])


def _stages(keeps: Sequence[Any]) -> list[list[Any]]:
    """All candidates' counts, stage by stage."""
    leaves = [np.asarray(leaf) for keep in keeps for leaf in jax.tree.leaves(keep)]
    return [[leaf[stage] for leaf in leaves] for stage in range(len(leaves[0]))]


@dataclass(frozen=True)
class _End:
    """What the program returns of a candidate."""

    params: Any
    model_state: Any
    masks: Any
    scores: Any
    duals: Any
    loss: Any


jax.tree_util.register_dataclass(_End)


class _Program:
    """A whole run of the solver as one function of budgets and tolerances.

    Args:
        run: plans steps and brings the pure parts.
        moves: stages at which the budget moves: statistics are refreshed and buffers emptied.
    """

    def __init__(self, run: BilevelRun, moves: np.ndarray):
        self.run, self.problem = run, run.problem
        self.start: BilevelState = run.init()
        self.step = run.outer_step
        options, feed = run.options, run.feed
        self.fine = run.fine_steps
        self.final = run.final_steps()
        roles, count = self.problem.roles, run.outer_steps
        rows = run.fine_tune_rows()
        each = inner_steps(options.hypergradient)
        every = options.violation_every
        # Row numbers alone; the program gathers batches from the device's copy of the data.
        stages = run.stages
        take = feed.rows
        self.bilevel_rows = {
            "refresh": np.concatenate(
                [
                    take(roles["fit"], STREAM_REFRESH, REFRESH_BATCHES)
                    if move
                    else np.zeros((REFRESH_BATCHES, options.batch_size), int)
                    for move in moves
                ]
            ),
            "fit": take(roles["fit"], STREAM_FIT, count * each),
            "select": take(run.select_rows, STREAM_SELECT, count),
        }
        self.duals_early = run.measures_early
        if run.measures_early:
            measured = stages * dual_batches(run.stage_steps, every)
            self.bilevel_rows["duals"] = take(self.problem.select_duals, STREAM_DUALS, measured)
        self.bilevel_rows = {
            name: r.reshape(stages, -1, r.shape[-1]) for name, r in self.bilevel_rows.items()
        }
        self.moves = jnp.asarray(moves)
        self.fine_rows = take(rows, STREAM_FIT, self.fine)
        self.fine_duals = None
        if run.measures:
            self.fine_duals = take(
                self.problem.select_duals, STREAM_DUALS, dual_batches(self.fine, every)
            )
        self.settle_rows = take(rows, STREAM_REFRESH, RECALIBRATION_BATCHES)
        self.data = feed.everything()

    def __call__(self, keeps: Any, tolerances: Any) -> _End:
        """All candidates, each with its leading entry of ``keeps`` and ``tolerances``."""
        return jax.jit(lambda k, t: self._each()(self._one, k, t))(keeps, tolerances)

    def _each(self) -> Callable[..., Any]:
        convolutions = any(len(layer.shape) > 2 for layer in self.problem.layers)
        if convolutions and jax.default_backend() == "cpu":
            return lambda function, *args: jax.lax.map(lambda row: function(*row), args)
        return lambda function, *args: jax.vmap(function)(*args)

    def _batches(self, rows: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[rows], self.data)

    def _one(self, keeps: Any, tolerance: Any) -> _End:
        step, run, state = self.step, self.run, self.start
        first = jax.tree.map(lambda leaf: leaf[0], keeps)
        scores = step.relaxation.start(state.scores, step.budget, first)
        slack = tuple(
            c.tolerance - tolerance if c.floor else tolerance - c.tolerance for c in run.constraints
        )
        duals = state.weights.duals._replace(slack=slack)
        state = state._replace(scores=scores, weights=state.weights._replace(duals=duals))
        progress = jnp.arange(run.outer_steps, dtype=jnp.float32) / run.outer_steps

        def stage(state: BilevelState, xs: Any) -> Any:
            rows, keep, progress, moves = xs
            z = step.network(state.scores, state.weights.params, keep, progress[0])
            weights = self._moved(state.weights, z, rows["refresh"], moves)
            duals = self._batches(rows["duals"]) if self.duals_early else None
            state, log = step.many(
                state._replace(weights=weights),
                self._batches(rows["fit"]),
                self._batches(rows["select"]),
                duals,
                keep,
                progress,
            )
            return state, log.weights.loss

        xs = (self.bilevel_rows, keeps, progress.reshape(run.stages, -1), self.moves)
        state, losses = _xla.scan(stage, state, xs)
        last = jax.tree.map(lambda leaf: leaf[-1], keeps)
        hard = step.budget.top_k(state.scores, last)
        return self._finish(state, hard, losses)

    def _moved(self, weights: WeightState, z: Any, rows: Any, moves: Any) -> WeightState:
        """Statistics and buffers, anew where the budget moved."""
        settled = weights.model_state
        if jax.tree.leaves(settled):
            settled = settled_statistics(self.problem, settled, z, self._batches(rows))
        anew = (settled, self.step.steps.emptied(weights.duals))
        model_state, duals = jax.tree.map(
            lambda new, old: jnp.where(moves, new, old), anew, (weights.model_state, weights.duals)
        )
        return weights._replace(model_state=model_state, duals=duals)

    def _finish(self, state: BilevelState, hard: Any, losses: Any) -> _End:
        weights, run = state.weights, self.run
        factors = masks.expand(hard, weights.params, self.problem.layers, run.options.granularity)
        fine = self.final.init(weights.params, weights.model_state, weights.key)
        fine = fine._replace(duals=self.final.emptied(weights.duals))
        loss = jnp.sum(losses)
        if self.fine:
            loop = WeightLoop(self.final, Costs(), run.options.violation_every)
            duals = None if self.fine_duals is None else self._batches(self.fine_duals)
            fine, log = loop.many(fine, factors, self._batches(self.fine_rows), duals)
            loss = loss + jnp.sum(log.loss)
        z = masked(factors, fine.params)
        settled = fine.model_state
        if jax.tree.leaves(settled):
            settled = settled_statistics(self.problem, settled, z, self._batches(self.settle_rows))
        return _End(z, settled, hard, state.scores, fine.duals, loss)

    def solution(self, candidate: Candidate, end: _End, seconds: float) -> Solution:
        """The same object that a single run gives."""
        run, problem = self.run, self.problem
        spent = run.planned_evaluations(int(self.moves.sum()))
        costs = Costs(gradient_evaluations=spent, seconds=seconds)
        return Solution(
            run.options.label,
            problem,
            run.reference,
            Network(_trees.copy(end.params), _trees.copy(end.model_state)),
            end.masks,
            end.scores,
            multiplier_record(run.constraints, end.duals, problem.groups),
            run.options.granularity,
            run.budget,
            candidate.sparsity,
            costs,
            [],
        )
