"""Reading what may be missing in files that others wrote."""

import math
from collections.abc import Mapping
from typing import Any


def dig(tree: object, *path: str) -> Any:
    """The value under `path` in nested mappings, or `None` where any step is missing."""
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def number(tree: object, *path: str) -> float | None:
    """The finite number under `path`, or `None` where it is missing, null, NaN or infinite."""
    value = dig(tree, *path) if path else tree
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return found if math.isfinite(found) else None


def strings(tree: object, *path: str) -> list[str]:
    """The list under `path` as strings; empty where there is none."""
    value = dig(tree, *path)
    return [str(item) for item in value] if isinstance(value, list | tuple) else []


def mapping(tree: object, *path: str) -> dict[str, Any]:
    """The mapping under `path` with string keys; empty where there is none."""
    value = dig(tree, *path)
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}
