"""The one entry point for hypergradients, for any bilevel problem, and the methods by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fairbilevel import _options, _trees, _xla
from fairbilevel.hypergrad._bilinear import Bilinear
from fairbilevel.hypergrad._first_order import FirstOrder
from fairbilevel.hypergrad._krylov import GMRES, BiCGStab, ConjugateGradient
from fairbilevel.hypergrad._losses import share_mask
from fairbilevel.hypergrad._neumann import Neumann
from fairbilevel.hypergrad._point import Hypergradient, Info, Level, Point
from fairbilevel.hypergrad._single_loop import SingleLoop
from fairbilevel.hypergrad._unrolled import Unrolled


def hypergradient(
    outer: Callable[..., Any],
    inner: Callable[..., Any],
    outer_var: Any,
    inner_var: Any,
    *,
    method: Hypergradient,
    outer_args: tuple[Any, ...] = (),
    inner_args: tuple[Any, ...] = (),
    has_aux: bool = False,
    state: Any = None,
) -> tuple[Any, Info]:
    """Total derivative of ``outer(x, y*(x))`` where ``y*(x)`` minimizes ``inner(x, .)``.

    Call it inside ``jax.jit``, where its loops run at full speed on CPU too, or under ``vmap`` and
    in loops. Implicit methods take ``inner_var`` for the inner solution; the further it is from
    there the larger their bias.

    ::

        step = jax.jit(lambda x, y, batch: fb.hypergradient(
            valid_loss, train_loss, x, y, method=fb.hypergrad.ConjugateGradient(10),
            inner_args=(batch,)))
        gradient, info = step(x, y, batch)

    Args:
        outer: scalar function ``(outer_var, inner_var, *outer_args)``.
        inner: scalar function ``(outer_var, inner_var, *inner_args)``.
        outer_var: ``x``, a pytree of floating arrays.
        inner_var: ``y``, likewise. What is frozen goes through the arguments.
        method: how, and at what cost: ``Bilinear``, ``ConjugateGradient``, ``Neumann``,
            ``GMRES``, ``BiCGStab``, ``SingleLoop``, ``Unrolled`` or ``FirstOrder``.
        outer_args: further arguments of ``outer``: batches, multipliers, keys, frozen parts.
        inner_args: further arguments of ``inner``.
        has_aux: whether both functions return ``(value, auxiliary output)``.
        state: ``Info.state`` of the former call, or ``None`` for the first one. Methods that keep
            none take and return ``()``.

    Returns:
        The gradient, like ``outer_var``, and ``Info``: the inner gradient (a weight step costs no
        further pass), both values and auxiliary outputs, the diagnosis, the state.

    Raises:
        TypeError: ``method`` is not one, or does not fit the losses.
        ValueError: a variable has leaves that are not floating, or a state of another shape.
    """
    if not isinstance(method, Hypergradient):
        raise TypeError(
            f"method must be one of fb.hypergrad's, such as fb.hypergrad.ConjugateGradient(10), "
            f"got {method!r}"
        )
    for name, tree in (("outer_var", outer_var), ("inner_var", inner_var)):
        _check_floating(name, tree)
    first = state is None
    state = method.init(outer_var, inner_var) if first else state
    if not first:
        _check_state(method, outer_var, inner_var, state)

    def compute(outer_var: Any, inner_var: Any, state: Any) -> tuple[Any, Info]:
        upper, lower = outer, inner
        if method.holds_outer_still:
            upper, lower = share_mask(outer, inner, outer_var)
        levels = Level(upper, outer_args, has_aux), Level(lower, inner_args, has_aux)
        return method.compute(Point(*levels, outer_var, inner_var), state)

    return _xla.canonical_convolutions(compute)(outer_var, inner_var, state)


def _check_floating(name: str, tree: Any) -> None:
    for path, leaf in _trees.flatten_named(tree).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"{name} has an entry {path!r} of type {jnp.result_type(leaf)}: only floating "
                "entries can be moved, give the others as outer_args or inner_args"
            )


def _check_state(method: Hypergradient, outer_var: Any, inner_var: Any, state: Any) -> None:
    expected = jax.eval_shape(method.init, outer_var, inner_var)
    (given, structure), (wanted, other) = jax.tree.flatten(state), jax.tree.flatten(expected)
    shapes = [jnp.shape(a) for a in given], [a.shape for a in wanted]
    if structure != other or shapes[0] != shapes[1]:  # type: ignore[operator]
        raise ValueError(
            f"state does not belong to {type(method).__name__} and these variables: give "
            "Info.state of a former call, or None"
        )


# Defaults for pruned networks: few products, and damping of the size of the curvatures that a
# batch can measure (the Hessian of a network is indefinite).
METHODS: dict[str, tuple[type[Hypergradient], dict[str, Any]]] = {
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


def by_name(text: str) -> Hypergradient:
    """A method by name with options: ``"cg"``, ``"cg:iterations=10,damping=0.1"``.

    ``"none"`` leaves the implicit term out.

    Raises:
        ValueError: unknown name or option (with the nearest one), or a value outside its range.
    """
    name, _, rest = text.partition(":")
    _options.one_of("hypergradient", name, METHODS)
    method, options = METHODS[name]
    fixed = (*_FIXED, "gamma") if name == "none" else _FIXED
    given = _options.parse(f"hypergradient {name!r}", method, rest, fixed)
    return method(**{**options, **given})
