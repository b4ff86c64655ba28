"""The analysis of disparate impact for solutions and finished runs (Tran et al. 2022)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from fairbilevel import _options, analysis
from fairbilevel.analysis import DisparateImpact, Lanczos, disparate_impact
from fairbilevel.data import Encoder, standardize
from fairbilevel.models import Model
from fairbilevel.problem import REPORTED_ROLES, FairPruningProblem, Network
from fairbilevel.records import ANALYSIS, ANALYSIS_TABLE, SCHEMA_VERSION, write_csv, write_json
from fairbilevel.run._evaluate import role_rows
from fairbilevel.run._folder import Run
from fairbilevel.run._result import command, machine, versions
from fairbilevel.train import Solution


@dataclass(frozen=True)
class EvaluationMode:
    """A model in evaluation mode on rows that an encoder of some kind gives, in the two forms that
    the analysis takes. What differs between folds is an argument: all of them share a program."""

    model: Model
    kind: str

    @staticmethod
    def under(state: Any, model: Model, encoder: Encoder) -> jax.tree_util.Partial:
        """Logits of ``(params, x)`` under these normalization statistics."""
        mode = EvaluationMode(model, encoder.kind)
        return jax.tree_util.Partial(mode, encoder.moments, state)

    def __call__(self, moments: Any, state: Any, params: Any, x: Array) -> Array:
        """Logits, given the encoder's moments and the model's statistics."""
        x = standardize(self.kind, x, moments)
        return self.model.apply(params, state, x, False, jax.random.key(0))[0]

    def whole(self, moments: Any, network: tuple[Any, Any], x: Array) -> Array:
        """Logits of parameters and statistics that move together."""
        return self(moments, network[1], network[0], x)


def choose_rows(
    group: Int[np.ndarray, " rows"], groups: int, max_rows: int | None, seed: int = 0
) -> Int[np.ndarray, " chosen"]:
    """At most ``max_rows`` rows at random, as even over the groups as their sizes allow.

    Means by group need as many rows of a small group as of a large one.

    Raises:
        ValueError: fewer rows than groups that have any.
    """
    size = np.bincount(group, minlength=groups)
    if max_rows is None or len(group) <= max_rows:
        return np.arange(len(group))
    if max_rows < np.count_nonzero(size):
        raise ValueError(
            f"{max_rows} rows cannot show {np.count_nonzero(size)} groups: allow at least one each"
        )
    left, remaining = max_rows, int(np.count_nonzero(size))
    level = 0
    for rows in np.sort(size[size > 0]).tolist():
        level = left // remaining
        if rows > level:
            break
        left, remaining = left - rows, remaining - 1
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(group == g))[: level if size[g] > level else None]
        for g in range(groups)
    ]
    return np.sort(np.concatenate(chosen))


def _analyze(
    model: Model,
    encoder: Encoder,
    dense: Network,
    pruned: Network,
    rows: tuple[Any, np.ndarray, np.ndarray],
    groups: tuple[str, ...],
    max_rows: int | None,
    batch_size: int,
    lanczos: Lanczos,
) -> DisparateImpact:
    inputs, y, group = rows
    chosen = choose_rows(group, len(groups), max_rows)
    looked = np.bincount(group[chosen], minlength=len(groups))
    share = np.bincount(group, minlength=len(groups)) / np.maximum(looked, 1)
    statistics = jax.tree.leaves(dense.state)
    return disparate_impact(
        EvaluationMode.under(dense.state, model, encoder),
        dense.params,
        pruned.params,
        inputs[chosen],
        y[chosen],
        group[chosen],
        own_apply=EvaluationMode.under(pruned.state, model, encoder) if statistics else None,
        groups=groups,
        # Groups stand for as many rows as they have, however many of them were looked at.
        weight=share[group[chosen]],
        batch_size=min(batch_size, len(chosen)),
        lanczos=lanczos,
    )


def analyze(
    solution: Solution,
    role: str = "test",
    *,
    max_rows: int | None = None,
    batch_size: int = 256,
    lanczos: Lanczos = analysis.TWENTY,
) -> DisparateImpact:
    """Why a solution's groups lost what they lost: the analysis of Tran et al. 2022.

    Args:
        solution: of a solver or pruner.
        role: fit, select, tune or test.
        max_rows: look at no more rows than these, evenly over groups.
        batch_size: rows a batch.
        lanczos: how the largest eigenvalues are found; each product costs three gradients over
            the rows.

    Raises:
        ValueError: another role, or fewer rows than groups.
    """
    problem = solution.problem
    dense, pruned = solution.reference.network, solution.network
    rows = _rows_of(problem, role)
    model, encoder, groups = problem.model, problem.encoder, problem.groups
    return _analyze(model, encoder, dense, pruned, rows, groups, max_rows, batch_size, lanczos)


def analyze_run(
    run: Run,
    role: str = "test",
    *,
    max_rows: int | None = None,
    batch_size: int = 256,
    lanczos: Lanczos = analysis.TWENTY,
) -> DisparateImpact:
    """``analyze`` for a finished run, on its own rows of a role.

    Raises:
        ValueError: another role; a run that does not say where its data is, or data that changed
            since; fewer rows than groups.
    """
    _check_role(role)
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"--max-rows must be at least 1, got {max_rows}")
    data = role_rows(run, role, "analyze the solution in Python with fb.analyze")
    if not len(data):
        raise ValueError(f"the run in {run.path} has no rows of role {role}")
    inputs = run.encoder.transform(data.inputs)
    rows = inputs, np.asarray(data.y, np.int32), np.asarray(data.group, np.int32)
    model, encoder, groups = run.model, run.encoder, run.groups
    return _analyze(
        model, encoder, run.dense, run.network, rows, groups, max_rows, batch_size, lanczos
    )


def write_analysis(
    folder: Path, impact: DisparateImpact, *, role: str, rows: int | None = None
) -> dict[str, Any]:
    """Write ``analysis.json`` and ``analysis.csv`` into a run folder, each whole or not at all.

    ``rows`` is the limit on rows, if there was one. Returns what ``analysis.json`` holds.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "command": command(),
        "role": role,
        "max_rows": rows,
        "versions": versions(),
        "machine": machine(),
        **impact.to_json(),
    }
    json.dumps(content, allow_nan=False)  # refused before anything is written
    write_csv(folder / ANALYSIS_TABLE, [asdict(line) for line in impact.table()])
    write_json(folder / ANALYSIS, content)
    return content


