"""Implicit differentiation: ``grad_x f - (d^2 g / dx dy)^T v`` with ``H v = grad_y f``.

The inner gradient is linearized once; every product of a solve, the cross term and the final
residual reuse it, and so share batch, dropout key, mask and state. No gradient is ever transposed.
The Hessian is symmetric, so the derivative of the joint gradient along ``v`` holds the product with
it and the cross term both.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import optax
from jax.extend import core as jex_core
from jaxtyping import Array, Bool, Int

from fairbilevel import _options, _xla
from fairbilevel.hypergrad import _vectors as vectors
from fairbilevel.hypergrad._losses import CompositeLoss
from fairbilevel.hypergrad._point import Hypergradient, Info, Point, Status, status_of

KEEPS = ("nothing", "products", "all")

_PRODUCTS = ("dot_general", "conv_general_dilated")
_SUMS = ("reduce_sum", "reduce_max", "reduce_min")
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
        if primitive.name in _SUMS:
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


CURVATURES = ("hessian", "gauss-newton")
_SMALL = 2**16  # entries of an array that is copied without a thought
PRODUCT_COST = 2.0  # gradients a product with a linearized gradient costs (arithmetic)

Operator = Callable[[Any], Any]


class Solved(NamedTuple):
    """What a linear solver found.

    Attributes:
        v: approximate solution of ``A v = b``.
        iterations: done.
        negative: whether a direction of non-positive curvature stopped it.
        unreliable: whether ``v`` is only to be trusted where its residual is below that of zero.
        state: for the next call.
    """

    v: Any
    iterations: Int[Array, ""]
    negative: Bool[Array, ""]
    unreliable: bool
    state: Any


class Implicit(Hypergradient):
    """What implicit methods share: one linear system in the damped inner Hessian.

    Attributes:
        damping: added to the Hessian's diagonal, at least 0. It biases the result towards the
            direct gradient and makes weakly indefinite systems solvable.
        tolerance: relative residual at which to stop, and above which the result is diagnosed as
            ``NOT_CONVERGED``; 0 runs all iterations and asks nothing.
        curvature: ``"hessian"``, or ``"gauss-newton"`` where ``inner`` is a ``CompositeLoss``.
        keep: what the linearized gradient keeps for its products. ``"nothing"`` takes the least
            memory, and computes the gradient again with each product; ``"all"`` is up to twice as
            fast and holds half as much again; ``"products"`` lies between them.
    """

    damping: float
    tolerance: float
    curvature: str
    keep: str
    warm_start: bool

    def __post_init__(self) -> None:
        _options.finite(self, "damping", "tolerance")
        _options.one_of("curvature", self.curvature, CURVATURES)
        _options.one_of("keep", self.keep, KEEPS)

    def init(self, outer_var: Any, inner_var: Any) -> Any:
        """The zero vector to start from, if warm."""
        return optax.tree.zeros_like(inner_var) if self.warm_start else ()

    @abstractmethod
    def solve(self, operator: Operator, b: Any, state: Any) -> Solved:
        """Solve ``operator(v) = b``; the damping is in the operator."""

    def compute(self, point: Point, state: Any) -> tuple[Any, Info]:
        """Linearize, solve, take the cross term along the solution."""
        x, y = point.outer_var, point.inner_var
        direct, b, outer_out = point.outer.gradients(x, y)
        # One after the other: side by side they would hold the activations of both.
        y = _behind((direct, b), y)
        (_, inner_grad), linear, inner_out = linearized(
            point.inner.joint(x), lambda y: point.inner(x, y)[0], y, self.keep
        )
        if self.curvature == "gauss-newton":
            if not isinstance(point.inner.function, CompositeLoss):
                raise TypeError(
                    "Gauss-Newton products need the inner level as a fb.hypergrad.CompositeLoss "
                    "(outputs and a loss of them)"
                )
            product = point.inner.function.gauss_newton(x, y, point.inner.args)
        else:

            def product(v: Any) -> Any:
                return linear(v)[1]

        def operator(v: Any) -> Any:
            return vectors.add(product(v), v, self.damping)

        solved = self.solve(operator, b, state)
        # Behind the loop, or what it computes again would be kept through the loop.
        cross, through = _xla.after(solved.v, linear, solved.v)
        # The cross term's product is the Hessian's too: the true residual comes free.
        if self.curvature == "hessian":
            after = vectors.add(through, solved.v, self.damping)
        else:
            after = operator(solved.v)
        residual = vectors.share(vectors.norm(optax.tree.sub(b, after)), vectors.norm(b))
        implicit_finite = vectors.all_finite(cross, residual)
        diverged = solved.unreliable & (residual > 1)
        keep = implicit_finite & ~diverged
        # Without its implicit term a gradient means something; without either loss's it does not.
        sound = vectors.all_finite(b, inner_grad)
        gradient = optax.tree.where(keep, optax.tree.sub(direct, cross), direct)
        gradient = vectors.nan_unless(sound, gradient)
        bad = ~implicit_finite | ~vectors.all_finite(gradient, inner_grad)
        status = status_of(
            (bad, Status.NOT_FINITE),
            (diverged, Status.DIVERGED),
            (solved.negative, Status.NEGATIVE_CURVATURE),
            ((self.tolerance > 0) & (residual > self.tolerance), Status.NOT_CONVERGED),
        )
        # A state that went wrong must not spoil the calls that follow.
        state = optax.tree.where(keep, solved.state, self.init(x, y))
        told = {"iterations": solved.iterations, "residual": residual, "state": state}
        return gradient, Info.of(inner_grad, outer_out, inner_out, status, outer_grad=b, **told)


def _behind(done: Any, y: Any) -> Any:
    """``y``, of which a pass can begin once ``done`` is there.

    Small leaves are enough: a network's first norm or bias holds up all that follows, and large
    ones would be copied.
    """
    leaves, structure = jax.tree.flatten(y)
    small = [i for i, leaf in enumerate(leaves) if leaf.size <= _SMALL] or range(len(leaves))
    moved = _xla.after(done, lambda *taken: taken, *(leaves[i] for i in small))
    for i, leaf in zip(small, moved, strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


def check_count(name: str, value: int, least: int = 1) -> None:
    """Refuse a count below ``least`` (``ValueError``)."""
    if not (isinstance(value, int) and value >= least):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value}")
