"""Are certificates valid, and what do they cost in rows? Simulated in least favourable worlds.

    python -m experiments.certificate_validity            # all parts
    python -m experiments.certificate_validity --part validity|population|power|cost

*Validity*: worlds in which the tolerance is exactly what the worst group's gap just exceeds, each
reported alone. An error is a world in which anything is wrongly certified (the run, or any group by
itself), or wrongly called violated; shares are of all simulated worlds. Beside the exact bounds
stand Wald's, Newcombe's and the percentile bootstrap's, used in the same way.
*Population*: outcomes of real networks on real rows are taken as the population, and certify sets
are drawn from it again and again.
*Power*: rows that the sharp and the simple bound need for the same width.
*Cost*: seconds of one certificate of 20 groups and 20,000 rows, nothing computed before.

Writes, under ``experiments/results``: ``certificate_validity.csv``, ``certificate_population.csv``,
``certificate_power.csv``, ``certificate_cost.csv``, ``certificate_validity.md`` and
``certificate_power.png``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments import _write
from experiments._worlds import DELTA, DISCORDANCES, GROUPS, METHODS, allowed, simulate, worlds
from experiments._write import RESULTS, look, picture
from fairbilevel._numbers import points, share
from fairbilevel.certificates import GAPS, Paired, certify, difference_upper, excess_bounds
from fairbilevel.certificates._paired import _sharp
from fairbilevel.records import read_arrays, write_text

# Outcomes of a dense network and two pruned ones on 3,797 test rows of UTKFace.
POPULATION = RESULTS / "certificate_population.npz"
PARTS = ("validity", "population", "power", "cost")
ERRORS = ("run_wrongly_certified", "group_wrongly_certified", "run_wrongly_violated")


def validity(count: int, out: Path) -> list[dict[str, Any]]:
    """Every world with every method, written as it goes."""
    found = []
    for k, world in enumerate(worlds()):
        start = time.perf_counter()
        for method in METHODS:
            draws = min(count, 2000) if method == "bootstrap" else count
            found.append(simulate(world, method, draws, k))
        _write.write_csv(out / "certificate_validity.csv", found)
        lasted = time.perf_counter() - start
        print(f"{world.name}, q {world.q:g}, n {world.rows}: {lasted:.1f} s", flush=True)
    return found


# ------------------------------------------------------------------ real outcomes as the population


def population(count: int, out: Path) -> list[dict[str, Any]]:
    """Certify sets drawn within group from outcomes of real networks, with the real judgement."""
    found = []
    arrays = read_arrays(POPULATION)
    group = arrays["group"]
    names = np.unique(group)
    size = np.array([(group == g).sum() for g in names])
    for pruned in ("bilevel", "gradual-magnitude"):
        lost = arrays["dense"] & ~arrays[pruned]
        won = ~arrays["dense"] & arrays[pruned]
        rates = np.array([[lost[group == g].mean(), won[group == g].mean()] for g in names])
        for total in (300, 700):
            rng = np.random.default_rng(total)
            rows = np.maximum(np.round(total * size / size.sum()).astype(int), 1)
            share = rows / rows.sum()
            truth = (rates[:, 0] - rates[:, 1]) - share @ (rates[:, 0] - rates[:, 1])
            # Two tolerances: what the worst group just exceeds, and what it just keeps.
            worst = float(truth.max())
            wrong = {"run certified": 0, "group certified": 0, "run violated": 0, "interval": 0}
            bounds = []
            for _ in range(count):
                draws = (
                    rng.multinomial(n, [p, r, 1 - p - r])
                    for n, (p, r) in zip(rows, rates, strict=True)
                )
                parts = [Paired(int(b), int(c), int(b + c + both)) for b, c, both in draws]
                result = judge_all(parts, share)
                bounds.append(max(u for u, *_ in result))
                wrong["run certified"] += bounds[-1] < worst
                wrong["group certified"] += any(
                    own < t for (_, own, *_), t in zip(result, truth, strict=True)
                )
                wrong["run violated"] += any(low > worst for _, _, low, *_ in result)
                wrong["interval"] += any(
                    not a <= t <= z for (*_, a, z), t in zip(result, truth, strict=True)
                )
            found.append(
                {
                    "population": f"utkface-short fold 0-0, {pruned}",
                    "groups": len(names),
                    "certify_rows": int(rows.sum()),
                    "smallest_group": int(rows.min()),
                    "worst_gap_points": round(100 * worst, 3),
                    "median_certified_points": round(100 * float(np.median(bounds)), 3),
                    "draws": count,
                    **{f"wrong: {k}": v / count for k, v in wrong.items()},
                    "allowed": allowed(count),
                }
            )
            print(f"population {pruned}, {total} rows: {found[-1]}", flush=True)
            _write.write_csv(out / "certificate_population.csv", found)
    return found


def judge_all(parts: list[Paired], share: np.ndarray) -> list[tuple[float, ...]]:
    """Per group: ``U`` at delta, ``U`` and ``L`` at delta/G, interval at delta/(2G)."""
    groups = len(parts)
    found: list[tuple[float, ...]] = []
    for g, own in enumerate(parts):
        first, *others = parts[:g] + parts[g + 1 :]
        rest = first.pool(others)
        full, each, table = (
            excess_bounds(own, rest, float(share[g]), DELTA / times)
            for times in (1, groups, 2 * groups)
        )
        found.append((full[1], each[1], each[0], *table))
    return found


# ------------------------------------------------------------------ rows that a width takes


def power() -> list[dict[str, Any]]:
    """Bounds of a paired difference that is zero: counts as expected, ``b = c = n q / 2``.

    ``rows_ratio`` is the share of the simple bound's rows at which the sharp bound is as tight.
    """
    found = []
    for q in DISCORDANCES:
        for n in (30, 100, 300, 1000, 3000, 10_000):
            half = round(n * q / 2)
            simple = difference_upper(half, half, n, DELTA, "simple")
            sharp = difference_upper(half, half, n, DELTA)
            # Smallest m at which the sharp bound, at the same rates, is no wider.
            low, high = 1, n if sharp <= simple else 2 * n
            while high - low > 1:
                m = (low + high) // 2
                low, high = (low, m) if between(m * q / 2, m) <= simple else (m, high)
            widths = {"simple_points": simple, "sharp_points": sharp}
            found.append(
                {"q": q, "rows": n, **{k: round(100 * v, 4) for k, v in widths.items()}}
                | {"sharp_rows_for_the_same": high, "rows_ratio": round(high / n, 4)}
            )
            print(found[-1], flush=True)
    return found


def between(k: float, m: int) -> float:
    """The sharp bound at ``b = c = k``, interpolated between whole counts."""
    low = int(k)
    first = difference_upper(low, low, m, DELTA)
    if k == low or 2 * (low + 1) > m:
        return first
    return first + (k - low) * (difference_upper(low + 1, low + 1, m, DELTA) - first)


def draw_power(rows: list[dict[str, Any]], path: Path) -> None:
    """Bounds against rows."""
    with picture(path, 1, len(DISCORDANCES), (11, 3.6), sharey=True) as (_, axes):
        for axis, q in zip(axes[0], DISCORDANCES, strict=True):
            part = [r for r in rows if r["q"] == q]
            for i, name in enumerate(("sharp", "simple")):
                bounds = [r[f"{name}_points"] for r in part]
                axis.loglog([r["rows"] for r in part], bounds, label=name, **look(i))
            axis.set(title=f"{share(q)} of rows change", xlabel="rows")
            axis.grid(which="both")
        axes[0][0].set_ylabel("95 % upper bound of D, points")
        axes[0][0].legend()


# ------------------------------------------------------------------ seconds of a certificate


def cost() -> list[dict[str, Any]]:
    """Every gap once, with its file, on 20,000 rows of 20 groups with 5 % discordance."""
    rows, groups = 20_000, 20
    rng = np.random.default_rng(0)
    group, y = rng.integers(0, groups, rows), rng.integers(0, 2, rows)
    dense = np.where(rng.random(rows) < 0.9, y, 1 - y)
    pruned = np.where(rng.random(rows) < 0.05, 1 - dense, dense)
    found = []
    for gap in GAPS:
        _sharp.cache_clear()
        start = time.perf_counter()
        made = certify(
            y, dense, pruned, group, gap=gap, tolerance=0.03, quantity=rng.random(rows), upper=1.0
        )
        made.to_json()
        row = {"gap": gap, "groups": groups, "rows": rows, "verdict": made.verdict}
        found.append({**row, "seconds": round(time.perf_counter() - start, 2)})
        print(found[-1], flush=True)
    return found


# ------------------------------------------------------------------ the page


def by_method(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The largest share of each error over all worlds."""
    out = []
    for method in METHODS:
        part = [r for r in rows if r["method"] == method]
        worst = {e.replace("_", " "): f"{max(float(r[e]) for r in part):.4f}" for e in ERRORS}
        passed = sum(all(float(r[e]) <= float(r["allowed"]) for e in ERRORS) for r in part)
        told = {"worlds passed": f"{passed} of {len(part)}", "draws a world": part[0]["worlds"]}
        out.append({"method": method, **worst, **told})
    return out


