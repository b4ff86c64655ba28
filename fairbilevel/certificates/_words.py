"""What a certificate says in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fairbilevel._numbers import exact_points, in_points, percent, share
from fairbilevel.certificates import _claim as gaps
from fairbilevel.certificates._claim import Claim
from fairbilevel.certificates._judge import CERTIFIED, PARTIAL, VIOLATED, Finding

if TYPE_CHECKING:
    from fairbilevel.certificates._certificate import Certificate

_MOST_NAMES = 12


def names(items: Sequence[str]) -> str:
    """Names for a sentence; a long list is cut."""
    shown = ", ".join(items[:_MOST_NAMES])
    more = len(items) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def amount(claim: Claim, value: float, *, exact: bool = False) -> str:
    """A tolerance (``exact``) or a bound with its unit; a bound must not look better than it is."""
    if claim.gap in gaps.OF_QUANTITIES:
        return f"{value:.6g}" if exact else f"{math.ceil(1e4 * value - 1e-9) / 1e4:.4f}"
    if claim.gap == gaps.FLOOR:
        return share(value) if exact else percent(math.floor(1000 * value + 1e-9) / 1000)
    if exact:
        return f"{exact_points(value)} points"
    return in_points(math.ceil(1000 * value - 1e-9) / 1000)


def claimed(claim: Claim, text: str) -> str:
    """What holds, with the bound as text."""
    answer = f"the answer {claim.positive!r}"
    return {
        gaps.EXCESS: f"no listed group loses more than {text} beyond the average",
        gaps.EXCESS_TWO_SIDED: f"no listed group’s loss lies more than {text} from the average",
        gaps.DEGRADATION: f"no two listed groups’ losses lie more than {text} apart",
        gaps.ACCURACY: f"no two listed groups’ accuracies lie more than {text} apart",
        gaps.FLOOR: f"every listed group’s accuracy is at least {text}",
        gaps.PARITY: f"no two listed groups’ rates of {answer} lie more than {text} apart",
        gaps.OPPORTUNITY: f"no two listed groups’ rates of {answer}, among rows where it is right, "
        f"lie more than {text} apart",
        gaps.ODDS: f"no two listed groups’ rates of {answer}, among rows where it is right and "
        f"among rows where it is wrong, lie more than {text} apart",
        gaps.LOSS: f"no listed group’s {claim.quantity} lies more than {text} from the average",
        gaps.LOSS_SIGNED: f"no listed group’s {claim.quantity} exceeds the average by more than "
        f"{text}",
    }[claim.gap]


def sentences(made: Certificate) -> tuple[str, ...]:
    """A certificate in sentences, the smallest tolerance that is certified first."""
    claim, context, findings = made.claim, made.context, made.findings
    verdict, smallest, kind = made.verdict, made.smallest_tolerance, context.kind
    rows = sum(g.rows for g in made.groups)
    relative = ""
    if claim.gap in gaps.BESIDE_DENSE:
        kind_of, _, name = (context.dense_model or "given").rpartition(":")
        relative = f", relative to dense {kind_of or 'model'} {name[:12]}"
    dense_right = percent(sum(g.dense_right for g in made.groups) / rows)
    pruned_right = percent(sum(g.pruned_right for g in made.groups) / rows)
    relative += f" (accuracy here: dense {dense_right}, pruned {pruned_right})"
    sure, silent = share(claim.confidence), percent(made.silent_share)
    origin = f"For {kind} like those in {context.data} ({rows:,} {kind}, mix as listed)"
    limit = amount(claim, claim.tolerance, exact=True)
    word = "floor" if claim.gap == gaps.FLOOR else "tolerance"
    out = []
    if smallest is None:
        empty = names([_cell(f) for f in findings if not f.rows])
        out.append(f"{origin}, nothing can be certified: there are no rows of {empty}.")
    else:
        bound = amount(claim, smallest)
        out.append(f"{origin}, with {sure} confidence {claimed(claim, bound)}{relative}.")
    if verdict == CERTIFIED:
        out.append(f"The {word} of {limit} is certified.")
    elif verdict == PARTIAL:
        out.append(
            f"The {word} of {limit} is certified of the listed groups only: {silent} of the "
            f"{kind} belong to others."
        )
    elif verdict == VIOLATED:
        who = names(list(dict.fromkeys(_cell(f) for f in findings if f.verdict == VIOLATED)))
        by = f" by {who}" if who else ""
        out.append(f"The {word} of {limit} is violated{by}, with {sure} confidence.")
    else:
        open_ = names([_cell(f) for f in findings if f.verdict != CERTIFIED])
        toward = f" The groups in question: {open_}." if open_ else ""
        out.append(f"Whether the {word} of {limit} holds, these rows leave undecided.{toward}")
    if made.small:
        out.append(f"Too small to say: {names(made.small)}, {silent} of the {kind}.")
    if context.alike:
        out.append(
            f"Conditional: {context.alike} rows are equal or nearly equal to rows that this run "
            "was fitted or chosen on; valid only if they are others."
        )
    out += [
        f"Conditional: valid only if it is no mistake that {doubt}." for doubt in context.doubts
    ]
    if not context.looks_counted:
        out.append("Looks at these rows are not counted: valid only if this is the first.")
    if context.dense_trained_on is None:
        out.append("Conditional: valid only if the dense model never saw these rows.")
    return (*out, "Not covered: other data, later drift, errors in group labels.")


def _cell(finding: Finding) -> str:
    return finding.group if finding.label is None else f"{finding.group} ({finding.label})"
