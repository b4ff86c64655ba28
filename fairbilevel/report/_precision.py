"""What a file in lower precision, exported from the run, did to every group."""

from collections.abc import Sequence
from typing import Any

from fairbilevel._numbers import MISSING, count, counted, percent, points
from fairbilevel.report._certificate import certificate_line
from fairbilevel.report._parts import Cell, Row, Table
from fairbilevel.report._read import dig, mapping, number, strings
from fairbilevel.report._sections import GAPS, signed_points

_MOST_GROUPS = 40
_MODELS = ("dense", "pruned", "file")


def precision_section(
    exports: Sequence[dict[str, Any]], certificates: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The records that `export` left, each with the certificate of its file.

    Args:
        exports: from `export-*.json`.
        certificates: from `certificate-*.json`; those of other models are left out.
    """
    return [_file(export, certificates) for export in exports]


def _file(export: dict[str, Any], certificates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    name, digest = str(dig(export, "file") or "a file"), dig(export, "digest")
    precision = str(dig(export, "precision") or "lower precision")
    rows, changed = (number(export, "checked", key) for key in ("rows", "changed"))
    share = f" ({percent(changed / rows)})" if rows and changed is not None else ""
    of = str(dig(export, "by_group", "rows_of") or "")
    certified = [
        certificate_line(c) or str(dig(c, "verdict"))
        for c in certificates
        if isinstance(digest, str) and dig(c, "context", "pruned_model") == digest
    ]
    size, calibration = number(export, "bytes"), number(export, "calibration", "rows")
    table, notes = _groups(mapping(export, "by_group"))
    return {
        "said": (
            f"{name}, {precision}: {count(changed)} of {count(rows)} "
            f"{'test rows' if of == 'test' else f'rows of {of}' if of else 'rows'}{share} get "
            "another class than by the pruned network in float32."
        ),
        "groups": table,
        "notes": notes,
        "gaps": _gaps(export),
        "facts": [
            ("SHA-256", str(digest or "")),
            ("Size", f"{count(size)} bytes" if size is not None else ""),
            ("Calibrated on", counted(calibration, "select row") if calibration else ""),
            (
                "Certified",
                " ".join(certified) or "not yet: fairbilevel certify RUN --artifact FILE",
            ),
        ],
    }


def _groups(told: dict[str, Any]) -> tuple[Table | None, list[str]]:
    names = strings(told, "groups")
    inside = set(strings(told, "counted_groups"))
    if not names:
        return None, []

    def accuracy(name: str, model: str) -> float | None:
        return number(told, model, "group_accuracy", name)

    def step(before: float | None, after: float | None) -> float | None:
        return None if before is None or after is None else after - before

    def order(name: str) -> tuple[bool, bool, float]:
        change = step(accuracy(name, "pruned"), accuracy(name, "file"))
        return name not in inside, change is None, change or 0.0

    def cells(name: str) -> list[Cell]:
        size, changed = number(told, "file", "group_size", name), number(told, "changed", name)
        excess = [number(told, gaps, "excess_accuracy_gap", name) for gaps in ("gaps", "file_gaps")]
        known = [accuracy(name, model) for model in _MODELS]
        many = count(changed)
        return [
            count(size),
            *map(percent, known),
            signed_points(step(*known[1:])),
            *map(signed_points, excess),
            (many, percent(changed / size)) if changed and size else many,
        ]

    head = ["Group", "Rows", "Dense", "Pruned", "File", "File minus pruned, points"]
    head += ["Beyond average, pruned", "Beyond average, file", "Verdicts changed"]
    whole = [number(told, model, "accuracy") for model in _MODELS]
    every = sum(number(n) or 0 for n in mapping(told, "changed").values())
    row = [count(number(told, "rows")), *map(percent, whole), signed_points(step(*whole[1:]))]
    body = [Row("All rows", [*row, MISSING, MISSING, count(every)], css="all")]
    ranked = sorted(names, key=order)
    shown = ranked[:_MOST_GROUPS]
    body += [Row(name if name in inside else f"{name} †", cells(name)) for name in shown]
    notes = []
    if len(ranked) > len(shown):
        notes.append(f"{count(len(ranked) - len(shown))} groups hit less are left out.")
    if any(name not in inside for name in shown):
        notes.append("† Too few rows: outside every limit and claim.")
    sizes = [size for n in inside if (size := number(told, "file", "group_size", n))]
    if sizes:
        notes.append(
            f"In the smallest counted group ({counted(min(sizes), 'row')}) a single row is worth "
            f"{points(1 / min(sizes))} points."
        )
    return Table(head, body), notes


def _gaps(export: dict[str, Any]) -> Table | None:
    keys = ("accuracy_gap", "degradation_gap", "max_excess_accuracy_gap")
    pairs = [("worst_group_accuracy", "Worst group’s accuracy", percent)]
    pairs += [(key, name, points) for key, (_, name, _) in zip(keys, GAPS, strict=True)]
    body = []
    for key, name, form in pairs:
        values = [number(export, "by_group", gaps, key) for gaps in ("gaps", "file_gaps")]
        if any(value is not None for value in values):
            body.append(Row(name, [form(value) for value in values]))
    head = ["Measure", "Pruned, float32", "File"]
    return Table(head, body, "Accuracy in percent, gaps in points") if body else None
