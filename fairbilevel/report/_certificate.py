"""The certificate in the run folder: verdict in words, bounds per group, what was spent."""

from typing import Any

from fairbilevel._numbers import MISSING, count, counted, decimal, percent, points
from fairbilevel.report._parts import Fact, Row, Table, dig, mapping, number, strings

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


def certificate_section(certificate: dict[str, Any] | None) -> dict[str, Any] | None:
    """What rows that nothing had touched prove; nothing where no certificate was made."""
    said = strings(certificate, "statement")
    if not said:
        return None
    found = dig(certificate, "findings")
    findings = [f for f in found if isinstance(f, dict)] if isinstance(found, list) else []
    overall = mapping(certificate, "overall")
    return {
        "line": certificate_line(certificate),
        "sentences": said[2:],
        "findings": _findings(str(dig(certificate, "claim", "gap") or ""), findings),
        "left_out": max(len(findings) - _MOST_ROWS, 0),
        "accuracies": _accuracies(overall),
        "lost": [
            number(overall, "accuracy_lost", end) for end in ("estimate", "low", "high")
        ],
        "apart": [
            number(overall, f"{model}_accuracy_gap_bound") for model in ("pruned", "dense")
        ],
        "notes": strings(certificate, "context", "notes"),
        "terms": _terms(certificate),
    }  # fmt: skip


def _findings(gap: str, findings: list[dict[str, Any]]) -> Table | None:
    if not findings:
        return None

    def written(value: float | None) -> str:
        if gap in _QUANTITIES:
            return decimal(value, 4, signed=True)
        return percent(value) if gap in _RATES else points(value, signed=True)

    bounded = any(number(f, "bound") is not None for f in findings)
    what = "Rate" if gap in _RATES else "Gap" if gap in _QUANTITIES else "Gap, points"
    what = "Loss, points" if gap == "degradation-gap" else what
    head = ["Group", "Rows", what, "Interval"]
    head += ["Bound of the run’s verdict"] if bounded else []
    head += ["This group by itself"]

    def size(f: dict[str, Any]) -> float:
        return number(f, "bound") or number(f, "high") or 0.0

    if len(findings) > _MOST_ROWS:
        findings = sorted(findings, key=size, reverse=gap != "worst-group-accuracy")[:_MOST_ROWS]
    body = []
    for f in findings:
        label = dig(f, "label")
        name = str(dig(f, "group")) + (f" ({label})" if label else "")
        low, high = number(f, "low"), number(f, "high")
        interval = MISSING if low is None or high is None else f"{written(low)} to {written(high)}"
        cells = [count(number(f, "rows")), written(number(f, "estimate")), interval]
        cells += [written(number(f, "bound"))] if bounded else []
        body.append(Row(name, [*cells, str(dig(f, "verdict"))]))
    return Table(head, body)


def _accuracies(overall: dict[str, Any]) -> Table | None:
    models = [mapping(overall, f"{model}_accuracy", "groups") for model in ("dense", "pruned")]

    def cells(part: dict[str, Any], name: str) -> list[str]:
        estimate, low, high = (
            percent(number(part, name, end)) for end in ("estimate", "low", "high")
        )
        return [estimate, f"{low} to {high}"]

    body = [
        Row(name, [cell for part in models for cell in cells(part, name)])
        for name in list(models[0])[:_MOST_ROWS]
    ]
    return Table(["Group", "Dense", "Interval", "Pruned", "Interval"], body) if body else None


def _terms(certificate: dict[str, Any] | None) -> list[Fact]:
    claim, levels = mapping(certificate, "claim"), mapping(certificate, "levels")
    context = mapping(certificate, "context")
    spent, candidates = number(levels, "spent"), number(levels, "candidates")
    read, rows = number(context, "rows_read"), number(certificate, "overall", "rows")
    of = f"{context.get('data') or ''}: {count(rows)} {context.get('kind') or 'rows'}"
    if read is not None and rows is not None and read > rows:
        of += f", one row of each drawn from {count(read)} rows"
    duplicates = number(context, "duplicates")
    look = count(number(levels, "look"))
    if levels.get("only_look") is True:
        look += ", the only one"
    if candidates is not None and candidates > 1:
        look += f", shared by {count(candidates)} candidates"
    left_out = mapping(context, "left_out")
    return [
        ("Rows", of),
        ("Same inputs twice", counted(duplicates, "row") if duplicates else ""),
        ("Left out", ", ".join(f"{count(number(n))} ({why})" for why, n in left_out.items())),
        ("Fingerprint of the rows", str(context.get("fingerprint") or "")),
        ("Confidence", percent(number(claim, "confidence"))),
        ("Look at these rows", look),
        ("Error spent by it", decimal(spent, 4) if spent is not None else ""),
        ("Bound", str(claim.get("bound") or "")),
        ("Dense model", str(context.get("dense_model") or "")),
        ("Pruned model", str(context.get("pruned_model") or "")),
        ("Dense model trained on", str(context.get("dense_trained_on") or "nobody said")),
    ]
