"""What every method hands back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Shaped

from fairbilevel import _display, _numbers, _options, masks
from fairbilevel.data import as_labels
from fairbilevel.fairness import Evaluation
from fairbilevel.masks import Allocation, Budget, Masks
from fairbilevel.problem import (
    REPORTED_ROLES,
    FairPruningProblem,
    Network,
    Reference,
    probabilities,
)
from fairbilevel.train._feasibility import Feasibility
from fairbilevel.train._plan import Costs


@dataclass(frozen=True)
class Solution:
    """A sparse network and how it came about.

    Attributes:
        method: name of the method.
        problem: what was solved.
        reference: the dense network and its outcomes.
        network: the sparse network, ``z = m * theta``; removed weights are exactly zero.
        masks: hard 0/1 masks by layer name.
        scores: final scores by layer name.
        multipliers: final multipliers by constraint name and label.
        granularity: ``"weight"`` or ``"filter"``.
        allocation: how many units each layer could keep.
        sparsity: requested sparsity.
        costs: spent on pruning; the dense model's cost is in ``reference``.
        history: the records of ``metrics.jsonl``.
        warnings: sentences a reader should know.
        feasibility: how far the constraints got, if any were enforced.
        rollbacks: each time the loss diverged and the run went back: ``phase``, ``step``,
            ``back_to``, ``loss``, ``step_scale``.
        constant_answer: the class that the network answers on every row it was looked at, if it is
            always the same.
    """

    method: str
    problem: FairPruningProblem
    reference: Reference
    network: Network
    masks: Masks
    scores: Masks
    multipliers: dict[str, dict[str, float]]
    granularity: str
    allocation: Allocation
    sparsity: float
    costs: Costs
    history: list[dict[str, Any]]
    warnings: tuple[str, ...] = ()
    feasibility: Feasibility | None = None
    rollbacks: tuple[dict[str, Any], ...] = ()
    constant_answer: str | None = None

    def __post_init__(self) -> None:
        if jax.process_count() == 1:
            return
        # What is split over several processes is put together, for files and for the eye.
        readable, dense = self.problem.placement.readable, self.reference.network
        networks = {
            "network": Network(*readable((self.network.params, self.network.state))),
            "reference": dataclasses.replace(
                self.reference, network=Network(*readable((dense.params, dense.state)))
            ),
            "masks": readable(self.masks),
            "scores": readable(self.scores),
        }
        for name, value in networks.items():
            object.__setattr__(self, name, value)

    @property
    def budget(self) -> Budget:
        """What could be kept."""
        return self.allocation.budget

    def _facts(self) -> list[tuple[str, str]]:
        """What a reader wants to know, by name; nothing is measured for it."""
        kept, units = self.allocation.describe(self.masks), f"{self.granularity}s"
        removed = kept["prunable"] - kept["kept"]
        spent = f"{self.costs.gradient_evaluations:,.0f} gradient evaluations"
        answer = self.constant_answer
        facts = [
            ("method", self.method),
            ("problem", f"{self.problem.model.name} on {self.problem.data.name}"),
            (
                "removed",
                f"{_numbers.percent(kept['achieved'])} of the {units} "
                f"({removed:,} of {kept['prunable']:,})",
            ),
            ("cost", f"{spent}, {_numbers.duration(self.costs.seconds)}"),
            ("answer", "" if answer is None else f"always {answer!r}"),
            ("limits", "" if self.feasibility is None else self.feasibility.status),
            ("warnings", f"{len(self.warnings)}" if self.warnings else ""),
        ]
        return [(name, said) for name, said in facts if said]

    def __repr__(self) -> str:
        return _display.line("Solution", *(f"{name} {said}" for name, said in self._facts()))

    def _repr_html_(self) -> str:
        return _display.table("Solution", self._facts(), below=" ".join(self.warnings))

    def logits(self, inputs: Any) -> Float[np.ndarray, "rows classes"]:
        """Logits of new rows in the form the data came in (a table's columns, raw images)."""
        return self.problem.logits(self.network, self.problem.encoder.transform(inputs))

    def predict_proba(self, inputs: Any) -> Float[np.ndarray, "rows classes"]:
        """Probabilities of the classes of new rows, in the order of ``problem.data.classes``."""
        return probabilities(self.logits(inputs))

    def predict(self, inputs: Any) -> Shaped[np.ndarray, " rows"]:
        """Names of the classes of new rows, in the type of the labels (``fb.data.as_labels``)."""
        return as_labels(self.problem.data.classes)[self.logits(inputs).argmax(-1)]

    def network_cost(self) -> masks.Cost:
        """Parameters and multiply-adds of one row, dense and under the masks."""
        problem, network = self.problem, self.reference.network
        sample = jax.ShapeDtypeStruct((1, *problem.inputs.shape[1:]), problem.encoder.dtype)
        return masks.cost(
            problem.model.apply,
            network.params,
            network.state,
            sample,
            problem.layers,
            self.masks,
            self.granularity,
        )

    def evaluate(self, role: str = "test") -> Evaluation:
        """The network on a role's rows: every group, gaps and constraints, beside the dense one.

        Args:
            role: fit, select, tune or test.

        Raises:
            ValueError: no such role, or certify, whose rows are kept for ``fb.certify``.
        """
        if role == "certify":
            raise ValueError(
                "certify rows are looked at once, for a certificate: fb.certify, or `fairbilevel "
                "certify RUN`"
            )
        _options.one_of("role", role, REPORTED_ROLES)
        rows = self.problem.roles[role]
        outcomes = self.problem.outcomes(self.network, self.reference, rows)
        return self.problem.evaluate(outcomes, rows, role)
