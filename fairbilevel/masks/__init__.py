"""Masks: prunable layers, budgets, exact thresholds, relaxations, score starts."""

from fairbilevel.masks._allocation import (
    MEASURES,
    Allocation,
    layer_shares,
    multiple_of,
)
from fairbilevel.masks._apply import apply, collect, compact, expand, filters_of, wrap
from fairbilevel.masks._budget import (
    BUDGETS,
    Budget,
    CubicSchedule,
    as_counts,
    removed,
    uniform_removed,
)
from fairbilevel.masks._cost import Cost, CostModel, cost
from fairbilevel.masks._essential import stays_zero
from fairbilevel.masks._latency import LatencyTable, measure_latency
from fairbilevel.masks._layers import (
    GRANULARITIES,
    Channels,
    Layer,
    Layers,
    Slice,
    find_layers,
    select_layers,
)
from fairbilevel.masks._memory import peak_activations
from fairbilevel.masks._relaxation import (
    RELAXATIONS,
    CappedSimplex,
    Relaxation,
    Sigmoid,
    TopK,
    spread,
)
from fairbilevel.masks._score import (
    MAGNITUDES,
    magnitude,
    magnitude_scales,
    median_distance,
    start_scores,
)
from fairbilevel.masks._threshold import Masks, Scores, capped_simplex, kth_largest, top_k_masks

__all__ = [
    "BUDGETS",
    "GRANULARITIES",
    "MAGNITUDES",
    "MEASURES",
    "RELAXATIONS",
    "Allocation",
    "Budget",
    "CappedSimplex",
    "Channels",
    "Cost",
    "CostModel",
    "CubicSchedule",
    "LatencyTable",
    "Layer",
    "Layers",
    "Masks",
    "Relaxation",
    "Scores",
    "Sigmoid",
    "Slice",
    "TopK",
    "apply",
    "as_counts",
    "capped_simplex",
    "collect",
    "compact",
    "cost",
    "expand",
    "filters_of",
    "find_layers",
    "kth_largest",
    "layer_shares",
    "magnitude",
    "magnitude_scales",
    "measure_latency",
    "median_distance",
    "multiple_of",
    "peak_activations",
    "removed",
    "select_layers",
    "spread",
    "start_scores",
    "stays_zero",
    "top_k_masks",
    "uniform_removed",
    "wrap",
]
