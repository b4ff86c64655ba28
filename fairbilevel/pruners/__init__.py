"""Pruners: the baselines that the solver is judged against."""

from fairbilevel.pruners._gradual import GradualMagnitude

__all__ = ["GradualMagnitude"]
