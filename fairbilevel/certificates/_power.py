"""Power: what a number of rows can certify, and how many rows a tolerance takes.

Nothing here is a claim; it tells before a run, or after an undecided certificate, what the real
bounds would give for counts that are likely under stated rates.
"""

from __future__ import annotations

import math
from typing import Any

from scipy import special

from fairbilevel.certificates._judge import excess_bounds
from fairbilevel.certificates._samples import Paired

POWER = 0.8
_Z_POWER = float(special.ndtri(POWER))
_Z_INTERVAL = float(special.ndtri(0.9))
MOST_ROWS = 20_000
"""Of a group: a search for the rows that a tolerance takes ends here, or at four times as many."""


def least_rows(tolerance: float, delta: float) -> int:
    """Rows of a group below which ``tolerance`` cannot be certified, however well a model does.

    With no discordant row at all an exact bound is at least ``1 - delta^(1/n)``, about
    ``ln(1/delta) / n``.
    """
    return math.ceil(math.log(delta) / math.log1p(-tolerance))


def likely_upper(
    rows: int,
    rest: int,
    delta: float,
    *,
    gap: float = 0.0,
    discordance: float = 0.0,
    rest_discordance: float | None = None,
    rest_lost: float = 0.0,
    bound: str = "sharp",
    rest_bound: str = "simple",
) -> float:
    """The excess gap that will be certified with 80 % power: four in five samples do better.

    Args:
        rows: of the group.
        rest: of everybody else.
        delta: error of the claim.
        gap: the true ``D_g - D_rest``.
        discordance: share of the group's rows whose outcome changes, ``q_g``.
        rest_discordance: of everybody else's; by default the same.
        rest_lost: true ``D_rest``.
        bound: of the group's difference.
        rest_bound: of everybody else's.
    """
    other = discordance if rest_discordance is None else rest_discordance
    own_lost = gap + rest_lost
    q, other = max(discordance, abs(own_lost)), max(other, abs(rest_lost))
    variance = (q - own_lost**2) / max(rows, 1) + (other - rest_lost**2) / max(rest, 1)
    unlucky = min(own_lost + _Z_POWER * math.sqrt(max(variance, 0.0)), 1.0)
    own = _counts(unlucky, max(q, abs(unlucky)), rows, bound)
    everybody = _counts(rest_lost, other, rest, rest_bound)
    share = rows / (rows + rest)
    return excess_bounds(own, everybody, share, delta)[1]


def _counts(lost: float, discordance: float, rows: int, bound: str) -> Paired:
    b = min(round(rows * (discordance + lost) / 2), rows)
    c = min(round(rows * (discordance - lost) / 2), rows - b)
    return Paired(b, max(c, 0), rows, bound)


def least_tolerance(
    rows: list[int], delta: float, *, discordance: float = 0.0, bound: str = "sharp"
) -> list[float | None]:
    """Upper bound on each group's excess accuracy gap that its rows will likely allow.

    Args:
        rows: certify rows of each group.
        delta: error of the claim.
        discordance: share of rows whose outcome changes, as many lost as won; 0 is the best case.
        bound: of the group's difference.

    Returns:
        One bound a group, ``None`` for groups without rows (or without anybody else).
    """
    total, groups = sum(rows), sum(n > 0 for n in rows)
    # One other group is one distribution; several are not.
    rest_bound = bound if groups == 2 else "simple"
    return [
        likely_upper(
            n, total - n, delta, discordance=discordance, bound=bound, rest_bound=rest_bound
        )
        if 0 < n < total
        else None
        for n in rows
    ]


def least_scale(rows: int, rest: int, tolerance: float, delta: float, **rates: Any) -> float | None:
    """By what factor all rows must grow for ``tolerance`` to be certified with 80 % power.

    Args:
        rows: of the group now.
        rest: of everybody else now.
        tolerance: to be certified.
        delta: error of the claim.
        rates: as for ``likely_upper``.

    Returns:
        The factor, to about 2 %; ``None`` if ``MOST_ROWS`` of the group would not do.
    """

    def enough(scale: float) -> bool:
        grown = round(rows * scale), round(rest * scale)
        if min(grown) < 1:
            return False
        return likely_upper(*grown, delta, **rates) <= tolerance

    low, high = 1 / max(rows, 1), 1.0
    most = max(MOST_ROWS / max(rows, 1), 4.0)
    if enough(high):
        if enough(low):
            return low
    else:
        low = high
        while not enough(high):
            if high == most:
                return None
            low, high = high, min(2 * high, most)
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def rows_needed(
    group: str, own: Paired, rest: Paired, tolerance: float, delta: float
) -> dict[str, Any]:
    """How many rows of a group would certify an excess accuracy gap with 80 % power.

    Searched with the real bound at scaled counts: at the estimate of the gap, and at both ends of
    its 80 % interval (normal approximation, for planning only).

    Returns:
        ``group``, ``at_estimate``, ``at_low_end``, ``at_high_end`` (rows of the group, ``None`` if
        none was found) and a ``sentence``.
    """
    if not own.rows or not rest.rows:
        sentence = f"How many more rows are needed cannot be said: {group} has none."
        return {"group": group, "sentence": sentence}
    q, rest_q = (own.lost + own.won) / own.rows, (rest.lost + rest.won) / rest.rows
    lost, rest_lost = own.estimate or 0.0, rest.estimate or 0.0
    share = own.rows / (own.rows + rest.rows)
    error = math.sqrt((q - lost**2) / own.rows + (rest_q - rest_lost**2) / rest.rows)
    found: dict[str, Any] = {"group": group}
    ends = {"at_estimate": 0.0, "at_low_end": -_Z_INTERVAL, "at_high_end": _Z_INTERVAL}
    gaps = {name: lost - rest_lost + z * error for name, z in ends.items()}
    for name, gap in gaps.items():
        scale = None
        if (1 - share) * gap < tolerance:
            scale = least_scale(
                own.rows,
                rest.rows,
                tolerance,
                delta,
                gap=gap,
                discordance=q,
                rest_discordance=rest_q,
                rest_lost=rest_lost,
                bound=own.bound,
                rest_bound=rest.bound,
            )
        found[name] = None if scale is None else math.ceil(own.rows * scale)
    low, high = ((1 - share) * gaps[end] for end in ("at_low_end", "at_high_end"))
    if low <= tolerance <= high:
        found["sentence"] = (
            "How many more rows would decide cannot be said from these rows: the likely gap of "
            f"{group} lies on both sides of the tolerance."
        )
    elif low > tolerance:
        found["sentence"] = f"The gap of {group} is likely above the tolerance: no rows would do."
    elif found["at_estimate"] is None:
        found["sentence"] = (
            f"To certify it with 80 % power {group} would need more than "
            f"{max(MOST_ROWS, 4 * own.rows):,} rows."
        )
    else:
        found["sentence"] = (
            f"About {found['at_estimate']:,} rows of {group} instead of {own.rows:,} (all others "
            "in proportion) would certify it with 80 % power if the gap is as estimated."
        )
    return found
