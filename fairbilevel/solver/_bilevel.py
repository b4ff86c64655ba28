"""The bilevel fair pruning solver: scores on select, weights on fit, multipliers on unseen rows.

BiFP (Dai et al. 2023) with the closed-form hypergradient of BiP (Zhang et al. 2022), the proxy
constraints and replay buffers of CEAG (Hashemizadeh et al. 2024), a budget that follows a cubic
schedule, and multipliers moved by rows that no gradient uses (Cotter et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import optax

from fairbilevel import fairness, masks
from fairbilevel.fairness import Constraint
from fairbilevel.hypergrad import Bilinear, Hypergradient
from fairbilevel.masks import Budget, Relaxation
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.records import Checkpoints
from fairbilevel.solver._run import BilevelRun
from fairbilevel.train import (
    SCORE_RULES,
    Callback,
    Solution,
    train_dense,
)


@dataclass(frozen=True)
class BilevelSolver:
    """Finds mask and weights in one run.

    Attributes:
        sparsity: share of units to remove, in [0, 1).
        granularity: ``"weight"`` or ``"filter"``.
        budget: ``"global"`` or ``"uniform"``.
        relaxation: how scores become masks.
        score_start: ``"magnitude"``, ``"random"`` or ``"constant"``.
        hypergradient: any method of ``fb.hypergrad``; ``Bilinear(inf)`` leaves the implicit term
            out. Methods that take inner steps themselves take them by ``inner_optimizer``.
        steps: gradient evaluations to spend, dense training apart.
        bilevel_share: part of them spent on the bilevel phase, the rest fine-tunes.
        budget_share: part of the bilevel phase after which the final sparsity is reached.
        batch_size: rows a batch on either level.
        learning_rate: of the default inner optimizer.
        score_rule: ``"adam"`` or ``"momentum"``, the default outer optimizers
            (``fb.train.score_descent``); momentum wants a budget of a thousand outer steps.
        score_step: of that rule, in units of the scores' spread.
        dual_rule: how multipliers move, with options after a colon: ``"gradient-ascent"``,
            ``"augmented-lagrangian:penalty=0.1"``, ``"nupi:proportional=0.1,smoothing=0.9"`` or
            ``"multiplicative-weights:budget=1"``.
        dual_step: of that rule.
        buffer_size: rows a group in the replay buffers.
        violation_every: outer steps between measurements of the true violations.
        follow_weights: scores that started as magnitudes also move with them, so that what the
            inner problem makes of a weight counts beside the hypergradient. At a score step of
            zero they are the scores of gradual magnitude pruning.
        fine_tune_on: ``"fit"``, or ``"fit+select"``: once the mask is final, the rows of select
            that moved its scores join in; those that move the multipliers stay unseen either way.
        multipliers_from: ``"start"`` of the run, or when the mask is final (``"pruned"``, CEAG).
        inner_optimizer: any optax rule for the weights, restarted for fine-tuning.
        outer_optimizer: any optax rule for the scores.
        dual_optimizer: any optax rule for the multipliers, in place of ``dual_rule``.
        seed: of batches, random scores and dropout.
        constraints: what is enforced, in place of the problem's, which stay what is measured, stops
            training early and is reported.
        constrain_masks: whether the constraints act on the scores, in the outer objective.
        constrain_weights: whether they act on the weights, in the inner objective and fine-tuning.

    Raises:
        ValueError: an option outside its range.
    """

    sparsity: float = 0.9
    granularity: str = "weight"
    budget: str = "global"
    relaxation: str | Relaxation = "top-k"
    score_start: str = "magnitude"
    hypergradient: Hypergradient = field(default_factory=Bilinear)
    steps: int = 1000
    bilevel_share: float = 0.5
    budget_share: float = 0.8
    batch_size: int = 128
    learning_rate: float = 0.05
    score_rule: str = "adam"
    score_step: float = 0.1
    dual_rule: str = "gradient-ascent"
    dual_step: float = 0.01
    buffer_size: int = 32
    violation_every: int = 1
    multipliers_from: str = "start"
    follow_weights: bool = True
    fine_tune_on: str = "fit+select"
    inner_optimizer: optax.GradientTransformation | None = None
    outer_optimizer: optax.GradientTransformation | None = None
    dual_optimizer: optax.GradientTransformation | None = None
    seed: int = 0
    constraints: tuple[Constraint, ...] | None = None
    constrain_masks: bool = True
    constrain_weights: bool = True

    name: ClassVar[str] = "bilevel"

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must lie in [0, 1), got {self.sparsity}")
        if isinstance(self.relaxation, str) and self.relaxation not in masks.RELAXATIONS:
            raise ValueError(
                f"unknown relaxation {self.relaxation!r}: choose from "
                f"{', '.join(masks.RELAXATIONS)}"
            )
        if self.score_start not in masks.STARTS:
            raise ValueError(
                f"unknown score start {self.score_start!r}: choose from {', '.join(masks.STARTS)}"
            )
        if self.score_rule not in SCORE_RULES:
            raise ValueError(
                f"unknown score rule {self.score_rule!r}: choose from {', '.join(SCORE_RULES)}"
            )
        if self.multipliers_from not in ("start", "pruned"):
            raise ValueError(
                f"multipliers_from is 'start' or 'pruned', got {self.multipliers_from!r}"
            )
        if self.fine_tune_on not in ("fit", "fit+select"):
            raise ValueError(f"fine_tune_on is 'fit' or 'fit+select', got {self.fine_tune_on!r}")
        for name in ("steps", "batch_size", "buffer_size", "violation_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("bilevel_share", "budget_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        for name in ("learning_rate", "score_step", "dual_step"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be a finite number of at least 0")
        fairness.multiplier_rule(self.dual_rule, self.dual_step)

    @property
    def label(self) -> str:
        """What results call the method."""
        return self.name

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """What is enforced where no ``constraints`` are given: the problem's own."""
        return problem.constraints

    def run(
        self,
        problem: FairPruningProblem,
        reference: Reference,
        *,
        callback: Callback = lambda record: None,
        checkpoints: Checkpoints | None = None,
    ) -> Solution:
        """Solve a problem from its dense reference.

        Args:
            problem: what to solve.
            reference: the dense model (``fb.train.train_dense`` or ``problem.refer``).
            callback: receives one record per compiled call.
            checkpoints: where checkpoints go, and where the run goes on from if there are any.

        Raises:
            DivergenceError: the loss is not finite or exploded, with smaller steps too.
            Interrupted: a stop was asked, and a checkpoint written.
            ValueError: the sparsity leaves a layer empty where that cuts the network.
        """
        return self.start(problem, reference, callback=callback, checkpoints=checkpoints).run()

    def start(
        self,
        problem: FairPruningProblem,
        reference: Reference,
        *,
        callback: Callback = lambda record: None,
        checkpoints: Checkpoints | None = None,
    ) -> BilevelRun:
        """The same run stage by stage, to look at scores and masks on the way."""
        return BilevelRun(self, problem, reference, callback, checkpoints)


