"""Solvers: mask and weights together."""

from fairbilevel.solver._bilevel import BilevelRun, BilevelSolver, solve
from fairbilevel.solver._step import BilevelState, OuterLog, OuterStep

__all__ = [
    "BilevelRun",
    "BilevelSolver",
    "BilevelState",
    "OuterLog",
    "OuterStep",
    "solve",
]
