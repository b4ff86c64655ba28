"""The bilevel solver: mask and weights together."""

from fairbilevel.solver._bilevel import BiFP, BilevelSolver, BiP
from fairbilevel.solver._run import BilevelRun
from fairbilevel.solver._step import OuterStep, outer_stretch

__all__ = [
    "BiFP",
    "BiP",
    "BilevelRun",
    "BilevelSolver",
    "OuterStep",
    "outer_stretch",
]
