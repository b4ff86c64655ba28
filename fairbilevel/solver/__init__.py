"""Solvers: mask and weights together."""

from fairbilevel.solver._bifp import BiFP
from fairbilevel.solver._bilevel import BilevelSolver, solve
from fairbilevel.solver._bip import BiP
from fairbilevel.solver._frontier import Candidate, solve_many
from fairbilevel.solver._run import BilevelRun
from fairbilevel.solver._step import BilevelState, OuterLog, OuterStep

__all__ = [
    "BiFP",
    "BiP",
    "BilevelRun",
    "BilevelSolver",
    "BilevelState",
    "Candidate",
    "OuterLog",
    "OuterStep",
    "solve",
    "solve_many",
]
