"""Options as text (``NAME:option=value,option=value``), documented and checked by their owners."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def parse(
    what: str,
    kind: Any,
    rest: str,
    fixed: Collection[str] = (),
    readers: Mapping[str, Callable[[str], Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """What follows the colon, as fields of a dataclass.

    Args:
        what: of which the options are, for errors: ``"hypergradient 'cg'"``.
        kind: the dataclass or function; parameters of a type other than int, float, bool, str and
            a choice of words are no options unless they have a reader.
        rest: ``"option=value,..."``, may be empty.
        fixed: fields that cannot be given.
        readers: fields that a function makes from their text.

    Raises:
        ValueError: an unknown option (with the nearest one), or a value of the wrong kind.
    """
    hints = get_type_hints(kind)  # those of a class come from where each field was written
    known = {
        name: _kind(hints.get(name))
        for name in inspect.signature(kind).parameters
        if name not in fixed and (_kind(hints.get(name)) is not None or name in readers)
    }
    given = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise ValueError(f"{what} has no option {key!r}: {choose(key, known)}")
        reader = readers.get(key)
        given[key] = reader(value) if reader else _value(what, key, known[key], value)
    return given


def _kind(hint: Any) -> str | None:
    first = get_args(hint)[0] if get_origin(hint) in (Union, UnionType) else hint
    if get_origin(first) is Literal:
        return "str"
    return {int: "int", float: "float", bool: "bool", str: "str"}.get(first)


def _value(what: str, name: str, kind: str | None, text: str) -> Any:
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text]
        return {"int": int, "float": float}.get(kind or "str", str)(text)
    except (KeyError, ValueError):
        raise ValueError(f"{what}: {name} must be {_KINDS[str(kind)]}, got {text!r}") from None


def nearest(given: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, in whatever case it was written."""
    lowered = {name.lower(): name for name in reversed(list(names))}
    near = difflib.get_close_matches(str(given).lower(), lowered, 1, 0.55)
    return lowered[near[0]] if near else None


def choose(given: str, names: Collection[str]) -> str:
    """How a sentence about an unknown name ends: the nearest one, and all there are."""
    near = nearest(given, names)
    hint = f"did you mean {near!r}? " if near else ""
    return f"{hint}choose from {', '.join(names)}" if names else "it has none"


def fraction(text: str) -> float | None:
    """A finite number as ``0.5`` or ``50%``; ``None`` where the text is none."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    """Refuse a value that is no choice: ``ValueError`` names the option and the nearest choice."""
    if value not in allowed:
        raise ValueError(f"unknown {name.replace('_', ' ')} {value!r}: {choose(value, allowed)}")


def at_least(options: Any, least: int, *names: str) -> None:
    """Refuse options of a dataclass below a number: ``ValueError`` names the first."""
    for name in names:
        if getattr(options, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(options, name)}")


def share(options: Any, *names: str) -> None:
    """Refuse options of a dataclass outside (0, 1]: ``ValueError`` names the first."""
    for name in names:
        if not 0 < getattr(options, name) <= 1:
            raise ValueError(f"{name} must lie in (0, 1], got {getattr(options, name)}")


def finite(options: Any, *names: str) -> None:
    """Refuse options that are negative, infinite or no number: ``ValueError`` names the first."""
    for name in names:
        if not 0 <= getattr(options, name) < float("inf"):
            raise ValueError(
                f"{name} must be a finite number of at least 0, got {getattr(options, name)}"
            )


def documented(owner: Any) -> dict[str, str]:
    """What a docstring says of each entry below ``Attributes:`` or ``Args:``."""
    found: dict[str, list[str]] = {}
    lines = inspect.cleandoc(owner.__doc__ or "").splitlines()
    heads = [i for i, line in enumerate(lines) if line in ("Attributes:", "Args:")]
    name = None
    for line in lines[heads[0] + 1 :] if heads else ():
        if line and not line.startswith(" "):
            break
        entry = re.match(r"    (\w+): (.*)", line)
        if entry:
            name = entry[1]
            found[name] = [entry[2]]
        elif name is not None and line.strip():
            found[name].append(line.strip())
    return {name: " ".join(words).replace("``", "`") for name, words in found.items()}
