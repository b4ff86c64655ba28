"""The verdict in words: what was removed, what it cost, whom, and whether the limits hold.

Page and terminal share these sentences. They are written for a reader who has never heard of
pruning: no symbol, no jargon, and no claim beyond the rows that were measured.
"""

from dataclasses import dataclass
from typing import Any, Literal

from fairbilevel._display import printable
from fairbilevel._numbers import count, counted, decimal, percent, points
from fairbilevel.records import Result
from fairbilevel.report._certificate import certificate_line
from fairbilevel.report._groups import GroupRow, group_rows, on
from fairbilevel.report._limits import MOST_NAMED, ROLES, Limit, limits
from fairbilevel.report.charts import NETWORKS

State = Literal["met", "doubtful", "missed", "none", "unmeasured", "diverged"]


BASELINE = NETWORKS["baseline"][0]
"""Name of the comparison method: prune the smallest weights step by step, then fine-tune."""


@dataclass(frozen=True)
class Verdict:
    """The whole verdict: a state, a headline, and the sentences below it.

    `caution` says what kind of numbers these are and always belongs beside the rest.
    """

    state: State
    headline: str
    sentences: tuple[str, ...]
    caution: str


_NEARLY = 0.9  # share of one answer from which a model is looked at as nearly constant
_FINEST = 0.005  # a limit of nothing is not asked to be told to less than half a point


def test_rows(result: Result) -> int | None:
    """The number of rows in the test role."""
    rows = result.data.roles.get("test")
    return on(result.pruned).rows if rows is None else rows


def judge(result: Result, certificate: dict[str, Any] | None = None) -> Verdict:
    """The verdict on a run, from its `result.json` and its `certificate.json` if it has one."""
    bounds = limits(result)
    state, headline = _headline(result, bounds)
    numbers = [_removed(result), _accuracy(result), _worth(result), _hardest_hit(result)]
    if state == "diverged":
        reason = result.diagnosis or "No diagnosis was recorded."
        stopped = "All numbers describe the state in which the run stopped."
        sentences = [reason, stopped if any(numbers) else "", *numbers]
    else:
        held = [limit.sentence() for limit in bounds]
        sentences = [*numbers, *held, *_infeasible(result, bounds), _comparison(result)]
        proven = certificate_line(certificate)
        sentences += [f"Certificate: {proven}"] if proven else []
    # Without a model there is nothing to warn about.
    nothing = state == "diverged" and not any(numbers)
    caution = "" if nothing else printable(_caution(result, certificate))
    return Verdict(state, headline, tuple(printable(s) for s in sentences if s), caution)


def verdict(result: Result, certificate: dict[str, Any] | None = None) -> str:
    """The verdict in plain words, one paragraph.

    A headline, then what was removed, accuracy before and after, the group that loses most, each
    fairness limit on test, and what was certified, or that nothing was; from the dictionaries of
    a run's `result.json` and, if there is one, `certificate.json`.
    """
    found = judge(result, certificate)
    return " ".join(part for part in (found.headline, *found.sentences, found.caution) if part)


def _headline(result: Result, bounds: list[Limit]) -> tuple[State, str]:
    if not result.completed:
        if result.status == "failed":
            return "diverged", "The run failed: there is no pruned model."
        return "diverged", "The run diverged: the pruned model must not be used."
    constant = result.constant_answer
    if constant is not None:
        # Whatever its gaps are, they say nothing of fairness.
        return "missed", f"The pruned model answers “{printable(constant)}” for every row."
    nearly = _nearly_constant(result)
    if nearly:
        return "missed", nearly
    if not bounds:
        return "none", "No fairness limit was set for this run."
    missed = sum(limit.met() is False for limit in bounds)
    unknown = sum(limit.met() is None for limit in bounds)
    total = len(bounds)
    if missed:
        status = result.feasibility and result.feasibility.status
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


def _too_few(result: Result, bounds: list[Limit]) -> str:
    """Whether one row of a counted group's test rows decides by itself, so that a limit on rates
    that is met says nothing; the smallest such group is named."""
    decided = [
        row
        for row in group_rows(result)
        if row.pruned.counted
        and row.pruned.rows
        and any(
            1 / row.pruned.rows > max(b.slack(row.name), _FINEST) for b in bounds if b.in_points
        )
    ]
    if not decided:
        return ""
    smallest = min(decided, key=lambda row: row.pruned.rows or 0)
    size = smallest.pruned.rows or 1
    return (
        f"“{printable(smallest.name)}” has {counted(size, 'row')} there, of which one is worth "
        f"{points(1 / size)} points: too few to tell"
    )


def _nearly_constant(result: Result) -> str:
    """A headline for a model that hardly ever gives any but one answer, though labels vary more."""
    found = on(result.pruned)
    share, labels = found.commonest_answer_share, found.majority_share
    if share is None or labels is None or share < _NEARLY or 1 - share > (1 - labels) / 2:
        return ""
    answer = printable(found.commonest_answer)
    return (
        f"The pruned model answers “{answer}” for {percent(share)} of the test rows: "
        "its gaps say little of fairness."
    )


