"""What a network costs to keep and to run: parameters, multiply-adds, memory; dense and pruned.

Counted are the multiply-adds of convolutions and matrix products of one row's forward pass in
evaluation mode, as papers count them ("FLOPs" in many): output positions times kernel entries.
Norms, biases, activations and pooling are not. It is arithmetic, not a measured time: a machine
gains from single zeros only with kernels made for them.

Peak memory is that of activations, what one row's forward pass holds at once: counted on the traced
program in evaluation mode, so it is the same number on every backend. Activations are the row as
the model takes it and every array computed from it. Operations run one after another in the order
in which the model computes; a result lies beside what it is made of, and an array is given back
after its last reader. As every compiler does, an operation entry by entry writes over an operand
that nobody reads again, and reshaped or spread arrays take no room of their own. Parameters, what
is computed from them alone, and the scratch memory of single kernels are left out. A runtime that
fuses more holds less, one that gives back later or runs more rows holds more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core as jex_core

from fairbilevel._trees import flatten_named
from fairbilevel.masks._layers import Channels, Layers
from fairbilevel.masks._record import called
from fairbilevel.masks._threshold import Masks
from fairbilevel.masks._trace import ENTRYWISE, Trace, walk


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds of one row, of a network under hard masks and without them.

    Attributes:
        parameters: entries of all parameters that are left.
        dense_parameters: entries of all parameters.
        multiply_adds: of one row's forward pass, without what is removed.
        dense_multiply_adds: of the dense network.
    """

    parameters: int
    dense_parameters: int
    multiply_adds: int
    dense_multiply_adds: int

    def to_json(self) -> dict[str, dict[str, int]]:
        """Each as ``{"kept", "dense"}``."""
        return {
            "parameters": {"kept": self.parameters, "dense": self.dense_parameters},
            "multiply_adds": {"kept": self.multiply_adds, "dense": self.dense_multiply_adds},
        }


class CostModel:
    """What a network costs, as a function of how many units each layer keeps.

    Args and errors as of ``cost``; nothing is computed, only shapes matter. With ``rows``,
    multiply-adds are those of so many.
    """

    def __init__(
        self,
        apply: Callable[..., Any],
        params: Any,
        state: Any,
        sample: Any,
        layers: Layers = Layers(),  # noqa: B008, an empty tuple of a frozen class
        granularity: str = "weight",
        rows: int = 1,
    ):
        row = jax.ShapeDtypeStruct((rows, *np.shape(sample)[1:]), sample.dtype)
        self.trace, _, _ = walk(apply, params, state, row)
        self.layers, self.granularity = layers, granularity
        self.units = layers.units(granularity)
        self._sizes = {name: math.prod(leaf.shape) for name, leaf in flatten_named(params).items()}
        trace = self.trace
        self._whole = [p.repeats * _entries(trace, p.axes, {}) for p in trace.products]
        self.nodes = {c.name: _node(trace, c) for c in layers.channels if granularity != "weight"}
        self._blocks = {
            b.name: ({m.leaf for m in b.members}, [c.name for c in layers.within(b)])
            for b in layers.blocks
        }

    @property
    def dense_parameters(self) -> int:
        """Entries of all parameters."""
        return sum(self._sizes.values())

    @property
    def dense_multiply_adds(self) -> int:
        """Of one row's forward pass."""
        return sum(self._whole)

    def parameters(self, kept: Mapping[str, int]) -> int:
        """Entries of all parameters that are left, of so many units by layer."""
        if self.granularity == "weight":
            return sum((self._sizes | self._entries_kept(kept)).values())
        counts, gone = self._counts(kept)
        return sum(
            _entries(self.trace, [(axis,) for axis in axes], counts)
            for leaf, axes in zip(self.trace.leaves, self.trace.leaf_axes, strict=True)
            if not leaf.state and leaf.name not in gone
        )

    def multiply_adds(self, kept: Mapping[str, int]) -> int:
        """Of one row's forward pass, with so many units by layer."""
        products = self.trace.products
        if self.granularity == "weight":
            entries = self._entries_kept(kept)
            return sum(
                count // self._sizes[p.kernel] * entries[p.kernel] if p.kernel in entries else count
                for p, count in zip(products, self._whole, strict=True)
            )
        counts, gone = self._counts(kept)
        return sum(
            p.repeats * _entries(self.trace, p.axes, counts)
            for p in products
            if p.kernel not in gone
        )

    def _entries_kept(self, kept: Mapping[str, int]) -> dict[str, int]:
        return {layer.kernel: kept[layer.name] for layer in self.layers.kernels}

    def channels_kept(self, kept: Mapping[str, int]) -> tuple[dict[str, int], set[str]]:
        """Channels by set, and the arrays of removed blocks, of so many units by layer."""
        counts = {c.name: c.size for c in self.layers.channels}
        if self.granularity == "filter":
            # Where all channels of a set are removed, one stays when it is cut.
            return {name: max(1, kept[name]) for name in counts}, set()
        gone: set[str] = set()
        for block, (leaves, sets) in self._blocks.items():
            if not kept[block]:
                gone |= leaves
                counts.update(dict.fromkeys(sets, 0))
        return counts, gone

    def _counts(self, kept: Mapping[str, int]) -> tuple[dict[int, int], set[str]]:
        counts, gone = self.channels_kept(kept)
        return {self.nodes[name]: count for name, count in counts.items()}, gone


