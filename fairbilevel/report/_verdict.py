"""The verdict in words: what was removed, what it cost, whom, and whether the limits hold.

Page and terminal share these sentences. They are written for a reader who has never heard of
pruning: no symbol, no jargon, and no claim beyond the rows that were measured.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from fairbilevel._display import printable
from fairbilevel.report._certificate import certificate_line
from fairbilevel.report._groups import GroupRow, group_rows
from fairbilevel.report._numbers import (
    MISSING,
    count,
    counted,
    dig,
    exact_points,
    mapping,
    number,
    percent,
    plain,
    points,
)

State = Literal["met", "doubtful", "missed", "none", "unmeasured", "diverged"]

ROLES = ("fit", "select", "tune", "test")

BASELINE = "Gradual magnitude"
"""Name of the comparison method: prune the smallest weights step by step, then fine-tune."""

_TITLES = {
    "accuracy-gap": ("Accuracy gap", "how far the groups’ accuracies may lie apart"),
    "degradation-gap": ("Degradation gap", "how far the groups’ losses of accuracy may lie apart"),
    "excess-accuracy-gap": (
        "Excess accuracy gap",
        "how much more accuracy a group may lose than the average row",
    ),
    "absolute-excess-accuracy-gap": (
        "Absolute excess accuracy gap",
        "how much more or less accuracy a group may lose than the average row",
    ),
    "worst-group-accuracy": (
        "Accuracy of the worst group",
        "the accuracy that every group must reach",
    ),
    "equalized-loss": ("Equalized loss", "how far a group’s loss may lie from the average loss"),
    "equal-opportunity": ("Equal opportunity", "how far true positive rates may lie apart"),
    "equalized-odds": ("Equalized odds", "how far true and false positive rates may lie apart"),
    "demographic-parity": ("Demographic parity", "how far rates of positive answers may lie apart"),
}


@dataclass(frozen=True)
class Limit:
    """One fairness constraint as measured: `violations[role]` is value minus tolerance.

    For a `floor` it is tolerance minus value. Without a `tolerance` groups have their own, and
    `values[role]` is what was measured.
    """

    name: str
    tolerance: float | None
    violations: dict[str, float | None]
    floor: bool = False
    values: dict[str, float | None] = field(default_factory=dict)
    by_group: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The constraint's name in words."""
        return _TITLES.get(self.name, (self.name.replace("-", " ").capitalize(), ""))[0]

    @property
    def meaning(self) -> str:
        """What the constraint bounds, or an empty string for an unknown constraint."""
        return _TITLES.get(self.name, ("", ""))[1]

    @property
    def in_points(self) -> bool:
        """Whether the constraint bounds a difference of rates (and not of losses)."""
        return "loss" not in self.name

    def met(self, role: str = "test") -> bool | None:
        """Whether the limit holds on `role`; `None` where it was not measured."""
        violation = self.violations.get(role)
        return None if violation is None else violation <= 1e-9

    def _written(self, tolerance: float) -> str:
        return exact_points(tolerance) if self.in_points else plain(tolerance)

    def tolerance_text(self) -> str:
        """The tolerance with its unit; where groups have their own, the commonest and the others
        by name, or the range of many."""
        unit = " points" if self.in_points else ""
        if self.tolerance is not None:
            return self._written(self.tolerance) + unit
        if not self.by_group:
            return "set by group"
        common, _ = Counter(self.by_group.values()).most_common(1)[0]
        others = {name: t for name, t in self.by_group.items() if t != common}
        if len(others) <= _MOST_NAMED:
            named = ", ".join(f"{self._written(t)} for “{name}”" for name, t in others.items())
            return f"{self._written(common)}{unit}" + (f", {named}" if named else "")
        low, high = min(self.by_group.values()), max(self.by_group.values())
        return f"{self._written(low)} to {self._written(high)}{unit} by group"

    def short_tolerance(self) -> str:
        """The tolerance, or the range of the groups' own, without a unit."""
        if self.tolerance is not None:
            return self._written(self.tolerance)
        if not self.by_group:
            return "by group"
        low, high = min(self.by_group.values()), max(self.by_group.values())
        return f"{self._written(low)}–{self._written(high)}"

    def slack(self, group: str) -> float:
        """What a group may lose under this limit: its tolerance, below a floor the rest."""
        own = self.tolerance if self.tolerance is not None else self.by_group.get(group)
        if own is None:
            return 1.0
        return 1 - own if self.floor else own

    def value_text(self, role: str) -> str:
        """The measured value on `role` without its unit.

        More decimals where rounding would hide on which side of the tolerance it lies.
        """
        violation, value = self.violations.get(role), self.values.get(role)
        if violation is None:
            return MISSING
        if self.tolerance is not None:
            value = self.tolerance + (-violation if self.floor else violation)
        if value is None:
            return MISSING
        if not self.in_points:
            return plain(value)
        limit = self.tolerance
        hidden = limit is not None and points(value) == points(limit) and abs(violation) > 1e-9
        return exact_points(value) if hidden else points(value)

    def sentence(self) -> str:
        """The constraint's outcome on test."""
        violation, met = self.violations.get("test"), self.met()
        if violation is None:
            return f"{self.title}: could not be measured on test."
        unit = " points" if self.in_points else ""
        distance = points(abs(violation)) if self.in_points else plain(abs(violation))
        if self.in_points and distance == "0.0" and abs(violation) > 1e-9:
            distance = "less than 0.1"
        outcome = f"met, with {distance}{unit} to spare"
        if abs(violation) <= 1e-9:
            outcome = "met exactly"
        elif not met:
            outcome = f"not met, {distance}{unit} {'under' if self.floor else 'over'}"
        text = self.value_text("test")
        value = "" if text == MISSING else f"{text}{unit} on test, "
        kind = "floor" if self.floor else "limit"
        return f"{self.title}: {value}{kind} {self.tolerance_text()}: {outcome}."


