"""The one error a user of the data room meets, and the hint that goes with a misspelt name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fairbilevel._options import nearest


class DataError(ValueError):
    """A mistake in the data or in how it was asked for, told in one sentence."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest known name, or an empty string."""
    near = nearest(name, known)
    return f" (did you mean {near!r}?)" if near else ""


def refuse_unknown(said: str, name: str, known: Iterable[str]) -> None:
    """Raise `DataError` for a name that is not known: what is said, the nearest name and all."""
    names = [str(n) for n in known]
    if name not in names:
        choices = f"choose from {listing(names)}" if names else "there are none"
        raise DataError(f"{said}{did_you_mean(name, names)}; {choices}.")


def repeated(names: Iterable[str]) -> list[str]:
    """The names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def listing(names: Iterable[str], limit: int = 45) -> str:
    """Join names for a message; a long list is cut and says how many more there are."""
    names = list(names)
    text = ", ".join(names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def reason(error: Exception) -> str:
    """What another library says, on one line."""
    return " ".join(str(error).split())
