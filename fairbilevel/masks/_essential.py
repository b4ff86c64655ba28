"""Which parameters the logits cannot do without, by how values depend on the input row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core as jex_core

from fairbilevel.masks._trace import CALL_NAMES, CALLS, ODD

ZERO, SAME, VARIES = range(3)  # zero everywhere; the same for every row; different from row to row

_PRODUCTS = {"mul", "dot_general", "conv_general_dilated", "and"}
_ZERO_KEPT = ODD | {
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "transpose", "reshape", "squeeze",
    "expand_dims", "broadcast_in_dim", "slice", "split", "rev", "cumsum", "reduce_window_sum",
    "reduce_window_max", "copy",
}  # fmt: skip
_ZERO_IF_ALL = {"add", "sub", "add_any", "max", "min", "concatenate", "pad", "clamp"}


def dependence(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[int]) -> list[int]:
    """``ZERO``, ``SAME`` or ``VARIES`` of each output, given that of each input.

    An upper bound: what is not known to be lower varies if anything that enters it does.
    """
    env: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
    env.update((v, constant_level(c)) for v, c in zip(jaxpr.constvars, consts, strict=True))

    def read(atom: Any) -> int:
        return constant_level(atom.val) if isinstance(atom, jex_core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        values, name = [read(v) for v in eqn.invars], eqn.primitive.name
        inner = next((eqn.params[p] for p in CALLS if p in eqn.params), None)
        if name in CALL_NAMES and inner is not None:
            outs = dependence(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values)
        else:
            outs = [level_of(name, values)] * len(eqn.outvars)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def level_of(name: str, values: list[int]) -> int:
    """Of an operation's results, given that of what goes in."""
    highest = max(values, default=SAME)
    if name in _PRODUCTS:
        return ZERO if ZERO in values else highest
    if name == "div":
        return ZERO if values[0] == ZERO else highest
    if name == "select_n":
        return ZERO if max(values[1:]) == ZERO else highest
    if name in _ZERO_KEPT or name in _ZERO_IF_ALL:
        return highest
    return max(highest, SAME)


def stays_zero(name: str, zeros: Sequence[bool]) -> bool:
    """Whether an operation gives zeros, given which of its operands are zero everywhere."""
    return level_of(name, [ZERO if zero else VARIES for zero in zeros]) == ZERO


def constant_level(value: Any) -> int:
    """Of a constant."""
    try:
        return ZERO if not np.any(np.asarray(value)) else SAME
    except TypeError:
        return SAME
