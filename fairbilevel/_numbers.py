"""How numbers are written for a reader, wherever they stand: pages, terminals, tables, pictures.

Shares are fractions between 0 and 1 in arrays and files; a reader sees per cent, and *points* for
the difference of two percentages. A minus is a minus sign, a number that is not known a dash.
"""

from __future__ import annotations

MISSING = "–"
"""Shown in the place of a number that is not known."""


def decimal(value: float | None, decimals: int = 3, *, signed: bool = False) -> str:
    """A number without a unit; very large or very small ones with an exponent."""
    if value is None:
        return MISSING
    if value != 0 and not 10.0**-decimals / 2 <= abs(value) < 1e7:
        return f"{value:{'+' if signed else ''}.1e}".replace("-", "−")
    return _fixed(value, decimals, signed=signed)


def _fixed(value: float, decimals: int, *, signed: bool = False) -> str:
    text = f"{abs(value):,.{decimals}f}"
    if float(text.replace(",", "")) == 0.0:
        return text
    return ("−" if value < 0 else "+" if signed else "") + text


def percent(fraction: float | None, decimals: int = 1) -> str:
    """``0.8721`` as ``87.2 %``."""
    return MISSING if fraction is None else _fixed(100 * fraction, decimals) + " %"


def share(fraction: float) -> str:
    """A share as it was asked for: ``0.95`` as ``95 %``, ``0.999`` as ``99.9 %``."""
    return f"{100 * fraction:.10g} %"


def points(fraction: float | None, decimals: int = 1, *, signed: bool = False) -> str:
    """``0.0213`` as ``2.1``, to be followed by the word *points*; percentages in a column too."""
    return MISSING if fraction is None else _fixed(100 * fraction, decimals, signed=signed)


def in_points(fraction: float | None, *, signed: bool = False) -> str:
    """``0.0213`` as ``2.1 points``."""
    return MISSING if fraction is None else f"{points(fraction, signed=signed)} points"


def exact_points(fraction: float) -> str:
    """A tolerance as it was asked for: ``0.0025`` as ``0.25``, ``0.02`` as ``2``."""
    return f"{100 * fraction:.10g}"


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return MISSING if value is None else _fixed(value, 0)


def counted(value: float | None, noun: str) -> str:
    """``1 row``, ``2,371 rows``."""
    return f"{count(value)} {noun}" + ("" if value is not None and round(value) == 1 else "s")


def milliseconds(value: float) -> str:
    """Three digits, without the unit."""
    return f"{value:.3g}" if value < 1000 else count(value)


def duration(seconds: float | None) -> str:
    """``42.0 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:,.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def storage(size: float | None) -> str:
    """``1536`` bytes as ``1.5 KiB``."""
    if size is None:
        return MISSING
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 2**10:.1f} KiB"


def compact(value: float, largest: float) -> str:
    """A short label on an axis that ends at `largest`: ``0``, ``0.25``, ``12k``, ``3M``."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value and max(unit, 1e4) <= abs(largest) < 1e12:
            return f"{value / unit:g}{name}".replace("-", "−")
    return f"{value:g}".replace("-", "−")
