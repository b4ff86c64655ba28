"""Pruners: the baselines that the solver is judged against, one file each, one face for all."""

from fairbilevel.pruners._ceag import CEAG
from fairbilevel.pruners._equalized_loss import EqualizedLoss
from fairbilevel.pruners._fairgrape import FairGRAPE
from fairbilevel.pruners._fairprune import FairPrune
from fairbilevel.pruners._fpgm import FPGM
from fairbilevel.pruners._gradual import GradualMagnitude
from fairbilevel.pruners._grasp import GraSP
from fairbilevel.pruners._group_dro import GroupDRO
from fairbilevel.pruners._hydra import Hydra
from fairbilevel.pruners._lottery import Lottery
from fairbilevel.pruners._magnitude import Magnitude
from fairbilevel.pruners._moment import Moment
from fairbilevel.pruners._penalty import Penalty
from fairbilevel.pruners._pruner import Pruner
from fairbilevel.pruners._random import Random
from fairbilevel.pruners._reweighting import Reweighting
from fairbilevel.pruners._run import PrunerRun
from fairbilevel.pruners._snip import SNIP
from fairbilevel.pruners._synflow import SynFlow
from fairbilevel.pruners._two_stage import FairThenPrune, PruneThenFair

__all__ = [
    "CEAG",
    "FPGM",
    "SNIP",
    "EqualizedLoss",
    "FairGRAPE",
    "FairPrune",
    "FairThenPrune",
    "GraSP",
    "GradualMagnitude",
    "GroupDRO",
    "Hydra",
    "Lottery",
    "Magnitude",
    "Moment",
    "Penalty",
    "PruneThenFair",
    "Pruner",
    "PrunerRun",
    "Random",
    "Reweighting",
    "SynFlow",
]
