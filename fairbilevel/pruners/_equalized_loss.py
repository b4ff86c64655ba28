"""Equalized loss around magnitude pruning (Tran et al., NeurIPS 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fairbilevel import _options, fairness
from fairbilevel.fairness import Constraint
from fairbilevel.problem import FairPruningProblem
from fairbilevel.pruners._gradual import GradualMagnitude

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
