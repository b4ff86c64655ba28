"""Constraints as the command line and configuration files write them."""

from __future__ import annotations

from fairbilevel import _options
from fairbilevel.fairness import _gaps as gaps
from fairbilevel.fairness import _rates as rates
from fairbilevel.fairness._constraint import Constraint

CONSTRAINTS: dict[str, type[Constraint]] = {
    c.name: c
    for c in (
        gaps.AccuracyGap,
        gaps.DegradationGap,
        gaps.ExcessAccuracyGap,
        gaps.AbsoluteExcessAccuracyGap,
        gaps.WorstGroupAccuracy,
        gaps.EqualizedLoss,
        gaps.SignedEqualizedLoss,
        rates.DemographicParity,
        rates.EqualOpportunity,
        rates.EqualizedOdds,
    )
}


def parse_tolerance(text: str) -> float:
    """A tolerance as a fraction (``0.02``) or a percentage (``2%``).

    Raises:
        ValueError: not a number, negative, NaN, or a bare number of 1 or more, which would be read
            as a percentage by some and as a fraction by others.
    """
    percent = text.strip().endswith("%")
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        raise ValueError(
            f"a tolerance is a fraction such as 0.02 or a percentage such as 2%, got {text!r}"
        ) from None
    if not 0 <= value < float("inf"):
        raise ValueError(f"a tolerance must be a number of at least 0, got {text!r}")
    if percent:
        return value / 100
    if value >= 1:
        raise ValueError(
            f"a tolerance of {text} is ambiguous: write {text.strip()}% or a fraction below 1"
        )
    return value


def parse_constraint(text: str) -> Constraint:
    """A constraint written ``NAME=TOLERANCE`` (or ``NAME`` alone, with its default tolerance).

    Groups with a tolerance of their own follow: ``excess-accuracy-gap=2%,women=1%``.

    Raises:
        ValueError: unknown name (with the nearest one) or a bad tolerance.
    """
    name, separator, tolerance = text.replace("<=", "=").partition("=")
    if not separator:
        name, separator, tolerance = text.partition(":")
    name = name.strip().lower().replace("_", "-")
    _options.one_of("constraint", name, CONSTRAINTS)
    kind = CONSTRAINTS[name]
    if not separator:
        return kind()
    first, *others = tolerance.split(",")
    if not others:
        return kind(tolerance=parse_tolerance(first))
    named = {"*": parse_tolerance(first)}
    for part in others:
        group, equals, value = part.rpartition("=")
        if not equals:
            raise ValueError(
                f"a group's own tolerance is written GROUP=TOLERANCE after a comma, got {part!r}"
            )
        named[group.strip()] = parse_tolerance(value)
    return kind(tolerance=named)
