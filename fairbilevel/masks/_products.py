"""Products that a model computes: how many multiply-adds, over which axes, by which kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fairbilevel.masks._axes import Axis


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product: ``repeats`` times one multiply-add for each entry of a grid.

    Attributes:
        repeats: output positions of a convolution (pixels, rows), one for a matrix product.
        axes: of the grid; an axis that two operands share stands there as both have it.
        kernel: path name of the parameter that multiplies, and is zero where it is removed.
        operands: axes of both operands; empty where it is one of several in a loop or a branch.
        eqn: the equation, likewise.
    """

    repeats: int
    axes: tuple[tuple[Axis, ...], ...] = ()
    kernel: str | None = None
    operands: tuple[tuple[Axis, ...], ...] = ()
    eqn: Any = None


def positions(eqn: Any) -> int:
    """How often a convolution applies each entry of its kernel to a batch.

    Padding counts as entries do, as is usual. A transposed convolution applies its kernel at the
    positions of its input, not to the zeros between them.
    """
    spec, params = eqn.params["dimension_numbers"], eqn.params
    lhs, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    rows = out[spec.out_spec[0]]
    if any(step > 1 for step in params["lhs_dilation"]):
        return rows * math.prod(lhs[i] for i in spec.lhs_spec[2:])
    return rows * math.prod(out[i] for i in spec.out_spec[2:])


def multiply_adds_of(eqn: Any) -> int:
    """Multiply-adds of one equation, by shapes alone: all steps of a loop of known length, one of
    any other, the dearest branch."""
    name, params = eqn.primitive.name, eqn.params
    shapes = [v.aval.shape for v in eqn.invars if hasattr(v.aval, "shape")]
    if name == "conv_general_dilated":
        return positions(eqn) * math.prod(shapes[1])
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        summed = math.prod(shapes[0][i] for i in contracted)
        return summed * math.prod(eqn.outvars[0].aval.shape)
    if name == "cond":
        return max(_sum(branch) for branch in params["branches"])
    if name == "while":
        return _sum(params["cond_jaxpr"]) + _sum(params["body_jaxpr"])
    inner = next((params[p] for p in ("jaxpr", "call_jaxpr", "fun_jaxpr") if p in params), None)
    return 0 if inner is None else params.get("length", 1) * _sum(inner)


def _sum(jaxpr: Any) -> int:
    return sum(multiply_adds_of(eqn) for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns)