def cost(
    apply: Callable[..., Any],
    params: Any,
    state: Any,
    sample: Any,
    layers: Layers = Layers(),  # noqa: B008, an empty tuple of a frozen class
    hard: Masks | None = None,
    granularity: str = "weight",
) -> Cost:
    """Parameters and multiply-adds of a model, dense and under hard masks.

    At granularity ``weight`` a removed entry of a kernel saves one multiply-add at each position
    where the kernel is applied. At granularity ``filter`` the network is counted as ``compact``
    cuts it: what makes the removed channels is smaller, and so is what reads them, products without
    a kernel (attention) included. A removed block counts as nothing. A loop whose length is not
    known beforehand counts once.

    Nothing is computed: only shapes matter, so ``jax.eval_shape`` results do in place of arrays.

    Args:
        apply: ``apply(params, state, x, train, key) -> (logits, state)``.
        params: nested dictionary of arrays.
        state: normalization statistics and the like.
        sample: float ``[rows, ...]``; one row of it is counted.
        layers: what the masks belong to.
        hard: 0/1 masks by name; nothing is removed where ``None``.
        granularity: ``"weight"``, ``"filter"`` or ``"block"``.

    Raises:
        ValueError: unknown granularity, or layers of another model.
    """
    model = CostModel(apply, params, state, sample, layers, granularity)
    if hard is None:
        kept = {unit.name: math.prod(unit.shape) for unit in model.units}
    else:
        kept = {u.name: int(np.count_nonzero(np.asarray(hard[u.name]))) for u in model.units}
    return Cost(
        model.parameters(kept),
        model.dense_parameters,
        model.multiply_adds(kept),
        model.dense_multiply_adds,
    )


def _entries(trace: Trace, axes: Any, counts: Mapping[int, int]) -> int:
    """Entries of a grid whose channels are as many as ``counts`` says by node."""
    return math.prod(min(trace.nodes.count(axis, counts) for axis in same) for same in axes)


def _node(trace: Trace, channels: Channels) -> int:
    """The node that a set of channels is in this walk."""
    place = channels.members[0]
    for leaf, axes in zip(trace.leaves, trace.leaf_axes, strict=True):
        if leaf.name == place.leaf and not leaf.state:
            outer = 1
            for size, node in trace.nodes.resolve(axes[place.axis]):
                if (outer, size) == (place.outer, channels.size):
                    return node
                outer *= size
    raise ValueError(f"the layers are those of another model: it has no channels {channels.name!r}")


_VIEWS = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "sharding_constraint")


def peak_activations(apply: Callable[..., Any], params: Any, state: Any, sample: Any) -> int:
    """Most bytes that the activations of one row take at once, as this file defines it.

    Nothing is computed: only shapes matter, so ``jax.eval_shape`` results do in place of arrays.

    Args:
        apply: ``apply(params, state, x, train, key) -> (logits, state)``.
        params: nested dictionary of arrays; what ``compact`` cut out is not counted.
        state: normalization statistics and the like.
        sample: ``[rows, ...]``, as the model takes them; one row of it is counted.
    """
    row = jax.ShapeDtypeStruct((1, *np.shape(sample)[1:]), sample.dtype)
    key = jax.random.key(0)
    closed = jax.make_jaxpr(lambda p, s, x: apply(p, s, x, False, key)[0])(params, state, row)
    program = _Program([], [])
    given = [None] * (len(closed.jaxpr.invars) - 1)
    outs = program.follow(closed.jaxpr, [*given, program.new(_bytes(row))])
    return program.peak(outs)


