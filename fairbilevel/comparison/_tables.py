"""What a comparison leaves to read: CSV, markdown, a picture, all from its files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from fairbilevel import report
from fairbilevel._numbers import MISSING, count, decimal, points, share
from fairbilevel.comparison._design import ROLES
from fairbilevel.comparison._summary import PRIMARY
from fairbilevel.records import SCHEMA_VERSION, to_digits, write_csv, write_json, write_text
from fairbilevel.run import machine, versions

ALPHA = 0.05


def write_tables(summary: dict[str, Any], folder: Path, command: str) -> str:
    """Write ``table.csv``, ``table.md`` (returned too), ``comparison.svg`` and ``summary.json``."""
    lines = [_flat(line) for line in summary["lines"]]
    for e in summary["errors"]:
        about = {name: e[name] for name in ("method", "sparsity")}
        lines.append({**about, "error": f"{e['job']}: {e['error']}"})
    write_csv(folder / "table.csv", to_digits(lines))
    text = markdown(summary, command)
    write_text(folder / "table.md", text)
    write_text(folder / "comparison.svg", picture(summary))
    made_by = {"command": command, "versions": versions(), "machine": machine()}
    write_json(folder / "summary.json", {"schema_version": SCHEMA_VERSION, **made_by, **summary})
    return text


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    """Lists of two become two columns; longer ones and dictionaries stay in ``summary.json``. So do
    seconds: the table is the same wherever its runs were made."""
    out: dict[str, Any] = {}
    for key, value in line.items():
        if isinstance(value, dict) or key == "seconds":
            continue
        if isinstance(value, list):
            if len(value) == 2 and key.endswith("bootstrap"):
                out |= {f"{key}_low": value[0], f"{key}_high": value[1]}
        else:
            out[key] = value
    return out


def picture(summary: dict[str, Any]) -> str:
    """Accuracy and certified tolerance beside the reference."""
    lines = [line for line in summary["lines"] if line["method"] != "dense"]

    def beside(title: str, name: str, scale: float) -> report.Panel:
        mean, low, high = (f"{name}_difference_{end}" for end in ("mean", "low", "high"))
        return report.Panel(title, mean, low, high, scale)

    panels = [
        beside("Accuracy less the reference's (points)", "accuracy", 100.0),
        beside("Certified tolerance less the reference's (points)", "certified_tolerance", 100.0),
        report.Panel("Certified tolerance (points)", "certified_tolerance", "", "", 100.0),
    ]
    return report.forest_svg(
        lines,
        panels,
        title=f"Every method beside {summary['reference']}: {summary['repetitions']} repetitions",
        note="On test. Whiskers: unadjusted 95 % intervals, Nadeau-Bengio variance. Left of zero "
        "is less accurate in the first panel, fairer in the others.",
    )


_points = partial(points, decimals=2)


def _squares(value: float | None, *, signed: bool = False) -> str:
    return _points(None if value is None else 100 * value, signed=signed)


def markdown(summary: dict[str, Any], command: str) -> str:
    """The tables as people read them."""
    reference = summary["reference"]
    out = [f"# {summary['model']}: pruning methods beside {reference}", "", _opening(summary), ""]
    out += _admission(summary)
    out += _errors(summary)
    out += [
        "## Accuracy and gaps by role",
        "",
        "Means over repetitions, in per cent and points; *excess gap*: the most that a counted "
        "group loses beyond the average. *Kept*: of the dense network's parameters, and of the "
        "multiply-adds that one row takes in its convolutions and matrix products.",
        "",
        "| method | sparsity | accuracy: fit | select | tune | test | excess gap: fit | select | "
        "tune | test | worst group, test | parameters kept | multiply-adds kept | gradients | s |",
        "|---" * 15 + "|",
    ]
    for line in summary["lines"]:
        accuracy = " | ".join(_points(line.get(f"{role}_accuracy")) for role in ROLES)
        gap = " | ".join(_points(line.get(f"{role}_max_excess_gap")) for role in ROLES)
        out.append(
            f"| {line['method']}{_marks(line)} | {share(line['sparsity'])} | {accuracy} | "
            f"{gap} | {_points(line.get('test_worst_group'))} | "
            f"{_points(line.get('parameters_kept'))} | {_points(line.get('multiply_adds_kept'))} | "
            f"{count(line['gradient_evaluations'])} | "
            f"{count(line['seconds'])} |"
        )
    out += ["", *_noise(summary)]
    out += _groups(summary)
    out += [
        f"## Differences from {reference} on test",
        "",
        "Paired by repetition. Intervals: 95 %, unadjusted, Nadeau-Bengio variance; in brackets a "
        "two-level bootstrap (repetitions and rows), centred. *Certified*: the smallest tolerance "
        "that the rows of one fold certify. *p*: of accuracy and certified tolerance, after Holm "
        "over both and the whole table; in bold what is better in one of them.",
        "",
        "| method | sparsity | accuracy (points) | p | certified (points) | p | spread (points²) | "
        "excess gap (points) |",
        "|---" * 8 + "|",
    ]
    for line in summary["lines"]:
        if "accuracy_difference_mean" not in line:
            continue
        better = summary["claims"] and any(
            (p := line.get(f"{name}_difference_p_adjusted")) is not None
            and p < ALPHA
            and sign * line[f"{name}_difference_mean"] > 0
            for name, sign in zip(PRIMARY, (1, -1), strict=True)
        )
        name = f"**{line['method']}**" if better else line["method"]
        primary = " | ".join(
            f"{_difference(line, name, _points)} | "
            f"{decimal(line.get(f'{name}_difference_p_adjusted'))}"
            for name in PRIMARY
        )
        spread = _difference(line, "spread", _squares)
        gap = _difference(line, "max_excess_gap", _points)
        out.append(f"| {name} | {share(line['sparsity'])} | {primary} | {spread} | {gap} |")
    out += [
        "",
        f"Made by `{command}` with {', '.join(f'{k} {v}' for k, v in versions().items())} on "
        f"{machine()['device']}, {machine()['cores']} cores; {summary['repetitions']} of "
        f"{summary['planned']} repetitions are in.",
        "",
    ]
    return "\n".join(out)


def _opening(summary: dict[str, Any]) -> str:
    roles = ", ".join(f"{name} {rows:,}" for name, rows in summary["roles"].items() if rows)
    text = (
        f"{summary['repetitions']} repetitions, each tested on its own fold (rows of the first: "
        f"{roles}), {len(summary['groups'])} groups. Every method starts from the same dense model "
        "of the fold and spends the same gradient evaluations."
    )
    if not summary["claims"]:
        text += (
            " With fewer than ten repetitions this describes and claims nothing: no difference is "
            "printed in bold."
        )
    failed = sum(line["failed"] for line in summary["lines"])
    if failed:
        text += (
            f" {failed} runs failed and stay in the means: a diverged one with its last finite "
            "network, one whose masks cut the network as a constant answer."
        )
    constant = sum(line["constant"] for line in summary["lines"])
    if constant:
        text += (
            f" {constant} runs ended with networks that give every row the same answer: what they "
            "keep is the share of that answer, and no gap of theirs says anything of fairness."
        )
    return text


def _marks(line: dict[str, Any]) -> str:
    """What befell a line's runs, behind the method's name."""
    told = [
        f"{line['failed']} failed" if line["failed"] else "",
        f"{line['constant']} always one answer" if line["constant"] else "",
    ]
    return f" ({', '.join(filter(None, told))})" if any(told) else ""


def _admission(summary: dict[str, Any]) -> list[str]:
    out = []
    for sparsity, floor in summary["admitted"].items():
        word = "beyond" if floor["admitted"] else "within"
        out.append(
            f"- {share(float(sparsity))}: on tune, {summary['reference']}'s largest excess gap "
            f"is {_points(floor['largest'])} points, {word} what permuted group labels give "
            f"(95 % quantile {_points(floor['floor_95'])}, p {decimal(floor['p'])})."
        )
    return [*out, ""]


def _errors(summary: dict[str, Any]) -> list[str]:
    """Runs that are in no number: a repetition without one of its runs is left out of all lines."""
    if not summary["errors"]:
        return []
    lines = [f"| {e['job']} | {e['error'].replace('|', '/')} |" for e in summary["errors"]]
    return [
        "## Without an outcome",
        "",
        "Tried twice and in no number; the same command tries again.",
        "",
        "| run | what happened |",
        "|---" * 2 + "|",
        *lines,
        "",
    ]


def _noise(summary: dict[str, Any]) -> list[str]:
    out = [
        "## Noise floors on test",
        "",
        "Test rows of all repetitions pooled; group labels permuted over rows with outcomes fixed. "
        "*Cross-fitted*: the worst group chosen on one half of the rows, measured on the other. "
        "*Spread*: noise-free spread of excess gaps, mean over repetitions (its expectation is "
        "zero where pruning harms all groups alike). *Churn*: share of rows whose correctness "
        "differs from the dense model's. *Certified*: the smallest tolerance of excess gaps that "
        "the test rows of a round certify at 95 %.",
        "",
        "| method | sparsity | churn | certified | excess gap, pooled | floor mean | floor 95 % | "
        "p | cross-fitted | spread (points²) | equalized odds | equal opportunity | demographic "
        "parity |",
        "|---" * 13 + "|",
    ]
    for line in summary["lines"]:
        if "floor_p" not in line:
            continue
        rates = " | ".join(
            _points(line.get(f"test_{name}"))
            for name in ("equalized_odds", "equal_opportunity", "demographic_parity")
        )
        out.append(
            f"| {line['method']} | {share(line['sparsity'])} | {_points(line['churn'])} | "
            f"{_points(line['certified_tolerance'])} | "
            f"{_points(line['pooled_max_excess_gap'])} | {_points(line['floor_mean'])} | "
            f"{_points(line['floor_95'])} | {decimal(line['floor_p'])} | "
            f"{_points(line['cross_fitted_worst'])} | {_squares(line['spread_test'])} | {rates} |"
        )
    floor = summary["dense_floor"]
    if floor:
        out += [
            "",
            f"Dense models of one fold that differ in their seed alone: largest excess gap "
            f"{_points(floor['mean'])} points on average, 95 % quantile {_points(floor['q95'])} "
            f"({floor['pairs']} ordered pairs).",
        ]
    return [*out, ""]


def _groups(summary: dict[str, Any]) -> list[str]:
    """Every group's own accuracy: who pays, beside whom."""
    names = list(summary["lines"][0]["test_group_accuracy"])
    out = [
        "## Accuracy of every group on test",
        "",
        "In per cent, test rows of all repetitions pooled.",
        "",
        f"| method | sparsity | {' | '.join(names)} |",
        "|---" * (2 + len(names)) + "|",
    ]
    for line in summary["lines"]:
        rates = " | ".join(_points(line["test_group_accuracy"].get(name)) for name in names)
        out.append(f"| {line['method']} | {share(line['sparsity'])} | {rates} |")
    return [*out, ""]


def _difference(line: dict[str, Any], name: str, form: Any) -> str:
    mean = line.get(f"{name}_difference_mean")
    if mean is None:
        return MISSING
    low, high = line[f"{name}_difference_low"], line[f"{name}_difference_high"]
    text = form(mean, signed=True)
    if low is not None:
        text += f" ({form(low, signed=True)} to {form(high, signed=True)})"
    boot = line.get(f"{name}_difference_bootstrap")
    if boot:
        text += f" [{form(boot[0], signed=True)} to {form(boot[1], signed=True)}]"
    return text
