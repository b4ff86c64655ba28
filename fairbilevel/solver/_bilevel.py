"""The bilevel fair pruning solver: scores on select, multipliers on rows no gradient has used.

BiFP (Dai et al. 2023) with the closed-form hypergradient of BiP (Zhang et al. 2022), the proxy
constraints and replay buffers of CEAG (Hashemizadeh et al. 2024), a budget that follows a cubic
schedule, and multipliers moved by rows that no gradient uses (Cotter et al. 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import optax
from jaxtyping import Int

from fairbilevel import _options, masks
from fairbilevel.fairness import AccuracyGap, Constraint
from fairbilevel.hypergrad import Bilinear, FirstOrder, Hypergradient, Unrolled
from fairbilevel.masks import Relaxation
from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.solver._run import BilevelRun
from fairbilevel.train import (
    Method,
    Phase,
    Plan,
    affordable,
    costs,
    every,
    learning_rates,
    stages,
)

DISTILL, DISTILL_STEPS = 0.5, 300  # share up to so many steps, falling as their root beyond
STAGES = 20  # of the mask search at most; the budget moves between them
SELECT_SHARE = 1 / 4  # of a nominal batch that is split between the levels
# Spreads that a score can come in a whole search, and in a step, by default.
SCORE_TRAVEL, LARGEST_STEP = 5.0, 0.1

RelaxationName = Literal["top-k", "sigmoid", "capped-simplex"]
ScoreStart = Literal["magnitude", "layer-magnitude", "random", "constant"]
ScoreRule = Literal["adam", "momentum"]
MultipliersFrom = Literal["start", "pruned"]
WeightsOn = Literal["fit", "fit+select"]
FineTuneOn = Literal["fit", "fit+select", "all"]


@dataclass(frozen=True)
class BilevelSolver(Method):
    """Finds mask and weights in one run.

    Attributes:
        distill: share of a training row's loss that is its divergence from the dense model's
            classes, in [0, 1], falling as of every method; by default 0.5 up to 300 steps, beyond
            less by the root of their number (0.27 at 1,000).
        relaxation: how scores become masks: top-k (straight-through), sigmoid (annealed
            temperature) or capped-simplex (projection); in Python also an object of one's own.
        score_start: where mask scores start: magnitude, layer-magnitude (in units of each layer's
            mean), random or constant; by default layer-magnitude at granularity filter, else
            magnitude, as of every method (``fb.masks.usual_start``).
        hypergradient: bilinear (closed form), none (no implicit term), cg, neumann, gmres,
            bicgstab, single-loop, unrolled or first-order; options after a colon, as in
            bilinear:gamma=10 or cg:iterations=10,damping=0.1; in Python any method of
            ``fb.hypergrad``. Methods that take inner steps themselves take them by the weights'
            rule.
        bilevel_share: share of the steps that search the mask; the rest fine-tunes under it.
        split_batch: an outer step takes one nominal batch, three quarters of it rows of fit and a
            quarter rows of select, and costs one gradient evaluation; else a batch on either level,
            at twice the cost.
        plain_steps: weight steps between two outer steps.
        score_rule: adam, or momentum (finds better masks where the steps pay for a thousand outer
            steps).
        score_step: step of the mask scores in units of their spread; by default 5 over the number
            of outer steps, 0.1 at most, so that scores come as far in a long search as in a short
            one.
        violation_every: steps between measurements of the true violations; the dual step is scaled
            by it.
        multipliers_from: multipliers move from the start, or only once the mask is final (pruned).
        follow_weights: scores that started as magnitudes of either kind also move with their
            weights, so that what the inner problem makes of a weight counts beside the
            hypergradient. At a score step of zero and by magnitude they are the scores of gradual
            magnitude pruning.
        weights_on: fit+select: while the mask is searched, the weights also take the gradient on
            select that its scores take, so that no row of the batch is lost to them; or fit, which
            keeps what moves the scores from the weights. By default fit where the hypergradient
            moves the weights itself (unrolled, first-order), else fit+select.
        fine_tune_on: fit; fit+select: once the mask is final, the rows of select that moved its
            scores join in, those that move the multipliers stay unseen; or all: these too for the
            last third of fine-tuning, the multipliers standing still from then on, so that none
            ever moves by a row that a gradient has used.
        outer_optimizer: any optax rule for the scores, in place of ``score_rule`` and
            ``score_step``.
        constrain_masks: whether the constraints act on the scores, in the outer objective.
        constrain_weights: whether they act on the weights, in the inner objective and fine-tuning.

    Raises:
        ValueError: an option outside its range.
    """

    distill: float | None = None  # type: ignore[assignment]
    match_dense: bool = True
    # Unshrunken, they chase the noise of rare groups: on Adult that cost a point of accuracy.
    shrink_violations: bool = True
    relaxation: RelaxationName | Relaxation = "top-k"
    score_start: ScoreStart | None = None
    hypergradient: Hypergradient = field(default_factory=Bilinear)
    bilevel_share: float = 0.75
    split_batch: bool = True
    plain_steps: int = 0
    score_rule: ScoreRule = "adam"
    score_step: float | None = None
    violation_every: int = 4  # type: ignore[misc]
    multipliers_from: MultipliersFrom = "start"
    follow_weights: bool = True
    weights_on: WeightsOn | None = None
    fine_tune_on: FineTuneOn = "all"
    outer_optimizer: optax.GradientTransformation | None = None
    constrain_masks: bool = True
    constrain_weights: bool = True

    name: ClassVar[str] = "bilevel"
    runs: ClassVar[Any] = BilevelRun
    # Rows that no training batch holds: what one batch of them says is too little.
    least_buffer: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.relaxation, str):
            _options.one_of("relaxation", self.relaxation, masks.RELAXATIONS)
        for name, kind in (
            ("score_rule", ScoreRule),
            ("multipliers_from", MultipliersFrom),
            ("fine_tune_on", FineTuneOn),
        ):
            _options.one_of(name, getattr(self, name), get_args(kind))
        if self.score_start is not None:
            _options.one_of("score_start", self.score_start, get_args(ScoreStart))
        if self.weights_on is not None:
            _options.one_of("weights_on", self.weights_on, get_args(WeightsOn))
        if self.weights_on == "fit+select" and self._moves_weights:
            raise ValueError(
                f"{type(self.hypergradient).__name__} moves the weights itself, by the rows of "
                "fit: leave out weights_on, or choose another hypergradient"
            )
        _options.at_least(self, 1, "violation_every")
        _options.at_least(self, 0, "plain_steps")
        _options.share(self, "bilevel_share")
        if self.score_step is not None:
            _options.finite(self, "score_step")

    @property
    def _moves_weights(self) -> bool:
        return isinstance(self.hypergradient, (Unrolled, FirstOrder))

    @property
    def distilled(self) -> float:
        """The longer a run, the nearer its network comes to the dense one by labels alone."""
        if self.distill is not None:
            return self.distill
        return DISTILL * min(1.0, math.sqrt(DISTILL_STEPS / self.steps))

    def of_select(self, problem: FairPruningProblem) -> float:
        """Share of select's gradient in the weights' while the mask is searched."""
        if self._moves_weights or self.weights_on == "fit":
            return 0.0
        fit, select = self.sizes(problem)
        return select / (fit + select)

    @property
    def starts(self) -> str:
        """Where scores start."""
        return self.score_start or masks.usual_start(self.granularity)

    @property
    def relaxes(self) -> Relaxation:
        """The relaxation itself."""
        given = self.relaxation
        return masks.RELAXATIONS[given] if isinstance(given, str) else given

    def enforced(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """What acts on masks or weights."""
        acts = self.constrain_masks or self.constrain_weights
        return super().enforced(problem) if acts else ()

    def select_rows(self, problem: FairPruningProblem) -> Int[np.ndarray, " n"]:
        """Rows that move the scores: without constraints there are no multipliers to keep rows
        for."""
        return problem.select_outer if self.enforced(problem) else problem.roles["select"]

    def sizes(self, problem: FairPruningProblem) -> tuple[int, int]:
        """Rows of fit and of select that an outer step takes.

        Raises:
            ValueError: a batch that cannot be split between the levels on the problem's devices.
        """
        if not self.split_batch:
            return self.batch_size, self.batch_size
        unit = problem.placement.count * problem.accumulate
        select = max(round(SELECT_SHARE * self.batch_size / unit), 1) * unit
        if self.batch_size % unit or select >= self.batch_size:
            raise ValueError(
                f"a batch of {self.batch_size} rows cannot be split between fit and select over "
                f"{problem.placement.count} devices and {problem.accumulate} micro-batches: choose "
                f"a multiple of {unit} from {2 * unit} up, or turn split_batch off"
            )
        return self.batch_size - select, select

    def score_rate(self, steps: int) -> float:
        """Step of the scores in a search of so many steps, those of weights alone included."""
        if self.score_step is not None:
            return self.score_step
        outer = -(-steps // (1 + self.plain_steps))
        return min(SCORE_TRAVEL / max(outer, 1), LARGEST_STEP)

    def cycle(self, problem: FairPruningProblem) -> tuple[float, ...]:
        """Gradient evaluations of an outer step and of the weight steps behind it: the outer
        gradient is taken on select, all else on fit."""
        fit, select = (size / self.batch_size for size in self.sizes(problem))
        of_fit = self.hypergradient.gradient_evaluations - 1
        return (select + of_fit * fit, *[1.0] * self.plain_steps)

    def plan(self, problem: FairPruningProblem, reference: Reference | None = None) -> Plan:
        """The mask search, then fine-tuning under its mask."""
        enforced, ending = bool(self.enforced(problem)), self.ending(problem)
        left, cycle = self.steps - sum(ending.values()), self.cycle(problem)
        early = self.violation_every if enforced and self.multipliers_from == "start" else 0
        late = self.violation_every if enforced and self.constrain_weights else 0
        search = affordable(self.bilevel_share * left, cycle, early)
        if not search:
            search = min(affordable(left, cycle, early), 1)
        if not search:
            raise ValueError(
                f"{self.steps} steps do not pay for one outer step of this hypergradient, which "
                f"takes {costs(1, cycle, early)[0]:.4g} gradient evaluations, and the statistics "
                f"and biases at the end, which take {sum(ending.values()):.3g}"
            )
        left -= float(costs(search, cycle, early).sum())
        # Steps that measure violations, then steps that do not.
        looked = affordable(left * (2 / 3 if self.fine_tune_on == "all" else 1), interval=late)
        fine = looked + affordable(left - float(costs(looked, interval=late).sum()))
        fine_looks = np.append(every(looked, late), np.zeros(fine - looked, bool))
        settled = looked if late and self.fine_tune_on == "all" else fine

        def phase(
            name: str, count: int, part: slice, rates: Any, measures: Any, **more: Any
        ) -> Phase:
            rates, measures = rates[part], measures[part]
            return Phase(
                name,
                stages(len(rates), count),
                rates if self.inner_optimizer is None else np.ones(len(rates)),
                measures,
                dual_rows=problem.select_duals if measures.any() else None,
                **more,
            )

        fit = problem.roles["fit"]

        def with_fit(rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
            return np.sort(np.concatenate([fit, rows]))

        everything = with_fit(problem.roles["select"])
        tuned = fit if self.fine_tune_on == "fit" else with_fit(self.select_rows(problem))
        if self.fine_tune_on == "all" and not late:
            tuned = everything
        searching = learning_rates(self.learning_rate, search, to_zero=False), every(search, early)
        falling = learning_rates(self.learning_rate, fine, to_zero=True), fine_looks
        phases = (
            phase("bilevel", STAGES, slice(None), *searching, rows=fit, cycle=cycle),
            phase("finetune", 10, slice(settled), *falling, rows=tuned, chooses=settled == fine),
            phase("settle", 5, slice(settled, None), *falling, rows=everything, chooses=True),
        )
        return Plan(tuple(p for p in phases if p.steps), **ending)


@dataclass(frozen=True)
class BiFP(BilevelSolver):
    """The bilevel solver as BiFP has it: a smooth accuracy gap on both levels, at a weight of 1.

    The closed-form hypergradient, and the surrogate ``F_g`` with a sigmoid for the indicator. The
    paper adds ``F`` itself, whatever its sign, which would go on driving groups apart once the
    other one is ahead; here the weight is on whichever side exceeds the tolerance (the problem's
    own accuracy gap, two points if it has none), and the guard keeps every row's loss from being
    climbed. ``multiplier_rule="gradient-ascent"`` learns the weight instead.

    Without ``constrain_masks``, ``constrain_weights`` or both it is the paper's ablations.
    """

    distill: float = 0.0
    match_dense: bool = False
    follow_weights: bool = False
    multiplier_rule: str = "penalty"
    shrink_violations: bool = False
    split_batch: bool = False
    weights_on: WeightsOn | None = "fit"

    name: ClassVar[str] = "bifp"

    @property
    def label(self) -> str:
        """With what is left out."""
        left = {
            (True, True): "",
            (False, True): "-no-mask-constraint",
            (True, False): "-no-weight-constraint",
            (False, False): "-no-constraint",
        }
        return self.name + left[self.constrain_masks, self.constrain_weights]

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """The accuracy gap (performance fairness)."""
        return (problem.own_or(AccuracyGap()),)


@dataclass(frozen=True)
class BiP(BilevelSolver):
    """The bilevel solver as BiP has it: no constraint, the closed-form hypergradient.

    Scores start as scaled magnitudes and move by the hypergradient alone. Roles, budget schedule,
    fine-tuning and early stopping are those of the solver: the same protocol for all.
    """

    distill: float = 0.0
    match_dense: bool = False
    follow_weights: bool = False
    split_batch: bool = False
    weights_on: WeightsOn | None = "fit"

    name: ClassVar[str] = "bip"

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """Nothing."""
        return ()
