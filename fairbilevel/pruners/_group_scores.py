"""Scores that tell groups apart: FairGRAPE (Lin et al., ECCV 2022), in which every group keeps its
share of the importance, and FairPrune (Wu et al., MICCAI 2022), which removes what only the
privileged need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from fairbilevel.masks import Masks
from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.pruners._pruner import Pruner
from fairbilevel.pruners._run import Moment, PrunerRun
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
    same_share: ClassVar[bool] = True
    passes: ClassVar[float] = 1.0
    trains: ClassVar[bool] = True

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
    """Exactly ``count`` units, the reserved ones first, whose importance (at least 0) is shared
    among groups as that of all alive is; where fewer are alive, the first others join."""
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


@dataclass(frozen=True)
class FairPrune(Pruner):
    """Keep the units that the unprivileged group needs more than the privileged one.

    ``s_i = 1/2 theta_i^2 (h_ii^0 - beta h_ii^1)``, ``h^0`` and ``h^1`` the second derivatives of
    the loss on unprivileged and privileged rows: what removing ``theta_i`` costs either (the
    gradient taken for zero, the Hessian for diagonal), the smallest removed, round after round.
    Filters score the sum over what their mask multiplies.

    The paper has two groups, and so has this: the unprivileged group, and all others together. The
    second derivatives are those of the Gauss-Newton matrix, which are not negative and equal the
    Hessian's where the network is linear in a weight; one backward pass of random signs a batch
    estimates them without bias. The paper removes about a third and does not train; here the
    network is fine-tuned as every other.

    Attributes:
        beta: what the privileged rows count beside the unprivileged ones.
        unprivileged: name of the unprivileged group; by default the counted one in which the dense
            model is right least often on select, where it was not trained.

    Raises:
        ValueError: a negative beta; when run, a name that is no group, or fewer than two groups.
    """

    rounds: int = 5
    batches: int = 10
    beta: float = 0.33
    unprivileged: str | None = None

    name: ClassVar[str] = "fairprune"
    same_share: ClassVar[bool] = True
    passes: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < np.inf:
            raise ValueError(f"beta must be a finite number of at least 0, got {self.beta}")

    def parts(
        self, problem: FairPruningProblem, reference: Reference | None, rows: Int[np.ndarray, " n"]
    ) -> list[Int[np.ndarray, "_"]]:
        """Unprivileged rows, then privileged ones."""
        inside = problem.group[rows] == self._unprivileged(problem, reference)
        if not 0 < inside.sum() < len(rows):
            raise ValueError("fairprune needs rows of two groups at least")
        return [rows[inside], rows[~inside]]

    def _unprivileged(self, problem: FairPruningProblem, reference: Reference | None) -> int:
        if self.unprivileged is not None:
            if self.unprivileged not in problem.groups:
                raise ValueError(
                    f"unprivileged must be a group, got {self.unprivileged!r}: the groups are "
                    f"{', '.join(problem.groups)}"
                )
            return problem.groups.index(self.unprivileged)
        rows = problem.roles["select"]
        group, size = problem.group[rows], len(problem.groups)
        count = np.bincount(group, minlength=size)
        correct = problem.y[rows] >= 0 if reference is None else reference.correct[rows]
        right = np.bincount(group, correct, size) / np.maximum(count, 1)
        return int(np.argmin(np.where(problem.counted & (count > 0), right, np.inf)))

    def scores(self, at: Moment) -> Masks:
        """``s``."""

        pieces = at.structure.accumulate

        def probed(z: Any, batch: Any, key: Any) -> Any:
            logits = at.logits(z, batch)
            # diag(p) - p p^T = S S^T with S = diag(sqrt p) - p sqrt(p)^T, and E[(J^T S e)^2] is the
            # diagonal of J^T S S^T J for independent signs e.
            p = jax.nn.softmax(logits)
            signs = jnp.sqrt(p) * jax.random.rademacher(key, p.shape, p.dtype)
            probe = signs - p * signs.sum(-1, keepdims=True)
            # The mean over micro-batches divides by their number, where squares are to.
            scale = jnp.sqrt(pieces * batch.weight / batch.weight.shape[0])
            return jnp.sum(jax.lax.stop_gradient(probe * scale[:, None]) * logits)

        def curvature(batch: Any, key: Any) -> Any:
            through = jax.grad(lambda z: at.over_rows(probed, z, batch, key))(at.network)
            return jax.tree.map(jnp.square, through)

        h = at.by_part(curvature)
        return at.units(
            jax.tree.map(lambda z, d: 0.5 * z**2 * (d[0] - self.beta * d[1]), at.network, h)
        )
