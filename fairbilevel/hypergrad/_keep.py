"""What a linearized gradient keeps for the products taken with it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
from jax.extend import core as jex_core

KEEPS = ("nothing", "products", "all")

_PRODUCTS = ("dot_general", "conv_general_dilated")
_SMALL = ("reduce_sum", "reduce_max", "reduce_min")
_ARRANGEMENT = ("dimension_numbers", "window_strides", "padding", "lhs_dilation", "rhs_dilation")


def linearized(
    gradient: Callable[[Any], Any], value: Callable[[Any], Any], y: Any, keep: str
) -> tuple[Any, Callable[[Any], Any], Any]:
    """``jax.linearize(gradient, y, has_aux=True)``, keeping as much as is asked for.

    A linearized gradient holds what every operation of its two passes needs, several times what the
    gradient itself holds while it runs. ``"nothing"`` computes the gradient again with each of its
    derivatives. ``"products"`` keeps the results of the forward pass's matrix products and
    convolutions, and sums (``value``, whose gradient it is, tells which pass is which); what lies
    between them, and the backward pass, are computed again.
    """
    if keep == "all":
        return jax.linearize(gradient, y, has_aux=True)
    if keep == "nothing":
        return jax.linearize(jax.checkpoint(gradient), y, has_aux=True)
    forward = {
        _kind(e.primitive, [v.aval for v in e.invars], e.params) for e in _products(value, y)
    }

    def kept(primitive: Any, *inputs: Any, **params: Any) -> bool:
        if primitive.name in _SMALL:
            return True
        return primitive.name in _PRODUCTS and _kind(primitive, inputs, params) in forward

    return jax.linearize(jax.checkpoint(gradient, policy=kept), y, has_aux=True)


def _kind(primitive: Any, inputs: Any, params: Any) -> Hashable:
    """Of which sizes and in which arrangement: a backward product has another one."""
    shapes = tuple(tuple(a.shape) for a in inputs)
    return primitive.name, shapes, tuple(str(params.get(name)) for name in _ARRANGEMENT)


def _products(function: Callable[[Any], Any], y: Any) -> Iterator[Any]:
    """The equations of a function that are products, those in loops apart: what a loop keeps it
    keeps for every turn."""

    def walk(jaxpr: Any) -> Iterator[Any]:
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in _PRODUCTS:
                yield eqn
            if eqn.primitive.name in ("scan", "while"):
                continue
            for param in eqn.params.values():
                for inner in param if isinstance(param, (tuple, list)) else (param,):
                    if isinstance(inner, jex_core.ClosedJaxpr):
                        yield from walk(inner.jaxpr)
                    elif isinstance(inner, jex_core.Jaxpr):
                        yield from walk(inner)

    yield from walk(jax.make_jaxpr(function)(y).jaxpr)
