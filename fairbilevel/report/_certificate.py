"""The certificate in the run folder: verdict in words, bounds per group, what was spent."""

from typing import Any

from fairbilevel._display import esc
from fairbilevel.report._markup import Row, bullets, facts, section, table
from fairbilevel.report._numbers import (
    MISSING,
    count,
    dig,
    mapping,
    number,
    percent,
    plain,
    points,
    strings,
)

_QUANTITIES = ("equalized-loss", "equalized-loss-signed")
_RATES = (
    "accuracy-gap",
    "worst-group-accuracy",
    "demographic-parity",
    "equal-opportunity",
    "equalized-odds",
)
_MOST_ROWS = 60


def certificate_line(certificate: dict[str, Any] | None) -> str:
    """What was certified and how that compares with the tolerance; empty without certificate."""
    said = strings(certificate, "statement")
    if len(said) < 2:
        return ""
    conditional = (
        " This is conditional: valid only if the dense model never saw these rows."
        if dig(certificate, "conditional") is True
        else ""
    )
    return f"{said[0]} {said[1]}{conditional}"


def certificate_section(certificate: dict[str, Any] | None) -> str:
    """What rows that nothing had touched prove; nothing where no certificate was made."""
    said = strings(certificate, "statement")
    if not said:
        return ""
    found = dig(certificate, "findings")
    findings = [f for f in found if isinstance(f, dict)] if isinstance(found, list) else []
    gap = str(dig(certificate, "claim", "gap") or "")
    intro = f"<p><b>{esc(certificate_line(certificate))}</b></p>{bullets(said[2:])}"
    notes = bullets(strings(certificate, "context", "notes"))
    return section(
        "certificate",
        "What untouched rows prove",
        intro,
        _findings(gap, findings),
        _accuracies(certificate),
        notes,
        _terms(certificate),
    )


def _findings(gap: str, findings: list[dict[str, Any]]) -> str:
    if not findings:
        return ""

    def written(value: float | None) -> str:
        if gap in _QUANTITIES:
            return plain(value, 4, signed=True)
        return percent(value) if gap in _RATES else points(value, signed=True)

    bounded = any(number(f, "bound") is not None for f in findings)
    what = "Rate" if gap in _RATES else "Gap" if gap in _QUANTITIES else "Gap, points"
    what = "Loss, points" if gap == "degradation-gap" else what
    head = ["Group", "Rows", what, "Interval"]
    head += ["Bound of the run’s verdict"] if bounded else []
    head += ["This group by itself"]

    def size(f: dict[str, Any]) -> float:
        return number(f, "bound") or number(f, "high") or 0.0

    shown = findings
    if len(findings) > _MOST_ROWS:
        shown = sorted(findings, key=size, reverse=gap != "worst-group-accuracy")[:_MOST_ROWS]
    body = []
    for f in shown:
        label = dig(f, "label")
        name = str(dig(f, "group")) + (f" ({label})" if label else "")
        low, high = number(f, "low"), number(f, "high")
        interval = MISSING if low is None or high is None else f"{written(low)} to {written(high)}"
        cells = [count(number(f, "rows")), written(number(f, "estimate")), interval]
        cells += [written(number(f, "bound"))] if bounded else []
        body.append(Row(name, [*cells, esc(dig(f, "verdict"))]))
    left_out = len(findings) - len(shown)
    cut = f" {count(left_out)} groups farther from the limit are left out." if left_out else ""
    note = (
        "The intervals hold for all groups together, for any tolerance that is read off later. A "
        f"group “by itself” is judged beside all others, hence more strictly than the run.{cut}"
    )
    return table(head, body) + f'<p class="note">{esc(note)}</p>'


def _accuracies(certificate: dict[str, Any] | None) -> str:
    dense = mapping(certificate, "overall", "dense_accuracy", "groups")
    pruned = mapping(certificate, "overall", "pruned_accuracy", "groups")
    if not dense:
        return ""

    def cells(part: dict[str, Any], name: str) -> list[str]:
        low, high = number(part, name, "low"), number(part, name, "high")
        return [percent(number(part, name, "estimate")), f"{percent(low)} to {percent(high)}"]

    names = list(dense)[:_MOST_ROWS]
    body = [Row(name, [*cells(dense, name), *cells(pruned, name)]) for name in names]
    head = ["Group", "Dense", "Interval", "Pruned", "Interval"]
    lost = mapping(certificate, "overall", "accuracy_lost")
    note = (
        "Accuracy on the same rows. Over all of them pruning costs "
        f"{points(number(lost, 'estimate'), signed=True)} points of accuracy (between "
        f"{points(number(lost, 'low'), signed=True)} and "
        f"{points(number(lost, 'high'), signed=True)}). Groups lie at most "
        f"{points(number(certificate, 'overall', 'pruned_accuracy_gap_bound'))} points apart after "
        f"pruning and {points(number(certificate, 'overall', 'dense_accuracy_gap_bound'))} before. "
        "Each of these is a statement by itself."
    )
    return table(head, body) + f'<p class="note">{esc(note)}</p>'


def _terms(certificate: dict[str, Any] | None) -> str:
    claim, levels = mapping(certificate, "claim"), mapping(certificate, "levels")
    context = mapping(certificate, "context")
    confidence, spent = number(claim, "confidence"), number(levels, "spent")
    read, rows = number(context, "rows_read"), number(certificate, "overall", "rows")
    kind = str(context.get("kind") or "rows")
    counted = f"{count(rows)} {kind}"
    if read is not None and rows is not None and read > rows:
        counted += f", one row of each drawn from {count(read)} rows"
    duplicates = number(context, "duplicates")
    look = f"{count(number(levels, 'look'))}"
    if levels.get("only_look") is True:
        look += ", the only one"
    candidates = number(levels, "candidates")
    if candidates is not None and candidates > 1:
        look += f", shared by {count(candidates)} candidates"
    left_out = mapping(context, "left_out")
    return facts(
        (
            ("Rows", f"{context.get('data') or ''}: {counted}"),
            ("Same inputs twice", f"{count(duplicates)} rows" if duplicates else ""),
            ("Left out", ", ".join(f"{count(number(n))} ({why})" for why, n in left_out.items())),
            ("Fingerprint of the rows", str(context.get("fingerprint") or "")),
            ("Confidence", percent(confidence)),
            ("Look at these rows", look),
            ("Error spent by it", plain(spent, 4) if spent is not None else ""),
            ("Bound", str(claim.get("bound") or "")),
            ("Dense model", str(context.get("dense_model") or "")),
            ("Pruned model", str(context.get("pruned_model") or "")),
            ("Dense model trained on", str(context.get("dense_trained_on") or "nobody said")),
        )
    )
