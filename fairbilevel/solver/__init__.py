"""Solvers: mask and weights together."""

from fairbilevel.solver._bilevel import STAGES, BilevelRun, BilevelSolver, solve
from fairbilevel.solver._step import BilevelState, OuterLog, OuterStep

__all__ = [
    "STAGES",
    "BilevelRun",
    "BilevelSolver",
    "BilevelState",
    "OuterLog",
    "OuterStep",
    "solve",
]
