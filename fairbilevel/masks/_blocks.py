"""Residual blocks that can be removed whole: what lies beside a shortcut that changes nothing.

A block is what a value ``x`` passes through before it is added to ``x`` itself: ``x + f(x)``. With
every parameter of ``f`` that nothing else uses at zero, ``f(x)`` is zero and the sum is ``x``: the
network is as deep as without it. Blocks whose shortcut has weights (where the shape changes) stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend import core as jex_core

from fairbilevel.masks._essential import SAME, VARIES, ZERO, constant_level, level_of
from fairbilevel.masks._trace import CALL_NAMES, CALLS

# The same values, perhaps in another type or place.
_ALIASES = {"convert_element_type", "sharding_constraint", "copy", "copy_p", "optimization_barrier"}


@dataclass
class Program:
    """A jaxpr with its calls opened, values by number: the inputs first.

    Attributes:
        before: of each value, a set of bits: itself and all values that it depends on.
        levels: of constants: ``ZERO`` or ``SAME``.
        shapes: of values.
        steps: name of the operation, numbers of what goes in and of what comes out.
    """

    before: list[int] = field(default_factory=list)
    levels: dict[int, int] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    steps: list[tuple[str, list[int], list[int]]] = field(default_factory=list)

    @staticmethod
    def of(closed: Any) -> Program:
        """The program of a closed jaxpr."""
        found = Program()
        inputs = [found.value(v.aval.shape) for v in closed.jaxpr.invars]
        found._walk(closed.jaxpr, closed.consts, inputs)
        return found

    def value(self, shape: Any, before: int = 0) -> int:
        """A new value."""
        number = len(self.before)
        self.before.append(before | 1 << number)
        self.shapes.append(tuple(shape))
        return number

    def _constant(self, value: Any) -> int:
        number = self.value(getattr(value, "shape", ()))
        self.levels[number] = constant_level(value)
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
            inner = next((eqn.params[p] for p in CALLS if p in eqn.params), None)
            if name in CALL_NAMES and inner is not None:
                outs = self._walk(
                    getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given
                )
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

    def is_zero(self, value: int, zero: int, count: int) -> bool:
        """Whether a value is zero where some of the first ``count`` values (bits ``zero``) are; the
        other arrays may hold anything, and what comes behind them varies."""
        levels = dict(self.levels)
        for number in range(count):
            levels[number] = ZERO if zero >> number & 1 else SAME
        for name, given, outs in self.steps:
            level = level_of(name, [levels.get(v, VARIES) for v in given])
            levels.update(dict.fromkeys(outs, level))
            if value in outs:
                break
        return levels.get(value, VARIES) == ZERO


def find_branches(closed: Any, arrays: int) -> Iterator[tuple[int, ...]]:
    """Numbers of the input arrays whose zeros remove a block, block by block as data meets them.

    Args:
        closed: jaxpr of a model: its arrays come first, then what varies.
        arrays: how many arrays there are.
    """
    program = Program.of(closed)
    own_bits = (1 << arrays) - 1
    row = sum(1 << number for number in range(arrays, len(closed.jaxpr.invars)))
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
            if own and program.is_zero(branch, own, arrays):
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
