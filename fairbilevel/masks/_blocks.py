"""Residual blocks that can be removed whole: what lies beside a shortcut that changes nothing.

A block is what a value ``x`` passes through before it is added to ``x`` itself: ``x + f(x)``. With
every parameter of ``f`` that nothing else uses at zero, ``f(x)`` is zero and the sum is ``x``: the
network is as deep as without it. Blocks whose shortcut has weights (where the shape changes) stay.
"""

from __future__ import annotations

from collections.abc import Iterator

from fairbilevel.masks._essential import SAME, VARIES, ZERO, Program


def find_branches(program: Program, inputs: int, arrays: int) -> Iterator[tuple[int, ...]]:
    """Numbers of the input arrays whose zeros remove a block, block by block as data meets them.

    Args:
        program: of a model: its arrays come first, then what varies.
        inputs: how many there are of both.
        arrays: how many arrays there are.
    """
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
