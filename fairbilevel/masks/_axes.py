"""What the axes of arrays are made of, and which of them are the same.

An axis is an ordered product of factors, ``((size, node), ...)``, outermost first: the channels of
a flattened image are ``((height * width, FIXED), (channels, node))``. Nodes are merged where arrays
meet (a union-find), split where a reshape or a grouped convolution takes an axis apart, and locked
where an entry cannot go without changing others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Factor = tuple[int, int]
Axis = tuple[Factor, ...]

FREE = -1  # every entry is the same along this factor: it fits any other
FIXED = 0  # entries differ, and none of them can go: rows, pixels, tokens, input channels


def uniform(size: int) -> Axis:
    """An axis along which all entries are the same."""
    return () if size == 1 else ((size, FREE),)


def fixed(size: int) -> Axis:
    """An axis whose entries must all stay."""
    return () if size == 1 else ((size, FIXED),)


def length(axis: Axis) -> int:
    """Entries of an axis."""
    return math.prod(size for size, _ in axis)


@dataclass
class Nodes:
    """The factors met so far: merged, split and locked."""

    parent: list[int] = field(default_factory=lambda: [FIXED])
    locked: list[bool] = field(default_factory=lambda: [True])
    parts: dict[int, Axis] = field(default_factory=dict)

    def new(self, size: int, *, locked: bool = False) -> Axis:
        """An axis of one new node."""
        if size == 1:
            return ()
        self.parent.append(len(self.parent))
        self.locked.append(locked)
        return ((size, len(self.parent) - 1),)

    def find(self, node: int) -> int:
        """The node that stands for all those merged with this one."""
        while node != FREE and self.parent[node] != node:
            node = self.parent[node]
        return node

    def resolve(self, axis: Axis) -> Axis:
        """The same axis in standing nodes, taken apart as far as is known."""
        found: list[Factor] = []
        for size, node in axis:
            root = self.find(node)
            if root in self.parts:
                found.extend(self.resolve(self.parts[root]))
            else:
                found.append((size, root))
        return tuple(found)

    def count(self, axis: Axis, counts: Mapping[int, int]) -> int:
        """Entries of an axis whose standing nodes have as many as ``counts`` says."""
        return math.prod(counts.get(node, size) for size, node in self.resolve(axis))

    def free_to_go(self, axis: Axis) -> frozenset[int]:
        """Standing nodes of an axis that are not locked."""
        roots = (node for _, node in self.resolve(axis))
        return frozenset(n for n in roots if n != FREE and not self.locked[n])

    def lock(self, *axes: Axis) -> None:
        """No entry of these axes may go."""
        for axis in axes:
            for _, node in self.resolve(axis):
                if node != FREE:
                    self.locked[node] = True

    def split(self, factor: Factor, outer: int) -> Axis:
        """A factor as ``outer`` blocks of equal size."""
        size, node = factor
        if outer in (1, size):
            return (factor,)
        if node in (FREE, FIXED):
            return ((outer, node), (size // outer, node))
        locked = self.locked[node]
        parts = self.new(outer, locked=locked) + self.new(size // outer, locked=locked)
        self.parts[node] = parts
        return parts

    def unify(self, one: Axis, other: Axis) -> Axis:
        """Two axes that meet entry by entry are the same from here on.

        Where their factors do not nest (6 as 2 x 3 and as 3 x 2) both are locked.
        """
        left, right, merged = list(one), list(other), []
        while left and right:
            left, right = list(self.resolve(tuple(left))), list(self.resolve(tuple(right)))
            (a, x), (b, y) = left[0], right[0]
            if a == b:
                merged.append((a, self._merge(x, y)))
                left, right = left[1:], right[1:]
            elif b % a == 0:
                right[:1] = self.split(right[0], a)
            elif a % b == 0:
                left[:1] = self.split(left[0], b)
            else:
                self.lock(tuple(left), tuple(right))
                merged.append((length(tuple(left)), FIXED))
                break
        return tuple(merged)

    def _merge(self, x: int, y: int) -> int:
        if FREE in (x, y):
            return max(x, y)
        if x == y:
            return x
        if FIXED in (x, y):
            self.locked[max(x, y)] = True
            return max(x, y)
        self.parent[y] = x
        self.locked[x] = self.locked[x] or self.locked[y]
        return x

    def regroup(self, axes: list[Axis], sizes: tuple[int, ...]) -> list[Axis] | None:
        """The axes of a reshaped array; ``None``, with all axes locked, where factors break."""
        factors = [factor for axis in axes for factor in axis]
        result: list[Axis] = []
        for size in sizes:
            taken: list[Factor] = []
            left = size
            while left > 1:
                factors = list(factors)
                if not factors:
                    self.lock(*axes)
                    return None
                if left % factors[0][0]:  # the factor reaches into the next axis
                    factors[:1] = self.resolve((factors[0],))
                    if left % factors[0][0]:
                        if factors[0][0] % left:
                            self.lock(*axes)
                            return None
                        factors[:1] = self.split(factors[0], left)
                taken.append(factors[0])
                left //= factors[0][0]
                factors = factors[1:]
            result.append(tuple(taken))
        return result
