"""Why pruning hurts some groups more than others: the experiments of Tran et al. 2022.

    python -m experiments.disparate_impact --data path/to/folder
    python -m experiments.disparate_impact --data path/to/folder --only utkface-race
    python -m experiments.disparate_impact --preset paper --data path/to/folder --only svhn-vgg19

A dense network is pruned at once by magnitude to several rates, each followed by a short
fine-tuning. At every rate: accuracy, gradient norm, largest Hessian eigenvalue and closeness to the
decision boundary by group; the excess losses beside their Taylor bound, and how they correlate with
what the dense network foretold. At one rate the mitigation of the paper: no constraint, equal group
losses enforced before pruning, after it, or both, within the same steps.

Every repetition redraws the networks and tests on its own fold; those that are done are read back,
so an interrupted experiment goes on where it stopped. Writes under ``results/disparate_impact/``
the outcome of every row (``repetitions.xz``; until the end in ``NAME/repetitions``), and of all
settings ``groups.csv``, ``correlations.csv``, ``mitigation.csv``, ``NAME.png`` and
``disparate_impact.md``.

In miniature, to see that it runs (the first time, ``tfds:`` settings download their data where it
does not):

    python -m experiments.disparate_impact --preset paper --smoke --only svhn-vgg19
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import _impact_tables
from experiments._comparison import asked, one_sentence, parser
from experiments._presets import MITIGATIONS
from fairbilevel import _trees, comparison, devices
from fairbilevel.analysis import Lanczos, Sensitivity, disparate_impact, sensitivity
from fairbilevel.comparison import Comparison
from fairbilevel.comparison._files import pack_folder, stem_of
from fairbilevel.records import to_digits, write_arrays, write_json
from fairbilevel.run import EvaluationMode, choose_rows


@dataclass(frozen=True)
class Depth:
    """How much is looked at."""

    mitigated: float  # rate at which losses are made equal
    fine_tuning: int  # steps after pruning at once
    analyzed: int  # test rows whose gradients and curvature are computed
    products: int  # of Lanczos' iteration


DEPTHS = {"small": Depth(0.95, 100, 500, 8), "paper": Depth(0.9, 2_000, 4_096, 20)}
SHALLOW = Depth(0.3, 2, 20, 2)  # in miniature


def _values(found: Sensitivity) -> dict[str, list[float]]:
    names = ("gradient_norm", "lambda_max", "lambda_error", "closeness")
    return {name: getattr(found, name).tolist() for name in names}


def repetition(design: Comparison, depth: Depth, folder: Path, round_: int, fold: int) -> str:
    """Dense network, all rates and all variants on one fold; done ones are left alone."""
    stem = stem_of(folder, round_, fold)
    if comparison.read_repetition(folder, round_, fold)[0]:
        return f"{folder.name} round {round_} fold {fold}: there already"
    devices.compile_cache()
    began = time.perf_counter()
    problem, reference, _ = comparison.start_repetition(design, round_, fold)
    seed = comparison.run_seed(design, round_, fold)
    test, dense = problem.roles["test"], reference.network
    rows: dict[str, np.ndarray] = {
        "id": problem.data.ids[test],
        "group": problem.group[test],
        "label": problem.y[test],
    }
    # Gradients and curvature cost many passes: a subset of test, as even over groups as it can be.
    seen = test[choose_rows(problem.group[test], len(problem.groups), depth.analyzed)]
    place: dict[str, Any] = {
        "x": problem.inputs[seen],
        "y": problem.y[seen],
        "group": problem.group[seen],
        "groups": problem.groups,
        "batch_size": min(128, max(16, depth.analyzed // len(problem.groups))),
    }
    given = problem.model, problem.encoder
    apply = EvaluationMode.under(dense.state, *given)
    lanczos = Lanczos(depth.products)
    known = sensitivity(apply, dense.params, **place, lanczos=lanczos)
    fit = problem.group[problem.roles["fit"]]
    record: dict[str, Any] = {
        "groups": list(problem.groups),
        "size": np.bincount(fit, minlength=len(problem.groups)).tolist(),
        "roles": {role: len(r) for role, r in problem.roles.items()},
        "analyzed": known.size.tolist(),
        "parameters": _trees.size(dense.params),
        "loss": {},
        "dense": _values(known),
        "rates": {},
        "variants": {},
    }

    def keep(key: str, correct: np.ndarray, loss: np.ndarray) -> None:
        rows[f"{key}/correct"] = correct
        by_group = _impact_tables.means(loss, rows["group"], len(problem.groups))
        record["loss"][key] = [None if np.isnan(value) else value for value in by_group.tolist()]

    def pruned(key: str, method: str, rate: float) -> Any:
        solution = design.method(method, rate, seed).run(problem, reference)
        keep(key, *problem.judge(solution.network, test))
        return solution

    keep("dense", reference.correct[test], reference.loss[test])
    for rate in design.sparsities:
        steps = f"magnitude:steps={depth.fine_tuning}"
        network = pruned(f"rate {rate:g}", steps, rate).network
        own = EvaluationMode.under(network.state, *given)
        impact = disparate_impact(
            apply, dense.params, network.params, own_apply=own, known=known, **place
        )
        record["rates"][f"{rate:g}"] = {
            **_values(sensitivity(own, network.params, **place, lanczos=lanczos)),
            "distance": impact.distance,
            "bound": impact.bound.tolist(),
            "expansion": impact.expansion.tolist(),
            "excess_loss_dense_statistics": impact.excess_loss.tolist(),
        }
    for variant, method in MITIGATIONS.items():
        spent = pruned(variant, method, depth.mitigated).costs.gradient_evaluations
        record["variants"][variant] = {"gradient_evaluations": spent}
    record["seconds"] = time.perf_counter() - began
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(stem.with_suffix(".npz"), rows, compressed=True)
    write_json(stem.with_suffix(".json"), to_digits(record))
    return f"{folder.name} round {round_} fold {fold}: done in {record['seconds']:.0f} s"


def _work(jobs: list[tuple[Comparison, Depth, Path, int, int]], processes: int) -> None:
    if processes == 1:
        for job in jobs:
            print(repetition(*job), flush=True)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would take JAX's threads' locks along
    with ProcessPoolExecutor(processes, spawn) as pool:
        for message in pool.map(repetition, *zip(*jobs, strict=True)):
            print(message, flush=True)


def main() -> None:
    options = parser("disparate_impact", __doc__).parse_args()
    with one_sentence():
        out, settings = asked("disparate_impact", options)
        depth = DEPTHS[options.preset] if not options.smoke else SHALLOW
        jobs, chosen = [], {n: settings[n] for n in options.only or settings}
        for name, (setting, design) in chosen.items():
            own = [(design, depth, out / name, *pair) for pair in design.repetitions]
            lacking = [job for job in own if not comparison.read_repetition(*job[2:])[0]]
            if lacking and setting.in_folder and options.data is None and not options.smoke:
                raise ValueError(f"--data is needed: the folder that holds {setting.source}")
            jobs += lacking
        _work(jobs, options.processes)
    found = []
    for name, (_, design) in chosen.items():
        pack_folder(out / name, beside=True)
        done = [comparison.read_repetition(out / name, *r) for r in design.repetitions]
        found.append(_impact_tables.Found(name, design.config, depth, done))
    _impact_tables.write(out, found)


if __name__ == "__main__":
    main()