def solution_line(
    a: Solution, b: Solution, role: str = "test", **options: Any
) -> analysis.LossLine:
    """Loss between two solutions of one problem, parameters and statistics moving together.

    Args:
        a: the solution at 0.
        b: the solution at 1.
        role: fit, select, tune or test.
        options: of ``fb.analysis.loss_line``.

    Raises:
        ValueError: another role, or solutions of different models.
    """
    return _between(analysis.loss_line, (a, b), role, **options)


def solution_plane(
    a: Solution, b: Solution, c: Solution, role: str = "test", **options: Any
) -> analysis.LossPlane:
    """Loss over the plane through three solutions of one problem, as ``solution_line``.

    Distances count parameters and statistics alike.
    """
    return _between(analysis.loss_plane, (a, b, c), role, **options)


def _between(
    measure: Callable[..., Any], solutions: Sequence[Solution], role: str, **options: Any
) -> Any:
    """What the analysis measures between networks, on the rows of the first one's role."""
    problem = solutions[0].problem
    mode = EvaluationMode(problem.model, problem.encoder.kind)
    apply = jax.tree_util.Partial(mode.whole, problem.encoder.moments)
    networks = [(s.network.params, s.network.state) for s in solutions]
    rows = _rows_of(problem, role)
    return measure(apply, *networks, *rows, groups=problem.groups, **options)


def _check_role(role: str) -> None:
    if role == "certify":
        raise ValueError("rows of role certify are kept for certificates: analyze another role")
    _options.one_of("role", role, REPORTED_ROLES)


def _rows_of(problem: FairPruningProblem, role: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """Inputs, labels and groups of a role."""
    _check_role(role)
    rows = problem.roles[role]
    if not len(rows):
        raise ValueError(f"there are no rows of role {role}")
    return problem.inputs[rows], problem.y[rows], problem.group[rows]
