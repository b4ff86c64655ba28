"""Certificates: what held-out rows prove about gaps between groups, and with what confidence.

``certify`` turns predictions from anywhere into a ``Certificate``; ``verify`` computes a written
one again. The bounds hold for finite samples: none rests on a normal approximation.
"""

from fairbilevel.certificates._binomial import rate_lower, rate_upper
from fairbilevel.certificates._certificate import Certificate, Context, verify
from fairbilevel.certificates._certify import MIN_GROUP_ROWS, certify
from fairbilevel.certificates._claim import FLOOR, GAPS, OF_QUANTITIES, Claim
from fairbilevel.certificates._counts import GroupCounts, count_groups, one_row_per_unit
from fairbilevel.certificates._judge import (
    CERTIFIED,
    UNDECIDED,
    VIOLATED,
    Finding,
    Judgement,
    excess_bounds,
)
from fairbilevel.certificates._ledger import LEDGER, read_ledger, take_look
from fairbilevel.certificates._paired import BOUNDS, difference_lower, difference_upper
from fairbilevel.certificates._power import (
    least_rows,
    least_scale,
    least_tolerance,
    likely_upper,
    rows_needed,
)
from fairbilevel.certificates._samples import Paired, Quantity, Rate
from fairbilevel.certificates._words import amount

__all__ = [
    "BOUNDS",
    "CERTIFIED",
    "FLOOR",
    "GAPS",
    "LEDGER",
    "MIN_GROUP_ROWS",
    "OF_QUANTITIES",
    "UNDECIDED",
    "VIOLATED",
    "Certificate",
    "Claim",
    "Context",
    "Finding",
    "GroupCounts",
    "Judgement",
    "Paired",
    "Quantity",
    "Rate",
    "amount",
    "certify",
    "count_groups",
    "difference_lower",
    "difference_upper",
    "excess_bounds",
    "least_rows",
    "least_scale",
    "least_tolerance",
    "likely_upper",
    "one_row_per_unit",
    "rate_lower",
    "rate_upper",
    "read_ledger",
    "rows_needed",
    "take_look",
    "verify",
]
