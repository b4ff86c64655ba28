"""What the pruned network takes where it is served, beside the dense one: sizes, counts, times; and
what a file in lower precision did to every group."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fairbilevel._numbers import MISSING, count, counted, milliseconds, percent, points, storage
from fairbilevel.report._certificate import certificate_line
from fairbilevel.report._parts import Cell, Figure, Row, Table, dig, mapping, number, strings
from fairbilevel.report._sections import GAPS, signed_points
from fairbilevel.report.charts import Bars, bar_chart

_COUNTS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("file_bytes", "Weights file", storage),
    ("compressed_bytes", "Weights file, compressed", storage),
    ("onnx_bytes", "ONNX file", storage),
    ("parameters", "Parameters", count),
    ("kept_parameters", "Parameters not removed", count),
    ("multiply_adds", "Multiply-adds a row", count),
    ("kept_multiply_adds", "Multiply-adds by what is not removed", count),
    ("activation_bytes", "Activations of a row, peak", storage),
)
_ENGINES = {"jax": "JAX", "onnxruntime": "ONNX Runtime"}
_MOST_TIMES = 60
_MOST_GROUPS = 40
_MODELS = ("dense", "pruned", "file")


class Counted(NamedTuple):
    """A count of both networks, in words, and the share of the dense one's that is left."""

    name: str
    dense: str
    pruned: str
    share: float | None


class Timed(NamedTuple):
    """One way of running the pruned network, beside the dense one by the same engine and batch.

    ``dense`` and ``pruned`` are (median, low, high) in milliseconds, ``rates`` rows a second.
    """

    way: str
    batch: int
    dense: tuple[float, float, float]
    pruned: tuple[float, float, float]
    rates: tuple[float, float]
    factor: float
    clear: bool

    @property
    def gain(self) -> str:
        """How many times as fast as the dense network."""
        return f"× {self.factor:.2f}"


def counted_rows(profile: dict[str, Any]) -> list[Counted]:
    """What was counted; where nothing but what was removed differs, that is not told twice."""
    rows = []
    for key, name, form in _COUNTS:
        dense, pruned = (number(profile, which, key) for which in ("dense", "pruned"))
        if dense is None or pruned is None:
            continue
        whole = key.removeprefix("kept_")
        if key != whole and pruned == number(profile, "pruned", whole):
            continue
        share = pruned / dense if dense else None
        rows.append(Counted(name, form(dense), form(pruned), share))
    return rows


def timed_rows(profile: dict[str, Any]) -> list[Timed]:
    """What was timed, an engine after another."""
    found = dig(profile, "speeds")
    speeds = [s for s in found if isinstance(s, dict)] if isinstance(found, list) else []
    dense = {(s.get("engine"), s.get("batch")): s for s in speeds if s.get("network") == "dense"}
    rows = []
    for speed in speeds:
        beside = dense.get((speed.get("engine"), speed.get("batch")))
        if beside is None or speed is beside:
            continue
        engine = str(speed.get("engine"))
        way = _ENGINES.get(engine, engine)
        way += "" if speed.get("network") == "pruned" else f", {speed.get('network')}"
        one, two = (_spread(s) for s in (beside, speed))
        rates = [number(s, "rows_per_second") for s in (beside, speed)]
        batch, factor = number(speed, "batch"), number(speed, "times_as_fast")
        if one is None or two is None or rates[0] is None or rates[1] is None:
            continue
        if batch is not None and factor is not None:
            clear = speed.get("clear") is True
            rows.append(Timed(way, int(batch), one, two, (rates[0], rates[1]), factor, clear))
    ways = list(dict.fromkeys(row.way for row in rows))
    return sorted(rows, key=lambda row: (ways.index(row.way), row.batch))[:_MOST_TIMES]


def _spread(speed: dict[str, Any]) -> tuple[float, float, float] | None:
    middle, low, high = (number(speed, key) for key in ("milliseconds", "low", "high"))
    return None if middle is None or low is None or high is None else (middle, low, high)


