"""What the pruned network takes where it is served, beside the dense one: sizes, counts, times."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fairbilevel._numbers import count, milliseconds, percent, storage
from fairbilevel.report._parts import Cell, Figure, Row, Table
from fairbilevel.report._read import dig, number, strings
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
    """Counts and times of both networks; nothing where none were taken.

    Args:
        profile: from `profile.json`.
        network: SHA-256 of the run's pruned network, from `manifest.json`: numbers of another one
            are not shown.
    """
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
    title, look = (
        "What is left of the dense network",
        {
            "categories": [name for name, _ in shares],
            "series": [Bars("pruned", [share for _, share in shares])],
            "form": percent,
            "axis": "of the dense network, %",
            "domain": (0, max([1.0, *(share for _, share in shares)])),
        },
    )
    text = "The pruned network, in percent of the dense one."
    figure = Figure("serving-left", title, text, bar_chart, look | {"title": title}, wide=330)
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
