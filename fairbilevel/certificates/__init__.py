"""Certificates: what held-out rows prove about gaps between groups, and with what confidence.

``certify`` turns predictions from anywhere into a ``Certificate``; ``verify`` computes a written
one again. The bounds hold for finite samples: none rests on a normal approximation.
"""

from fairbilevel.certificates._certificate import Certificate
from fairbilevel.certificates._certify import certify
from fairbilevel.certificates._claim import FLOOR, GAPS, OF_QUANTITIES, Claim, Looks, Origin
from fairbilevel.certificates._judge import excess_bounds, smallest_excess
from fairbilevel.certificates._ledger import LEDGER, RECORD
from fairbilevel.certificates._paired import (
    difference_lower,
    difference_upper,
    rate_lower,
    rate_upper,
)
from fairbilevel.certificates._power import (
    least_rows,
    least_scale,
    least_tolerance,
    likely_upper,
    rows_needed,
)
from fairbilevel.certificates._samples import Paired, Rate
from fairbilevel.certificates._verify import CHECKED, certificate_name, differences, verify
from fairbilevel.certificates._words import amount

__all__ = [
    "CHECKED",
    "FLOOR",
    "GAPS",
    "LEDGER",
    "OF_QUANTITIES",
    "RECORD",
    "Certificate",
    "Claim",
    "Looks",
    "Origin",
    "Paired",
    "Rate",
    "amount",
    "certificate_name",
    "certify",
    "difference_lower",
    "difference_upper",
    "differences",
    "excess_bounds",
    "least_rows",
    "least_scale",
    "least_tolerance",
    "likely_upper",
    "rate_lower",
    "rate_upper",
    "rows_needed",
    "smallest_excess",
    "verify",
]