def solve(
    problem: FairPruningProblem,
    *,
    dense: Reference | Network | None = None,
    callback: Callback = lambda record: None,
    dense_steps: int | None = None,
    checkpoints: Checkpoints | str | Path | None = None,
    **options: Any,
) -> Solution:
    """Make a model sparse and fair: train it densely if need be, then run the bilevel solver.

    Args:
        problem: what to solve.
        dense: the dense model, if there is one: a ``Reference`` or a ``Network`` of parameters.
        callback: receives one record per compiled call.
        dense_steps: gradient steps of the dense model, where it is trained here.
        checkpoints: where checkpoints go, a folder or ``fb.records.Checkpoints``; where there are
            some of the same problem and options the run goes on from them. They stay when it ends:
            ``Checkpoints.discard`` removes them.
        **options: fields of ``BilevelSolver``: ``sparsity``, ``inner_optimizer``, ...

    Raises:
        DivergenceError: the loss is not finite or exploded, with smaller steps too.
        CheckpointError: the checkpoints are of another run, or cannot be written.
        ValueError: an option outside its range.
    """
    solver = BilevelSolver(**options)
    Budget.of(problem.layers, solver.granularity, solver.budget).keep(solver.sparsity)
    if isinstance(checkpoints, (str, Path)):
        checkpoints = Checkpoints(Path(checkpoints))
    try:
        if dense is None:
            dense = train_dense(
                problem,
                steps=dense_steps,
                batch_size=solver.batch_size,
                seed=solver.seed,
                callback=callback,
                checkpoints=checkpoints,
            )
        elif isinstance(dense, Network):
            dense = problem.refer(dense)
        return solver.run(problem, dense, callback=callback, checkpoints=checkpoints)
    finally:
        if checkpoints is not None:
            checkpoints.close()
