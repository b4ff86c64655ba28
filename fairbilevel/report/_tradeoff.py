"""The trade-off: accuracy against the largest gap, along the run and where it ended."""

from collections.abc import Sequence
from typing import Any

from fairbilevel.records import Result
from fairbilevel.report._groups import on
from fairbilevel.report._history import METHOD_PHASES, track
from fairbilevel.report._parts import Figure
from fairbilevel.report._read import number
from fairbilevel.report._verdict import diverged
from fairbilevel.report.charts import NETWORKS, Spot, tradeoff_chart

_GAP = "max_excess_accuracy_gap"
_MOST_STEPS = 40


def tradeoff_section(result: Result, metrics: Sequence[dict[str, Any]]) -> list[Figure]:
    """Two pictures: every logged network on tune, and the final ones on test."""
    if diverged(result):
        return []
    trails = {}
    for network, phases in (("pruned", METHOD_PHASES), ("baseline", ("baseline",))):
        lines = track(metrics, *phases).lines
        lines = lines[:: -(-len(lines) // _MOST_STEPS) or 1]
        trail = [
            (gap, accuracy)
            for line in lines
            if (gap := number(line, "tune", _GAP)) is not None
            and (accuracy := number(line, "tune", "accuracy")) is not None
        ]
        if len(trail) > 1:
            trails[network] = trail
    figures, title = [], "Accuracy against the largest gap on"
    if ends := _ends(result, "test"):
        look = {"title": f"{title} test", "ends": ends, "trails": {}}
        text = "Final networks, on test."
        figures.append(Figure("tradeoff-test", "Where it ended", text, tradeoff_chart, look))
    if trails and (ends := _ends(result, "tune")):
        look = {"title": f"{title} tune over the run", "ends": ends, "trails": trails}
        text = "Every logged network, on tune; thicker dots are later, the large marks final ones."
        figures.append(Figure("tradeoff-tune", "How it got there", text, tradeoff_chart, look))
    return figures


def _ends(result: Result, role: str) -> dict[str, Spot]:
    """Dense, pruned and baseline, as far as they were measured on ``role``."""
    ends = {}
    for network in NETWORKS:
        found = on(getattr(result, network), role)
        gap = 0.0 if network == "dense" else found.gaps.excess_accuracy.largest
        if found.accuracy is not None and gap is not None:
            ends[network] = gap, found.accuracy
    return ends if "pruned" in ends else {}
