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
``certificate_power.csv``, ``certificate_cost.csv``, ``certificate_validity.md`` and, with
matplotlib, ``certificate_power.png``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import special, stats

from experiments import _write
from experiments._write import RESULTS
from fairbilevel.certificates import GAPS, Paired, certify, difference_upper, excess_bounds
from fairbilevel.certificates._paired import _sharp
from fairbilevel.records import read_arrays, write_text

# Outcomes of a dense network and two pruned ones on 3,797 test rows of UTKFace.
POPULATION = RESULTS / "certificate_population.npz"
DELTA, GROUPS = 0.05, 5
OWN, REST = 0.8, 0.2
ROWS, DISCORDANCES = (10, 30, 100, 1000), (0.02, 0.1, 0.3)
METHODS = ("sharp", "simple", "wald", "newcombe", "bootstrap")
RESAMPLES = 500


@dataclass(frozen=True)
class World:
    """Rates of every group: ``lost`` and ``won``, with ``rows`` rows each."""

    name: str
    q: float
    rows: int
    lost: np.ndarray
    won: np.ndarray

    @property
    def psi(self) -> np.ndarray:
        """True excess gaps; groups are equally large."""
        gap = self.lost - self.won
        return gap - gap.mean()


def worlds() -> list[World]:
    """Every least favourable world."""
    found = []
    for rows in ROWS:
        for q in DISCORDANCES:
            eps = q / 4
            step = eps * GROUPS / (GROUPS - 1)
            one = np.zeros(GROUPS)
            one[0] = step
            found.append(World("one group above", q, rows, (q + one) / 2, (q - one) / 2))
            half = eps * GROUPS / 2
            most = np.full(GROUPS, half)
            most[-1] = -half
            found.append(World("all but one above", q, rows, (q + most) / 2, (q - most) / 2))
            found.append(World("one above, c = 0", q, rows, one, np.zeros(GROUPS)))
    return found


# ------------------------------------------------------------ bounds of a difference, by array


def rate_upper(k: np.ndarray, n: int, level: float) -> np.ndarray:
    inside = special.betainccinv(np.minimum(k, n - 1) + 1, np.maximum(n - k, 1), level)
    return np.where(k >= n, 1.0, inside)


def rate_lower(k: np.ndarray, n: int, level: float) -> np.ndarray:
    return np.where(k <= 0, 0.0, special.betaincinv(np.maximum(k, 1), n - k + 1, level))


def simple_upper(b: np.ndarray, c: np.ndarray, n: int, level: float) -> np.ndarray:
    return rate_upper(b, n, level / 2) - rate_lower(c, n, level / 2)


def sharp_below(b: np.ndarray, c: np.ndarray, n: int, level: float, x: np.ndarray) -> np.ndarray:
    """Where the sharp upper bound lies below ``x``.

    The exact bound never falls as ``b`` grows (its probability only rises), so for each ``c`` the
    largest ``b`` that can matter is found by bisection; all bounds up to it are computed.
    """
    upper = lru_cache(maxsize=None)(lambda i, j: difference_upper(i, j, n, level))
    out = np.zeros(b.shape, bool)
    slack = 0.01 * n**-0.5  # the resolution of the bound
    for value in np.unique(c):
        here = np.flatnonzero(c == value)
        counts = np.unique(b[here])
        largest = x[here].max() + slack
        low, high = 0, len(counts)
        while low < high:
            middle = (low + high) // 2
            if upper(int(counts[middle]), int(value)) < largest:
                low = middle + 1
            else:
                high = middle
        for i in here[b[here] < (counts[low] if low < len(counts) else n + 1)]:
            out[i] = upper(int(b[i]), int(value)) < x[i]
    return out


def wilson(k: np.ndarray, n: int, z: float) -> tuple[np.ndarray, np.ndarray]:
    p = k / n
    centre, reach = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (centre - reach) / (1 + z**2 / n), (centre + reach) / (1 + z**2 / n)


def newcombe_upper(b: np.ndarray, c: np.ndarray, n: int, z: float) -> np.ndarray:
    """Square-and-add of two Wilson intervals with the correlation of ``B`` and ``C``."""
    p, r = b / n, c / n
    _, up = wilson(b, n, z)
    low, _ = wilson(c, n, z)
    scale = np.sqrt(np.maximum(p * (1 - p) * r * (1 - r), 1e-300))
    rho = np.where(p * r > 0, -p * r / scale, 0.0)
    above, below = up - p, r - low
    return p - r + np.sqrt(np.maximum(above**2 + below**2 - 2 * rho * above * below, 0))


# ------------------------------------------------------------------ excess gaps, by array

Counts = tuple[np.ndarray, np.ndarray]


