"""FPGM: filter pruning via geometric median (He et al., CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fairbilevel import masks
from fairbilevel.masks import Masks
from fairbilevel.pruners._moment import Moment
from fairbilevel.pruners._pruner import Pruner
from fairbilevel.train import BudgetKind, Granularity


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
