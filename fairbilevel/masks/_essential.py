"""Which parameters the logits cannot do without, by how values depend on the input row; and
residual blocks that can be removed whole: what lies beside a shortcut that changes nothing.

A block is what a value ``x`` passes through before it is added to ``x`` itself: ``x + f(x)``. With
every parameter of ``f`` that nothing else uses at zero, ``f(x)`` is zero and the sum is ``x``: the
network is as deep as without it. Blocks whose shortcut has weights (where the shape changes) stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.extend import core as jex_core

from fairbilevel.masks._record import called
from fairbilevel.masks._trace import ODD

ZERO, SAME, VARIES = range(3)  # zero everywhere; the same for every row; different from row to row

# The same values, perhaps in another type or place.
_ALIASES = {"convert_element_type", "sharding_constraint", "copy", "copy_p", "optimization_barrier"}
_PRODUCTS = {"mul", "dot_general", "conv_general_dilated", "and"}
_ZERO_KEPT = ODD | {
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "transpose", "reshape", "squeeze",
    "expand_dims", "broadcast_in_dim", "slice", "split", "rev", "cumsum", "reduce_window_sum",
    "reduce_window_max", "copy",
}  # fmt: skip
_ZERO_IF_ALL = {"add", "sub", "add_any", "max", "min", "concatenate", "pad", "clamp"}


@dataclass
class Program:
    """A jaxpr with its calls opened, values by number: the inputs first.

    Attributes:
        before: of each value, a set of bits: itself and all values that it depends on.
        constants: ``ZERO`` or ``SAME`` by number.
        shapes: of values.
        steps: name of the operation, numbers of what goes in and of what comes out.
        results: numbers of the outputs.
    """

    before: list[int] = field(default_factory=list)
    constants: dict[int, int] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    steps: list[tuple[str, list[int], list[int]]] = field(default_factory=list)
    results: list[int] = field(default_factory=list)

    @staticmethod
    def of(closed: Any) -> Program:
        """The program of a closed jaxpr."""
        found = Program()
        inputs = [found.value(v.aval.shape) for v in closed.jaxpr.invars]
        found.results = found._walk(closed.jaxpr, closed.consts, inputs)
        return found

    def value(self, shape: Any, before: int = 0) -> int:
        """A new value."""
        number = len(self.before)
        self.before.append(before | 1 << number)
        self.shapes.append(tuple(shape))
        return number

    def _constant(self, value: Any) -> int:
        number = self.value(getattr(value, "shape", ()))
        self.constants[number] = constant_level(value)
        return number

    def _walk(self, jaxpr: Any, consts: Sequence[Any], inputs: list[int]) -> list[int]:
        env = dict(zip(jaxpr.invars, inputs, strict=True))
        env.update((v, self._constant(c)) for v, c in zip(jaxpr.constvars, consts, strict=True))

        def read(atom: Any) -> int:
            if isinstance(atom, jex_core.Literal):
                return self._constant(atom.val)
            return env[atom]

        for eqn in jaxpr.eqns:
            given, name = [read(v) for v in eqn.invars], eqn.primitive.name
            if (inner := called(eqn)) is not None:
                outs = self._walk(*inner, given)
            elif name in _ALIASES:
                outs = given
            else:
                before = 0
                for value in given:
                    before |= self.before[value]
                outs = [self.value(getattr(v.aval, "shape", ()), before) for v in eqn.outvars]
                self.steps.append((name, given, outs))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def levels_of(self, inputs: Sequence[int]) -> list[int]:
        """``ZERO``, ``SAME`` or ``VARIES`` of every value, given that of each input.

        An upper bound: what is not known to be lower varies if anything that enters it does.
        """
        levels = [*inputs, *[VARIES] * (len(self.before) - len(inputs))]
        for number, level in self.constants.items():
            levels[number] = level
        for name, given, outs in self.steps:
            level = level_of(name, [levels[v] for v in given])
            for out in outs:
                levels[out] = level
        return levels


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


def find_branches(program: Program, inputs: int, arrays: int) -> Iterator[tuple[int, ...]]:
    """Numbers of the input arrays whose zeros remove a block, block by block as data meets them, of
    a program whose ``inputs`` are so many ``arrays`` and then what varies."""
    own_bits = (1 << arrays) - 1
    row = sum(1 << number for number in range(arrays, inputs))
    used: dict[int, int] = {}
    for _, given, outs in program.steps:
        for value in given:
            if value < arrays:
                used[value] = used.get(value, 0) | sum(1 << out for out in outs)
    found: list[tuple[int, int]] = []
    for place, (name, given, outs) in enumerate(program.steps):
        if name not in ("add", "add_any") or len(given) != 2:
            continue
        for shortcut, branch in (given, given[::-1]):
            before = program.before[branch]
            if shortcut == branch or not before >> shortcut & 1 or shortcut < arrays:
                continue
            if not program.before[shortcut] & row:
                continue
            if program.shapes[shortcut] != program.shapes[outs[0]]:
                continue
            own = before & ~program.before[shortcut] & own_bits
            # What something else uses too is not the block's to remove.
            own = sum(1 << a for a in _bits(own) if not used[a] & ~before)
            start = [ZERO if own >> a & 1 else SAME for a in range(arrays)]
            start += [VARIES] * (inputs - arrays)
            if own and program.levels_of(start)[branch] == ZERO:
                found.append((place, own))
    # Of blocks within blocks the innermost are taken.
    chosen: list[tuple[int, int]] = []
    for place, own in sorted(found, key=lambda entry: entry[1].bit_count()):
        if not any(own & other for _, other in chosen):
            chosen.append((place, own))
    for _, own in sorted(chosen):
        yield tuple(_bits(own))


def _bits(value: int) -> Iterator[int]:
    number = 0
    while value:
        if value & 1:
            yield number
        value >>= 1
        number += 1