class _Step(NamedTuple):
    """One operation: activations that it reads and makes, whether it works entry by entry, and what
    the bodies of a loop or branch hold beside these."""

    reads: list[int]
    makes: list[int]
    entrywise: bool
    inside: int


@dataclass
class _Program:
    """Operations in order; activations are numbered, their sizes in bytes."""

    steps: list[_Step]
    sizes: list[int]

    def new(self, size: int) -> int:
        """Another activation."""
        self.sizes.append(size)
        return len(self.sizes) - 1

    def follow(self, jaxpr: Any, given: Sequence[int | None]) -> list[int | None]:
        """Append a jaxpr; of its results the numbers, ``None`` where they are no activations."""
        known: dict[Any, int | None] = dict(zip(jaxpr.invars, given, strict=True))

        def read(atom: Any) -> int | None:
            return None if isinstance(atom, jex_core.Literal) else known.get(atom)

        for eqn in jaxpr.eqns:
            values = [read(v) for v in eqn.invars]
            reads = [v for v in values if v is not None]
            if not reads:
                continue  # it does not depend on the row
            name = eqn.primitive.name
            if (inner := called(eqn)) is not None:
                outs = self.follow(inner[0], values)
            elif name in _VIEWS:
                outs = [reads[0]]
            else:
                makes = [self.new(_bytes(v.aval)) for v in eqn.outvars]
                inside = max((_peak(*body) for body in _bodies(eqn, values)), default=0)
                outs = [*makes]
                self.steps.append(_Step(reads, makes, name in ENTRYWISE, inside))
            known.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def peak(self, results: Sequence[int | None]) -> int:
        """Most bytes held at once on the way to results, which are kept."""
        kept = {r for r in results if r is not None}
        needed, steps = set(kept), []
        for step in reversed(self.steps):  # what no result needs is not run
            if needed & set(step.makes):
                needed |= set(step.reads)
                steps.append(step)
        steps.reverse()
        last = {v: i for i, step in enumerate(steps) for v in step.reads}
        made = {v for step in steps for v in step.makes}
        held = {v: self.sizes[v] for v in range(len(self.sizes)) if v in needed and v not in made}
        most = sum(held.values())
        for i, step in enumerate(steps):
            dying = [v for v in dict.fromkeys(step.reads) if last[v] == i and v not in kept]
            if step.entrywise:
                size = self.sizes[step.makes[0]]
                over = next((v for v in dying if held[v] == size), None)
                if over is not None:
                    del held[over]
                    dying.remove(over)
            held |= {v: self.sizes[v] for v in step.makes}
            most = max(most, sum(held.values()) + step.inside)
            for v in (*dying, *(v for v in step.makes if v not in last and v not in kept)):
                del held[v]
        return most


def _bytes(like: Any) -> int:
    return math.prod(like.shape) * like.dtype.itemsize


def _bodies(eqn: Any, values: Sequence[int | None]) -> Iterator[tuple[Any, list[int | None]]]:
    """The bodies of a loop or branch, and what each input takes beside what was there before it:
    nothing where it is what the loop was given or holds anyway, ``None`` where it is none."""
    name, params = eqn.primitive.name, eqn.params
    free = [None if v is None else 0 for v in values]
    if name == "cond":
        for branch in params["branches"]:
            yield branch, free[1:]
    elif name == "while":
        test, body = params["cond_nconsts"], params["body_nconsts"]
        carry = [0] * (len(values) - test - body)
        yield params["cond_jaxpr"], [*free[:test], *carry]
        yield params["body_jaxpr"], [*free[test : test + body], *carry]
    elif name == "scan":
        first = params["num_consts"] + params["num_carry"]
        slices = [
            None if value is None else _bytes(v.aval)
            for v, value in zip(params["jaxpr"].jaxpr.invars[first:], values[first:], strict=True)
        ]
        yield params["jaxpr"], [*free[: params["num_consts"]], *[0] * params["num_carry"], *slices]


def _peak(closed: Any, given: Sequence[int | None]) -> int:
    """What a body holds at once beside what was there before it."""
    program = _Program([], [])
    inputs = [None if size is None else program.new(size) for size in given]
    return program.peak(program.follow(closed.jaxpr, inputs))
