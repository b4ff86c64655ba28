"""What the runs of all methods share: stage by stage, from where a former one stopped."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from fairbilevel import _trees
from fairbilevel.masks import Budget
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.records import Activity, Checkpoints
from fairbilevel.train._compiled import Costs
from fairbilevel.train._divergence import DivergenceError, Retreats
from fairbilevel.train._expected import data_expected, digest, settings
from fairbilevel.train._feed import Feed
from fairbilevel.train._report import Callback, Report
from fairbilevel.train._solution import Solution


class StagedRun(ABC):
    """One run of a method: ``init``, then ``step`` for each of ``stages``, then ``finish``.

    ``run`` does all of it, and goes on from checkpoints where there are any. Subclasses say what a
    stage is; what they change beside the state itself, ``place`` and ``go_to`` tell and restore.

    Args:
        options: of the method; a dataclass with ``sparsity``, ``granularity`` and ``budget``.
        problem: what to prune.
        reference: the dense model.
        callback: receives one record per compiled call.
        checkpoints: where checkpoints go; ``None`` writes none.

    Raises:
        ValueError: the sparsity leaves a layer empty where that cuts the network.
    """

    stages: int

    def __init__(
        self,
        options: Any,
        problem: FairPruningProblem,
        reference: Reference,
        callback: Callback,
        checkpoints: Checkpoints | None,
    ):
        self.options, self.problem, self.reference = options, problem, reference
        self.checkpoints = checkpoints
        self.budget = Budget.of(problem.layers, options.granularity, options.budget)
        self.budget.keep(options.sparsity)  # refuses what cannot be reached, before any work
        self.costs = Costs()
        self.report = Report(callback, self.costs)
        self.feed: Feed
        self.stage = 0
        self.retreats = Retreats()
        self._expected: dict[str, Any] | None = None

    @abstractmethod
    def init(self) -> Any:
        """The state before the first stage; compiles nothing yet."""

    @abstractmethod
    def step(self, state: Any) -> Any:
        """One stage; ``state`` is donated."""

    @abstractmethod
    def finish(self, state: Any) -> Solution:
        """From the last stage's state to the solution."""

    def run(self) -> Solution:
        """All stages and the end, from the newest checkpoint on.

        Raises:
            DivergenceError: the loss is not finite or exploded, with smaller steps too.
            Interrupted: a stop was asked, and a checkpoint written.
            CheckpointError: checkpoints of another run, or one that cannot be written.
        """
        state = self.init()
        activity = self.activity("stages")

        def like(about: dict[str, Any]) -> Any:
            return self.problem.placement.place(self.like(state, about))

        if activity is not None and (found := activity.resume(like)):
            state, about = found
            self.feed.restore(about["feed"])
            self.report.restore(about["report"])
            self.go_to(about["place"])
            if self.retreats.made:
                self.use_smaller_steps()
        while self.stage < self.stages:
            state = self.step(state)
            if activity is not None:
                activity.save(
                    self.stage,
                    functools.partial(_same, state),
                    lambda: {
                        "feed": self.feed.state(),
                        "report": self.report.state(),
                        "place": self.place(),
                    },
                    last=self.stage == self.stages,
                )
        return self.finish(state)

    def like(self, state: Any, about: dict[str, Any]) -> Any:
        """The structure of a stored state, given that before the first stage and what was stored
        beside it."""
        return state

    def activity(self, name: str) -> Activity | None:
        """Checkpoints of a part of the run, if there are to be any."""
        if self.checkpoints is None:
            return None
        if self._expected is None:
            self._expected = {
                **data_expected(self.problem),
                "dense model": digest(self.reference.network),
                "method": self.options.label,
                **settings(self.options),
            }
        return self.checkpoints.activity(name, self._expected)

    def place(self) -> dict[str, Any]:
        """What the run has changed beside the state, plain JSON."""
        return {"stage": self.stage, "retreats": self.retreats.made}

    def go_to(self, place: dict[str, Any]) -> None:
        """Be where ``place`` was told."""
        self.stage, self.retreats.made = place["stage"], place["retreats"]

    @abstractmethod
    def use_smaller_steps(self) -> None:
        """Scale the steps of a stage by ``retreats.scale``; asked for by ``retrying`` alone."""

    def retrying(
        self,
        state: Any,
        attempt: Callable[[Any], Any],
        network: Callable[[Any], Network],
        first_step: int,
    ) -> Any:
        """``attempt(state)``; where it diverges back to ``state`` and on with smaller steps.

        Args:
            state: start; donated to the attempt.
            attempt: the work.
            network: the network of a state, the last good one where smaller steps do not help.
            first_step: of the phase, where the attempt begins.

        Raises:
            DivergenceError: the retreats are used up.
        """
        while True:
            # New arrays: what is donated is gone afterwards.
            good, feed, place = _trees.copy(state), self.feed.state(), self.place()
            try:
                return attempt(state)
            except DivergenceError as error:
                error.last_good = network(good)
                self.report.rollbacks.append(self.retreats.retreat(error, first_step))
                self.feed.restore(feed)
                self.go_to({**place, "retreats": self.retreats.made})
                self.use_smaller_steps()
                state = good


def _same(state: Any) -> Any:
    return state
