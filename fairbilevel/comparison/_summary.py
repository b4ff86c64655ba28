"""From the rows of every repetition to one line a method and sparsity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fairbilevel import fairness
from fairbilevel.comparison import _statistics as statistics
from fairbilevel.comparison._design import OUTCOME_ROLES, ROLES, Comparison, run_key
from fairbilevel.comparison._files import Record, Rows, read_floor
from fairbilevel.comparison._sweep import ComparisonSweep
from fairbilevel.fairness import Outcomes
from fairbilevel.sweeps import failures

LEAST_FOR_CLAIMS = 10
PRIMARY = ("accuracy", "certified_tolerance")  # what claims are made of

Runs = list[tuple[str, float]]


def read_repetitions(sweep: ComparisonSweep) -> tuple[list[Record], list[Rows], Runs]:
    """Records and row outcomes of the repetitions that hold every run, and the runs.

    Repetitions that are not finished are left out, and so are methods at a sparsity that failed and
    have an outcome nowhere: they would leave out all repetitions.
    """
    found = [sweep.gathered(*repetition) for repetition in sweep.comparison.repetitions]
    found = [(record, rows) for record, rows in found if record]
    failed = {name.partition("_")[2] for name in failures(sweep)}
    somewhere = {key for record, _ in found for key in record["runs"]}
    runs = [r for r in sweep.comparison.runs if run_key(*r) not in failed - somewhere]
    keys = [run_key(*run) for run in runs]
    whole = [pair for pair in found if all(key in pair[0]["runs"] for key in keys)]
    return [record for record, _ in whole], [rows for _, rows in whole], runs


def summarize(comparison: Comparison, folder: Path, *, permutations: int = 2000) -> dict[str, Any]:
    """Everything the tables say, recomputed from the files of a comparison.

    Args:
        comparison: what was run.
        folder: where.
        permutations: of the group labels, for the first noise floor.

    Returns:
        ``repetitions``, ``admitted`` (by sparsity: whether the reference's damage on tune exceeds
        the floor), ``dense_floor``, and ``lines``: one a method and sparsity, the dense model
        first. Accuracies, gaps and their intervals are fractions, spreads fractions squared.
        ``errors``: jobs that ended without an outcome (``job``, ``method``, ``sparsity``,
        ``error``).

    Raises:
        ValueError: no repetition is finished, or none has the reference.
    """
    sweep = ComparisonSweep(folder.absolute(), comparison)
    records, rows, runs = read_repetitions(sweep)
    errors = list(sweep.unfinished())
    told = "".join(f"; {e['job']}: {e['error']}" for e in errors[:1])
    if not records or not runs:
        raise ValueError(f"{folder} holds no finished repetition of this comparison{told}")
    if any((comparison.reference, s) not in runs for _, s in runs):
        raise ValueError(
            f"{folder} holds no outcome of {comparison.reference}, the reference{told}"
        )
    groups = len(records[0]["groups"])
    inside = [_inside(r) for r in rows]
    lines = [_dense_line(records, rows)]
    for method, sparsity in runs:
        key = run_key(method, sparsity)
        line: dict[str, Any] = {"method": method, "sparsity": sparsity}
        line |= _means(records, key)
        line |= _on_test(rows, key, records[0]["groups"])
        line |= _pooled(inside, key, groups, permutations)
        line |= _rates(rows, key, records[0]["classes"])
        lines.append(line)
    for line in lines[1:]:
        other = next(
            r for r in lines[1:]
            if (r["method"], r["sparsity"]) == (comparison.reference, line["sparsity"])
        )  # fmt: skip
        if line is not other:
            line |= _differences(records, rows, inside, line, other, groups)
    _adjust(lines)
    return {
        "reference": comparison.reference,
        "repetitions": len(records),
        "planned": len(comparison.repetitions),
        "claims": len(records) >= LEAST_FOR_CLAIMS,
        "roles": records[0]["roles"],
        "model": records[0]["model"],
        "groups": records[0]["groups"],
        "admitted": {
            f"{s:g}": _admitted(inside, run_key(comparison.reference, s), groups, permutations)
            for s in dict.fromkeys(s for _, s in runs)
        },
        "dense_floor": _dense_floor(folder),
        "errors": errors,
        "lines": lines,
    }


def _inside(rows: Rows) -> Rows:
    """The rows of counted groups: only these enter gaps and spreads."""
    out: Rows = {}
    for role in OUTCOME_ROLES:
        keep = rows["counted"][rows[f"{role}/group"]]
        out |= {k: v[keep] for k, v in rows.items() if k.startswith(f"{role}/")}
    return out


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _on_test(rows: list[Rows], key: str, groups: list[str]) -> dict[str, Any]:
    """Accuracy on test, from the rows: its mean, by repetition, and by group of all pooled."""
    each = [float(np.mean(r[f"test/{key}"])) for r in rows]
    right, group = (np.concatenate([r[f"test/{name}"] for r in rows]) for name in (key, "group"))
    found = {name: right[group == g] for g, name in enumerate(groups)}
    return {
        "test_accuracy": float(np.mean(each)),
        "test_accuracy_each": each,
        "test_group_accuracy": {n: float(v.mean()) for n, v in found.items() if len(v)},
    }


def _dense_line(records: list[Record], rows: list[Rows]) -> dict[str, Any]:
    line: dict[str, Any] = {"method": "dense", "sparsity": 0.0}
    for role in ROLES:
        line[f"{role}_accuracy"] = _mean([r["dense"][role]["accuracy"] for r in records])
        rates = [list(r["dense"][role]["group_accuracy"].values()) for r in records]
        line[f"{role}_worst_group"] = _mean(
            [min((v for v in each if v is not None), default=None) for each in rates]
        )
    line |= _on_test(rows, "dense", records[0]["groups"])
    line["gradient_evaluations"] = _mean([r["dense_gradient_evaluations"] for r in records])
    line["seconds"] = _mean([r["dense_seconds"] for r in records])
    line["failed"] = line["constant"] = 0
    return line


def _means(records: list[Record], key: str) -> dict[str, Any]:
    runs = [r["runs"][key] for r in records]
    out: dict[str, Any] = {}
    for role in ROLES:
        out[f"{role}_accuracy"] = _mean([r[role]["performance"]["accuracy"] for r in runs])
        for short, name in (
            ("worst_group", "worst_group_accuracy"),
            ("accuracy_gap", "accuracy_gap"),
            ("degradation_gap", "degradation_gap"),
            ("max_excess_gap", "max_excess_accuracy_gap"),
        ):
            out[f"{role}_{short}"] = _mean([r[role]["gaps"][name] for r in runs])
        each = [r[role].get("excess_loss", {}).values() for r in runs]
        losses = [[v for v in values if v is not None] for values in each]
        out[f"{role}_excess_loss_range"] = _mean([max(v) - min(v) if v else None for v in losses])
    out["achieved"] = _mean([r.get("sparsity", {}).get("achieved") for r in runs])
    for name in ("parameters", "multiply_adds"):
        # Failed runs have none, nor have files from before they were counted.
        shares = [r[name]["kept"] / r[name]["dense"] if name in r else None for r in runs]
        out[f"{name}_kept"] = _mean(shares)
    for name in ("gradient_evaluations", "seconds"):
        out[name] = _mean([r[name] for r in runs])
    out["failed"] = sum("failed" in r for r in runs)
    out["constant"] = sum(r.get("constant_answer") is not None for r in runs)
    return out


def _pool(inside: list[Rows], role: str, key: str, groups: int) -> dict[str, Any]:
    """A run's rows of a role in all repetitions, as the statistics take them."""
    names = {"dense": "dense", "pruned": key, "group": "group", "row": "id"}
    pooled = {k: np.concatenate([r[f"{role}/{name}"] for r in inside]) for k, name in names.items()}
    return {**pooled, "groups": groups}


