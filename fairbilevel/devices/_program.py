"""Compiled functions, one for each structure: numbers are their arguments, never part of them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairbilevel.devices._lanes import Call, apart, lanes
from fairbilevel.devices._placement import Placement, on_device

HELD = 64  # executables; structures beyond that are compiled again when they come back
_SMALL = 2**18  # numbers in the state of a small network


class Program:
    """A pure function compiled once a process for each structure, shapes and types.

    The first argument, ``structure``, is hashable and says everything that decides what is
    computed; all others are pytrees of arrays. Two problems of one structure (two folds, two
    seeds, two tolerances) are served by one executable. Where several devices share the work,
    results lie where the placement says, so that a split state is never gathered between calls.

    Args:
        function: ``function(structure, *arguments)``; called under JAX's trace.
        donate: the first of the arguments is gone after the call, its memory taken over.
        once: it runs about once: on CPU little is spent on making it fast.
        steers: of a loop, ``steers(*arguments)``: those of their arrays that its length and its
            branches hang on. Of runs side by side (``Lanes``) those are computed together that have
            them in common: a branch that some take and others do not would be computed for all.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        donate: bool = False,
        once: bool = False,
        steers: Callable[..., Sequence[Any]] | None = None,
    ):
        self.function, self.donate, self.once, self.steers = function, donate, once, steers
        self._executables: OrderedDict[Hashable, Any] = OrderedDict()

    def __call__(
        self,
        structure: Hashable,
        *arguments: Any,
        placement: Placement | None = None,
        costs: Any = None,
    ) -> Any:
        """Run, compiling first where this structure or these shapes are new.

        Args:
            structure: what decides the computation.
            *arguments: pytrees of arrays; those of several devices lie where they belong.
            placement: the devices that share the work, ``None`` for JAX's default one.
            costs: has ``compile_seconds``, where compiling is booked.
        """
        spread = None if placement is None or placement.alone else placement
        if spread is None:
            arguments = jax.tree.map(on_device, arguments)
        leaves, tree = jax.tree.flatten(arguments)
        where = None if spread is None else (spread, tuple(leaf.sharding for leaf in leaves))
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        key = (structure, tree, shapes, where, jax.config.jax_enable_x64)  # type: ignore[attr-defined]
        side_by_side = lanes()
        if side_by_side is not None and spread is None:
            steering = tuple(np.asarray(leaf).tobytes() for leaf in self._steering(arguments))
            together, loop = partial(self._together, key), self.steers is not None
            return side_by_side.ask((self, key, steering), together, arguments, costs, loop)
        lower = partial(self.lower, structure, *arguments, placement=spread)
        return self._executable(key, lower, arguments, costs)(*arguments)

    def _steering(self, arguments: tuple[Any, ...]) -> Sequence[Any]:
        return () if self.steers is None else self.steers(*arguments)

    def _executable(
        self, key: Hashable, lower: Callable[[], Any], arguments: Any, *costs: Any
    ) -> Any:
        """What was compiled for a key, or is now; the time is divided among ``costs``."""
        executable = self._executables.get(key)
        if executable is not None:
            self._executables.move_to_end(key)
            return executable
        begin = time.perf_counter()
        executable = self._executables[key] = _compiled(lower(), self._options(arguments))
        while len(self._executables) > HELD:
            self._executables.popitem(last=False)
        took = time.perf_counter() - begin
        for each in costs:
            if each is not None:
                each.compile_seconds += took / len(costs)
        return executable

    def _together(self, key: Any, calls: Sequence[Call], width: int) -> Sequence[Any]:
        """Results of calls of one key, in one computation: alone, or filled up to the width, so
        that no more than two are ever compiled."""
        structure, each = key[0], [call.arguments for call in calls]
        costs = [call.costs for call in calls]
        if len(each) == 1:
            lower = partial(self.lower, structure, *each[0])
            return [self._executable(key, lower, each[0], *costs)(*each[0])]
        every = [*each, *(jax.tree.map(jnp.copy, each[0]) for _ in range(width - len(each)))]
        lower = partial(self._lower_together, structure, every)
        executable = self._executable((width, key), lower, each[0], *costs)
        return executable([a[:1] for a in every], [a[1:] for a in every])[: len(each)]

    def _lower_together(self, structure: Hashable, every: Sequence[tuple[Any, ...]]) -> Any:
        """The program of all lanes: stacked, computed under ``vmap``, and taken apart again."""

        def function(first: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
            lists = [(*a, *b) for a, b in zip(first, rest, strict=True)]
            steering = {id(leaf) for leaf in self._steering(lists[0])}
            leaves, tree = jax.tree.flatten(lists[0])
            axes = [None if id(leaf) in steering else 0 for leaf in leaves]
            columns = zip(*(jax.tree.leaves(a) for a in lists), strict=True)
            stacked = [
                column[0] if axis is None else jnp.stack(column)
                for column, axis in zip(columns, axes, strict=True)
            ]

            def one(leaves: list[Any]) -> Any:
                return self.function(structure, *jax.tree.unflatten(tree, leaves))

            results = jax.vmap(one, (axes,))(stacked)
            return [jax.tree.map(lambda leaf, i=i: leaf[i], results) for i in range(len(lists))]

        function.__name__ = f"{self.function.__name__}_{len(every)}"
        first, rest = [a[:1] for a in every], [a[1:] for a in every]
        return jax.jit(function, donate_argnums=0 if self.donate else ()).lower(first, rest)

    def _options(self, arguments: tuple[Any, ...]) -> dict[str, Any]:
        """What is left out on CPU. Fusion emitters are 40 % of compiling (``bench_compile``); small
        networks run as fast without them, a ResNet-18 of width 8 at 0.86 of the speed."""
        if jax.default_backend() != "cpu":
            return {}
        options: dict[str, Any] = {"xla_backend_optimization_level": 1} if self.once else {}
        if sum(leaf.size for leaf in jax.tree.leaves(arguments[:1])) < _SMALL:
            options["xla_cpu_use_fusion_emitters"] = False
        return options

    def lower(
        self, structure: Hashable, *arguments: Any, placement: Placement | None = None
    ) -> Any:
        """What is compiled for these arguments, placed already: a ``jax.stages.Lowered``."""

        def function(*arguments: Any) -> Any:
            return self.function(structure, *arguments)

        # The name that logs of compilation show, and that a cache on disk goes by.
        function.__name__ = self.function.__name__
        donated = 0 if self.donate else ()
        if placement is None or placement.alone:
            return jax.jit(function, donate_argnums=donated).lower(*arguments)
        results = placement.outputs(function, *arguments)
        jitted = jax.jit(function, donate_argnums=donated, out_shardings=results)
        return jitted.lower(*arguments)

    @property
    def compiled(self) -> int:
        """How many executables there are."""
        return len(self._executables)

    def newest(self) -> Any:
        """The executable that was used last."""
        return self._executables[next(reversed(self._executables))]


def _compiled(lowered: Any, options: dict[str, Any]) -> Any:
    """Compiled with those of the options that this XLA has."""
    try:
        return lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
        if not options or "No such compile option" not in str(error):
            raise
        known = {name: value for name, value in options.items() if name not in str(error)}
        return _compiled(lowered, known if len(known) < len(options) else {})


def _copied(structure: None, tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


_COPY = Program(_copied)


def copied(tree: Any, placement: Placement | None = None) -> Any:
    """New arrays of the same values: what is donated to a program is gone afterwards."""
    with apart():  # nothing is gained by copying together
        return _COPY(None, tree, placement=placement)
