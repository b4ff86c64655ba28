"""Fairness: constraints, surrogates, replay buffers, multipliers and reported metrics."""

from fairbilevel.fairness._buffer import Buffers, buffer_statistics, empty_buffers, only, write
from fairbilevel.fairness._constraint import Constraint
from fairbilevel.fairness._evaluation import (
    ConstraintEvaluation,
    Evaluation,
    Gap,
    Gaps,
    GroupEvaluation,
    evaluate,
    of_measures,
)
from fairbilevel.fairness._gaps import (
    AbsoluteExcessAccuracyGap,
    AccuracyGap,
    Custom,
    DegradationGap,
    EqualizedLoss,
    ExcessAccuracyGap,
    SignedEqualizedLoss,
    WorstGroupAccuracy,
)
from fairbilevel.fairness._metrics import (
    Measurement,
    gaps,
    group_rates,
    judge,
    measure,
    performance,
)
from fairbilevel.fairness._multiplier import (
    Multipliers,
    RowWeights,
    ascend,
    initial_multipliers,
    row_weights,
)
from fairbilevel.fairness._parse import CONSTRAINTS, parse_constraint, parse_tolerance
from fairbilevel.fairness._rates import DemographicParity, EqualizedOdds, EqualOpportunity
from fairbilevel.fairness._rules import (
    augmented_lagrangian,
    fixed_penalty,
    gradient_ascent,
    multiplicative_weights,
    multiplier_rule,
    nupi,
)
from fairbilevel.fairness._statistics import GroupStatistics, Outcomes
from fairbilevel.fairness._surrogate import cross_entropy, margin

__all__ = [
    "CONSTRAINTS",
    "AbsoluteExcessAccuracyGap",
    "AccuracyGap",
    "Buffers",
    "Constraint",
    "ConstraintEvaluation",
    "Custom",
    "DegradationGap",
    "DemographicParity",
    "EqualOpportunity",
    "EqualizedLoss",
    "EqualizedOdds",
    "Evaluation",
    "ExcessAccuracyGap",
    "Gap",
    "Gaps",
    "GroupEvaluation",
    "GroupStatistics",
    "Measurement",
    "Multipliers",
    "Outcomes",
    "RowWeights",
    "SignedEqualizedLoss",
    "WorstGroupAccuracy",
    "ascend",
    "augmented_lagrangian",
    "buffer_statistics",
    "cross_entropy",
    "empty_buffers",
    "evaluate",
    "fixed_penalty",
    "gaps",
    "gradient_ascent",
    "group_rates",
    "initial_multipliers",
    "judge",
    "margin",
    "measure",
    "multiplicative_weights",
    "multiplier_rule",
    "nupi",
    "of_measures",
    "only",
    "parse_constraint",
    "parse_tolerance",
    "performance",
    "row_weights",
    "write",
]
