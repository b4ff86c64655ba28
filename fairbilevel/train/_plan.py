"""What a run will do, step by step, before it does any of it, and the books of what it spent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from fairbilevel import devices
from fairbilevel.problem import FairPruningProblem

RECALIBRATION_BATCHES = 20  # of the final network's statistics
FORWARD_COST = 1 / 3  # of a gradient evaluation: forward and backward is 1


@dataclass
class Costs:
    """What was spent, in the units of the protocol.

    Attributes:
        gradient_evaluations: one is forward plus backward on one nominal batch.
        seconds: wall time of compiled calls and of the rows they wait for, compilation included;
            of runs side by side (``fb.devices.Lanes``) each one's share.
        compile_seconds: of that, the part spent compiling.
    """

    gradient_evaluations: float = 0.0
    seconds: float = 0.0
    compile_seconds: float = 0.0

    _running = False  # inside a block that is timed already

    def restore(self, state: dict[str, float]) -> None:
        """Take over what a former process had spent (``dataclasses.asdict``)."""
        for name, value in state.items():
            setattr(self, name, value)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Books the time until the end of the block, what it starts being waited for inside; one
        within another is booked once."""
        if self._running:
            yield
            return
        begin, self._running = time.perf_counter(), True
        try:
            yield
        finally:
            self._running = False
            self.seconds += devices.share_of_time() * (time.perf_counter() - begin)


@dataclass(frozen=True, eq=False)
class Phase:
    """A part of a run whose steps are of one kind.

    Attributes:
        name: in logs: ``"dense"``, ``"before"``, ``"bilevel"``, ``"prune"`` or ``"finetune"``.
        stages: steps of each stage: a stage ends with a record, and a new one may move the budget.
        rates: learning rate of every step (ones where a user's own rule has its own).
        measures: steps after which violations are measured and multipliers move.
        rows: row numbers that the weights are fitted to.
        dual_rows: row numbers that the multipliers see, where they are no training rows.
        cycle: gradient evaluations of the steps in turn, measuring apart.
        scoring: gradient evaluations that scoring units takes, all its rounds together.
        chooses: whether the best network of its stages is kept (early stopping on tune).
        trains: whether its steps move weights.
    """

    name: str
    stages: tuple[int, ...]
    rates: Float[np.ndarray, " steps"]
    measures: Bool[np.ndarray, " steps"]
    rows: Int[np.ndarray, " rows"]
    dual_rows: Int[np.ndarray, " duals"] | None = None
    cycle: tuple[float, ...] = (1.0,)
    scoring: float = 0.0
    chooses: bool = False
    trains: bool = True

    def __post_init__(self) -> None:
        assert sum(self.stages) == len(self.rates) == len(self.measures)

    @property
    def steps(self) -> int:
        """All of them."""
        return len(self.rates)

    @property
    def evaluations(self) -> float:
        """Gradient evaluations that it takes."""
        looks = 0 if self.dual_rows is None else int(self.measures.sum())
        return self.cost(slice(None)) + FORWARD_COST * looks + self.scoring

    def cost(self, part: slice) -> float:
        """Gradient evaluations of some of the steps, measuring apart."""
        return float(costs(self.steps, self.cycle)[part].sum())

    def before(self, stage: int) -> int:
        """Steps done when a stage begins."""
        return sum(self.stages[:stage])


@dataclass(frozen=True)
class Plan:
    """The phases of a run, and what ends it.

    Attributes:
        phases: in their order; those without a stage are left out.
        recalibration: gradient evaluations of the final network's statistics.
        matching: gradient evaluations of its output biases.
    """

    phases: tuple[Phase, ...]
    recalibration: float = 0.0
    matching: float = 0.0

    @property
    def evaluations(self) -> float:
        """Gradient evaluations of the whole run."""
        return sum(p.evaluations for p in self.phases) + self.recalibration + self.matching

    @property
    def weight_updates(self) -> int:
        """Steps that move weights."""
        return sum(p.steps for p in self.phases if p.trains)

    def describe(self) -> list[str]:
        """A line a phase, and one for what ends the run."""
        lines = []
        for phase in self.phases:
            count, looks = len(phase.stages), int(phase.measures.sum())
            told = [f"{phase.steps:,} steps in {count} stage{'s' * (count != 1)}"]
            if set(phase.cycle) != {1.0}:
                told.append(f"{' and '.join(f'{c:.4g}' for c in phase.cycle)} each")
            if phase.scoring:
                told.append(f"{phase.scoring:.4g} to score units")
            if looks and phase.dual_rows is not None:
                told.append(f"violations measured {looks:,} times")
            elif looks:
                told.append("violations measured with every step")
            told.append(f"{phase.evaluations:,.1f} gradient evaluations")
            lines.append(f"{phase.name}: {'; '.join(told)}")
        if self.recalibration:
            lines.append(f"statistics of the final network: {self.recalibration:,.1f}")
        if self.matching:
            lines.append(f"output biases of the final network: {self.matching:,.1f}")
        return lines


def recalibration(problem: FairPruningProblem) -> float:
    """Gradient evaluations that the statistics of the final network will cost."""
    return FORWARD_COST * RECALIBRATION_BATCHES if jax.tree.leaves(problem.shapes.state) else 0.0


def stages(steps: int, parts: int) -> tuple[int, ...]:
    """``steps`` in at most ``parts`` stages, as even as can be, none empty."""
    parts = min(parts, steps)
    return tuple((i + 1) * steps // parts - i * steps // parts for i in range(parts))


def every(steps: int, interval: int) -> Bool[np.ndarray, " steps"]:
    """The first of ``steps``, and every ``interval``-th from there; none at an interval of 0."""
    return (np.arange(steps) % interval == 0) if interval else np.zeros(steps, bool)


def costs(
    steps: int, cycle: Sequence[float] = (1.0,), interval: int = 0
) -> Float[np.ndarray, " steps"]:
    """Gradient evaluations of each step: those of a cycle in turn, and a forward pass where
    violations are measured by one (every ``interval`` steps; 0: never)."""
    return np.resize(np.asarray(cycle, float), steps) + FORWARD_COST * every(steps, interval)


def affordable(budget: float, cycle: Sequence[float] = (1.0,), interval: int = 0) -> int:
    """The most steps of such ``costs`` that ``budget`` pays for."""
    most = max(int(budget / min(cycle)) + 1, 0)
    spent = np.cumsum(costs(most, cycle, interval))
    return int(np.searchsorted(spent, budget + 1e-9, side="right"))


def learning_rates(rate: float, steps: int, *, to_zero: bool) -> Float[np.ndarray, " steps"]:
    """A short warm-up to ``rate``, then a cosine to zero, or constant.

    Args:
        rate: peak, reached after a twentieth of the steps, 50 at most.
        steps: of the phase.
        to_zero: follow a cosine to zero, else stay at the peak.
    """
    warm = max(1, min(steps // 20, 50))
    step = np.arange(steps)
    rising = rate / warm + (rate - rate / warm) * step / warm
    left = 0.5 * (1 + np.cos(np.pi * np.minimum((step - warm) / max(steps - warm, 1), 1)))
    return np.where(step < warm, rising, rate * left if to_zero else rate)


def held_then_falling(steps: int, hold: float) -> Float[np.ndarray, " steps"]:
    """One for a share ``hold`` of the steps, then along a cosine to zero."""
    held = round(hold * steps)
    step = np.arange(steps)
    falling = 0.5 * (1 + np.cos(np.pi * (step - held) / max(steps - held, 1)))
    return np.where(step < held, 1.0, falling)
