"""Scores of the weights alone: magnitudes (at once, gradually, as lottery tickets), the
geometric median, and random ones as the floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fairbilevel import _options, masks
from fairbilevel.masks import Masks
from fairbilevel.pruners._pruner import Pruner
from fairbilevel.pruners._run import Moment, PrunerRun
from fairbilevel.train import BudgetKind, Granularity, WeightState, dense_start

MagnitudeName = Literal["magnitude", "layer-magnitude"]


@dataclass(frozen=True)
class Magnitude(Pruner):
    """Keep the largest weights of the dense network, then fine-tune (Han et al. 2015).

    Filters are as large as the root mean square of their weights.

    Attributes:
        score_start: magnitude, or layer-magnitude, in units of each layer's mean; by default
            layer-magnitude at granularity filter, else magnitude (``fb.masks.usual_start``).

    Raises:
        ValueError: other scores.
    """

    score_start: MagnitudeName | None = None

    name: ClassVar[str] = "magnitude"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score_start is not None:
            _options.one_of("score_start", self.score_start, masks.MAGNITUDES)

    def scores(self, at: Moment) -> Masks:
        """``|w|``."""
        kind = self.score_start or masks.usual_start(at.granularity)
        if kind == "magnitude":  # as they are: another unit changes no order
            return masks.magnitude(at.network, at.layers, at.granularity)
        return masks.start_scores(kind, at.network, at.layers, at.granularity, at.key)


@dataclass(frozen=True)
class GradualMagnitude(Magnitude):
    """Remove the smallest weights along a cubic schedule while training, then fine-tune."""

    rounds: int = 20

    name: ClassVar[str] = "gradual-magnitude"
    trains: ClassVar[bool] = True


@dataclass(frozen=True)
class Lottery(Magnitude):
    """Remove the smallest trained weights, rewind the others, train, and again.

    Each round leaves the same share of what was there; the dense reference is the first round's
    trained network. Weights rewind to where the dense model started, if it was trained here
    (``fb.train.train_dense``), and otherwise to the dense weights that were given. After the last
    round the ticket trains from there: that is the fine-tuning.
    """

    rounds: int = 5

    name: ClassVar[str] = "lottery"
    trains: ClassVar[bool] = True
    rewinds: ClassVar[bool] = True
    same_share: ClassVar[bool] = True

    def rewound(self, state: WeightState, run: PrunerRun) -> WeightState:
        """Weights and statistics of the start, the optimizer afresh."""
        start = dense_start(run.problem, run.reference) or run.reference.network
        return run.begun(start, run.fresh(), state.drawn)


@dataclass(frozen=True)
class FPGM(Pruner):
    """Remove the filters nearest their layer's geometric median, then fine-tune.

    Such a filter can best be replaced by the others, whatever its size. The paper removes the same
    share of each layer (the ``"uniform"`` budget, the default here); distances are scaled so that
    the ``"global"`` one can compare layers too.
    """

    granularity: Granularity = "filter"
    budget: BudgetKind = "uniform"

    name: ClassVar[str] = "fpgm"
    granularities: ClassVar[tuple[str, ...]] = ("filter",)

    def scores(self, at: Moment) -> Masks:
        """Mean distance to the layer's other filters."""
        return masks.median_distance(at.network, at.layers)


@dataclass(frozen=True)
class Random(Pruner):
    """Keep units drawn at random, then fine-tune."""

    name: ClassVar[str] = "random"

    def scores(self, at: Moment) -> Masks:
        """Uniform noise."""
        return masks.start_scores("random", at.network, at.layers, at.granularity, at.key)
