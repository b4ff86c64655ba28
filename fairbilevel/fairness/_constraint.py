"""What every fairness constraint is: measured quantities, tolerances, and weights of harms.

A constraint bounds means over groups (or over a group's rows of one label), so its Lagrangian term
is a weighted sum of mean harms: ``sum_g c_g(multipliers) * harm_g``. The solver only needs the
``c``; one backward pass then serves any number of constraints and groups.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fairbilevel import _options
from fairbilevel.fairness._statistics import GroupStatistics
from fairbilevel.fairness._surrogate import SURROGATES, Surrogate

# One for all, one a group in their order, or by name ("*" stands for the groups not named).
Tolerance = float | Mapping[str, float] | Sequence[Any] | np.ndarray

Duals = Float[Array, " multipliers"]  # one entry a multiplier of the constraint
Limits = Float[Any, " multipliers"]
Groups = Float[Array, " groups"]
Weights = Float[Array, "..."]  # by group, or by group and label
Logits = Float[Array, "rows classes"]
Rows = Float[Array, " rows"]
Numbers = Int[Array, " rows"]  # of the rows' labels or groups


@dataclass(frozen=True)
class Constraint(ABC):
    """A bound on a disparity between groups.

    A new constraint says what is ``measured`` and how its multipliers weigh the groups' harms
    (``coefficients``), and for reports its ``title``, ``meaning`` and ``unit``; all else follows.

    Attributes:
        tolerance: the bound, a fraction (0.02 is two points; nats for losses). One number, one for
            each group in their order, or a mapping by name in which ``"*"`` stands for the rest.
        surrogate: which smooth harm stands for the measured quantity in gradients.

    Raises:
        ValueError: a tolerance that is no number, negative, NaN or, of shares, above 1; or an
            unknown surrogate.
    """

    tolerance: Tolerance = 0.02
    surrogate: str = "loss"

    name: ClassVar[str]
    title: ClassVar[str] = ""  # the name in words; made of it where empty
    meaning: ClassVar[str] = ""  # what is bounded, for a reader of reports
    unit: ClassVar[str] = ""  # "points" where a share is bounded, else what reports print behind it
    signed: ClassVar[bool] = False  # multipliers may be negative
    monotone: ClassVar[bool] = False  # multipliers never fall
    floor: ClassVar[bool] = False  # the tolerance bounds from below: larger is better
    of_shares: ClassVar[bool] = False  # a difference of shares is bounded, never above 1
    of_cells: ClassVar[bool] = False  # answers have to be counted by group and label

    def __post_init__(self) -> None:
        given = self.tolerance
        if isinstance(given, Mapping):
            # Pairs, so that the constraint stays immutable and can be hashed.
            object.__setattr__(self, "tolerance", tuple((str(k), v) for k, v in given.items()))
        elif isinstance(given, (tuple, list, np.ndarray)):
            object.__setattr__(self, "tolerance", tuple(given))
        for value in self._numbers():
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
                raise ValueError(
                    f"the tolerance of {self.name} is a number such as 0.02, one a group or a "
                    f"mapping by group, got {value!r}"
                )
            self._check_tolerance(value)
        self._check_surrogate()

    def _numbers(self) -> list[float]:
        given = self.tolerance
        if isinstance(given, tuple):
            return [v[1] if isinstance(v, tuple) else v for v in given]
        return [given]  # type: ignore[list-item]

    def _check_tolerance(self, value: float) -> None:
        if not value >= 0:
            raise ValueError(f"the tolerance of {self.name} must be at least 0, got {value}")
        if self.of_shares and value > 1:
            raise ValueError(
                f"the tolerance of {self.name} is a fraction of at most 1, got {value}: "
                f"{value:g} points are {value / 100:g}"
            )

    def _check_surrogate(self) -> None:
        _options.one_of("surrogate", self.surrogate, SURROGATES)

    def bound_to(self, groups: Sequence[str], classes: Sequence[str]) -> Constraint:
        """The same constraint for these groups and classes: tolerances in the groups' order.

        Raises:
            ValueError: tolerances for other groups, or not for all of them.
        """
        given = self.tolerance
        if not isinstance(given, tuple):
            return self
        if not all(isinstance(v, tuple) for v in given):
            if len(given) != len(groups):
                raise ValueError(
                    f"{self.name} has {len(given)} tolerances for {len(groups)} groups: give one "
                    "number, or one a group"
                )
            return self
        named = dict(given)
        rest = named.pop("*", None)
        for name in named:
            if name not in groups:
                raise ValueError(
                    f"{self.name} has a tolerance for {name!r}, which is no group: the groups are "
                    f"{', '.join(groups)}"
                )
        missing = [g for g in groups if g not in named]
        if missing and rest is None:
            raise ValueError(
                f"{self.name} has no tolerance for {missing[0]!r}: name every group, or give '*' "
                "for the rest"
            )
        return dataclasses.replace(self, tolerance=tuple(named.get(g, rest) for g in groups))

    @property
    def called(self) -> str:
        """``title``, or the name in words."""
        return self.title or self.name.replace("-", " ").capitalize()

    @property
    def common(self) -> float | None:
        """The tolerance of all groups; ``None`` where they have their own."""
        return None if isinstance(self.tolerance, tuple) else float(self.tolerance)  # type: ignore[arg-type]

    @property
    def harm(self) -> Surrogate:
        """The smooth harm."""
        return SURROGATES[self.surrogate]

    @property
    def ratio(self) -> float:
        """How steep the harm may be beside the loss (``Surrogate.ratio``)."""
        return self.harm.ratio

    def labels(self, groups: Sequence[str]) -> list[str]:
        """One name for each multiplier; the groups are the fastest index."""
        return list(groups)

    @abstractmethod
    def measured(self, stats: GroupStatistics) -> Duals:
        """What the tolerance bounds, for each multiplier; ``-inf`` for groups not claimed."""

    @abstractmethod
    def coefficients(self, multipliers: Duals, share: Weights, stats: GroupStatistics) -> Weights:
        """Weights ``c_g`` of the groups' mean harms in the Lagrangian.

        Args:
            multipliers: current values.
            share: the groups' shares in the role whose loss is weighed (``[groups, classes]`` for
                a constraint ``of_cells``).
            stats: what the multipliers last saw (a sign is needed by some constraints).
        """

    def limits(self, groups: int) -> Float[np.ndarray, " multipliers"]:
        """What bounds each entry of ``measured`` from above: the tolerance, one a multiplier.

        An argument of what is compiled, so that one program serves many tolerances.
        """
        given = np.asarray(self.tolerance, np.float64)
        size = len(self.labels([str(g) for g in range(groups)]))
        return np.tile(given, size // max(given.size, 1))

    @property
    def structure(self) -> Constraint:
        """The same constraint whatever its tolerance: what programs are compiled for."""
        return dataclasses.replace(self, tolerance=0.0)

    def value(self, stats: GroupStatistics) -> Float[Array, ""]:
        """The disparity as reported: the largest measured; 0 where no group is claimed."""
        measured = self.measured(stats)
        top = jnp.max(measured)
        return jnp.where(jnp.isfinite(top), top, 0)

    def distances(self, stats: GroupStatistics, limits: Limits | None = None) -> Duals:
        """Measured minus limit: what is above 0 violates; ``-inf`` for groups not claimed.

        Args:
            stats: what was measured.
            limits: in place of the constraint's own; may be traced.
        """
        if limits is None:
            limits = self.limits(stats.share.shape[0])
        return self.measured(stats) - jnp.asarray(limits, stats.accuracy.dtype)

    def violations(
        self, stats: GroupStatistics, limits: Limits | None = None, multipliers: Duals | None = None
    ) -> Duals:
        """What moves each multiplier: measured minus limit, 0 for groups not claimed.

        Args:
            stats: what was measured.
            limits: in place of the constraint's own; may be traced.
            multipliers: where they are now, for those that may have either sign.
        """
        distances = self.distances(stats, limits)
        return jnp.where(jnp.isfinite(distances), distances, 0)

    def term(self, weight: Weights, logits: Logits, v: Rows, y: Numbers, group: Numbers) -> Rows:
        """What each row adds to the objective.

        Args:
            weight: of the rows' harms by group, or by group and label.
            logits: of the rows.
            v: their margins.
            y: their labels.
            group: their groups.
        """
        return look_up(weight, group, y) * self.harm.harm(v)

    def opposition(self, weight: Weights) -> Weights:
        """How much of the loss of each group's (or cell's) rows ``weight`` may take away."""
        return jnp.maximum(-weight, 0)

    def relieved(self, weight: Weights, factor: Weights | float) -> Weights:
        """``weight`` with what opposes the loss scaled by ``factor``."""
        return jnp.where(weight < 0, weight * factor, weight)


def look_up(weight: Weights, group: Numbers, y: Numbers) -> Weights:
    """Each row's entry of a table by group, or by group and label."""
    return weight[group] if weight.ndim == 1 else weight[group, y]


