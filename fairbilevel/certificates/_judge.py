"""Verdicts on gaps between groups, from bounds of their samples.

A run is *certified* where every bound, each at the full level, lies within the tolerance: if the
claim is false, one group (or pair) breaks it, and only that one's bound need fail. It is *violated*
where simultaneous bounds show a breach, else *undecided*. Whatever the truth, only one of the first
two can be wrong. A group's own verdict shares the level among the groups; intervals in the table
hold for all of them together and for any tolerance that is read off later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairbilevel.certificates._samples import Paired, Quantity, Rate, Sample

CERTIFIED, VIOLATED, UNDECIDED = "certified", "violated", "undecided"
PARTIAL = "partial"
"""Of a certificate whose claim is silent on too many rows; no group has it."""

# Of the error of an excess gap, the group's part and everybody else's.
_OWN, _REST = 0.8, 0.2


@dataclass(frozen=True)
class Finding:
    """What is said of one group (of one cell of it, where labels are told apart).

    Attributes:
        group: its name.
        label: of the rows it speaks of, ``None`` where all are meant.
        rows: how many.
        share: of all certify rows.
        estimate: of the group's gap or rate, ``None`` without rows.
        bound: what the run's verdict rests on: the group's gap (its rate, for a floor) lies on the
            right side of it with the full confidence; ``None`` where the verdict needs pairs.
        low: lower end of the interval that holds for all groups together.
        high: its upper end.
        verdict: the group's own.
    """

    group: str
    label: str | None
    rows: int
    share: float
    estimate: float | None
    bound: float | None
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Judgement:
    """The run's verdict.

    Attributes:
        verdict: certified, violated or undecided.
        smallest_tolerance: the smallest tolerance that these rows certify (of a floor the largest),
            itself a bound of the worst gap with the full confidence; ``None`` if there is none.
        findings: one per claimed group or cell.
    """

    verdict: str
    smallest_tolerance: float | None
    findings: tuple[Finding, ...]


def _verdict(certified: bool, violated: bool) -> str:
    return CERTIFIED if certified else VIOLATED if violated else UNDECIDED


def excess_bounds(own: Sample, rest: Sample, share: float, level: float) -> tuple[float, float]:
    """Lower and upper bound of ``psi = (1 - pi)(D_g - D_rest)``, each with error ``level``."""
    upper = own.upper(_OWN * level) - rest.lower(_REST * level)
    lower = own.lower(_OWN * level) - rest.upper(_REST * level)
    return (1 - share) * lower, (1 - share) * upper


def judge_excess(
    samples: Mapping[str, Paired] | Mapping[str, Quantity],
    claimed: Sequence[str],
    tolerance: float,
    delta: float,
    *,
    two_sided: bool,
) -> Judgement:
    """How much more a group loses than the average; two-sided, its absolute value.

    ``samples`` are of every group, those outside the claim too: they are part of the average.
    """
    total = sum(s.rows for s in samples.values())
    groups, sides = len(claimed), 2 if two_sided else 1
    findings, violated = [], False
    for name in claimed:
        own, rest = _beside(samples, name)
        share = own.rows / total

        def reach(level: float, own: Sample = own, rest: Sample = rest, pi: float = share) -> float:
            low, high = excess_bounds(own, rest, pi, level)
            return max(high, -low) if two_sided else high

        low, high = excess_bounds(own, rest, share, delta / (groups * sides))
        breach = low > tolerance or (two_sided and -high > tolerance)
        violated |= breach
        if not two_sided:
            low, high = excess_bounds(own, rest, share, delta / (2 * groups))
        known = own.estimate is not None and rest.estimate is not None
        estimate = (1 - share) * (own.estimate - rest.estimate) if known else None
        verdict = _verdict(reach(delta / groups) <= tolerance, breach)
        findings.append(
            Finding(name, None, own.rows, share, estimate, reach(delta), low, high, verdict)
        )
    worst = max(f.bound for f in findings if f.bound is not None)
    return Judgement(_verdict(worst <= tolerance, violated), worst, tuple(findings))


def smallest_excess(
    samples: Mapping[str, Paired] | Mapping[str, Quantity], claimed: Sequence[str], delta: float
) -> float:
    """The smallest tolerance that these rows certify, one-sided, with error ``delta``."""
    total = sum(s.rows for s in samples.values())

    def upper(name: str) -> float:
        own, rest = _beside(samples, name)
        return excess_bounds(own, rest, own.rows / total, delta)[1]

    return max(upper(name) for name in claimed)


def _beside(samples: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """A group's sample, and everybody else's."""
    others = [s for other, s in samples.items() if other != name]
    return samples[name], others[0].pool(others[1:])


def judge_spread(
    layers: Mapping[str | None, Mapping[str, Sample]],
    claimed: Sequence[str],
    tolerance: float,
    delta: float,
) -> Judgement:
    """How far the groups lie apart, in each layer (the rows of one label, or all rows).

    A cell without rows leaves the run undecided, unless others violate the tolerance already.
    """
    cells = len(layers) * len(claimed)
    total = {k: sum(s.rows for s in layer.values()) for k, layer in layers.items()}
    worst, violated, empty = 0.0, False, False
    findings = []
    for label, layer in layers.items():
        parts = {g: layer[g] for g in claimed}
        empty |= any(not s.rows for s in parts.values())
        # Both ends of every cell, of all layers: a verdict on any cell errs only where one fails.
        half, all_ = (
            {g: (s.lower(level), s.upper(level)) for g, s in parts.items()}
            for level in (delta / 2, delta / (2 * cells))
        )
        worst = max([worst, *(_apart(half, g) for g in claimed)])
        violated |= (
            max(low for low, _ in all_.values()) - min(h for _, h in all_.values()) > tolerance
        )
        for g, sample in parts.items():
            breach = any(
                all_[g][0] - all_[h][1] > tolerance or all_[h][0] - all_[g][1] > tolerance
                for h in claimed
                if h != g
            )
            complete = all(s.rows for s in parts.values())
            verdict = _verdict(complete and _apart(all_, g) <= tolerance, breach)
            share = sample.rows / max(total[label], 1)
            findings.append(
                Finding(g, label, sample.rows, share, sample.estimate, None, *all_[g], verdict)
            )
    certified = not empty and worst <= tolerance
    return Judgement(_verdict(certified, violated), None if empty else worst, tuple(findings))


def _apart(bounds: Mapping[str, tuple[float, float]], group: str) -> float:
    """The largest difference, either way, that bounds allow between a group and any other."""
    low, high = bounds[group]
    others = [b for g, b in bounds.items() if g != group]
    return max(max(high - other_low, other_high - low) for other_low, other_high in others)


def judge_floor(
    samples: Mapping[str, Rate], claimed: Sequence[str], floor: float, delta: float
) -> Judgement:
    """Whether every group's rate reaches ``floor``."""
    total, groups = sum(s.rows for s in samples.values()), len(claimed)
    findings, violated = [], False
    for name in claimed:
        sample = samples[name]
        breach = sample.upper(delta / groups) < floor
        violated |= breach
        verdict = _verdict(sample.lower(delta / groups) >= floor, breach)
        share, bound, level = sample.rows / total, sample.lower(delta), delta / (2 * groups)
        ends = sample.lower(level), sample.upper(level)
        findings.append(
            Finding(name, None, sample.rows, share, sample.estimate, bound, *ends, verdict)
        )
    worst = min(f.bound for f in findings if f.bound is not None)
    return Judgement(_verdict(worst >= floor, violated), worst, tuple(findings))
