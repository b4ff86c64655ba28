"""Compiled calls, and the books of what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from fairbilevel.devices import Placement
from fairbilevel.train._batches import Batch


@dataclass
class Costs:
    """What was spent, in the units of the protocol.

    Attributes:
        gradient_evaluations: one is forward plus backward on one nominal batch.
        seconds: wall time of the compiled calls, compilation included.
        compile_seconds: of that, the part spent compiling.
    """

    gradient_evaluations: float = 0.0
    seconds: float = 0.0
    compile_seconds: float = 0.0

    def restore(self, state: dict[str, float]) -> None:
        """Take over what a former process had spent (``dataclasses.asdict``)."""
        for name, value in state.items():
            setattr(self, name, value)


@dataclass
class Compiled:
    """A function compiled on first use per shape, its compile time booked apart.

    The first argument is donated: what was passed is gone afterwards. Unless ``donate`` is off.
    Arguments other than batches are states: they and the results lie where the placement says, so
    that a state that is split over devices is never gathered between calls.
    """

    function: Callable[..., Any]
    costs: Costs
    donate: bool = True
    placement: Placement | None = None
    _executables: dict[Any, Any] = field(default_factory=dict)

    def __call__(self, *args: Any) -> Any:
        """Run, compiling first where these shapes are new."""
        spread = None if self.placement is None or self.placement.alone else self.placement
        if spread is None:
            args = jax.tree.map(jnp.asarray, args)
        else:
            # Batches lie where the feed put them.
            args = jax.tree.map(
                lambda part: part if isinstance(part, Batch) else spread.place(part),
                args,
                is_leaf=lambda part: isinstance(part, Batch),
            )
        leaves, structure = jax.tree.flatten(args)
        where = None if spread is None else tuple(leaf.sharding for leaf in leaves)
        key = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves), where)
        start = time.perf_counter()
        if key not in self._executables:
            self._executables[key] = self.lower(*args).compile()
            self.costs.compile_seconds += time.perf_counter() - start
        out = jax.block_until_ready(self._executables[key](*args))
        self.costs.seconds += time.perf_counter() - start
        return out

    def lower(self, *args: Any) -> Any:
        """What is compiled for these arguments, placed already: a ``jax.stages.Lowered``."""
        donated = 0 if self.donate else ()
        if self.placement is None or self.placement.alone:
            return jax.jit(self.function, donate_argnums=donated).lower(*args)
        results = self.placement.outputs(self.function, *args)
        jitted = jax.jit(self.function, donate_argnums=donated, out_shardings=results)
        return jitted.lower(*args)
