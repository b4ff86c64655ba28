"""Masks: prunable layers, budgets, exact thresholds, relaxations, score starts."""

from fairbilevel.masks._allocation import MEASURES, Allocation, layer_shares
from fairbilevel.masks._apply import apply, collect, compact, expand, filters_of, wrap
from fairbilevel.masks._budget import Budget, CubicSchedule, CutNetworkError, as_counts, removed
from fairbilevel.masks._cost import Cost, CostModel, cost, peak_activations
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
from fairbilevel.masks._score import (
    MAGNITUDES,
    RELAXATIONS,
    CappedSimplex,
    Relaxation,
    Sigmoid,
    TopK,
    magnitude,
    magnitude_scales,
    median_distance,
    spread,
    start_scores,
    usual_start,
)
from fairbilevel.masks._threshold import Masks, Scores

__all__ = [
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
    "CutNetworkError",
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
    "collect",
    "compact",
    "cost",
    "expand",
    "filters_of",
    "find_layers",
    "layer_shares",
    "magnitude",
    "magnitude_scales",
    "measure_latency",
    "median_distance",
    "peak_activations",
    "removed",
    "select_layers",
    "spread",
    "start_scores",
    "stays_zero",
    "usual_start",
    "wrap",
]