def claimed_only(values: Float[Array, "... groups"], claimed: Bool[Array, "... groups"]) -> Duals:
    """Values in a row, ``-inf`` for those not claimed."""
    return jnp.where(claimed, values, -jnp.inf).reshape(-1)


def against_average(weight: Groups, share: Groups) -> Groups:
    """Coefficients of ``sum_g w_g (harm_g - harm)`` with ``harm = sum_h share_h harm_h``."""
    return weight - share * jnp.sum(weight)


def against_rest(
    weight: Float[Array, "... groups"], share: Float[Array, "... groups"]
) -> Float[Array, "... groups"]:
    """Coefficients of ``sum_g w_g (harm_g - harm_{not g})``."""
    outside = weight / jnp.maximum(1 - share, 1e-6)
    return weight - share * (jnp.sum(outside, -1, keepdims=True) - outside)


def distance_to_extremes(
    values: Float[Array, "... groups"], claimed: Bool[Array, "... groups"]
) -> Duals:
    """``[largest - q_g, q_g - smallest]`` over the groups claimed, in a row."""
    low = jnp.min(jnp.where(claimed, values, jnp.inf), -1, keepdims=True)
    high = jnp.max(jnp.where(claimed, values, -jnp.inf), -1, keepdims=True)
    return claimed_only(jnp.stack([high - values, values - low]), jnp.stack([claimed, claimed]))
