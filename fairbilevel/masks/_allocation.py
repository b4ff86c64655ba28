"""How many units each layer keeps, where a count over all layers alone does not say it: budgets in
multiply-adds, parameters or milliseconds, counts of channels that hardware likes, layers with a
sparsity of their own.

Scores rank units; the best are kept as long as they fit. All of it happens on the host, between two
stages of a search: within a stage every layer keeps its number, and compiled steps choose which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from fairbilevel import _numbers, _options
from fairbilevel.masks._budget import Budget, removed
from fairbilevel.masks._layers import matching
from fairbilevel.masks._threshold import Masks

MEASURES = ("units", "multiply-adds", "parameters", "latency")
# A set of channels keeps at least so many numbers to choose from: with four, five folds of CIFAR-10
# lost 1.3 points of accuracy in a network of 16, 32 and 64 channels.
_LEVELS = 16

Counts = dict[str, int]
Measure = Callable[[Mapping[str, int]], float]


def layer_shares(texts: Iterable[str], names: Iterable[str]) -> dict[str, float]:
    """Sparsities by layer, read from ``"NAME=SHARE"``; in names ``*`` stands for anything, and
    later entries win.

    Raises:
        ValueError: another form, a share outside [0, 1), or a name that no layer has.
    """
    known, found = list(names), {}
    for text in texts:
        pattern, _, said = text.rpartition("=")
        share = _options.fraction(said)
        if not pattern or share is None or not 0 <= share < 1:
            raise ValueError(
                f"layer_sparsity takes NAME=SHARE with a share in [0, 1), as conv1=0.5; got "
                f"{text!r}"
            )
        found.update(dict.fromkeys(matching(pattern, known, "layer_sparsity"), share))
    return found


def multiple_of(size: int, multiple: int) -> int:
    """What the number of kept channels of a set is a multiple of: ``multiple``, halved until at
    least sixteen numbers are left to choose from (8 from 128 channels on, 4 from 64, 2 from 32)."""
    while multiple > 1 and size < _LEVELS * multiple:
        multiple //= 2
    return max(multiple, 1)


@dataclass(frozen=True)
class Allocation:
    """From scores and a sparsity to counts.

    Attributes:
        budget: what compiled steps are told of it.
        sparsity: the final one; shares of single layers are reached with it.
        of: what the sparsity is a share of: ``units``, or a measure of the whole network.
        measure: what so many kept units by layer cost; not for units.
        dense: what all of them cost.
        multiple: of the channels that a set keeps (``multiple_of``).
        shares: final sparsities of single layers.
    """

    budget: Budget
    sparsity: float
    of: str = "units"
    measure: Measure | None = None
    dense: float = 0.0
    multiple: int = 1
    shares: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def over(
        budget: Budget,
        sparsity: float,
        *,
        of: str = "units",
        measure: Measure | None = None,
        multiple: int = 1,
        shares: Mapping[str, float] | None = None,
    ) -> Allocation:
        """An allocation; its budget goes by layer where it has to.

        Raises:
            ValueError: a sparsity that cannot be reached.
        """
        rounds = any(multiple_of(n, multiple) > 1 for n in budget.units.values())
        if of != "units" or rounds or shares:
            budget = budget.by_layers()
        dense = 0.0 if measure is None else measure(budget.units)
        found = Allocation(budget, sparsity, of, measure, dense, multiple, dict(shares or {}))
        found.check(sparsity)
        return found

    def check(self, sparsity: float) -> None:
        """Refuse a sparsity that cannot be reached, whatever the scores.

        Raises:
            ValueError: why.
        """
        if not self.budget.by_layer:
            self.budget.keep(sparsity)
            return
        least = {n: int(n in self.budget.essential) for n in self.budget.units}
        least |= self._fixed(sparsity, 1)
        if not self._fits(least, sparsity):
            raise ValueError(
                f"a sparsity of {sparsity:g} in {self.of} cannot be reached: what cannot be "
                "pruned, was asked to stay or would leave a layer empty takes "
                f"{_numbers.percent(self._share(least))} by itself; ask for less"
            )

    def keep(
        self, sparsity: float, scores: Mapping[str, Float[Any, "..."]] | None = None
    ) -> Counts:
        """Units kept at a sparsity, as ``Budget.keep`` gives them.

        Args:
            sparsity: share of ``of`` that is removed.
            scores: by layer, ``-inf`` where a unit is gone already; without them every layer
                keeps the same share.

        Raises:
            ValueError: see ``check``.
        """
        if not self.budget.by_layer:
            return self.budget.keep(sparsity)
        units = self.budget.units
        given = scores or {name: -(np.arange(n) + 0.5) / n for name, n in units.items()}
        ranked = {name: np.sort(np.ravel(np.asarray(given[name])))[::-1] for name in units}
        ranked = {name: values[values > -np.inf] for name, values in ranked.items()}
        least = {n: int(n in self.budget.essential) for n in units}
        found = self._best(ranked, 1, least, sparsity)
        if found is None:
            self.check(sparsity)
            raise ValueError(f"a sparsity of {sparsity:g} in {self.of} cannot be reached any more")
        multiple = self.multiple
        while multiple > 1:  # rounding leaves something of every layer that is not empty without it
            least = {n: int(k > 0) for n, k in found.items()}
            rounded = self._best(ranked, multiple, least, sparsity)
            if rounded is not None:
                return rounded
            multiple //= 2
        return found

    def achieved(self, counts: Mapping[str, int]) -> float:
        """The sparsity of counts, in what it is asked for."""
        return 1 - self._share(counts)

    def describe(self, masks: Masks) -> dict[str, Any]:
        """Of hard masks: ``prunable``, ``kept``, ``achieved`` share removed; and ``of`` with the
        share removed in it, where a sparsity is asked for in another unit."""
        counts = {n: int(np.count_nonzero(np.asarray(m))) for n, m in masks.items()}
        kept, prunable = sum(counts.values()), self.budget.prunable
        found: dict[str, Any] = {"prunable": prunable, "kept": kept}
        found["achieved"] = 1 - kept / prunable
        if self.of != "units":
            found |= {"of": self.of, "achieved_of": self.achieved(counts)}
        return found

    def _share(self, counts: Mapping[str, int]) -> float:
        if self.measure is None:
            return sum(counts.values()) / self.budget.prunable
        return self.measure(counts) / self.dense

    def _fits(self, counts: Mapping[str, int], sparsity: float) -> bool:
        if self.measure is None:
            prunable = self.budget.prunable
            return sum(counts.values()) <= prunable - removed(sparsity, prunable)
        return self.measure(counts) <= (1 - sparsity) * self.dense * (1 + 1e-12)

    def _fixed(self, sparsity: float, multiple: int) -> Counts:
        """Counts of the layers that have a sparsity of their own."""
        reached = sparsity / self.sparsity if self.sparsity else 1.0
        counts = {}
        for name, share in self.shares.items():
            size = self.budget.units[name]
            step = multiple_of(size, multiple)
            exact = size - removed(share * reached, size)
            counts[name] = min(max(round(exact / step) * step, step), size)
        return counts

    def _best(
        self,
        ranked: Mapping[str, np.ndarray],
        multiple: int,
        least: Mapping[str, int],
        sparsity: float,
    ) -> Counts | None:
        """Counts of the best chunks of all layers that fit together, then of the next ones that
        still do, until none does; the first ``least`` of a layer go before all others. ``None``
        where these do not fit."""
        fixed = self._fixed(sparsity, multiple)
        steps = {name: multiple_of(self.budget.units[name], multiple) for name in ranked}
        values, owners = [], []
        for index, (name, own) in enumerate(ranked.items()):
            if name in fixed:
                continue
            chunks = self._chunks(own, self.budget.units[name], steps[name])
            chunks[: least[name]] = np.inf
            values.append(chunks)
            owners.append(np.full(len(chunks), index))
        order = np.argsort(-np.concatenate(values), kind="stable") if values else np.array([], int)
        owner = np.concatenate(owners)[order] if owners else order

        def counted(taken: np.ndarray) -> Counts:
            found = {
                name: min(int(taken[i]) * steps[name], len(own))
                for i, (name, own) in enumerate(ranked.items())
            }
            return found | fixed

        def counts(chunks: int) -> Counts:
            return counted(np.bincount(owner[:chunks], minlength=len(ranked)))

        below, above = -1, len(order) + 1  # so many fit, so many do not
        while above - below > 1:
            middle = (below + above) // 2
            if self._fits(counts(middle), sparsity):
                below = middle
            else:
                above = middle
        reserved = sum(min(least[n], len(own)) for n, own in ranked.items() if n not in fixed)
        if below < reserved:
            return None
        taken, full = np.bincount(owner[:below], minlength=len(ranked)), set[int]()
        for index in owner[below:].tolist():
            if index in full:
                continue
            taken[index] += 1
            if not self._fits(counted(taken), sparsity):
                taken[index] -= 1
                full.add(index)  # costs only grow: what does not fit now never will
                if len(full) == len(ranked):
                    break
        return counted(taken)

    def _chunks(self, ranked: np.ndarray, size: int, step: int) -> np.ndarray:
        """What the next ``step`` units of a layer are worth, best first: their mean score, or at
        the uniform budget how small a share of the layer was taken before them."""
        count = math.ceil(len(ranked) / step)
        if self.budget.kind == "uniform":
            return -(np.arange(count) + 0.5) * step / size
        if not count:
            return np.zeros(0)
        starts = np.arange(count) * step
        lengths = np.minimum(step, len(ranked) - starts)
        return np.add.reduceat(ranked.astype(np.float64), starts) / lengths
