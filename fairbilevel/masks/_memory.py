"""Peak memory of activations: what one row's forward pass holds at once.

Counted on the traced program in evaluation mode, so it is the same number on every backend.
Activations are the row as the model takes it and every array computed from it. Operations run one
after another in the order in which the model computes; a result lies beside what it is made of, and
an array is given back after its last reader. As every compiler does, an operation entry by entry
writes over an operand that nobody reads again, and reshaped or spread arrays take no room of their
own. Parameters, what is computed from them alone, and the scratch memory of single kernels are left
out. A runtime that fuses more holds less, one that gives back later or runs more rows holds more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core as jex_core

from fairbilevel.masks._record import called
from fairbilevel.masks._trace import ENTRYWISE

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