@dataclass(frozen=True)
class Verdict:
    """The whole verdict: a state, a headline, and the sentences below it.

    `caution` says what kind of numbers these are and always belongs beside the rest.
    """

    state: State
    headline: str
    sentences: tuple[str, ...]
    caution: str


_MOST_NAMED = 3
_NEARLY = 0.9  # share of one answer from which a model is looked at as nearly constant
_FINEST = 0.005  # a limit of nothing is not asked to be told to less than half a point


def limits(result: dict[str, Any]) -> list[Limit]:
    """The run's constraints with the largest violation on every role."""
    found = dig(result, "constraints")
    return [
        Limit(
            name=str(dig(item, "name") or "unnamed"),
            tolerance=number(item, "tolerance"),
            floor=dig(item, "floor") is True,
            violations={role: number(item, "largest_violation", role) for role in ROLES},
            values={role: number(item, "value", role) for role in ROLES},
            by_group={
                name: own
                for name in mapping(item, "group_tolerance")
                if (own := number(item, "group_tolerance", name)) is not None
            },
        )
        for item in (found if isinstance(found, list) else [])
    ]


def diverged(result: dict[str, Any]) -> bool:
    """Whether the run ended without a usable model."""
    return dig(result, "status") in ("diverged", "failed")


def test_rows(result: dict[str, Any]) -> float | None:
    """The number of rows in the test role."""
    rows = number(result, "data", "roles", "test")
    if rows is not None:
        return rows
    sizes = [row.rows for row in group_rows(result) if row.rows is not None]
    return sum(sizes) if sizes else None


def judge(result: dict[str, Any], certificate: dict[str, Any] | None = None) -> Verdict:
    """The verdict on a run, from its `result.json` and its `certificate.json` if it has one."""
    bounds = limits(result)
    state, headline = _headline(result, bounds)
    numbers = [_removed(result), _accuracy(result), _worth(result), _hardest_hit(result)]
    if state == "diverged":
        reason = dig(result, "diagnosis") or "No diagnosis was recorded."
        stopped = "All numbers describe the state in which the run stopped."
        sentences = [str(reason), stopped if any(numbers) else "", *numbers]
    else:
        held = [limit.sentence() for limit in bounds]
        sentences = [*numbers, *held, *_infeasible(result, bounds), _comparison(result)]
        proven = certificate_line(certificate)
        sentences += [f"Certificate: {proven}"] if proven else []
    # Without a model there is nothing to warn about.
    nothing = state == "diverged" and not any(numbers)
    caution = "" if nothing else printable(_caution(result, certificate))
    return Verdict(state, headline, tuple(printable(s) for s in sentences if s), caution)


def verdict(result: dict[str, Any], certificate: dict[str, Any] | None = None) -> str:
    """The verdict in plain words, one paragraph.

    A headline, then what was removed, accuracy before and after, the group that loses most, each
    fairness limit on test, and what was certified, or that nothing was; from the dictionaries of
    a run's `result.json` and, if there is one, `certificate.json`.
    """
    found = judge(result, certificate)
    return " ".join(part for part in (found.headline, *found.sentences, found.caution) if part)


