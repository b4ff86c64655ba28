"""What all methods share: their options, how they are run, and how a run of theirs ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import optax
from jaxtyping import Int

from fairbilevel import _options, fairness, masks
from fairbilevel.fairness import Constraint
from fairbilevel.masks import Allocation, Budget, LatencyTable
from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.records import Checkpoints
from fairbilevel.train._plan import FORWARD_COST, Plan, recalibration
from fairbilevel.train._report import Callback
from fairbilevel.train._rules import BUFFER_SIZE, SGD, Rules
from fairbilevel.train._solution import Solution

MATCHING_SHARE = 0.05  # of the steps, at most, for the output biases

Granularity = Literal["weight", "filter", "block"]
BudgetKind = Literal["global", "uniform"]
Measure = Literal["units", "multiply-adds", "parameters", "latency"]
DualUnit = Literal["multiplier", "row-weight"]


@dataclass(frozen=True)
class Method(ABC):
    """A way to make a network sparse: options, checked once, and ``run``.

    Attributes:
        sparsity: share of the prunable weights (or coupled channels, or blocks) to remove, in
            [0, 1).
        sparsity_of: what that is a share of: units (weights or channels), or of the whole network
            multiply-adds, or parameters, or latency by a table.
        latency_table: measured times of the network's layers, for a sparsity in latency
            (``problem.measure_latency()``), or the file that fairbilevel profile RUN --layers FILE
            wrote on the device that serves.
        granularity: weight; filter (channels of convolutions, neurons of dense layers and
            attention heads, each with everything coupled to it); or block (residual blocks whose
            shortcut changes nothing: the network gets less deep).
        budget: global (the best of all layers together) or uniform (the same share of each layer).
        layer_sparsity: sparsity of single layers, as NAME=SHARE; * in a name stands for anything,
            and the others take the rest.
        round_channels: at granularity filter the number of channels that a layer keeps is a
            multiple of this, which hardware likes, of its half, quarter, ... where the layer has
            fewer than sixteen times as many; 1 for any number. No layer is emptied by it.
        steps: gradient evaluations to spend on pruning (one is forward and backward on one nominal
            batch), dense training apart.
        batch_size: rows of a nominal batch.
        learning_rate: peak learning rate of the weights while pruning, of the default rule.
        budget_share: part of the phase that removes units after which the final sparsity is
            reached, on a cubic schedule.
        constraints: one or several that are enforced, in place of what the method or the problem
            has; the problem's constraints stay what is measured, stops training early and is
            reported.
        multiplier_rule: how multipliers move: gradient-ascent, augmented-lagrangian, nupi,
            multiplicative-weights or penalty; options after a colon, as in
            nupi:proportional=0.1,smoothing=0.9, augmented-lagrangian:penalty=1 or
            multiplicative-weights:budget=2.
        dual_step: step of the multipliers for each step of the weights.
        buffer_size: rows a group in the replay buffers; 0 for none: the multipliers then see the
            groups that the last batch held, and nothing else.
        shrink_violations: violations count as far as noise does not explain them: group means are
            drawn towards the overall one by empirical Bayes (``GroupStatistics.shrunken``).
        dual_unit: what the rule of the multipliers moves: multiplier (of groups' means, so that
            rows of rare groups gain most), or row-weight (what each row of a group gains).
        distill: share of a training row's loss that is its divergence from the dense model's
            classes, in [0, 1]; 0 trains on labels alone. It falls as the network comes within noise
            of the dense model's accuracy on tune, to 0 where it reaches it.
        distill_temperature: that both models' logits are divided by there.
        match_dense: set the biases of the final network's outputs, one a class, so that all classes
            lose the same accuracy to the dense model; blind to groups, and left alone where tune
            tells that this costs accuracy or makes classes lose less alike, or the model's outputs
            have no bias.
        inner_optimizer: any optax rule for the weights, restarted for each phase, in place of
            clipped SGD.
        dual_optimizer: any optax rule for the multipliers, in place of ``multiplier_rule``.
        seed: of batches, random scores and dropout.

    Raises:
        ValueError: an option outside its range.
    """

    sparsity: float = 0.9
    sparsity_of: Measure = "units"
    latency_table: str | PathLike[str] | LatencyTable | None = None
    granularity: Granularity = "weight"
    budget: BudgetKind = "global"
    layer_sparsity: tuple[str, ...] = ()
    round_channels: int = 8
    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 0.2
    budget_share: float = 0.8
    constraints: Constraint | tuple[Constraint, ...] | None = None
    multiplier_rule: str = "gradient-ascent"
    dual_step: float = 0.01
    buffer_size: int = BUFFER_SIZE
    shrink_violations: bool = False
    dual_unit: DualUnit = "multiplier"
    distill: float = 0.0
    distill_temperature: float = 4.0
    match_dense: bool = False
    inner_optimizer: optax.GradientTransformation | None = None
    dual_optimizer: optax.GradientTransformation | None = None
    seed: int = 0

    name: ClassVar[str]
    granularities: ClassVar[tuple[str, ...]] = masks.GRANULARITIES
    # Steps between two measurements of violations, which the dual step is scaled by.
    violation_every: ClassVar[int] = 1
    least_buffer: ClassVar[int] = 0
    runs: ClassVar[Callable[..., Any]]  # makes its ``MethodRun``

    def __post_init__(self) -> None:
        if isinstance(self.constraints, Constraint):
            object.__setattr__(self, "constraints", (self.constraints,))
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must lie in [0, 1), got {self.sparsity}")
        if isinstance(self.layer_sparsity, str):
            object.__setattr__(self, "layer_sparsity", (self.layer_sparsity,))
        _options.one_of("sparsity_of", self.sparsity_of, get_args(Measure))
        if isinstance(self.latency_table, str | PathLike):
            object.__setattr__(self, "latency_table", LatencyTable.load(Path(self.latency_table)))
        if (self.sparsity_of == "latency") != (self.latency_table is not None):
            raise ValueError(
                "a sparsity in latency is a share of the times in latency_table, a file that "
                "fairbilevel profile RUN --layers FILE writes: give both or neither"
            )
        _options.one_of("granularity", self.granularity, get_args(Granularity))
        if self.granularity not in self.granularities:
            raise ValueError(
                f"{self.name} prunes at granularity {' or '.join(self.granularities)} only, got "
                f"{self.granularity!r}"
            )
        _options.one_of("budget", self.budget, get_args(BudgetKind))
        _options.one_of("dual_unit", self.dual_unit, get_args(DualUnit))
        _options.at_least(self, 1, "steps", "batch_size", "round_channels")
        _options.at_least(self, self.least_buffer, "buffer_size")
        _options.share(self, "budget_share")
        _options.finite(self, "learning_rate", "dual_step", "distill_temperature")
        if self.distill is not None and not 0 <= self.distill <= 1:
            raise ValueError(f"distill must lie in [0, 1], got {self.distill}")
        if not self.distill_temperature:
            raise ValueError("distill_temperature must be above 0")
        if self.shrink_violations and not self.buffer_size:
            raise ValueError(
                "shrink_violations needs replay buffers, whose rows tell the noise: give "
                "buffer_size, or leave it out"
            )
        fairness.multiplier_rule(self.multiplier_rule, self.dual_step)

    @property
    def label(self) -> str:
        """What results call the method."""
        return self.name

    @property
    def distilled(self) -> float:
        """Share of a row's loss that is measured against the dense model."""
        return self.distill

    @property
    def joint(self) -> bool:
        """Whether multipliers move on each training batch's own forward pass."""
        return False

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """What is enforced where no ``constraints`` are given: the problem's own by default."""
        return problem.constraints

    def enforced(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """What is enforced; nothing where constraints never act."""
        if self.constraints is None:
            return self.bounds(problem)
        return problem.bound(self.constraints)

    def allocation(self, problem: FairPruningProblem) -> Allocation:
        """How many units each layer keeps.

        Raises:
            ValueError: a sparsity that cannot be reached, a layer that is not there, or nothing to
                prune at the granularity.
        """
        budget = Budget.of(problem.layers, self.granularity, self.budget)
        measure = None
        if self.sparsity_of != "units":
            model = problem.cost_model(self.granularity)
            if isinstance(self.latency_table, LatencyTable):
                measure = self.latency_table.of(model)
            else:
                measure = getattr(model, self.sparsity_of.replace("-", "_"))
        return Allocation.over(
            budget,
            self.sparsity,
            of=self.sparsity_of,
            measure=measure,
            multiple=self.round_channels if self.granularity == "filter" else 1,
            shares=masks.layer_shares(self.layer_sparsity, budget.units),
        )

    def rules(self, problem: FairPruningProblem) -> Rules:
        """Constraints, optimizers and buffers of a run.

        A method that enforces nothing carries the problem's constraints along, their multipliers at
        zero: one program then trains the dense model, all such methods and the solver's networks.
        """
        enforced = self.enforced(problem)
        step = self.dual_step * self.violation_every
        duals = self.dual_optimizer or fairness.multiplier_rule(self.multiplier_rule, step)
        optimizer = self.inner_optimizer or SGD
        soft: Any = {"distill": self.distilled, "temperature": self.distill_temperature}
        if not enforced:
            return Rules(problem.constraints, optimizer, **soft)
        return Rules(
            enforced,
            optimizer,
            duals,
            self.buffer_size,
            self.joint,
            shrink=self.shrink_violations,
            row_weights=self.dual_unit == "row-weight",
            **soft,
        )

    def matching_rows(self, problem: FairPruningProblem) -> Int[np.ndarray, " n"]:
        """Rows of select, then of fit, that the output biases are fitted to: as many as a share of
        the steps pays for."""
        if not self.match_dense:
            return np.array([], int)
        left = int(MATCHING_SHARE * self.steps / FORWARD_COST * self.batch_size)
        chosen = []
        for rows in (problem.roles["select"], problem.roles["fit"]):
            count = min(left, len(rows))
            chosen.append(rows[np.linspace(0, len(rows) - 1, count).astype(int)])
            left -= count
        return np.sort(np.concatenate(chosen))

    def ending(self, problem: FairPruningProblem) -> dict[str, float]:
        """Gradient evaluations behind the last step, as ``Plan`` names them."""
        matching = FORWARD_COST * len(self.matching_rows(problem)) / self.batch_size
        return {"recalibration": recalibration(problem), "matching": matching}

    @abstractmethod
    def plan(self, problem: FairPruningProblem, reference: Reference | None = None) -> Plan:
        """What a run will do, and what it will cost.

        Args:
            problem: what to prune.
            reference: the dense model, if there is one already.

        Raises:
            ValueError: the steps do not pay for what the method has to do.
        """

    def start(
        self,
        problem: FairPruningProblem,
        reference: Reference,
        *,
        callback: Callback = lambda record: None,
        checkpoints: Checkpoints | None = None,
    ) -> Any:
        """A run stage by stage (``MethodRun``), to look at scores and masks on the way; arguments
        and errors as of ``run``."""
        return self.runs(self, problem, reference, callback, checkpoints)

    def run(
        self,
        problem: FairPruningProblem,
        reference: Reference,
        *,
        callback: Callback = lambda record: None,
        checkpoints: Checkpoints | None = None,
    ) -> Solution:
        """Prune a problem's dense reference.

        Args:
            problem: what to prune.
            reference: the dense model (``fb.train.train_dense`` or ``problem.refer``).
            callback: receives one record a stage.
            checkpoints: where checkpoints go, and where the run goes on from if there are any.

        Raises:
            DivergenceError: the loss is not finite or exploded, with smaller steps too.
            Interrupted: a stop was asked, and a checkpoint written.
            ValueError: the sparsity leaves a layer empty where that cuts the network, or the steps
                do not pay for what the method has to do.
        """
        return self.start(problem, reference, callback=callback, checkpoints=checkpoints).run()
