"""The bilevel solver: mask and weights together."""

from fairbilevel.solver._bilevel import BilevelSolver
from fairbilevel.solver._relatives import BiFP, BiP
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