def _headline(result: dict[str, Any], bounds: list[Limit]) -> tuple[State, str]:
    if diverged(result):
        if dig(result, "status") == "failed":
            return "diverged", "The run failed: there is no pruned model."
        return "diverged", "The run diverged: the pruned model must not be used."
    constant = dig(result, "constant_answer")
    if constant is not None:
        # Whatever its gaps are, they say nothing of fairness.
        return "missed", f"The pruned model answers “{printable(str(constant))}” for every row."
    nearly = _nearly_constant(result)
    if nearly:
        return "missed", nearly
    if not bounds:
        return "none", "No fairness limit was set for this run."
    missed = sum(limit.met() is False for limit in bounds)
    unknown = sum(limit.met() is None for limit in bounds)
    total = len(bounds)
    if missed:
        status = dig(result, "feasibility", "status")
        if total == 1:
            infeasible = status == "infeasible within this budget"
            how = "infeasible within this budget, and not met" if infeasible else "not met"
            return "missed", f"The fairness limit is {how} on test data."
        if missed == total:
            word = "Neither" if total == 2 else "None"
            return "missed", f"{word} of the {total} fairness limits is met on test data."
        verb = "is" if missed == 1 else "are"
        return "missed", f"{missed} of {total} fairness limits {verb} not met on test data."
    if unknown:
        what = "The fairness limit" if total == 1 else f"{unknown} of {total} fairness limits"
        return "unmeasured", f"{what} could not be measured on test data."
    which = {1: "The fairness limit is", 2: "Both fairness limits are"}
    said = f"{which.get(total, f'All {total} fairness limits are')} met on test data"
    doubts = [doubt for doubt in (_elsewhere(bounds), _too_few(result, bounds)) if doubt]
    if doubts:
        return "doubtful", f"{said}, but {', and '.join(doubts)}."
    return "met", f"{said}."


def _elsewhere(bounds: list[Limit]) -> str:
    """The other roles on which a limit is missed, if there are any."""
    roles = [r for r in ROLES if r != "test" and any(b.met(r) is False for b in bounds)]
    if not roles:
        return ""
    *first, last = roles
    return f"not on {', '.join(first)} and {last}" if first else f"not on {last}"


def _too_few(result: dict[str, Any], bounds: list[Limit]) -> str:
    """Whether one row of a counted group's test rows decides by itself, so that a limit on rates
    that is met says nothing; the smallest such group is named."""
    decided = [
        row
        for row in group_rows(result)
        if row.counted
        and row.rows
        and any(1 / row.rows > max(b.slack(row.name), _FINEST) for b in bounds if b.in_points)
    ]
    if not decided:
        return ""
    smallest = min(decided, key=lambda row: row.rows or 0.0)
    size = smallest.rows or 1.0
    return (
        f"“{printable(smallest.name)}” has {counted(size, 'row')} there, of which one is worth "
        f"{points(1 / size)} points: too few to tell"
    )


def _nearly_constant(result: dict[str, Any]) -> str:
    """A headline for a model that hardly ever gives any but one answer, though labels vary more."""
    share = number(result, "pruned", "test", "commonest_answer_share")
    labels = number(result, "pruned", "test", "majority_share")
    if share is None or labels is None or share < _NEARLY or 1 - share > (1 - labels) / 2:
        return ""
    answer = printable(dig(result, "pruned", "test", "commonest_answer"))
    return (
        f"The pruned model answers “{answer}” for {percent(share)} of the test rows: "
        "its gaps say little of fairness."
    )


def _removed(result: dict[str, Any]) -> str:
    achieved = number(result, "sparsity", "achieved")
    if achieved is None:
        return ""
    unit = str(dig(result, "sparsity", "unit") or "weight")
    prunable, kept = number(result, "sparsity", "prunable"), number(result, "sparsity", "kept")
    if prunable is None or kept is None:
        return f"{percent(achieved)} of the prunable {unit}s were removed."
    removed = prunable - kept
    said = (
        f"{percent(achieved)} of the prunable {unit}s were removed "
        f"({count(removed)} of {count(prunable)})."
    )
    of, share = dig(result, "sparsity", "of"), number(result, "sparsity", "achieved_of")
    if isinstance(of, str) and share is not None:
        return f"{percent(share)} of the {printable(of)} were removed. {said}"
    return said


def _accuracy(result: dict[str, Any]) -> str:
    before, after = (number(result, model, "test", "accuracy") for model in ("dense", "pruned"))
    if before is None or after is None:
        return ""
    rows = test_rows(result)
    where = "on test" if rows is None else f"on the {counted(rows, 'test row')}"
    change = after - before
    if points(change) == "0.0":
        return f"Accuracy {where} stayed at {percent(after)}."
    word = "loss" if change < 0 else "gain"
    return (
        f"Accuracy {where} went from {percent(before)} to {percent(after)}, "
        f"a {word} of {points(abs(change))} points."
    )


