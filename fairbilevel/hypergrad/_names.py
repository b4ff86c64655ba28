"""Methods by name, as the command line and configuration files write them."""

from __future__ import annotations

import math
from typing import Any

from fairbilevel import _options
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
_FIXED = ("curvature", "args_per_step", "mode", "restart", "inner_steps")

METHODS = tuple(_METHODS)


def by_name(text: str) -> Hypergradient:
    """A method by name with options: ``"cg"``, ``"cg:iterations=10,damping=0.1"``.

    ``"none"`` leaves the implicit term out.

    Raises:
        ValueError: unknown name or option (with the nearest one), or a value outside its range.
    """
    name, _, rest = text.partition(":")
    _options.one_of("hypergradient", name, METHODS)
    method, options = _METHODS[name]
    fixed = (*_FIXED, "gamma") if name == "none" else _FIXED
    given = _options.parse(f"hypergradient {name!r}", method, rest, fixed)
    return method(**{**options, **given})
