"""Hypergradients: derivatives of the outer problem through the solution of the inner one."""

from fairbilevel.hypergrad._bilinear import Bilinear
from fairbilevel.hypergrad._first_order import FirstOrder
from fairbilevel.hypergrad._hypergradient import by_name, hypergradient
from fairbilevel.hypergrad._krylov import GMRES, BiCGStab, ConjugateGradient
from fairbilevel.hypergrad._losses import CompositeLoss, MaskedLoss
from fairbilevel.hypergrad._neumann import Neumann
from fairbilevel.hypergrad._point import Hypergradient, Info, Status
from fairbilevel.hypergrad._preconditioner import Diagonal, Nystrom
from fairbilevel.hypergrad._single_loop import SingleLoop
from fairbilevel.hypergrad._unrolled import Unrolled

__all__ = [
    "GMRES",
    "BiCGStab",
    "Bilinear",
    "CompositeLoss",
    "ConjugateGradient",
    "Diagonal",
    "FirstOrder",
    "Hypergradient",
    "Info",
    "MaskedLoss",
    "Neumann",
    "Nystrom",
    "SingleLoop",
    "Status",
    "Unrolled",
    "by_name",
    "hypergradient",
]