def _pooled(inside: list[Rows], key: str, groups: int, permutations: int) -> dict[str, Any]:
    """Test rows of all folds together, beside the noise floor."""
    pooled = _pool(inside, "test", key, groups)
    each = [
        statistics.certified_tolerance(r["test/dense"], r[f"test/{key}"], r["test/group"], groups)
        for r in inside
    ]
    floor = statistics.permutation_floor(**pooled, permutations=permutations)
    spreads = {
        role: [
            statistics.noise_free_spread(
                r[f"{role}/dense"], r[f"{role}/{key}"], r[f"{role}/group"], groups
            )
            for r in inside
        ]
        for role in OUTCOME_ROLES
    }
    return {
        "pooled_max_excess_gap": floor["largest"],
        "floor_mean": floor["floor_mean"],
        "floor_95": floor["floor_95"],
        "floor_p": floor["p"],
        "churn": float(np.mean(pooled["dense"] != pooled["pruned"])),
        "certified_tolerance": statistics.certified_tolerance(**pooled),
        "certified_tolerance_each": each,
        "certified_tolerance_without": [
            statistics.certified_tolerance(
                **_pool([r for r in inside if r is not left], "test", key, groups)
            )
            for left in inside
        ]
        if len(inside) > 1
        else [],
        "cross_fitted_worst": statistics.cross_fitted_worst(**pooled),
        "spread_tune": float(np.mean(spreads["tune"])),
        "spread_test": float(np.mean(spreads["test"])),
        "spread_each": spreads["test"],
    }


