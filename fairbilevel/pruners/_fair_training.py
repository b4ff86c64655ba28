"""Gradual magnitude pruning whose weights train fairly: CEAG, equalized loss, fixed penalties, two
stages one after the other, group DRO and reweighting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fairbilevel import _options, fairness
from fairbilevel.fairness import AccuracyGap, Constraint, ExcessAccuracyGap, GroupStatistics
from fairbilevel.problem import FairPruningProblem
from fairbilevel.pruners._magnitude import GradualMagnitude


@dataclass(frozen=True)
class CEAG(GradualMagnitude):
    """Gradual magnitude pruning, then fine-tuning under ``psi_g <= tolerance`` for every group.

    Multipliers start when pruning ends and move before the weights do, by the same batch's true
    violations in replay buffers. The tolerance is that of the problem's own excess accuracy gap,
    two points if it has none.
    """

    enforce: bool = True

    name: ClassVar[str] = "ceag"

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """The excess accuracy gap."""
        return (problem.own_or(ExcessAccuracyGap()),)


Form = Literal["absolute", "signed"]
FORMS = {"absolute": fairness.EqualizedLoss, "signed": fairness.SignedEqualizedLoss}


@dataclass(frozen=True)
class EqualizedLoss(GradualMagnitude):
    """``L_g = L`` for every group, enforced before pruning, after it, or both.

    Before: the dense network trains under it for ``before_share`` of the steps, with multipliers of
    its own. After: the pruned network is fine-tuned under it. The tolerance is that of the
    problem's own equalized loss of this form; if it has none there is none, as in the paper.

    Attributes:
        form: ``"absolute"`` (Tran et al.: multipliers of ``|L_g - L|`` only grow) or ``"signed"``
            (EL in CEAG: multipliers of ``L_g - L`` are free).

    Raises:
        ValueError: an unknown form.
    """

    form: Form = "absolute"
    enforce: bool = True

    name: ClassVar[str] = "equalized-loss"

    def __post_init__(self) -> None:
        super().__post_init__()
        _options.one_of("form", self.form, FORMS)

    @property
    def label(self) -> str:
        """With when it acts, and whether without buffers."""
        phases = {"before": "before", "fine-tune": "after"}
        acts = [word for phase, word in phases.items() if phase in self.enforce_in]
        when = "both" if len(acts) == 2 else "".join(acts)
        return f"{self.name}-{when}" + ("" if self.buffer_size else "-no-buffer")

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """The equalized loss in this form."""
        return (problem.own_or(FORMS[self.form](tolerance=0.0)),)


@dataclass(frozen=True)
class Penalty(GradualMagnitude):
    """Gradual magnitude pruning whose loss carries the constraints' surrogates, weights fixed.

    ``L + sum_c weight max(violation_c, 0)``, all along; the weight is an option of the rule
    (``multiplier_rule="penalty:weight=2"``).
    """

    enforce: bool = True
    enforce_in: tuple[str, ...] = ("prune", "fine-tune")
    multiplier_rule: str = "penalty"

    name: ClassVar[str] = "penalty"

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """The problem's constraints.

        Raises:
            ValueError: it has none.
        """
        if not problem.constraints:
            raise ValueError("penalty needs a constraint to weigh: give the problem one")
        return problem.constraints


@dataclass(frozen=True)
class _TwoStage(GradualMagnitude):
    enforce: bool = True
    multiplier_rule: str = "penalty"

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """The accuracy gap (BiFP's performance fairness)."""
        return (problem.own_or(AccuracyGap()),)


@dataclass(frozen=True)
class PruneThenFair(_TwoStage):
    """Gradual magnitude pruning, then fair training of what is left (P&F).

    The fairness term is that of BiFP: the smooth accuracy gap at a fixed weight of 1, its tolerance
    the problem's own, two points if it has none.
    """

    enforce_in: tuple[str, ...] = ("fine-tune",)

    name: ClassVar[str] = "prune-then-fair"


@dataclass(frozen=True)
class FairThenPrune(_TwoStage):
    """Fair training of the dense network, then gradual magnitude pruning without it (F&P).

    The same fairness term, for ``before_share`` of the steps.
    """

    enforce_in: tuple[str, ...] = ("before",)

    name: ClassVar[str] = "fair-then-prune"


@dataclass(frozen=True)
class GroupLosses(Constraint):
    """``L + sum_g (q_g - P(g)) L_g = sum_g q_g L_g`` with ``q = softmax(multipliers)``.

    Multipliers are the weights' logarithms, up to a constant; moved by gradient ascent on the
    groups' losses, they are group DRO's ``q_g <- q_g exp(step L_g) / sum``.
    """

    tolerance: float = 0.0

    name: ClassVar[str] = "group-dro"
    signed: ClassVar[bool] = True

    def measured(self, stats: GroupStatistics) -> Float[Array, " groups"]:
        """``L_g``, in nats; every group that was seen counts."""
        return jnp.where(stats.present, stats.loss, -jnp.inf)

    def coefficients(
        self,
        multipliers: Float[Array, " groups"],
        share: Float[Array, " groups"],
        stats: GroupStatistics,
    ) -> Float[Array, " groups"]:
        """``q_g - P(g)``: beside the mean loss, weights that are never negative."""
        return jax.nn.softmax(multipliers) - share


@dataclass(frozen=True)
class GroupDRO(GradualMagnitude):
    """Gradual magnitude pruning whose loss is ``sum_g q_g L_g``, ``q`` raised where it is high.

    Online as in the paper: each batch's own group losses move ``q`` before the weights, by
    ``dual_step`` (0.01 there), without buffers; groups absent from a batch keep their logarithms.
    """

    enforce: bool = True
    enforce_in: tuple[str, ...] = ("prune", "fine-tune")
    buffer_size: int = 0

    name: ClassVar[str] = "group-dro"

    def bounds(self, problem: FairPruningProblem) -> tuple[Constraint, ...]:
        """The weighted group losses."""
        return (GroupLosses(),)


@dataclass(frozen=True)
class Reweighting(GradualMagnitude):
    """Gradual magnitude pruning on rows weighted so that groups are equal.

    A row of group ``g`` weighs ``1 / (G P(g))`` times what it weighed, ``P`` the groups' shares of
    the weight of the training rows.
    """

    name: ClassVar[str] = "reweighting"

    def view(self, problem: FairPruningProblem, rows: Int[np.ndarray, " n"]) -> FairPruningProblem:
        """The problem with those weights."""
        total = np.bincount(problem.group[rows], problem.weight[rows], len(problem.groups))
        share = total / total.sum()
        factor = np.where(share > 0, 1 / np.maximum(share, 1e-12), 0) / np.count_nonzero(share)
        return problem.weighing(problem.weight * factor[problem.group])
