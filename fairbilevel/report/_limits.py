"""A fairness limit, and what was measured of it, in words."""

from collections import Counter
from dataclasses import dataclass

from fairbilevel._numbers import MISSING, decimal, exact_points, points
from fairbilevel.fairness import ConstraintEvaluation
from fairbilevel.records import ConstraintResult, Result
from fairbilevel.report._groups import on

ROLES = ("fit", "select", "tune", "test")


@dataclass(frozen=True)
class Limit:
    """One fairness constraint, and what was measured of it on every role."""

    bound: ConstraintResult
    measured: dict[str, ConstraintEvaluation]

    @property
    def title(self) -> str:
        """The constraint's name in words."""
        return self.bound.title

    @property
    def in_points(self) -> bool:
        """Whether the constraint bounds a share."""
        return self.bound.unit == "points"

    @property
    def unit(self) -> str:
        """What is printed behind a value: a blank and the unit, if there is one."""
        return f" {self.bound.unit}" if self.bound.unit else ""

    def _of(self, role: str) -> ConstraintEvaluation:
        return self.measured.get(role, ConstraintEvaluation())

    def met(self, role: str = "test") -> bool | None:
        """Whether the limit holds on `role`; `None` where it was not measured."""
        return self._of(role).met

    def _written(self, tolerance: float) -> str:
        return exact_points(tolerance) if self.in_points else decimal(tolerance)

    def tolerance_text(self) -> str:
        """The tolerance with its unit; where groups have their own, the commonest and the others
        by name, or the range of many."""
        unit, by_group = self.unit, self.bound.group_tolerance
        if self.bound.tolerance is not None:
            return self._written(self.bound.tolerance) + unit
        if not by_group:
            return "set by group"
        common, _ = Counter(by_group.values()).most_common(1)[0]
        others = {name: t for name, t in by_group.items() if t != common}
        if len(others) <= MOST_NAMED:
            named = ", ".join(f"{self._written(t)} for “{name}”" for name, t in others.items())
            return f"{self._written(common)}{unit}" + (f", {named}" if named else "")
        return f"{self.short_tolerance(' to ')}{unit} by group"

    def short_tolerance(self, to: str = "–") -> str:
        """The tolerance, or the range of the groups' own, without a unit."""
        by_group = self.bound.group_tolerance
        if self.bound.tolerance is not None:
            return self._written(self.bound.tolerance)
        if not by_group:
            return "by group"
        low, high = min(by_group.values()), max(by_group.values())
        return f"{self._written(low)}{to}{self._written(high)}"

    def slack(self, group: str) -> float:
        """What a group may lose under this limit: its tolerance, below a floor the rest."""
        own = self.bound.tolerance
        if own is None:
            own = self.bound.group_tolerance.get(group, 0.0 if self.bound.floor else 1.0)
        return 1 - own if self.bound.floor else own

    def value_text(self, role: str) -> str:
        """The measured value on `role` without its unit.

        More decimals where rounding would hide on which side of the tolerance it lies.
        """
        found, limit = self._of(role), self.bound.tolerance
        violation, value = found.violation, found.value
        if violation is None:
            return MISSING
        if value is None and limit is not None:
            value = limit + (-violation if self.bound.floor else violation)
        if value is None or not self.in_points:
            return decimal(value)
        hidden = limit is not None and points(value) == points(limit) and abs(violation) > 1e-9
        return exact_points(round(value, 5)) if hidden else points(value)

    def sentence(self) -> str:
        """The constraint's outcome on test."""
        violation, met = self._of("test").violation, self.met()
        if violation is None:
            return f"{self.title}: could not be measured on test."
        unit, floor = self.unit, self.bound.floor
        distance = points(abs(violation)) if self.in_points else decimal(abs(violation))
        if self.in_points and distance == "0.0" and abs(violation) > 1e-9:
            distance = "less than 0.1"
        outcome = f"met, with {distance}{unit} to spare"
        if abs(violation) <= 1e-9:
            outcome = "met exactly"
        elif not met:
            outcome = f"not met, {distance}{unit} {'under' if floor else 'over'}"
        text = self.value_text("test")
        value = "" if text == MISSING else f"{text}{unit} on test, "
        kind = "floor" if floor else "limit"
        return f"{self.title}: {value}{kind} {self.tolerance_text()}: {outcome}."


MOST_NAMED = 3


def limits(result: Result) -> list[Limit]:
    """The run's constraints with what was measured on every role."""

    def measured(name: str) -> dict[str, ConstraintEvaluation]:
        found = {role: on(result.pruned, role).constraints.get(name) for role in ROLES}
        return {role: one for role, one in found.items() if one is not None}

    return [Limit(bound, measured(bound.name)) for bound in result.constraints]
