"""What every solver and pruner hands back, and the last stretch they all share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from fairbilevel import masks
from fairbilevel.fairness import Constraint
from fairbilevel.masks import Budget, Masks
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.records import Activity
from fairbilevel.train._compiled import Costs
from fairbilevel.train._feasibility import Feasibility, Watch
from fairbilevel.train._feed import Feed
from fairbilevel.train._loop import FORWARD_COST, STREAM_REFRESH, WeightLoop, masked, run_weights
from fairbilevel.train._report import Best, Report
from fairbilevel.train._steps import DualState, WeightState

REFRESH_BATCHES = 4  # after the budget moved
RECALIBRATION_BATCHES = 20  # of the final network


@dataclass(frozen=True)
class Solution:
    """A sparse network and how it came about.

    Attributes:
        method: name of the solver or pruner.
        problem: what was solved.
        reference: the dense network and its outcomes.
        network: the sparse network, ``z = m * theta``; removed weights are exactly zero.
        masks: hard 0/1 masks by layer name.
        scores: final scores by layer name.
        multipliers: final multipliers by constraint name and label.
        granularity: ``"weight"`` or ``"filter"``.
        budget: what could be kept.
        sparsity: requested sparsity.
        costs: spent on pruning; the dense model's cost is in ``reference``.
        history: the records of ``metrics.jsonl``.
        warnings: sentences a reader should know.
        feasibility: how far the constraints got, if any were enforced.
        rollbacks: each time the loss diverged and the run went back: ``phase``, ``step``,
            ``back_to``, ``loss``, ``step_scale``.
    """

    method: str
    problem: FairPruningProblem
    reference: Reference
    network: Network
    masks: Masks
    scores: Masks
    multipliers: dict[str, dict[str, float]]
    granularity: str
    budget: Budget
    sparsity: float
    costs: Costs
    history: list[dict[str, Any]]
    warnings: tuple[str, ...] = ()
    feasibility: Feasibility | None = None
    rollbacks: tuple[dict[str, Any], ...] = ()

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

    def logits(self, inputs: Any) -> Float[np.ndarray, "rows classes"]:
        """Logits of new rows in the form the data came in (a table's columns, raw images)."""
        return self.problem.logits(self.network, self.problem.encoder.transform(inputs))

    def predict(self, inputs: Any) -> Int[np.ndarray, " rows"]:
        """Classes of new rows."""
        return self.logits(inputs).argmax(-1)

    def network_cost(self) -> masks.Cost:
        """Parameters and multiply-adds of one row, dense and under the masks."""
        problem, network = self.problem, self.reference.network
        sample = jax.ShapeDtypeStruct((1, *problem.inputs.shape[1:]), np.float32)
        return masks.cost(
            problem.model.apply,
            network.params,
            network.state,
            sample,
            problem.layers,
            self.masks,
            self.granularity,
        )

    def evaluate(self, role: str = "test") -> dict[str, Any]:
        """Performance, gaps and violations on a role's rows."""
        rows = self.problem.roles[role]
        return self.problem.summarize(
            self.problem.outcomes(self.network, self.reference, rows), rows
        )


def multiplier_record(
    constraints: Sequence[Constraint], duals: DualState, groups: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Multipliers by constraint name and label."""
    return {
        c.name: {n: float(v) for n, v in zip(c.labels(groups), np.asarray(m), strict=True)}
        for c, m in zip(constraints, duals.multipliers, strict=True)
    }


def fine_tune(
    loop: WeightLoop,
    feed: Feed,
    state: WeightState,
    hard: Masks,
    *,
    granularity: str,
    phase: str,
    rows: Int[np.ndarray, " n"],
    dual_rows: Int[np.ndarray, " duals"] | None,
    steps: int,
    report: Report,
    sparsity: float,
    steps_before: int = 0,
    watch: Watch | None = None,
    activity: Activity | None = None,
) -> tuple[Network, WeightState]:
    """Train the kept weights under fixed masks, stop early on tune, recalibrate statistics.

    Returns:
        The sparse network and the final state.

    Raises:
        ValueError: the masks cut the network: its logits are the same for every row.
    """
    problem = loop.steps.problem
    factors = masks.expand(hard, state.params, problem.layers, granularity)
    best = Best()
    if steps > 0:
        state = run_weights(
            loop,
            feed,
            state,
            lambda segment, current: factors,
            phase=phase,
            rows=rows,
            dual_rows=dual_rows,
            steps=steps,
            segments=min(10, steps),
            report=report,
            best=best,
            sparsity_at=lambda segment: sparsity,
            steps_before=steps_before,
            watch=watch,
            activity=activity,
        )
    if best.network is None:
        best.network = Network(masked(factors, state.params), state.model_state)
    batches = feed.take(rows, STREAM_REFRESH, RECALIBRATION_BATCHES)
    z = best.network.params
    network = Network(z, loop.refresh(best.network.state, z, batches))
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), 64)).astype(int)]
    logits = problem.logits(network, problem.inputs[sample])
    if len(sample) > 1 and not np.any(logits != logits[:1]):
        raise ValueError(
            f"sparsity {sparsity} cut the network: its logits no longer depend on the input; ask "
            "for less, or for the uniform budget"
        )
    return network, state


_top_k = jax.jit(lambda budget, scores, keep: budget.top_k(scores, keep), static_argnums=0)


def hard_masks(budget: Budget, scores: Masks, sparsity: float) -> Masks:
    """Exact masks of final scores."""
    return _top_k(budget, scores, masks.as_counts(budget.keep(sparsity)))


def recalibration_cost(network: Network) -> float:
    """Gradient evaluations that the last refresh of statistics costs."""
    return FORWARD_COST * RECALIBRATION_BATCHES if jax.tree.leaves(network.state) else 0.0