def by_world(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Every world's shares of errors, in per cent."""
    out: dict[Any, dict[str, Any]] = {}
    for r in rows:
        place = {"world": r["world"], "q": r["q"], "rows a group": r["rows_per_group"]}
        line = out.setdefault(tuple(place.values()), place)
        line[r["method"]] = " / ".join(points(float(r[e])) for e in ERRORS)
    return list(out.values())


def summary(out: Path) -> str:
    """The markdown file, from the CSV files that are there."""
    validity, population, power, cost = (
        _write.read_csv(out / f"certificate_{name}.csv") for name in PARTS
    )
    blocks = ["# Are certificates valid, and what do they cost in rows?"]
    if validity:
        blocks += [
            f"Least favourable worlds with {GROUPS} groups of equal size, nominal error "
            f"{DELTA:g}. Shares of all worlds in which something was wrong; the bounds pass where "
            "no share exceeds the 99.9 % binomial quantile (`allowed`). Largest share over all "
            "worlds by method:",
            _write.table(by_method(validity)),
            "Each world alone (run / group / violated):",
            _write.table(by_world(validity)),
            "Shares are in per cent.",
        ]
    widths = (
        f"One-sided {share(1 - DELTA)} upper bounds of a difference that is zero, at the "
        "expected counts; `rows_ratio` is the share of the simple bound's rows that the sharp one "
        "needs for the same bound."
    )
    for title, rows, words in (
        ("Real outcomes as the population", population, ""),
        ("Rows that a width takes", power, widths),
        ("Seconds of one certificate", cost, ""),
    ):
        blocks += [f"## {title}", words, _write.table(rows)] if rows else []
    return _write.page(*blocks, _write.made_by())


def main() -> None:
    parser = _write.parser(__doc__, worlds=10_000, draws=2000)
    parser.add_argument("--part", choices=PARTS, action="append", help="all by default")
    options = parser.parse_args()
    out, asked = options.out, options.part or PARTS
    if "power" in asked:
        rows = power()
        _write.write_csv(out / "certificate_power.csv", rows)
        draw_power(rows, out / "certificate_power.png")
    if "population" in asked:
        population(options.draws, out)
    if "cost" in asked:
        _write.write_csv(out / "certificate_cost.csv", cost())
    if "validity" in asked:
        validity(options.worlds, out)
    write_text(out / "certificate_validity.md", summary(out))


if __name__ == "__main__":
    main()
