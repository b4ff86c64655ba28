"""Loops at full speed: the cure for XLA:CPU's slow convolutions inside compiled loops.

XLA:CPU brings convolutions into the layout its fast kernel takes in the entry computation only. In
the body of a ``scan`` or ``while_loop`` the transposed layouts of backward convolutions stay as
autodiff wrote them and fall to a naive loop, 15 to 60 times slower. ``canonical_convolutions``
rewrites every convolution of an already differentiated function to NHWC / HWIO / NHWC with explicit
transposes around it, which is the same arithmetic. On other backends it does nothing.

``after`` puts one computation behind another, so that the memory of the first is free again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex_core

_INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}

_REMATERIALIZED = ("remat2", "checkpoint")  # as versions of JAX call it


def canonical_convolutions(function: Callable[..., Any], *, force: bool = False) -> Any:
    """``function`` with every convolution in the layout that is fast inside loops on CPU.

    Apply it after differentiation: the returned function computes the same values, and derivative
    rules attached to inner functions (``custom_vjp``) are resolved by then.

    Args:
        function: any JAX-traceable function of pytrees.
        force: rewrite on every backend (for tests); by default only where the default backend is
            the CPU.
    """

    def wrapped(*args: Any) -> Any:
        if _rewriting.get() or not (force or jax.default_backend() == "cpu"):
            return function(*args)
        return traced(function, *args, rewrite=True)[0](*args)

    return wrapped


# Whether what is traced now will be rewritten anyway: once is enough.
_rewriting: ContextVar[bool] = ContextVar("_rewriting", default=False)


def traced(
    function: Callable[..., Any], *args: Any, rewrite: bool | None = None
) -> tuple[Callable[..., Any], Any]:
    """``function`` traced once, and the shapes of its results.

    Args:
        function: any JAX-traceable function of pytrees.
        *args: what it takes, or the like.
        rewrite: bring its convolutions into the canonical layout; by default on CPU.

    Returns:
        The same function of pytrees of the same shapes; the results as ``jax.eval_shape`` gives
        them.
    """
    rewrite = jax.default_backend() == "cpu" if rewrite is None else rewrite
    token = _rewriting.set(rewrite)
    try:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    finally:
        _rewriting.reset(token)
    structure = jax.tree.structure(shapes)

    def run(*args: Any) -> Any:
        leaves = jax.tree.leaves(args)
        if rewrite:
            flat = _evaluate(closed.jaxpr, closed.consts, *leaves)
        else:
            flat = jex_core.jaxpr_as_fun(closed)(*leaves)
        return jax.tree.unflatten(structure, flat)

    return run, shapes


def scan(body: Callable[..., Any], init: Any, xs: Any, length: int | None = None) -> Any:
    """``jax.lax.scan`` whose body keeps fast convolutions on CPU."""
    return lax.scan(canonical_convolutions(body), init, xs, length)


def after(done: Any, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, begun when every array in ``done`` is there.

    Two gradients that do not need each other are otherwise computed side by side, and the
    activations of both held at once. An optimization barrier says so on accelerators. XLA:CPU drops
    barriers before it orders a program, and then starts early whatever it can: there the function
    becomes the taken branch of a conditional that looks at ``done``.
    """
    if jax.default_backend() != "cpu":
        _, args = lax.optimization_barrier((done, args))
        return function(*args)
    return _when_there(done, function, *args)


def _when_there(done: Any, function: Callable[..., Any], *args: Any) -> Any:
    entries = [leaf.reshape(-1)[:1] for leaf in jax.tree.leaves(done) if leaf.size]
    # Always true, which no compiler proves: entries are counted, never looked at.
    counted = sum(jnp.sum(entry == entry, dtype=jnp.int32) for entry in entries)
    shapes = jax.eval_shape(function, *args)
    nothing = partial(jax.tree.map, lambda s: jnp.zeros(s.shape, s.dtype))
    return lax.cond(counted >= 0, function, lambda *_: nothing(shapes), *args)


