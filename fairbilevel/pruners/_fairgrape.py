"""FairGRAPE: every group keeps its share of the importance (Lin et al., ECCV 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from fairbilevel.masks import Masks
from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.pruners._moment import Moment
from fairbilevel.pruners._pruner import Pruner, exponential
from fairbilevel.pruners._run import PrunerRun
from fairbilevel.train import BudgetKind

_PICKS = 4096  # decisions a round at most; beyond that several units are taken at once


@dataclass(frozen=True)
class FairGRAPE(Pruner):
    """Keep units so that each group keeps its share of the total importance.

    The importance of a unit for group ``g`` is ``(w dL_g/dw)^2``, averaged over batches of that
    group's rows (the square of ``dL_g/dm`` for a filter). Greedily, the group whose share among the
    units kept so far is furthest below its share before the removal picks its most important unit
    that is left. The network trains between rounds. The authors pick layer by layer, which the
    ``"uniform"`` budget (the default here) does; the ``"global"`` one picks from all layers.
    """

    budget: BudgetKind = "uniform"
    rounds: int = 10
    batches: int = 4

    name: ClassVar[str] = "fairgrape"
    passes: ClassVar[float] = 1.0
    trains: ClassVar[bool] = True

    def sparsity_at(self, progress: float) -> float:
        """Each round keeps the same share."""
        return exponential(self.sparsity, progress)

    def parts(
        self, problem: FairPruningProblem, reference: Reference | None, rows: Int[np.ndarray, " n"]
    ) -> list[Int[np.ndarray, "_"]]:
        """The rows of each group that has any."""
        each = [rows[problem.group[rows] == g] for g in range(len(problem.groups))]
        return [r for r in each if len(r)]

    def scores(self, at: Moment) -> Any:
        """Importance by layer: ``[groups, ...]``."""

        def importance(batch: Any, key: Any) -> Masks:
            gradient = jax.grad(at.loss)(at.network, batch)
            entries = jax.tree.map(jnp.multiply, at.network, gradient)
            return {name: s**2 for name, s in at.units(entries).items()}

        return at.by_part(importance)

    def ranking(self, scores: Any) -> Masks:
        """The groups' importance added up."""
        return {name: jnp.asarray(np.asarray(s).sum(0)) for name, s in scores.items()}

    def select(self, run: PrunerRun, scores: Any, kept: Masks, sparsity: float) -> Masks:
        """The greedy choice, in each part of the budget."""
        budget = run.budget
        keep = run.counted(self.ranking(scores), kept, sparsity)
        parts = [list(scores)] if budget.together else [[name] for name in scores]
        masks: Masks = {}
        for names in parts:
            size = [int(np.size(kept[n])) for n in names]
            each = [np.asarray(scores[n], np.float64).reshape(len(scores[n]), -1) for n in names]
            importance = np.concatenate(each, 1)
            alive = np.concatenate([np.asarray(kept[n]).reshape(-1) > 0 for n in names])
            ends = np.cumsum(size)
            reserved = [  # a layer that the network cannot do without keeps its best unit
                begin + int(np.argmax(np.where(alive, importance.sum(0), -1)[begin:end]))
                for n, begin, end in zip(names, ends - size, ends, strict=True)
                if n in budget.essential
            ]
            count = keep["all"] if budget.together else keep[names[0]]
            chosen = keep_shares(importance, alive, count, np.asarray(reserved[:count], int))
            for n, part in zip(names, np.split(chosen, ends[:-1]), strict=True):
                masks[n] = jnp.asarray(part.reshape(kept[n].shape), kept[n].dtype)
        return masks


def keep_shares(
    importance: Float[np.ndarray, "groups units"],
    alive: Bool[np.ndarray, " units"],
    count: int,
    reserved: Int[np.ndarray, " first"],
) -> Bool[np.ndarray, " units"]:
    """Exactly ``count`` units whose importance is shared among groups as that of all alive is.

    Args:
        importance: of each unit for each group, at least 0.
        alive: units that can be chosen; where they are fewer than ``count``, the first others
            join.
        count: how many to choose.
        reserved: units chosen before all others.
    """
    groups = len(importance)
    total = importance[:, alive].sum(1)
    target = total / total.sum() if total.sum() > 0 else np.full(groups, 1 / groups)
    units = np.flatnonzero(alive)
    order = [units[np.argsort(-row[units], kind="stable")] for row in importance]
    chosen = np.zeros(len(alive), bool)
    chosen[reserved] = True
    held = importance[:, chosen].sum(1)
    position, left, at_once = np.zeros(groups, int), count - int(chosen.sum()), count // _PICKS + 1
    while left > 0 and not chosen[units].all():
        share = held / held.sum() if held.sum() > 0 else np.full(groups, 1 / groups)
        group = int(np.argmin(share - target))
        span = order[group][position[group] : position[group] + min(at_once, left)]
        position[group] += len(span)
        fresh = span[~chosen[span]]
        chosen[fresh] = True
        held = held + importance[:, fresh].sum(1)
        left -= len(fresh)
    if left > 0:
        chosen[np.flatnonzero(~chosen)[:left]] = True
    return chosen
