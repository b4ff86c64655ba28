"""Tables, pictures and computed sentences of ``experiments.disparate_impact``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import _write
from experiments._write import interval, look, picture
from fairbilevel import comparison
from fairbilevel._numbers import MISSING, points
from fairbilevel.analysis import correlate
from fairbilevel.records import write_text

UNMITIGATED = "no mitigation"
PROPERTIES = {
    "gradient_norm": "gradient norm",
    "lambda_max": "largest Hessian eigenvalue",
    "closeness": "boundary closeness",
}


@dataclass(frozen=True)
class Found:
    """What the repetitions of a setting left: record and rows of each."""

    name: str
    config: Any
    depth: Any  # how much was looked at
    done: Sequence[tuple[dict[str, Any], dict[str, np.ndarray]]]

    @property
    def first(self) -> dict[str, Any]:
        """The first record: all have the same groups, rates and variants."""
        return self.done[0][0]

    @property
    def groups(self) -> list[str]:
        """Their names."""
        return self.first["groups"]

    def measured(self, key: str) -> list[dict[str, Any]]:
        """Accuracy and excess loss of one network on all test rows, repetition by repetition."""
        return [_measured(record, rows, key) for record, rows in self.done]

    def excess(self, rate: str) -> list[np.ndarray]:
        """Groups' excess losses at a rate, repetition by repetition."""
        return [m["excess"] for m in self.measured(_rate_key(rate))]

    def dense(self, prop: str) -> list[np.ndarray]:
        """A property of the dense network by group, or the groups' sizes."""
        of = (r if prop == "size" else r["dense"] for r, _ in self.done)
        return [np.asarray(each[prop], float) for each in of]


