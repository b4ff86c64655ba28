"""Solvers: mask and weights together."""

from fairbilevel.solver._bilevel import BilevelSolver, BilevelState, solve

__all__ = ["BilevelSolver", "BilevelState", "solve"]
