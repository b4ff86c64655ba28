"""Fairness: constraints, surrogates, replay buffers, multipliers and reported metrics."""

from fairbilevel.fairness._buffer import Buffers, buffer_statistics, empty_buffers, write
from fairbilevel.fairness._constraint import (
    CONSTRAINTS,
    AccuracyGap,
    Constraint,
    DegradationGap,
    EqualizedLoss,
    ExcessAccuracyGap,
    SignedEqualizedLoss,
    parse_constraint,
    parse_tolerance,
)
from fairbilevel.fairness._metrics import (
    gaps,
    group_rates,
    judge,
    largest_violation,
    performance,
)
from fairbilevel.fairness._multiplier import (
    Multipliers,
    RowWeights,
    ascend,
    initial_multipliers,
    row_weights,
)
from fairbilevel.fairness._statistics import GroupStatistics, Outcomes, group_statistics
from fairbilevel.fairness._surrogate import SURROGATES, Surrogate, cross_entropy, margin

__all__ = [
    "CONSTRAINTS",
    "SURROGATES",
    "AccuracyGap",
    "Buffers",
    "Constraint",
    "DegradationGap",
    "EqualizedLoss",
    "ExcessAccuracyGap",
    "GroupStatistics",
    "Multipliers",
    "Outcomes",
    "RowWeights",
    "SignedEqualizedLoss",
    "Surrogate",
    "ascend",
    "buffer_statistics",
    "cross_entropy",
    "empty_buffers",
    "gaps",
    "group_rates",
    "group_statistics",
    "initial_multipliers",
    "judge",
    "largest_violation",
    "margin",
    "parse_constraint",
    "parse_tolerance",
    "performance",
    "row_weights",
    "write",
]