def rest_of(counts: Counts, g: int) -> Counts:
    return counts[0].sum(1) - counts[0][:, g], counts[1].sum(1) - counts[1][:, g]


def psi_upper_below(
    method: str,
    counts: Counts,
    g: int,
    rows: int,
    level: float,
    x: float,
    alive: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """In which of the worlds alive ``U_psi(g) <= x``: the tolerance ``x`` would be certified."""
    out = np.zeros(len(alive), bool)
    i = np.flatnonzero(alive)
    if not i.size:
        return out
    b, c = counts[0][i, g], counts[1][i, g]
    rb, rc = (v[i] for v in rest_of(counts, g))
    others = rows * (GROUPS - 1)
    factor = 1 - 1 / GROUPS
    if method in ("sharp", "simple"):
        # L_D(rest) = -U(c, b), always simple: the complement mixes several distributions.
        rest_low = -simple_upper(rc, rb, others, REST * level)
        limit = x / factor + rest_low
        if method == "simple":
            out[i] = simple_upper(b, c, rows, OWN * level) <= limit
        else:
            out[i] = sharp_below(b, c, rows, OWN * level, limit)
        return out
    own, rest = (b - c) / rows, (rb - rc) / others
    z = float(stats.norm.isf(level))
    if method == "wald":
        variance = ((b + c) / rows - own**2) / rows + ((rb + rc) / others - rest**2) / others
        out[i] = factor * (own - rest + z * np.sqrt(np.maximum(variance, 0))) <= x
    elif method == "newcombe":
        above = newcombe_upper(b, c, rows, z) - own
        below = rest + newcombe_upper(rc, rb, others, z)
        out[i] = factor * (own - rest + np.sqrt(above**2 + below**2)) <= x
    else:
        quantile = np.empty(len(i))
        for start in range(0, len(i), 200):
            s = slice(start, start + 200)
            draws = []
            for lost, won, n in ((b[s], c[s], rows), (rb[s], rc[s], others)):
                share = np.column_stack([lost, won, n - lost - won]) / n
                again = rng.multinomial(n, share, size=(RESAMPLES, len(lost)))
                draws.append((again[..., 0] - again[..., 1]) / n)
            quantile[s] = np.quantile(factor * (draws[0] - draws[1]), 1 - level, axis=0)
        out[i] = quantile <= x
    return out


def simulate(world: World, method: str, count: int, seed: int) -> dict[str, Any]:
    """Shares of wrong answers among ``count`` draws from a world."""
    rng = np.random.default_rng(seed)
    shape = (count, GROUPS)
    lost, won = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for g in range(GROUPS):
        p = [world.lost[g], world.won[g], 1 - world.lost[g] - world.won[g]]
        draws = rng.multinomial(world.rows, np.clip(p, 0, 1), size=count)
        lost[:, g], won[:, g] = draws[:, 0], draws[:, 1]
    counts, psi = (lost, won), world.psi
    worst = float(psi.max())
    # The tolerance is just below the worst gap: whoever is certified at it is certified wrongly.
    below = worst - 1e-9
    above = np.flatnonzero(psi > worst - 1e-12)
    run = np.ones(count, bool)
    for g in [*above, *(g for g in range(GROUPS) if g not in above)]:
        run &= psi_upper_below(method, counts, int(g), world.rows, DELTA, below, run, rng)
    own = np.zeros(count, bool)
    for g in above:
        own |= psi_upper_below(method, counts, int(g), world.rows, DELTA / GROUPS, below, ~own, rng)
    # The tolerance is just above it: whoever is violated is violated wrongly. L_psi = -U mirrored.
    violated = np.zeros(count, bool)
    mirrored = (won, lost)
    for g in range(GROUPS):
        violated |= psi_upper_below(
            method, mirrored, g, world.rows, DELTA / GROUPS, -worst - 1e-9, ~violated, rng
        )
    return {
        "world": world.name,
        "q": world.q,
        "rows_per_group": world.rows,
        "tolerance_points": round(100 * worst, 4),
        "method": method,
        "worlds": count,
        "run_wrongly_certified": float(run.mean()),
        "group_wrongly_certified": float(own.mean()),
        "run_wrongly_violated": float(violated.mean()),
        "allowed": allowed(count),
    }


def allowed(count: int) -> float:
    """The 99.9 % binomial quantile at ``DELTA``."""
    return float(stats.binom.ppf(0.999, count, DELTA) / count)


ERRORS = ("run_wrongly_certified", "group_wrongly_certified", "run_wrongly_violated")


def validity(count: int) -> list[dict[str, Any]]:
    """Every world with every method, written as it goes."""
    found = []
    for k, world in enumerate(worlds()):
        start = time.perf_counter()
        for method in METHODS:
            draws = min(count, 2000) if method == "bootstrap" else count
            found.append(simulate(world, method, draws, k))
        _write.write_csv(RESULTS / "certificate_validity.csv", found)
        print(
            f"{world.name}, q {world.q:g}, n {world.rows}: {time.perf_counter() - start:.1f} s",
            flush=True,
        )
    return found


# ------------------------------------------------------------------ real outcomes as the population


def population(count: int) -> list[dict[str, Any]]:
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
                draws = [
                    rng.multinomial(n, [p, r, 1 - p - r])
                    for n, (p, r) in zip(rows, rates, strict=True)
                ]
                parts = [Paired(int(d[0]), int(d[1]), int(d.sum())) for d in draws]
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
            _write.write_csv(RESULTS / "certificate_population.csv", found)
    return found


def judge_all(parts: list[Paired], share: np.ndarray) -> list[tuple[float, ...]]:
    """Per group: ``U`` at delta, ``U`` and ``L`` at delta/G, interval at delta/(2G)."""
    groups = len(parts)
    found = []
    for g, own in enumerate(parts):
        others = parts[:g] + parts[g + 1 :]
        rest = others[0].pool(others[1:])
        full = excess_bounds(own, rest, float(share[g]), DELTA)
        each = excess_bounds(own, rest, float(share[g]), DELTA / groups)
        table = excess_bounds(own, rest, float(share[g]), DELTA / (2 * groups))
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
            low, high = 1, n
            if sharp > simple:
                high = 2 * n
            while high - low > 1:
                m = (low + high) // 2
                k = m * q / 2
                if between(k, m) <= simple:
                    high = m
                else:
                    low = m
            found.append(
                {
                    "q": q,
                    "rows": n,
                    "simple_points": round(100 * simple, 4),
                    "sharp_points": round(100 * sharp, 4),
                    "sharp_rows_for_the_same": high,
                    "rows_ratio": round(high / n, 4),
                }
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


def draw_power(rows: list[dict[str, Any]]) -> None:
    """Bounds against rows; needs matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no picture")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(DISCORDANCES), figsize=(11, 3.6), sharey=True)
    for axis, q in zip(axes, DISCORDANCES, strict=True):
        part = [r for r in rows if r["q"] == q]
        n = [r["rows"] for r in part]
        axis.loglog(n, [r["simple_points"] for r in part], "o--", color="#D55E00", label="simple")
        axis.loglog(n, [r["sharp_points"] for r in part], "s-", color="#0072B2", label="sharp")
        axis.set_title(f"{100 * q:g} % of rows change")
        axis.set_xlabel("rows")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("95 % upper bound of D, points")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(RESULTS / "certificate_power.png", dpi=120)


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
        seconds = round(time.perf_counter() - start, 2)
        found.append(
            {
                "gap": gap,
                "groups": groups,
                "rows": rows,
                "verdict": made.verdict,
                "seconds": seconds,
            }
        )
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
        line[r["method"]] = " / ".join(f"{100 * float(r[e]):.1f}" for e in ERRORS)
    return list(out.values())


def summary() -> str:
    """The markdown file, from the CSV files that are there."""
    validity, population, power, cost = (
        _write.read_csv(RESULTS / f"certificate_{name}.csv")
        for name in ("validity", "population", "power", "cost")
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
    if population:
        blocks += ["## Real outcomes as the population", _write.table(population)]
    if power:
        blocks += [
            "## Rows that a width takes",
            f"One-sided {100 * (1 - DELTA):g} % upper bounds of a difference that is zero, at the "
            "expected counts; `rows_ratio` is the share of the simple bound's rows that the sharp "
            "one needs for the same bound.",
            _write.table(power),
        ]
    if cost:
        blocks += ["## Seconds of one certificate", _write.table(cost)]
    return _write.page(*blocks, _write.made_by())


def main() -> None:
    parser = _write.parser(__doc__, None, worlds=10_000, draws=2000)
    parts = ("validity", "population", "power", "cost")
    parser.add_argument("--part", choices=parts, action="append", help="all by default")
    options = parser.parse_args()
    asked = options.part or parts
    if "power" in asked:
        rows = power()
        _write.write_csv(RESULTS / "certificate_power.csv", rows)
        draw_power(rows)
    if "population" in asked:
        population(options.draws)
    if "cost" in asked:
        _write.write_csv(RESULTS / "certificate_cost.csv", cost())
    if "validity" in asked:
        validity(options.worlds)
    write_text(RESULTS / "certificate_validity.md", summary())


if __name__ == "__main__":
    main()