def serving_section(profile: dict[str, Any] | None, network: str | None) -> dict[str, Any] | None:
    """Counts and times of both networks; nothing where none were taken, and none of another pruned
    network than that of the run, whose SHA-256 is given."""
    if not profile:
        return None
    if network is None or dig(profile, "pruned_model") != network:
        return {"stale": True}
    counts, times = counted_rows(profile), timed_rows(profile)
    if not counts and not times:
        return None
    first, *rest = strings(profile, "notes") or [""]
    return {
        "stale": False,
        "first": first,
        "notes": rest,
        "counts": _counts(counts),
        "figures": _share_chart(counts) + _time_charts(times),
        "times": _times(times),
    }


def _counts(rows: list[Counted]) -> Table | None:
    body = [Row(r.name, [r.dense, r.pruned, percent(r.share)]) for r in rows]
    return Table(["Counted", "Dense", "Pruned", "Pruned, of dense"], body) if body else None


def _times(rows: list[Timed]) -> Table | None:
    head = ["Timed", "Batch", "Dense, ms", "Pruned, ms", "Times as fast"]
    head += ["Dense, rows a second", "Pruned, rows a second"]

    def spread(values: tuple[float, float, float]) -> Cell:
        middle, low, high = map(milliseconds, values)
        return middle, f"{low} to {high}"

    body = []
    for r in rows:
        gain = r.gain if r.clear else (r.gain, "within the scatter")
        rates = [count(rate) for rate in r.rates]
        body.append(Row(r.way, [count(r.batch), spread(r.dense), spread(r.pruned), gain, *rates]))
    caption = "Milliseconds a call: median and, in small print, the middle half of the rounds"
    return Table(head, body, caption) if body else None


def _share_chart(rows: list[Counted]) -> list[Figure]:
    shares = [(r.name, r.share) for r in rows if r.share is not None]
    title = "What is left of the dense network"
    look = {
        "title": title,
        "categories": [name for name, _ in shares],
        "series": [Bars("pruned", [share for _, share in shares])],
        "form": percent,
        "axis": "of the dense network, %",
        "domain": (0, max([1.0, *(share for _, share in shares)])),
    }
    text = "The pruned network, in percent of the dense one."
    figure = Figure("serving-left", title, text, bar_chart, look, wide=330)
    return [figure] if shares else []


def _time_charts(rows: list[Timed]) -> list[Figure]:
    if not rows:
        return []
    least, most = min(row.batch for row in rows), max(row.batch for row in rows)
    small, large = ([row for row in rows if row.batch == batch] for batch in (least, most))
    spent = {"dense": [r.dense for r in small], "pruned": [r.pruned for r in small]}
    latency = {
        "title": f"Latency at batch {least}",
        "categories": [row.way for row in small],
        "series": [Bars(n, [t[0] for t in of], [t[1:] for t in of]) for n, of in spent.items()],
        "form": lambda v: f"{milliseconds(v)} ms",
        "axis": "milliseconds a call",
        "unit": 1,
    }
    throughput = {
        "title": f"Throughput at batch {most}",
        "categories": [row.way for row in large],
        "series": [Bars(n, [r.rates[i] for r in large]) for i, n in enumerate(spent)],
        "form": count,
        "axis": "rows a second",
        "unit": 1,
    }
    less = f"Batch {least}; shorter is better. Whiskers: the middle half of the rounds."
    more = f"Batch {most}; longer is better."
    return [
        Figure("latency", "Latency", less, bar_chart, latency, wide=330),
        Figure("throughput", "Throughput", more, bar_chart, throughput, wide=330),
    ]


def precision_section(
    exports: Sequence[dict[str, Any]], certificates: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The records that `export` left, each with the certificate of its file; certificates of other
    models are left out."""
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
