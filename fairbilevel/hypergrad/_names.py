"""Methods by name, as the command line and configuration files write them."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any

from fairbilevel.hypergrad._bilinear import Bilinear
from fairbilevel.hypergrad._conjugate_gradient import ConjugateGradient
from fairbilevel.hypergrad._first_order import FirstOrder
from fairbilevel.hypergrad._krylov import GMRES, BiCGStab
from fairbilevel.hypergrad._neumann import Neumann
from fairbilevel.hypergrad._point import Hypergradient
from fairbilevel.hypergrad._single_loop import SingleLoop
from fairbilevel.hypergrad._unrolled import Unrolled

# Defaults for pruned networks: few products, and damping of the size of the curvatures that a
# batch can measure (the Hessian of a network is indefinite).
_METHODS: dict[str, tuple[type[Hypergradient], dict[str, Any]]] = {
    "bilinear": (Bilinear, {}),
    "none": (Bilinear, {"gamma": math.inf}),
    "cg": (ConjugateGradient, {"iterations": 5, "damping": 1.0}),
    "neumann": (Neumann, {"products": 5, "damping": 1.0}),
    "gmres": (GMRES, {"iterations": 5, "damping": 1.0}),
    "bicgstab": (BiCGStab, {"iterations": 3, "damping": 1.0}),
    "single-loop": (SingleLoop, {"damping": 1.0}),
    "unrolled": (Unrolled, {"steps": 3, "args_per_step": True}),
    "first-order": (FirstOrder, {}),
}
# Set by the solver from its own options, or without meaning on a command line.
_FIXED = {
    "none": {"gamma"},
    "unrolled": {"optimizer", "args_per_step", "mode", "restart"},
    "first-order": {"optimizer", "inner_steps"},
    "single-loop": {"optimizer"},
    "cg": {"preconditioner", "curvature"},
    "neumann": {"curvature"},
    "gmres": {"curvature"},
    "bicgstab": {"curvature"},
}

METHODS = tuple(_METHODS)


def by_name(text: str) -> Hypergradient:
    """A method by name with options: ``"cg"``, ``"cg:iterations=10,damping=0.1"``.

    ``"none"`` leaves the implicit term out.

    Raises:
        ValueError: unknown name or option (with the nearest one), or a value outside its range.
    """
    name, _, rest = text.partition(":")
    if name not in _METHODS:
        raise ValueError(f"unknown hypergradient {name!r}: {_choose(name, METHODS)}")
    method, options = _METHODS[name]
    fixed = _FIXED.get(name, set())
    fields = dataclasses.fields(method)  # type: ignore[arg-type]
    known = {f.name: f for f in fields if f.name not in fixed}
    given = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise ValueError(f"hypergradient {name!r} has no option {key!r}: {_choose(key, known)}")
        given[key] = _value(name, known[key], value)
    return method(**{**options, **given})


def _value(name: str, field: dataclasses.Field[Any], text: str) -> Any:
    kinds = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    kind = str(field.type).split(" ")[0]
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text]
        return {"int": int, "float": float}.get(kind, str)(text)
    except (KeyError, ValueError):
        raise ValueError(
            f"hypergradient {name!r}: {field.name} must be {kinds[kind]}, got {text!r}"
        ) from None


def _choose(given: str, names: Any) -> str:
    near = difflib.get_close_matches(given, list(names), 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}choose from {', '.join(names)}" if names else "it has none"