def means(values: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Means by group, NaN without rows."""
    size = np.bincount(group, minlength=groups)
    total = np.bincount(group, weights=values.astype(float), minlength=groups)
    return np.where(size > 0, total / np.maximum(size, 1), np.nan)


def _measured(record: dict[str, Any], rows: dict[str, np.ndarray], key: str) -> dict[str, Any]:
    accuracy = means(rows[f"{key}/correct"], rows["group"], len(record["groups"]))
    loss, dense = (np.array(record["loss"][name], float) for name in (key, "dense"))
    excess = loss - dense
    return {
        "accuracy": accuracy,
        "excess": excess,
        "overall": float(np.mean(rows[f"{key}/correct"])),
        "gap": float(np.ptp(accuracy[np.isfinite(accuracy)])),
        "xi": float(np.ptp(excess[np.isfinite(excess)])),
    }


def _rate_key(rate: str) -> str:
    return f"rate {float(rate):g}"


def group_lines(found: Found) -> list[dict[str, Any]]:
    """One line a rate and group: means over the repetitions; rate 0 is the dense network."""
    lines = []
    for rate in ("0", *found.first["rates"]):
        dense = rate == "0"
        measured = found.measured("dense" if dense else _rate_key(rate))
        records = [r["dense"] if dense else r["rates"][rate] for r, _ in found.done]
        for g, group in enumerate(found.groups):
            accuracy = [m["accuracy"][g] for m in measured]
            lines.append(
                {
                    "setting": found.name,
                    "rate": float(rate),
                    "group": group,
                    "fit rows": found.first["size"][g],
                    "accuracy": np.mean(accuracy),
                    "accuracy sd": np.std(accuracy),
                    "excess loss": np.mean([m["excess"][g] for m in measured]),
                    **{p: np.mean([r[p][g] for r in records]) for p in PROPERTIES},
                    "taylor bound": "" if dense else np.mean([r["bound"][g] for r in records]),
                }
            )
    return lines


def correlation_lines(found: Found) -> list[dict[str, Any]]:
    """Correlations across groups, repetition by repetition, as means and signs.

    Of the dense network's properties with excess loss at each rate, of group size with gradient
    norm, and of boundary closeness with the largest eigenvalue.
    """
    pairs = [
        ("group size", "gradient norm", "0", found.dense("size"), found.dense("gradient_norm")),
        ("boundary closeness", PROPERTIES["lambda_max"], "0", found.dense("closeness"),
         found.dense("lambda_max")),
    ]  # fmt: skip
    for rate in found.first["rates"]:
        excess = found.excess(rate)
        pairs += [(w, "excess loss", rate, found.dense(p), excess) for p, w in PROPERTIES.items()]
    lines = []
    for of, with_, rate, a, b in pairs:
        each = [correlate(of, x, with_, y) for x, y in zip(a, b, strict=True)]
        told = [c for c in each if c.pearson is not None]
        lines.append(
            {
                "setting": found.name,
                "of": of,
                "with": with_,
                "rate": rate,
                "groups": each[0].groups,
                "repetitions": len(told),
                "pearson": np.mean([c.pearson for c in told]) if told else "",
                "spearman": np.mean([c.spearman for c in told]) if told else "",
                "positive": sum((c.pearson or 0) > 0 for c in told),
            }
        )
    return lines


def mitigation_lines(found: Found) -> list[dict[str, Any]]:
    """One line a variant, the dense network first."""
    lines = []
    for variant in ("dense", *found.first["variants"]):
        measured = found.measured(variant)
        spent = [r["variants"].get(variant, {"gradient_evaluations": 0.0}) for r, _ in found.done]
        lines.append(
            {
                "setting": found.name,
                "variant": variant,
                "accuracy": np.mean([m["overall"] for m in measured]),
                "max-min group accuracy": np.mean([m["gap"] for m in measured]),
                "worst group accuracy": np.mean([np.nanmin(m["accuracy"]) for m in measured]),
                "xi (nats)": np.mean([m["xi"] for m in measured]),
                "gradients": np.mean([each["gradient_evaluations"] for each in spent]),
            }
        )
    return lines


def seen(values: Sequence[float] | np.ndarray, expected: str) -> str:
    """Whether a sign was seen, from one number a repetition: a judgement by a fixed rule.

    *Seen*: the expected sign in at least four of five repetitions; *the opposite was seen*
    likewise; else *not clear*. Fewer than five repetitions judge nothing.
    """
    count = len(values)
    if count < 5:
        return "Too few repetitions to judge"
    share, low = sum(v > 0 for v in values) / count, sum(v < 0 for v in values) / count
    if expected == "negative":
        share, low = low, share
    return "Seen" if share >= 0.8 else "The opposite was seen" if low >= 0.8 else "Not clear"


def readings(found: Found) -> Iterator[str]:
    """For each claim of the paper, whether it was seen here, computed from the numbers."""
    last = max(found.first["rates"], key=float)
    yield _unequal(found, last)
    chance = 1 / len(np.unique(found.done[0][1]["label"]))
    dense = np.mean([m["accuracy"] for m in found.measured("dense")], 0)
    below = [g for g, a in zip(found.groups, dense, strict=True) if a < chance]
    if below:
        yield (
            f"- Below chance ({100 * chance:.0f} %) already in the dense network, so with little "
            f"left to lose: {', '.join(below)}."
        )
    excess, of = found.excess(last), found.dense
    norm, value, near = "gradient norm", "largest eigenvalue", "boundary closeness"
    for claim, names, sign, a, b in (
        ("Smaller groups have larger gradient norms.", ("group size", norm), "negative",
         of("size"), of("gradient_norm")),
        ("Groups near the decision boundary have larger Hessian eigenvalues.", (near, value),
         "positive", of("closeness"), of("lambda_max")),
        (f"Groups with larger gradient norms lose more (rate {last}).", (norm, "excess loss"),
         "positive", of("gradient_norm"), excess),
        (f"Groups with larger Hessian eigenvalues lose more (rate {last}).",
         (value, "excess loss"), "positive", of("lambda_max"), excess),
        (f"Groups near the decision boundary lose more (rate {last}).", (near, "excess loss"),
         "positive", of("closeness"), excess),
    ):  # fmt: skip
        each = [correlate(names[0], x, names[1], y) for x, y in zip(a, b, strict=True)]
        told = [c.pearson for c in each if c.pearson is not None]
        if not told:
            yield f"- *{claim}* Cannot be told: {names[0]} or {names[1]} does not vary."
            continue
        agree = sum((v > 0) == (sign == "positive") for v in told)
        yield (
            f"- *{claim}* {seen(told, sign)}: Pearson {np.mean(told):+.2f} on average over "
            f"{each[0].groups} groups, {sign} in {agree} of {len(told)} repetitions."
        )
    yield _bounded(found)
    variants = list(found.first["variants"])
    if UNMITIGATED in variants:
        yield from (_mitigated(found, v) for v in variants if v != UNMITIGATED)


def _unequal(found: Found, rate: str) -> str:
    key = f"{_rate_key(rate)}/correct"
    gaps = np.array([[m["gap"] for m in found.measured(k)] for k in ("dense", _rate_key(rate))])
    grown = gaps[1] - gaps[0]
    dense, pruned, group = (
        np.concatenate([r[k] for _, r in found.done]) for k in ("dense/correct", key, "group")
    )
    floor = comparison.permutation_floor(dense, pruned, group, len(found.groups))
    above = "above" if floor["largest"] > floor["floor_95"] else "within"
    return (
        f"- *Pruning harms groups unequally.* {seen(grown, 'positive')}: at rate {rate} the "
        f"difference of the best and the worst group's accuracy is {points(gaps[1].mean())} "
        f"points, dense {points(gaps[0].mean())}, larger in {sum(grown > 0)} of {len(grown)} "
        f"repetitions; the largest excess accuracy gap, {points(floor['largest'])} points over "
        f"all test rows, lies {above} what permuted group labels give "
        f"(95 % quantile {points(floor['floor_95'])})."
    )


def _bounded(found: Found) -> str:
    bounds, true = (
        np.array([[rate[name] for rate in r["rates"].values()] for r, _ in found.done])
        for name in ("bound", "excess_loss_dense_statistics")
    )
    usable = np.isfinite(bounds) & np.isfinite(true)
    kept = float(np.mean((true <= bounds)[usable]))
    tight = usable & (true > 0)
    slack = float(np.median(bounds[tight] / true[tight])) if tight.any() else float("nan")
    return (
        f"- *The Taylor bound lies above the excess loss.* "
        f"{'Seen' if kept >= 0.95 else 'Not always'}: in {100 * kept:.0f} % of groups, rates and "
        f"repetitions, with the dense statistics on both sides; where there is a loss the bound is "
        f"{slack:.3g} times as large in the median: it orders groups, and bounds nothing of use."
    )


def _mitigated(found: Found, variant: str) -> str:
    test, train = (
        int(np.mean([sum(r["roles"][role] for role in roles) for r, _ in found.done]))
        for roles in (("test",), ("fit", "select"))
    )
    base, other = found.measured(UNMITIGATED), found.measured(variant)
    change = {
        key: 100 * np.array([o[key] - b[key] for o, b in zip(other, base, strict=True)])
        for key in ("gap", "overall")
    }
    told = {
        key: interval(comparison.corrected_t(values, test, train), "{:+.1f}".format)
        for key, values in change.items()
    }
    gap = told["gap"].replace(" (", " points (") if " (" in told["gap"] else f"{told['gap']} points"
    when = "before and after" if variant == "both" else f"{variant} pruning"
    return (
        f"- *Equal losses enforced {when} reduce the violation (rate {found.depth.mitigated:g}).* "
        f"{seen(change['gap'], 'negative')}: the difference of the best and the worst group's "
        f"accuracy changes by {gap}, accuracy by {told['overall']}, against no mitigation within "
        "the same steps."
    )


def section(found: Found) -> list[str]:
    """A setting's part of the page."""
    width = "" if found.config.width is None else f" (width {found.config.width})"
    return [
        f"## {found.name}: {found.config.model}{width}, {found.first['parameters']:,} parameters",
        f"{len(found.done)} repetitions, each tested on its own fold. Gradient norm, eigenvalue "
        f"and closeness of the network at that rate, on at most {found.depth.analyzed:,} test "
        "rows; accuracy and excess loss (nats, over the dense network) on all of them.",
        f"![accuracy, gradient norm, eigenvalue and closeness by group]({found.name}.png)",
        _write.table(
            [
                {
                    "rate": f"{line['rate']:g}",
                    "group": line["group"],
                    "accuracy": points(line["accuracy"]),
                    "excess loss": f"{line['excess loss']:.3f}",
                    "gradient norm": f"{line['gradient_norm']:.3g}",
                    "lambda max": f"{line['lambda_max']:.3g}",
                    "closeness": f"{line['closeness']:.3f}",
                }
                for line in group_lines(found)
            ]
        ),
        f"Correlations over {len(found.groups)} groups between the dense network's properties and "
        "the rest, averaged over repetitions (in brackets: in how many it is positive):",
        _write.table(
            [
                {
                    **{name: line[name] for name in ("of", "with", "rate")},
                    "Pearson": MISSING
                    if line["pearson"] == ""
                    else f"{line['pearson']:+.2f} ({line['positive']} of {line['repetitions']})",
                    "Spearman": MISSING if line["spearman"] == "" else f"{line['spearman']:+.2f}",
                }
                for line in correlation_lines(found)
            ]
        ),
        f"Mitigation at rate {found.depth.mitigated:g} (violation: best minus worst group's "
        "accuracy; xi: largest difference of two groups' excess losses):",
        _write.table(
            [
                {
                    "variant": line["variant"],
                    "accuracy": points(line["accuracy"]),
                    "violation": points(line["max-min group accuracy"]),
                    "worst group": points(line["worst group accuracy"]),
                    "xi (nats)": f"{line['xi (nats)']:.3f}",
                    "gradients": f"{line['gradients']:.0f}",
                }
                for line in mitigation_lines(found)
            ]
        ),
    ]


def draw(path: Path, found: Found) -> None:
    """Four panels against the pruning rate by group, then excess loss, then the variants."""
    lines, bars = group_lines(found), mitigation_lines(found)
    panels = {"accuracy": "accuracy", **PROPERTIES, "excess loss": "excess loss (nats)"}
    with picture(path, 2, 3, (14, 8)) as (figure, axes):
        for axis, (column, title) in zip(axes.flat, panels.items(), strict=False):
            for i, group in enumerate(found.groups):
                own = [line for line in lines if line["group"] == group]
                rates = [o["rate"] for o in own]
                axis.plot(rates, [o[column] for o in own], label=group, **look(i))
            axis.set(xlabel="pruning rate", title=title)
            if column in ("gradient_norm", "lambda_max"):
                axis.set_yscale("log")
        place, axis = np.arange(len(bars)), axes.flat[5]
        for i, (name, key) in enumerate(
            (("accuracy", "accuracy"), ("violation", "max-min group accuracy"))
        ):
            style = {"color": look(i)["color"], "hatch": ("", "//")[i], "edgecolor": "white"}
            axis.bar(place + 0.4 * i - 0.2, [b[key] for b in bars], 0.4, label=name, **style)
        axis.set_xticks(place, [b["variant"] for b in bars], rotation=20)
        axis.set_title(f"mitigation at rate {found.depth.mitigated:g}")
        axis.legend()
        groups = axes.flat[0].get_legend_handles_labels()
        figure.legend(*groups, loc="outside lower center", ncols=10)
        figure.suptitle(f"{found.name}, {len(found.done)} repetitions")


def write(out: Path, settings: Sequence[Found]) -> str:
    """Write all tables, pictures and the page; returns the page."""
    tables = {"groups": group_lines, "correlations": correlation_lines}
    for name, lines_of in {**tables, "mitigation": mitigation_lines}.items():
        rows = [line for found in settings for line in lines_of(found)]
        _write.write_csv(out / f"{name}.csv", rows, digits=6)
    blocks = ["# Why pruning hurts some groups more than others (after Tran et al. 2022)"]
    few = min(len(found.done) for found in settings)
    if few < 10:
        blocks.append(f"With {few} repetitions this describes and claims nothing.")
    for found in settings:
        draw(out / f"{found.name}.png", found)
        blocks += section(found)
    blocks += [
        "## What of the paper was seen here",
        "Computed from the numbers: *seen* is a sign that at least four of five repetitions share, "
        "the opposite likewise, anything else is not clear. Intervals are 95 %, unadjusted, with "
        "the Nadeau-Bengio variance.",
    ]
    for found in settings:
        blocks += [f"**{found.name}**", "\n".join(readings(found))]
    text = _write.page(*blocks, _write.made_by())
    write_text(out / "disparate_impact.md", text)
    return text
