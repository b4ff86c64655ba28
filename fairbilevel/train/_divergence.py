"""What happens when the loss is no longer finite, or explodes: back, and on with smaller steps.

A bounded number of times, and on the record; then the run stops with its diagnosis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

RETREATS = 4  # in one phase of a run, then it stops
SMALLER = 1 / 4  # of the steps before, at each
EXPLODED = 1000.0  # times the loss of guessing: nothing that learns gets there


class DivergenceError(ValueError):
    """The loss is no longer finite, or exploded, and smaller steps did not help.

    Attributes:
        phase: phase of the run.
        step: step within the phase, from 1.
        last_good: the network before the segment that diverged, and its masks, if any.
    """

    def __init__(self, phase: str, step: int, last_good: Any = None, loss: float = math.nan):
        self.phase, self.step, self.last_good, self.loss = phase, step, last_good, loss
        self.retreats = 0
        super().__init__(phase, step)

    def __str__(self) -> str:
        again = ""
        if self.retreats:
            again = f" ({self.retreats} returns to it with smaller and smaller steps did not help)"
        return (
            f"the loss is {self.what} at step {self.step} of the {self.phase} phase: lower the "
            f"learning rate or look for extreme values in the inputs; the last good state was kept"
            f"{again}"
        )

    @property
    def what(self) -> str:
        """What the loss is."""
        return f"exploding ({self.loss:.3g})" if math.isfinite(self.loss) else "not finite"


def check_finite(
    losses: Float[np.ndarray, " steps"], finite: bool, phase: str, first_step: int, classes: int
) -> None:
    """Refuse a stage that diverged, by its losses, or by what it left behind (``finite``): a last
    step can spoil weights, statistics or scores although its own loss was still finite. A mean loss
    of more than a thousand times that of guessing counts as diverged too; the first such step is
    named."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise DivergenceError(phase, first_step + int(bad[0]) + 1)
    if not finite:
        # The loss of the step that would come next.
        raise DivergenceError(phase, first_step + len(losses) + 1)
    limit = exploded(classes)
    if losses.mean() > limit:
        large = int(np.flatnonzero(losses > limit)[0])
        raise DivergenceError(phase, first_step + large + 1, loss=float(losses[large]))


def exploded(classes: int) -> float:
    """The loss, in nats, above which training is taken to have exploded."""
    return EXPLODED * math.log(max(classes, 2))


@dataclass
class Retreats:
    """How often one phase went back, and the scale of its steps since."""

    made: int = 0

    @property
    def scale(self) -> float:
        """Of the steps."""
        return SMALLER**self.made

    def retreat(self, error: DivergenceError, step: int) -> dict[str, Any]:
        """What goes on record of going back to a step of the phase once more; the error is raised
        where the retreats are used up."""
        if self.made == RETREATS:
            error.retreats = self.made
            raise error
        self.made += 1
        return {
            "phase": error.phase,
            "step": error.step,
            "back_to": step,
            "loss": error.what,
            "step_scale": self.scale,
        }
