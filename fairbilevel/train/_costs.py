"""The books of what a run costs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

FORWARD_COST = 1 / 3  # of a gradient evaluation: forward and backward is 1


@dataclass
class Costs:
    """What was spent, in the units of the protocol.

    Attributes:
        gradient_evaluations: one is forward plus backward on one nominal batch.
        seconds: wall time of compiled calls and of the rows they wait for, compilation included.
        compile_seconds: of that, the part spent compiling.
    """

    gradient_evaluations: float = 0.0
    seconds: float = 0.0
    compile_seconds: float = 0.0

    _running = False  # inside a block that is timed already

    def restore(self, state: dict[str, float]) -> None:
        """Take over what a former process had spent (``dataclasses.asdict``)."""
        for name, value in state.items():
            setattr(self, name, value)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Books the time until the end of the block; what it starts must be waited for inside.

        A block within a block is booked once.
        """
        if self._running:
            yield
            return
        begin, self._running = time.perf_counter(), True
        try:
            yield
        finally:
            self._running = False
            self.seconds += time.perf_counter() - begin