def _worth(result: dict[str, Any]) -> str:
    """What the accuracy is worth beside that of always giving one answer."""
    share = number(result, "pruned", "test", "majority_share")
    before, after = (
        number(result, model, "test", "balanced_accuracy") for model in ("dense", "pruned")
    )
    if share is None or after is None:
        return ""
    name = str(dig(result, "pruned", "test", "majority_class"))
    mean = percent(after) if before is None else f"{percent(before)} before, {percent(after)} after"
    return (
        f"Always answering the commonest class, “{name}”, would be right for {percent(share)}; the "
        f"mean over classes (balanced accuracy) is {mean}."
    )


def hardest_hit(result: dict[str, Any]) -> GroupRow | None:
    """The counted group with the largest excess accuracy gap on test, if one was measured."""
    rows = [row for row in group_rows(result) if row.counted and row.excess is not None]
    return rows[0] if len(rows) > 1 and rows[0].change is not None else None


def beside_average(excess: float | None) -> str:
    """`2.8 points more than average`, `as much as average`."""
    text = points(excess)
    if excess is None or text == "0.0":
        return "as much as average"
    return f"{points(abs(excess))} points {'more' if excess > 0 else 'less'} than average"


def _hardest_hit(result: dict[str, Any]) -> str:
    row = hardest_hit(result)
    if row is None or row.change is None:
        return ""
    numbers = f"from {percent(row.dense)} to {percent(row.pruned)}"
    if points(row.change) == "0.0":
        return f"No group loses accuracy; the group “{row.name}” fares worst and stays unchanged."
    if row.change > 0:
        return (
            f"No group loses accuracy; the group “{row.name}” gains least, "
            f"{points(row.change)} points ({numbers})."
        )
    return (
        f"The group “{row.name}” loses most: {points(-row.change)} points ({numbers}), "
        f"{beside_average(row.excess)}."
    )


def _infeasible(result: dict[str, Any], bounds: list[Limit]) -> list[str]:
    """Which limits could not be reached: groups, distances, and what was reached."""
    sentences = []
    by_name = {limit.name: limit for limit in bounds}
    listed = dig(result, "feasibility", "constraints")
    for found in listed if isinstance(listed, list) else []:
        limit = by_name.get(str(dig(found, "name")))
        if limit is None or dig(found, "status") != "infeasible within this budget":
            continue
        show = points if limit.in_points else plain
        unit = " points" if limit.in_points else ""
        side = "under" if limit.floor else "over"
        over = mapping(found, "over")
        far = sorted(over, key=lambda name: -(number(over, name) or 0.0))
        named = [f"“{n}” {show(number(over, n))}{unit} {side}" for n in far[:_MOST_NAMED]]
        more = [f"{count(len(far) - _MOST_NAMED)} more"] if len(far) > _MOST_NAMED else []
        groups = f" ({', '.join([*named, *more])})" if named else ""
        reached, ends = number(found, "tolerance_reached"), ""
        if reached is not None:
            best = "highest floor" if limit.floor else "smallest limit"
            ends = f"; the {best} it reached is {show(reached)}{unit}"
        sentences.append(
            f"{limit.title}: infeasible within this budget. The pressure on it grew and the "
            f"violation did not shrink on the rows that steer it{groups}{ends}."
        )
    return sentences


def _comparison(result: dict[str, Any]) -> str:
    accuracy = number(result, "baseline", "test", "accuracy")
    if accuracy is None:
        return ""
    text = f"For comparison, {BASELINE.lower()} pruning ends at {percent(accuracy)}"
    rows = [r for r in group_rows(result) if r.counted and r.baseline_excess is not None]
    if len(rows) < 2:
        return text + "."
    worst = max(rows, key=lambda row: row.baseline_excess or 0.0)
    if worst.dense is None or worst.baseline is None or worst.baseline >= worst.dense:
        return text + "."
    return (
        f"{text}; there the group “{worst.name}” loses most, "
        f"{points(worst.dense - worst.baseline)} points, {beside_average(worst.baseline_excess)}."
    )


def _caution(result: dict[str, Any], certificate: dict[str, Any] | None) -> str:
    rows = test_rows(result)
    where = "the test rows" if rows is None else counted(rows, "test row")
    text = f"No certificate has been computed: these are point estimates on {where}."
    if certificate_line(certificate):
        text = f"All but the certificate are point estimates on {where}."
    sizes = [r.rows for r in group_rows(result) if r.counted and r.rows]
    if len(sizes) < 2:
        return text
    smallest = min(sizes)
    return (
        f"{text} In the smallest counted group ({counted(smallest, 'row')}) "
        f"a single row is worth {points(1 / smallest)} points."
    )
