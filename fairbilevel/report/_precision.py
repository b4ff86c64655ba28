"""What a file in lower precision, exported from the run, did to every group."""

from collections.abc import Sequence
from typing import Any

from fairbilevel._display import esc
from fairbilevel.report._certificate import certificate_line
from fairbilevel.report._markup import Row, facts, section, table
from fairbilevel.report._numbers import (
    MISSING,
    count,
    counted,
    dig,
    mapping,
    number,
    percent,
    points,
    strings,
)
from fairbilevel.report._sections import GAPS

_MOST_GROUPS = 40


def precision_section(
    exports: Sequence[dict[str, Any]], certificates: Sequence[dict[str, Any]] = ()
) -> str:
    """The records that `export` left, each with the certificate of its file; nothing without any.

    Args:
        exports: from `export-*.json`.
        certificates: from `certificate-*.json`; those of other models are left out.
    """
    parts = "".join(_file(export, certificates) for export in exports)
    intro = (
        "<p>A file in lower precision is another model: each was run on the rows named, group by "
        "group, beside the pruned network in float32 that it was made of. “Beyond average” is a "
        "group’s loss against the dense model minus the loss over all rows. Hardest hit by the "
        "lower precision first.</p>"
    )
    return section("precision", "What lower precision did to every group", parts and intro, parts)


def _file(export: dict[str, Any], certificates: Sequence[dict[str, Any]]) -> str:
    name, digest = str(dig(export, "file") or "a file"), dig(export, "digest")
    precision = str(dig(export, "precision") or "lower precision")
    rows, changed = (number(export, "checked", key) for key in ("rows", "changed"))
    share = f" ({percent(changed / rows)})" if rows and changed is not None else ""
    of = str(dig(export, "by_group", "rows_of") or "")
    said = (
        f"{name}, {precision}: {count(changed)} of {count(rows)} "
        f"{'test rows' if of == 'test' else f'rows of {of}' if of else 'rows'}{share} get another "
        "class than by the pruned network in float32."
    )
    certified = [
        certificate_line(c) or str(dig(c, "verdict"))
        for c in certificates
        if isinstance(digest, str) and dig(c, "context", "pruned_model") == digest
    ]
    size, calibration = number(export, "bytes"), number(export, "calibration", "rows")
    told = facts(
        (
            ("SHA-256", str(digest or "")),
            ("Size", f"{count(size)} bytes" if size is not None else ""),
            ("Calibrated on", counted(calibration, "select row") if calibration else ""),
            (
                "Certified",
                " ".join(certified) or "not yet: fairbilevel certify RUN --artifact FILE",
            ),
        )
    )
    return f"<p><b>{esc(said)}</b></p>{_groups(export)}{_gaps(export)}{told}"


def _groups(export: dict[str, Any]) -> str:
    told = mapping(export, "by_group")
    names = strings(told, "groups")
    inside = set(strings(told, "counted_groups"))

    def accuracy(name: str, model: str) -> float | None:
        return number(told, model, "group_accuracy", name)

    def step(name: str) -> float | None:
        before, after = accuracy(name, "pruned"), accuracy(name, "file")
        return None if before is None or after is None else after - before

    def order(name: str) -> tuple[bool, bool, float]:
        change = step(name)
        return name not in inside, change is None, change or 0.0

    def cells(name: str) -> list[str]:
        size, changed = number(told, "file", "group_size", name), number(told, "changed", name)
        excess = [number(told, gaps, "excess_accuracy_gap", name) for gaps in ("gaps", "file_gaps")]
        share = f"<small>{percent(changed / size)}</small>" if changed and size else ""
        return [
            count(size),
            *(percent(accuracy(name, model)) for model in ("dense", "pruned", "file")),
            points(step(name), signed=True),
            *(points(value, signed=True) for value in excess),
            count(changed) + share,
        ]

    if not names:
        return ""
    head = ["Group", "Rows", "Dense", "Pruned", "File", "File minus pruned, points"]
    head += ["Beyond average, pruned", "Beyond average, file", "Verdicts changed"]
    whole = [number(told, model, "accuracy") for model in ("dense", "pruned", "file")]
    before, after = whole[1:]
    total = None if before is None or after is None else after - before
    every = sum(number(n) or 0 for n in mapping(told, "changed").values())
    row = [count(number(told, "rows")), *map(percent, whole), points(total, signed=True)]
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
    return table(head, body) + f'<p class="note">{esc(" ".join(notes))}</p>'


def _gaps(export: dict[str, Any]) -> str:
    pairs = [("worst_group_accuracy", "Worst group’s accuracy", percent)]
    pairs += [(key, name, points) for key, name, _ in GAPS]
    body = []
    for key, name, form in pairs:
        values = [number(export, "by_group", gaps, key) for gaps in ("gaps", "file_gaps")]
        if any(value is not None for value in values):
            body.append(Row(name, [form(value) for value in values]))
    head = ["Measure", "Pruned, float32", "File"]
    return table(head, body, caption="Accuracy in percent, gaps in points") if body else ""
