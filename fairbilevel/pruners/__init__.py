"""Pruners: the baselines that the solver is judged against, a file a family, one face for all."""

from fairbilevel.pruners._fair_training import (
    CEAG,
    EqualizedLoss,
    FairThenPrune,
    GroupDRO,
    Penalty,
    PruneThenFair,
    Reweighting,
)
from fairbilevel.pruners._group_scores import FairGRAPE, FairPrune
from fairbilevel.pruners._hydra import Hydra
from fairbilevel.pruners._magnitude import FPGM, GradualMagnitude, Lottery, Magnitude, Random
from fairbilevel.pruners._pruner import Pruner
from fairbilevel.pruners._run import Moment
from fairbilevel.pruners._sensitivity import SNIP, GraSP, SynFlow

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
    "Random",
    "Reweighting",
    "SynFlow",
]
