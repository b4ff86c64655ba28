"""Does the solver win on rows that nobody has seen, and what does its mask search add?

    python -m experiments.claim --data path/to/folder
    python -m experiments.claim --data path/to/folder --only gender-300

Faces and objects, single weights and filters, 300 and 1,000 gradient evaluations, two rounds of
five folds: every row is tested once a round. Rivals stand twice, as published and strengthened by
what this project adds to training (distillation from the dense model, dense-matched output biases):
what the solver gains over the first is the system, over the second its mask search and multipliers.
Co-primary are accuracy and the smallest tolerance of excess accuracy gaps that the test rows of all
folds certify together, tested by the jackknife over folds. (Until two settings had been seen its
test was one over the folds' own tolerances, which are mostly the width of few rows.) Choices belong
on tune. Writes ``results/claim/``; goes on where it stopped.

Folds, weights and batches are of seed 10: defaults were chosen on the folds of seed 0. One was
changed, on these again, after the table of filters at 300 evaluations had been seen: where their
scores start. The former solver stands in the tables of filters too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments._comparison import run_presets
from experiments._presets import PRESETS, PUBLISHED, SOLVER
from experiments._summaries import Summary
from experiments._write import gain, interval, points
from fairbilevel import _numbers, comparison

# A rival is near where its accuracy is within a point of the solver's; the margins of the claims.
NEAR, NOT_WORSE, STRONG_NOT_WORSE, TIGHTER, STRONG_WIDER = 0.01, 0.002, 0.003, 0.8, 1.05


def _lines(summary: Summary) -> dict[str, dict[str, Any]]:
    return {line["method"]: line for line in summary["lines"]}


def _best(lines: Mapping[str, dict[str, Any]], names: Sequence[str]) -> str:
    """The most accurate rival on test: chosen on the rows that judge, in its own favour."""
    return max(names, key=lambda name: lines[name]["test_accuracy"])


def _tightest(lines: Mapping[str, dict[str, Any]], names: Sequence[str]) -> str | None:
    """Of the rivals within a point of the solver, the one whose rows certify most; likewise."""
    least = lines[SOLVER]["test_accuracy"] - NEAR
    near = [name for name in names if lines[name]["test_accuracy"] >= least]
    return min(near, key=lambda name: lines[name]["certified_tolerance"], default=None)


def judged(summary: Summary, names: Sequence[str]) -> dict[str, Any]:
    """The solver beside the best of some rivals in one setting.

    Returns:
        Names of the rivals, the difference of accuracies, the ratio of certified tolerances (the
        rival's is 1), and both by repetition: differences, and pseudo-values of the logarithm.
    """
    lines = _lines(summary)
    accurate, tight = _best(lines, names), _tightest(lines, names)
    own = lines[SOLVER]

    def each(name: str, key: str) -> np.ndarray:
        return np.asarray(lines[name][key], float)

    found: dict[str, Any] = {
        "accurate": accurate,
        "tight": tight,
        "accuracy": own["test_accuracy"] - lines[accurate]["test_accuracy"],
        "accuracy_each": each(SOLVER, "test_accuracy_each") - each(accurate, "test_accuracy_each"),
    }
    if tight is not None:
        found["ratio"] = own["certified_tolerance"] / lines[tight]["certified_tolerance"]
        # A fold's own tolerance is mostly the width of few rows: the claim is of all rows together.
        found["ratio_each"] = comparison.pseudo_values(
            np.log(found["ratio"]),
            np.log(
                each(SOLVER, "certified_tolerance_without")
                / each(tight, "certified_tolerance_without")
            ),
        )
    return found


def _averaged(summaries: Sequence[Summary], values: Sequence[np.ndarray]) -> dict[str, Any]:
    """A difference averaged over settings, tested over repetitions."""
    count = min(len(v) for v in values)
    test, train = (
        np.mean([sum(s["roles"][r] for r in roles) for s in summaries])
        for roles in (("test",), ("fit", "select"))
    )
    mean = np.mean([v[:count] for v in values], 0)
    return comparison.corrected_t(mean, int(test), int(train))


def reading(summaries: Mapping[str, Summary]) -> list[str]:
    """What the tables say of the claims, computed from them."""
    out = [
        "Rivals are chosen on the test rows themselves, which favours them. Certified: smallest "
        "tolerance, in points; the ratio is to the tightest rival within a point of accuracy.",
        "",
    ]
    admitted = {
        name: summary
        for name, summary in summaries.items()
        if all(floor["admitted"] for floor in summary["admitted"].values())
    }
    for title, names, margin, widest in (
        ("as published", PUBLISHED, NOT_WORSE, TIGHTER),
        ("strengthened", None, STRONG_NOT_WORSE, STRONG_WIDER),
    ):
        out += [
            f"## Beside rivals {title}",
            "",
            "| setting | solver: accuracy | churn | certified | most accurate rival | difference | "
            "tightest rival near | certified | ratio | holds |",
            "|---" * 10 + "|",
        ]
        kept: dict[str, dict[str, Any]] = {}
        for name, summary in summaries.items():
            lines = _lines(summary)
            rivals = names or [method for method in lines if "match_dense=true" in method]
            found = judged(summary, rivals)
            own, tight = lines[SOLVER], found["tight"]
            ratio = found.get("ratio")
            holds = found["accuracy"] >= -margin and (ratio is None or ratio <= widest)
            mark = ("yes" if holds else "no") if name in admitted else "not admitted"
            out.append(
                f"| {name} | {points(own['test_accuracy'])} | {points(own['churn'])} | "
                f"{points(own['certified_tolerance'])} | {found['accurate']} | "
                f"{gain(found['accuracy'])} | {tight or 'none'} | "
                f"{points(lines[tight]['certified_tolerance']) if tight else _numbers.MISSING} | "
                f"{_numbers.MISSING if ratio is None else f'{ratio:.2f}'} | {mark} |"
            )
            if name in admitted:
                kept[name] = found
        out.append("")
        if kept:
            out += [*_verdict(admitted, kept), ""]
    return out


def _verdict(admitted: Mapping[str, Summary], kept: Mapping[str, dict[str, Any]]) -> list[str]:
    accuracy = _averaged([admitted[n] for n in kept], [f["accuracy_each"] for f in kept.values()])
    tight = {n: f["ratio_each"] for n, f in kept.items() if "ratio_each" in f}
    tests = {"accuracy": accuracy}
    if tight:
        tests["tolerance"] = _averaged([admitted[n] for n in tight], list(tight.values()))
    known = [t["p"] for t in tests.values() if t["p"] is not None]
    adjusted = dict(zip(tests, comparison.holm(known), strict=True)) if known else {}
    said = [
        f"Averaged over {len(kept)} admitted settings, unadjusted 95 % intervals: accuracy "
        f"{interval(accuracy)} points"
    ]
    if tight:
        told = interval(tests["tolerance"], lambda v: f"{np.exp(v):.2f}")
        said.append(f"certified tolerance {told} times the rival's")
    p = ", ".join(f"{name} p {value:.3f}" for name, value in adjusted.items())
    return [f"{'; '.join(said)}. After Holm: {p}."]


if __name__ == "__main__":
    run_presets(
        "claim",
        __doc__,
        PRESETS["claim"],
        reading,
        {"test_accuracy": "accuracy on test (%)", "certified_tolerance": "certified (points)"},
    )
