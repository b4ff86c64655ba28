"""The trade-off: accuracy against the largest gap, along the run and where it ended."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fairbilevel.records import Result
from fairbilevel.report._groups import on
from fairbilevel.report._history import METHOD_PHASES, track
from fairbilevel.report._parts import Figure
from fairbilevel.report._read import number
from fairbilevel.report._verdict import BASELINE, diverged
from fairbilevel.report.charts import Spot, tradeoff_chart

_GAP = "max_excess_accuracy_gap"
_MOST_STEPS = 40


def tradeoff_section(result: Result, metrics: Sequence[dict[str, Any]]) -> list[Figure]:
    """Two pictures: every logged network on tune, and the final ones on test."""
    if diverged(result):
        return []
    return _on_test(result) + _on_tune(result, metrics)


def _ends(result: Result, role: str) -> list[tuple[str, int, Spot]]:
    """Dense, pruned and baseline, as far as they were measured on ``role``."""
    networks = (("Dense", result.dense), ("Pruned", result.pruned), (BASELINE, result.baseline))
    ends = []
    for look, (name, roles) in enumerate(networks):
        found = on(roles, role)
        gap = 0.0 if name == "Dense" else found.gaps.excess_accuracy.largest
        if found.accuracy is not None and gap is not None:
            ends.append((name, look, (gap, found.accuracy)))
    return ends if any(name == "Pruned" for name, _, _ in ends) else []


def _on_test(result: Result) -> list[Figure]:
    ends = _ends(result, "test")
    title = "Accuracy against the largest gap on test"
    draw = partial(tradeoff_chart, title=title, ends=ends, trails=[])
    text = "Final networks, on test."
    return [Figure("tradeoff-test", "Where it ended", text, draw)] if ends else []


def _on_tune(result: Result, metrics: Sequence[dict[str, Any]]) -> list[Figure]:
    trails = []
    for look, phases in ((1, METHOD_PHASES), (2, ("baseline",))):
        lines = track(metrics, *phases).lines
        lines = lines[:: -(-len(lines) // _MOST_STEPS) or 1]
        trail = [
            (gap, accuracy)
            for line in lines
            if (gap := number(line, "tune", _GAP)) is not None
            and (accuracy := number(line, "tune", "accuracy")) is not None
        ]
        if len(trail) > 1:
            trails.append((look, trail))
    ends = _ends(result, "tune")
    if not trails or not ends:
        return []
    title = "Accuracy against the largest gap on tune over the run"
    draw = partial(tradeoff_chart, title=title, ends=ends, trails=trails)
    text = "Every logged network, on tune; thicker dots are later, the large marks the final ones."
    return [Figure("tradeoff-tune", "How it got there", text, draw)]