def _removed(result: Result) -> str:
    found = result.sparsity
    if found.achieved is None:
        return ""
    if found.prunable is None or found.kept is None:
        return f"{percent(found.achieved)} of the prunable {found.unit}s were removed."
    said = (
        f"{percent(found.achieved)} of the prunable {found.unit}s were removed "
        f"({count(found.prunable - found.kept)} of {count(found.prunable)})."
    )
    if found.of is not None and found.achieved_of is not None:
        return f"{percent(found.achieved_of)} of the {printable(found.of)} were removed. {said}"
    return said


def _accuracy(result: Result) -> str:
    before, after = on(result.dense).accuracy, on(result.pruned).accuracy
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


def _worth(result: Result) -> str:
    """What the accuracy is worth beside that of always giving one answer."""
    found, before = on(result.pruned), on(result.dense).balanced_accuracy
    share, after = found.majority_share, found.balanced_accuracy
    if share is None or after is None:
        return ""
    mean = percent(after) if before is None else f"{percent(before)} before, {percent(after)} after"
    return (
        f"Always answering the commonest class, “{found.majority_class}”, would be right for "
        f"{percent(share)}; the mean over classes (balanced accuracy) is {mean}."
    )


def hardest_hit(result: Result) -> GroupRow | None:
    """The counted group with the largest excess accuracy gap on test, if one was measured."""
    measured = [row for row in group_rows(result) if row.pruned.excess is not None]
    rows = [row for row in measured if row.pruned.counted]
    return rows[0] if len(rows) > 1 and rows[0].pruned.change is not None else None


def beside_average(excess: float | None) -> str:
    """`2.8 points more than average`, `as much as average`."""
    text = points(excess)
    if excess is None or text == "0.0":
        return "as much as average"
    return f"{points(abs(excess))} points {'more' if excess > 0 else 'less'} than average"


def _hardest_hit(result: Result) -> str:
    row = hardest_hit(result)
    if row is None or row.pruned.change is None:
        return ""
    change = row.pruned.change
    numbers = f"from {percent(row.pruned.dense_accuracy)} to {percent(row.pruned.accuracy)}"
    if points(change) == "0.0":
        return f"No group loses accuracy; the group “{row.name}” fares worst and stays unchanged."
    if change > 0:
        return (
            f"No group loses accuracy; the group “{row.name}” gains least, "
            f"{points(change)} points ({numbers})."
        )
    return (
        f"The group “{row.name}” loses most: {points(-change)} points ({numbers}), "
        f"{beside_average(row.pruned.excess)}."
    )


def _infeasible(result: Result, bounds: list[Limit]) -> list[str]:
    """Which limits could not be reached: groups, distances, and what was reached."""
    sentences = []
    by_name = {limit.bound.name: limit for limit in bounds}
    for found in result.feasibility.constraints if result.feasibility else []:
        limit = by_name.get(found.name)
        if limit is None or found.status != "infeasible within this budget":
            continue
        show, unit = points if limit.in_points else decimal, limit.unit
        side = "under" if limit.bound.floor else "over"
        far = sorted(found.over, key=lambda name: -found.over[name])
        named = [f"“{n}” {show(found.over[n])}{unit} {side}" for n in far[:MOST_NAMED]]
        more = [f"{count(len(far) - MOST_NAMED)} more"] if len(far) > MOST_NAMED else []
        groups = f" ({', '.join([*named, *more])})" if named else ""
        reached, ends = found.tolerance_reached, ""
        if reached is not None:
            best = "highest floor" if limit.bound.floor else "smallest limit"
            ends = f"; the {best} it reached is {show(reached)}{unit}"
        sentences.append(
            f"{limit.title}: infeasible within this budget. The pressure on it grew and the "
            f"violation did not shrink on the rows that steer it{groups}{ends}."
        )
    return sentences


def _comparison(result: Result) -> str:
    accuracy = on(result.baseline).accuracy
    if accuracy is None:
        return ""
    text = f"For comparison, {BASELINE.lower()} pruning ends at {percent(accuracy)}"
    rows = [
        (row.baseline.excess, row)
        for row in group_rows(result)
        if row.pruned.counted and row.baseline.excess is not None
    ]
    if len(rows) < 2:
        return text + "."
    excess, worst = max(rows, key=lambda found: found[0])
    if worst.baseline.change is None or worst.baseline.change >= 0:
        return text + "."
    return (
        f"{text}; there the group “{worst.name}” loses most, "
        f"{points(-worst.baseline.change)} points, {beside_average(excess)}."
    )


def _caution(result: Result, certificate: dict[str, Any] | None) -> str:
    rows = test_rows(result)
    where = "the test rows" if rows is None else counted(rows, "test row")
    text = f"No certificate has been computed: these are point estimates on {where}."
    if certificate_line(certificate):
        text = f"All but the certificate are point estimates on {where}."
    inside = [row.pruned for row in group_rows(result) if row.pruned.counted]
    sizes = [group.rows for group in inside if group.rows]
    if len(sizes) < 2:
        return text
    smallest = min(sizes)
    return (
        f"{text} In the smallest counted group ({counted(smallest, 'row')}) "
        f"a single row is worth {points(1 / smallest)} points."
    )
