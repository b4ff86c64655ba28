"""Hypergradients: derivatives of the outer problem through the solution of the inner one."""

import difflib
import math

from fairbilevel.hypergrad._bilinear import Bilinear

METHODS = ("bilinear", "none")


def by_name(name: str, gamma: float) -> Bilinear:
    """A method by its command-line name; ``"none"`` leaves the implicit term out.

    Raises:
        ValueError: unknown name (with the nearest one), or a bad ``gamma``.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown hypergradient {name!r}: {hint}choose from {', '.join(METHODS)}")
    return Bilinear(gamma if name == "bilinear" else math.inf)


__all__ = ["METHODS", "Bilinear", "by_name"]
