"""How sure a group's numbers are: intervals that each hold with 95 % confidence, one by one."""

import math

CONFIDENCE = 0.95

Interval = tuple[float, float]


def of_rate(rate: float | None, rows: float | None) -> Interval | None:
    """Clopper and Pearson's (1934) exact interval for an accuracy measured on `rows` rows."""
    if rate is None or not rows:
        return None
    from scipy import special  # its second is for those who write reports

    total, tail = round(rows), (1 - CONFIDENCE) / 2
    right = round(rate * total)
    low = special.betaincinv(right, total - right + 1, tail) if right else 0.0
    high = special.betaincinv(right + 1, total - right, 1 - tail) if right < total else 1.0
    return float(low), float(high)


def of_change(lost: int | None, won: int | None, rows: float | None) -> Interval | None:
    """Agresti and Min's (2005) interval for a change of accuracy on the same rows.

    Half a row is added to each of the four cells; the interval is shifted nowhere else and never
    leaves [-1, 1]. `lost` rows only the dense model gets right, `won` only the pruned one.
    """
    if lost is None or won is None or not rows:
        return None
    from scipy import special

    size = rows + 2
    change = (won - lost) / size
    error = math.sqrt((won + lost + 1) - (won - lost) ** 2 / size) / size
    reach = float(special.ndtri(0.5 + CONFIDENCE / 2)) * error
    return max(change - reach, -1.0), min(change + reach, 1.0)
