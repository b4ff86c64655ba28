"""BiFP (Dai et al. 2023): fairness and pruning in one run, beside two-stage baselines.

    python -m experiments.bifp --data path/to/folder
    python -m experiments.bifp --preset paper --data path/to/folder --only blond-resnet10

Accuracy and bias along the lottery series of sparsities, the ablations (no constraint on the mask,
on the weights, on either), gradient evaluations until a network is fair, and of one fold the loss
surface between the variants. Bias is the largest difference of group accuracies. Writes
``results/bifp/``.

In miniature, to see that the paper's networks run:

    python -m experiments.bifp --preset paper --smoke --only blond-resnet10
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import _write
from experiments._comparison import Summary, count_of, pairs_of, run_presets, sparsities_of
from experiments._presets import ABLATIONS
from experiments._write import gain, look, picture
from fairbilevel import comparison
from fairbilevel._numbers import share
from fairbilevel.analysis import LossPlane
from fairbilevel.comparison import Comparison, run_key
from fairbilevel.run import solution_plane
from fairbilevel.train import Solution

SURFACE = ABLATIONS[:3]  # a plane takes three networks


def reading(summaries: Mapping[str, Summary]) -> list[str]:
    """Each claim of the paper, and what these numbers say to it."""
    out = []
    for name, summary in summaries.items():
        out += [f"## {name} ({summary['repetitions']} repetitions)", ""]
        if pairs := pairs_of(summary, "bifp", "prune-then-fair", "fair-then-prune"):
            fairer = [a["test_accuracy_gap"] < b["test_accuracy_gap"] for a, b in pairs]
            better = [a["test_accuracy"] > b["test_accuracy"] for a, b in pairs]
            out.append(
                "- *One run beats two stages.* Beside prune-then-fair and fair-then-prune BiFP has "
                f"the smaller accuracy gap on test in {count_of(fairer)} pairs and the higher "
                f"accuracy in {count_of(better)} (means, no test)."
            )
        for variant in ABLATIONS[1:]:
            if lines := pairs_of(summary, "bifp", variant):
                gaps = ", ".join(
                    f"{gain(b['test_accuracy_gap'] - a['test_accuracy_gap'])} at "
                    f"{share(a['sparsity'])}"
                    for a, b in lines
                )
                wider = [b["test_accuracy_gap"] > a["test_accuracy_gap"] for a, b in lines]
                out.append(
                    f"- *A fair mask matters, not only fair weights.* {variant}: accuracy gap on "
                    f"test less BiFP's {gaps}; wider at {count_of(wider)} sparsities."
                )
        out += [*summary.get("iterations", []), *summary.get("surface", []), ""]
    return out


def more(folder: Path, name: str, design: Comparison, summary: Summary) -> None:
    """What the tables do not show."""
    summary["iterations"] = iterations(folder, design, sparsities_of(summary))
    if name.split("-")[0] == "blond" and set(SURFACE) <= set(design.methods):
        summary["surface"] = surface(folder, design)


def surface(folder: Path, design: Comparison, points: int = 15) -> list[str]:
    """The loss over the plane through BiFP and two of its ablations (the paper's figure 8).

    Of the first fold, at the middle one of the sparsities, on test rows, overall and by group:
    ``surface.png``, and ``surface.csv`` with the three networks first and then the grid. What is
    there already is only read; a sentence computed from the file comes back.
    """
    table, drawing = folder / "surface.csv", folder / "surface.png"
    sparsity = sorted(design.sparsities)[len(design.sparsities) // 2]
    if not (table.is_file() and drawing.is_file()):
        problem, reference, _ = comparison.start_repetition(design, 0, 0)
        seed = comparison.run_seed(design, 0, 0)
        try:
            solutions = [
                design.method(method, sparsity, seed).run(problem, reference) for method in SURFACE
            ]
            a, b, c = solutions
            plane = solution_plane(a, b, c, points=points)
        except ValueError as error:
            return [f"- No loss surface at {share(sparsity)}: {error}."]
        _draw_surface(plane, drawing, f"{share(sparsity)} removed, one fold")
        _write.write_csv(table, _surface_rows(plane, solutions))
    rows = _write.read_csv(table)
    groups = [column for column in rows[0] if column.startswith("loss: ")]

    def told(row: dict[str, str]) -> str:
        values = [float(row[g]) for g in groups]
        return f"{float(row['loss']):.3f} ({max(values) - min(values):.3f})"

    networks = ", ".join(f"{row['network']} {told(row)}" for row in rows if row["network"])
    lowest = min((row for row in rows if not row["network"]), key=lambda row: float(row["loss"]))
    return [
        f"- *The surface between the variants* at {share(sparsity)}, one fold: loss on test, in "
        f"brackets the difference between its largest and smallest group, {networks}; where it is "
        f"lowest on the plane between them {told(lowest)}."
    ]


def _surface_rows(plane: LossPlane, solutions: list[Solution]) -> list[dict[str, Any]]:
    """The three networks with their coordinates and losses, then the grid."""
    columns = ("network", "u", "v", "loss", *(f"loss: {g}" for g in plane.groups))
    out: list[tuple[Any, ...]] = []
    for method, place, solution in zip(SURFACE, plane.solutions, solutions, strict=True):
        problem = solution.problem
        rows = problem.roles["test"]
        _, loss = problem.judge(solution.network, rows)
        by_group = [loss[problem.group[rows] == g].mean() for g in range(len(plane.groups))]
        out.append((method, *place, loss.mean(), *by_group))
    out += [
        ("", u, v, plane.loss[i, j], *plane.group_loss[i, j])
        for i, v in enumerate(plane.v)
        for j, u in enumerate(plane.u)
    ]
    return [dict(zip(columns, row, strict=True)) for row in out]


def _draw_surface(plane: LossPlane, path: Path, title: str) -> None:
    """Contours of the loss over all rows and of each group, the networks marked."""
    panels = {"all rows": plane.loss}
    panels |= {g: plane.group_loss[..., i] for i, g in enumerate(plane.groups)}
    # One scale of colors for all panels, by ratio: far from the networks the loss grows manifold.
    values = np.concatenate([v[np.isfinite(v) & (v > 0)] for v in panels.values()])
    levels = np.geomspace(values.min(), max(values.max(), values.min() * 1.01), 65)
    with picture(path, 1, len(panels), (3.9 * len(panels), 4.3)) as (figure, axes):
        for axis, (name, loss) in zip(axes[0], panels.items(), strict=True):
            drawn = axis.contourf(plane.u, plane.v, loss, levels, norm="log", cmap="cividis")
            lines = axis.contour(plane.u, plane.v, loss, 10, colors="white", linewidths=0.5)
            axis.clabel(lines, fontsize=6)
            axis.grid(False)
            for i, (method, (u, v)) in enumerate(zip(SURFACE, plane.solutions, strict=True)):
                style = look(i, line=False) | {"color": "white", "markeredgecolor": "black"}
                axis.plot(u, v, label=method, zorder=5, **style)
            axis.set(title=name, xlabel="distance along the first two")
        axes[0][0].set_ylabel("distance towards the third")
        bar = figure.colorbar(drawn, ax=axes[0], format="%.2f", ticks=levels[::8])
        bar.set_label("loss on test")
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
        figure.suptitle(title)


def iterations(folder: Path, design: Comparison, sparsities: list[float]) -> list[str]:
    """Gradient evaluations until a network on tune is fair and stays within a point of the best."""
    records = [comparison.read_repetition(folder, *r)[0] for r in design.repetitions]
    out = []
    for sparsity in sparsities:
        said = []
        for method in design.methods:
            runs = (r["runs"].get(run_key(method, sparsity), {}) for r in records if r)
            needed = np.array([_until_fair(run) for run in runs])
            found = needed[np.isfinite(needed)]
            never = len(needed) - len(found)
            told = f"{method} {found.mean():.0f}" if len(found) else f"{method} never"
            said.append(told + f" (never in {never} of {len(needed)})" * bool(len(found) and never))
        out.append(
            "- *One run is cheaper.* Gradient evaluations until the largest excess gap on tune is "
            "within 2 points and the accuracy within one of the run's last, at "
            f"{share(sparsity)}: {', '.join(said)}."
        )
    return out


def _until_fair(run: dict[str, Any]) -> float:
    course = run.get("course") or []
    fair = (
        float(spent)
        for spent, accuracy, gap in course
        if gap is not None and gap <= 0.02 and accuracy >= course[-1][1] - 0.01
    )
    return next(fair, float("inf"))


if __name__ == "__main__":
    run_presets("bifp", __doc__, reading, more, test_accuracy_gap="accuracy gap on test")
