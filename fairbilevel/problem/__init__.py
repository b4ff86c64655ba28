"""A fair pruning problem: a model, rows in five roles, groups, constraints, a dense reference."""

from fairbilevel.problem._network import (
    Inputs,
    Network,
    Numbers,
    Reference,
    Structure,
    predict,
    probabilities,
)
from fairbilevel.problem._problem import REPORTED_ROLES, FairPruningProblem

__all__ = [
    "REPORTED_ROLES",
    "FairPruningProblem",
    "Inputs",
    "Network",
    "Numbers",
    "Reference",
    "Structure",
    "predict",
    "probabilities",
]
