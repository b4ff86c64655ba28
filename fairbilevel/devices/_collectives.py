"""What a compiled program sends between devices, read from its HLO text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"\}')
_SOURCE = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Collective:
    """One operation that sends data, as often as the program runs it.

    Attributes:
        kind: one of ``KINDS``.
        arrays: ``(type, shape)`` of each result: ``("f32", (3, 3, 16))``.
        times: how often it runs, loops multiplied out; of a loop whose length is decided while it
            runs, this is one round.
        source: the JAX operation that it came from, as XLA remembers it.
        looped: whether it runs in such a loop: ``times`` in each of its rounds.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    times: int
    source: str
    looped: bool = False

    @property
    def bytes(self) -> int:
        """Size of the results, all times together."""
        return self.times * sum(bytes_of(*array) for array in self.arrays)


def bytes_of(kind: str, shape: tuple[int, ...]) -> int:
    """Size of an array of an HLO type such as ``"f32"`` or ``"s8"``."""
    bits = _BITS.get(kind) or int("".join(filter(str.isdigit, kind)) or 8)
    return math.prod(shape) * max(bits, 8) // 8


def collectives(text: str) -> list[Collective]:
    """All collectives of an optimized program, in program order.

    Args:
        text: ``compiled.as_text()`` of a ``jax.stages.Compiled``.

    Raises:
        ValueError: the text has no entry computation.
    """
    bodies, entry = _computations(text)
    return list(_walk(bodies, entry, 1, False))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            current = start.group(2)
            bodies[current] = []
            entry = current if start.group(1) else entry
        elif current and line.strip() != "}":
            bodies[current].append(line)
    if not entry:
        raise ValueError("this is no HLO text: it has no entry computation")
    return bodies, entry


def _walk(
    bodies: dict[str, list[str]], name: str, times: int, looped: bool
) -> Iterator[Collective]:
    for line in bodies.get(name, ()):
        found = _OPERATION.match(line)
        if not found:
            continue
        result, operation = found.groups()
        kind = operation.removesuffix("-start")
        if kind in KINDS:
            arrays = [
                (t, tuple(int(n) for n in shape.split(",") if n))
                for t, shape in _ARRAY.findall(result)
            ]
            # The start of an asynchronous one also names its operands, ahead of its results.
            if operation.endswith("-start") and kind != "all-reduce":
                arrays = arrays[len(arrays) // 2 :]
            found_source = _SOURCE.search(line)
            source = found_source.group(1) if found_source else ""
            yield Collective(kind, tuple(arrays), times, source, looped)
            continue
        trips = _TRIPS.search(line)
        loop = operation == "while"
        inner = times * (int(trips.group(1)) if loop and trips else 1)
        within = looped or (loop and not trips)
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [part.strip().lstrip("%") for part in branches.split(",")]
        for other in called:
            yield from _walk(bodies, other, inner, within)