def _rates(rows: list[Rows], key: str, classes: list[str]) -> dict[str, Any]:
    """Gaps of rates of answers on test, where the task is binary."""
    if len(classes) != 2:
        return {}
    found: dict[str, list[float | None]] = {}
    for r in rows:
        label, correct = r["test/label"].astype(np.int32), r[f"test/{key}"]
        answer = np.where(correct, label, 1 - label).astype(np.int32)
        nothing = np.zeros(len(label), np.float32)
        outcomes = Outcomes(correct, r["test/dense"], nothing, nothing, label, answer)
        kinds = (fairness.DemographicParity, fairness.EqualOpportunity, fairness.EqualizedOdds)
        wanted = [kind(0.0) for kind in kinds]
        names = [str(i) for i in range(len(r["counted"]))]
        seen_of = fairness.measure(wanted, outcomes, r["test/group"], names, r["counted"], 2)
        for constraint, seen in zip(wanted, seen_of, strict=True):
            found.setdefault(constraint.name.replace("-", "_"), []).append(seen.value)
    return {f"test_{name}": _mean(values) for name, values in found.items()}


def _differences(
    records: list[Record],
    rows: list[Rows],
    inside: list[Rows],
    line: dict[str, Any],
    other: dict[str, Any],
    groups: int,
) -> dict[str, Any]:
    """A method's line less the reference's, paired by repetition."""
    key, reference = (run_key(each["method"], each["sparsity"]) for each in (line, other))
    test = float(np.mean([r["roles"]["test"] for r in records]))
    train = float(np.mean([r["roles"]["fit"] + r["roles"]["select"] for r in records]))
    accuracy = np.array([np.mean(r[f"test/{key}"]) - np.mean(r[f"test/{reference}"]) for r in rows])

    def less(measure: Callable[..., Any]) -> np.ndarray:
        def of(r: Rows, which: str) -> Any:
            return measure(r["test/dense"], r[f"test/{which}"], r["test/group"], groups)

        return np.array([of(r, key) - of(r, reference) for r in inside])

    spreads = less(statistics.noise_free_spread)
    largest = less(lambda *rows: np.nanmax(statistics.excess_gaps(*rows)))
    columns = [f"test/{name}" for name in ("dense", key, reference, "group", "id")]
    boot = statistics.bootstrap_differences([[r[name] for name in columns] for r in inside], groups)
    measured = {"accuracy": accuracy, "spread": spreads, "max_excess_gap": largest}
    tolerances = [each["certified_tolerance_each"] for each in (line, other)]
    if None not in tolerances[0] + tolerances[1]:
        measured["certified_tolerance"] = np.subtract(*tolerances)
    out: dict[str, Any] = {}
    for name, values in measured.items():
        found = statistics.corrected_t(values, int(test), int(train))
        out |= {f"{name}_difference_{k}": v for k, v in found.items()}
        if name in boot:
            out[f"{name}_difference_bootstrap"] = list(boot[name])
    return out


def _adjust(lines: list[dict[str, Any]]) -> None:
    """Holm's adjustment over what a table may claim: the differences of accuracy and of the
    certified tolerance, all methods together."""
    tested = [
        (line, f"{name}_difference_p")
        for line in lines
        for name in PRIMARY
        if line.get(f"{name}_difference_p") is not None
    ]
    adjusted = statistics.holm([line[name] for line, name in tested])
    for (line, name), p in zip(tested, adjusted, strict=True):
        line[f"{name}_adjusted"] = p


def _admitted(inside: list[Rows], key: str, groups: int, permutations: int) -> dict[str, Any]:
    """Whether the reference does damage on tune beyond chance."""
    floor = statistics.permutation_floor(
        **_pool(inside, "tune", key, groups), permutations=permutations
    )
    return {**floor, "admitted": floor["largest"] > floor["floor_95"]}


def _dense_floor(folder: Path) -> dict[str, Any] | None:
    rows = read_floor(folder)
    if not rows:
        return None
    keep = rows["counted"][rows["group"]]
    models = [v[keep] for k, v in rows.items() if k.startswith("dense-")]
    return dict(statistics.dense_floor(models, rows["group"][keep], len(rows["counted"])))
