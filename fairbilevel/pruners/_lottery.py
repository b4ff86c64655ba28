"""Lottery tickets: iterative magnitude pruning with rewinding (Frankle and Carbin, ICLR 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fairbilevel.pruners._magnitude import Magnitude
from fairbilevel.pruners._pruner import exponential
from fairbilevel.pruners._run import PrunerRun
from fairbilevel.train import WeightState, dense_start


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

    def sparsity_at(self, progress: float) -> float:
        """An exponential schedule."""
        return exponential(self.sparsity, progress)

    def rewound(self, state: WeightState, run: PrunerRun) -> WeightState:
        """Weights and statistics of the start, the optimizer afresh."""
        start = dense_start(run.problem, run.reference) or run.reference.network
        return run.begun(start, run.fresh(), state.drawn)