def _evaluate(jaxpr: Any, consts: Any, *args: Any) -> list[Any]:
    """Evaluate ``jaxpr`` with its convolutions rewritten, inner jaxprs included."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex_core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        values = [read(v) for v in eqn.invars]
        name = eqn.primitive.name
        if name == "conv_general_dilated":
            outs = [_canonical_convolution(*values, **eqn.params)]
        elif name in _INLINED and _INLINED[name] in eqn.params:
            inner = eqn.params[_INLINED[name]]
            consts_in = getattr(inner, "consts", ())
            outs = _evaluate(getattr(inner, "jaxpr", inner), consts_in, *values)
        elif name in _REMATERIALIZED and eqn.params["differentiated"]:
            outs = _again(eqn, values)
        else:
            params = {key: _rewrite_param(value) for key, value in eqn.params.items()}
            outs = eqn.primitive.bind(*values, **params)
            if not eqn.primitive.multiple_results:
                outs = [outs]
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _again(eqn: Any, values: list[Any]) -> list[Any]:
    """What is rematerialized, computed when all it needs is there.

    JAX keeps a barrier around it, so that it is neither merged with the first time nor begun before
    the cotangents arrive. XLA:CPU drops the barrier and would do both.
    """
    # Results that nobody reads would cost a branch its memory.
    read = [type(v).__name__ != "DropVar" for v in eqn.outvars]

    def needed(*values: Any) -> list[Any]:
        outs = _evaluate(eqn.params["jaxpr"], (), *values)
        return [out for out, is_read in zip(outs, read, strict=True) if is_read]

    found = iter(_when_there(values, needed, *values))
    return [next(found) if is_read else None for is_read in read]


def _rewrite_param(value: Any) -> Any:
    """A primitive's parameter with the jaxprs in it rewritten (loop bodies, branches)."""
    if isinstance(value, jex_core.ClosedJaxpr):
        return _rewrite(value)
    if isinstance(value, jex_core.Jaxpr) and not value.constvars:
        return _rewrite(jex_core.ClosedJaxpr(value, ())).jaxpr
    if isinstance(value, tuple) and any(isinstance(v, jex_core.ClosedJaxpr) for v in value):
        parts = [_rewrite_param(v) for v in value]
        # The jaxprs of a linear solve come as a named tuple, and are read by name.
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _rewrite(closed: Any) -> Any:
    if not _has_convolution(closed.jaxpr):
        return closed
    avals = [v.aval for v in closed.jaxpr.invars]
    shapes = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=getattr(a, "weak_type", False))
        for a in avals
    ]
    return jax.make_jaxpr(partial(_evaluate, closed.jaxpr, closed.consts))(*shapes)


def _has_convolution(jaxpr: Any) -> bool:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            return True
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(inner, jex_core.ClosedJaxpr) and _has_convolution(inner.jaxpr):
                    return True
                if isinstance(inner, jex_core.Jaxpr) and _has_convolution(inner):
                    return True
    return False


def _canonical_convolution(lhs: Any, rhs: Any, **params: Any) -> Any:
    spec = params.pop("dimension_numbers")
    params.pop("out_sharding", None)
    rank = lhs.ndim
    lhs_order = (spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1])
    rhs_order = (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0])
    # Where each axis of the canonical (batch, spatial..., feature) result belongs.
    out_order = (spec.out_spec[0], *spec.out_spec[2:], spec.out_spec[1])
    back = sorted(range(rank), key=lambda axis: out_order[axis])
    numbers = lax.ConvDimensionNumbers(
        lhs_spec=(0, rank - 1, *range(1, rank - 1)),
        rhs_spec=(rank - 1, rank - 2, *range(rank - 2)),
        out_spec=(0, rank - 1, *range(1, rank - 1)),
    )
    out = lax.conv_general_dilated(
        lax.transpose(lhs, lhs_order),
        lax.transpose(rhs, rhs_order),
        dimension_numbers=numbers,
        **params,
    )
    return lax.transpose(out, back)
