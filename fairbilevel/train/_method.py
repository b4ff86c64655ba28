"""What all methods share: their options, how they are run, and how a run of theirs ends."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from fairbilevel import _options, fairness, masks
from fairbilevel.devices import Program
from fairbilevel.fairness import Constraint
from fairbilevel.masks import Allocation, Budget, LatencyTable, Masks
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.records import Activity, Checkpoints
from fairbilevel.train._batches import STREAM_REFRESH
from fairbilevel.train._expected import data_expected, digest, settings
from fairbilevel.train._feasibility import Feasibility, Watch
from fairbilevel.train._match import matched
from fairbilevel.train._optimizers import SGD
from fairbilevel.train._plan import FORWARD_COST, RECALIBRATION_BATCHES, Plan, recalibration
from fairbilevel.train._recalibrate import answers, recalibrated
from fairbilevel.train._report import Callback
from fairbilevel.train._ruled import BUFFER_SIZE, Rules
from fairbilevel.train._run import RunState, StagedRun
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
        dual_unit: what a step of the multipliers is a step of: multiplier (of groups' means, so
            that rows of rare groups gain most), or row-weight (of what each row of a group gains).
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
    runs: ClassVar[Callable[..., MethodRun]]

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


def _expand(structure: tuple[masks.Layers, str], kept: Masks, params: Any) -> Any:
    layers, granularity = structure
    factors = masks.expand(kept, params, layers, granularity)
    return jax.tree.map(lambda m, p: jnp.broadcast_to(m, p.shape).astype(p.dtype), factors, params)


def _select(budget: Budget, scores: Masks, kept: Masks, keep: dict[str, Array]) -> Masks:
    left = {name: jnp.where(kept[name] > 0, s, -jnp.inf) for name, s in scores.items()}
    return budget.top_k(left, keep)


_EXPANDED, _SELECTED = Program(_expand), Program(_select)


class MethodRun(StagedRun):
    """One run of a method: ``init``, ``step`` for each of ``stages``, ``finish``; or ``run``.

    Arguments and errors are those of ``Method.start``.
    """

    reference: Reference

    def __init__(
        self,
        method: Method,
        problem: FairPruningProblem,
        reference: Reference,
        callback: Callback,
        checkpoints: Checkpoints | None = None,
    ):
        super().__init__(
            problem,
            reference,
            method.rules(problem),
            seed=method.seed,
            batch_size=method.batch_size,
            callback=callback,
        )
        self.method, self.checkpoints = method, checkpoints
        self.allocation = method.allocation(problem)
        self.budget = self.allocation.budget
        self.enforced = method.enforced(problem)
        self.plan = method.plan(problem, reference)
        self.watch = Watch(problem.under(self.enforced), reference)
        self.set_up()

    def set_up(self) -> None:
        """What a run of a subclass needs beside that."""

    def acts(self, phase: str) -> bool:
        """Whether constraints act on the weights in a phase."""
        return False

    def masks(self, state: RunState) -> Masks:
        """Hard masks of a state."""
        return dict(state.kept)

    def run(self) -> Solution:
        """All stages and the end, from the newest checkpoint on.

        Raises:
            DivergenceError: the loss is not finite or exploded, with smaller steps too.
            Interrupted: a stop was asked, and a checkpoint written.
            CheckpointError: checkpoints of another run, or one that cannot be written.
            ValueError: the masks cut the network.
        """
        return self.finish(self.run_stages())

    @functools.cached_property
    def activity(self) -> Activity | None:
        """The run's checkpoints, if there are to be any."""
        if self.checkpoints is None:
            return None
        expected = {
            **data_expected(self.problem),
            "dense model": digest(self.reference.network),
            "method": self.method.label,
            **settings(self.method),
        }
        return self.checkpoints.activity("method", expected)

    @property
    def enforces(self) -> bool:
        """Whether constraints act in the phase."""
        return self.acts(self.phase.name)

    @property
    def watched(self) -> bool:
        """While a final mask is fine-tuned, and the multipliers' rows are nobody else's."""
        return self.phase.name == "finetune" and self.enforces and self.phase.dual_rows is not None

    def fresh(self) -> Any:
        """Multipliers at zero, buffers empty."""
        problem, rows = self.problem, self.dual_rows
        shape = (len(problem.groups), len(problem.data.classes))
        cell = problem.group[rows] * shape[1] + problem.y[rows]
        count = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
        return self.steps.duals(self.rules.duals, self.rules.buffer_size, count)

    @property
    @abstractmethod
    def dual_rows(self) -> Int[np.ndarray, " n"]:
        """Rows that move the multipliers."""

    def enter(self, state: RunState) -> RunState:
        """The optimizer afresh; multipliers go on where constraints go on acting on one network."""
        phases = self.plan.phases
        if not self.phase_index:
            return state
        before = phases[self.phase_index - 1].name
        goes_on = self.enforces and self.acts(before) and before != "before"
        weights = state.weights
        network = Network(weights.params, weights.model_state)
        duals = weights.duals if goes_on else self.fresh()
        return state._replace(weights=self.begun(network, duals, weights.drawn))

    def everything(self) -> Masks:
        """Masks that keep all units."""
        units = self.problem.layers.units(self.method.granularity)
        kind = jax.tree.leaves(self.problem.shapes.params)[0].dtype
        return self.problem.placement.place({u.name: np.ones(u.shape, kind) for u in units})

    def selected(self, scores: Masks, kept: Masks, sparsity: float) -> Masks:
        """Masks of exactly the budget: the best scores among the units that are still there."""
        place = self.problem.placement
        keep = place.place(masks.as_counts(self.counted(scores, kept, sparsity)))
        return _SELECTED(self.budget, scores, kept, keep, placement=place, costs=self.costs)

    def counted(self, scores: Any, kept: Masks | None, sparsity: float) -> dict[str, int]:
        """What the budget keeps at a sparsity, of scores among the units that are still there."""
        if not self.budget.by_layer:
            return self.allocation.keep(sparsity)
        scores, kept = self.problem.placement.readable((scores, kept or {}))
        left = {
            name: np.where(np.asarray(kept[name]) > 0, s, -np.inf) if name in kept else s
            for name, s in jax.tree.map(np.asarray, scores).items()
        }
        return self.allocation.keep(sparsity, left)

    def counts(self, scores: Any, sparsity: float) -> dict[str, Array]:
        """The same of all units, as device scalars."""
        return masks.as_counts(self.counted(scores, None, sparsity))

    def expanded(self, kept: Masks, state: RunState) -> Any:
        """The multiplier of every parameter under these masks."""
        structure = (self.problem.layers, self.method.granularity)
        place, params = self.problem.placement, state.weights.params
        return _EXPANDED(structure, kept, params, placement=place, costs=self.costs)

    def factors(self, state: RunState) -> Any:
        """Of the masks that the state holds."""
        return self.expanded(dict(state.kept), state)

    def finish(self, state: RunState) -> Solution:
        """The best network of the last phase, recalibrated, and its masks.

        Raises:
            ValueError: the masks cut the network: its logits are the same for every row.
        """
        method, problem = self.method, self.problem
        best = self.best.network if self.plan.phases and self.phase.chooses else None
        network = self.network(state) if best is None else best
        rows = self.plan.phases[-1].rows if self.plan.phases else problem.roles["fit"]
        if jax.tree.leaves(network.state):
            with self.costs.timed():
                size = self.batch_size
                batches = self.feed.take(rows, STREAM_REFRESH, RECALIBRATION_BATCHES, size)
                self.costs.gradient_evaluations += self.plan.recalibration
                network = recalibrated(problem, network, batches)
        warnings = (*self.reference.warnings, *self.report.warnings())
        if len(biased := method.matching_rows(problem)):
            with self.costs.timed():
                self.costs.gradient_evaluations += self.plan.matching
                network, why = matched(problem, network, self.reference, biased)
            warnings = (*warnings, *why)
        constant = answers(problem, network, rows, method.sparsity)
        if constant is not None:
            warnings = (
                f"the network answers {constant!r} whatever it is shown: nothing is left of it but "
                "the commonest answer; ask for less sparsity or more steps",
                *warnings,
            )
        return Solution(
            method=method.label,
            problem=problem,
            reference=self.reference,
            network=network,
            masks=self.masks(state),
            scores=dict(state.scores),
            multipliers=next(
                (r["multipliers"] for r in reversed(self.report.history) if "multipliers" in r), {}
            ),
            granularity=method.granularity,
            allocation=self.allocation,
            sparsity=method.sparsity,
            costs=self.costs,
            history=self.report.history,
            warnings=warnings,
            feasibility=self._feasibility(network),
            rollbacks=tuple(self.report.rollbacks),
            constant_answer=constant,
        )

    def _feasibility(self, network: Network) -> Feasibility | None:
        """Of the final network; where the rows that tell joined the weights, of the last one before
        they did."""
        if self.watch is None or not self.watch.looks:
            return None
        return self.watch.assess(network if self.watched else None)
