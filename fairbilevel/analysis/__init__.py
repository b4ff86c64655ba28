"""Why pruning hurts some groups more than others: losses, gradients and curvature by group.

Pure functions of a user's own apply function, parameters, rows and groups. `disparate_impact` sets
every group's excess loss beside what the dense network foretold (Tran et al. 2022), `sensitivity`
is the part that needs the dense network alone, `loss_line` and `loss_plane` walk between solutions.
"""

from fairbilevel.analysis._correlation import correlate
from fairbilevel.analysis._curvature import TWENTY, Lanczos
from fairbilevel.analysis._impact import (
    DisparateImpact,
    GroupImpact,
    Sensitivity,
    disparate_impact,
    sensitivity,
)
from fairbilevel.analysis._surface import LossLine, LossPlane, loss_line, loss_plane

__all__ = [
    "TWENTY",
    "DisparateImpact",
    "GroupImpact",
    "Lanczos",
    "LossLine",
    "LossPlane",
    "Sensitivity",
    "correlate",
    "disparate_impact",
    "loss_line",
    "loss_plane",
    "sensitivity",
]
