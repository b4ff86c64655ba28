"""Why pruning hurts some groups more than others: the experiments of Tran et al. 2022.

    python -m experiments.disparate_impact --preset small --data path/to/folder
    python -m experiments.disparate_impact --preset small --data path/to/folder --only utkface-race
    python -m experiments.disparate_impact --preset paper --data path/to/folder --only svhn-vgg19

A dense network is pruned at once by magnitude to several rates, each followed by a short
fine-tuning. At every rate: accuracy, gradient norm, largest Hessian eigenvalue and closeness to the
decision boundary by group; the excess losses beside their Taylor bound, and how they correlate with
what the dense network foretold. At one rate the mitigation of the paper: no constraint, equal group
losses enforced before pruning, after it, or both, within the same steps.

``small`` wants ``utkface48.zip`` and ``cifar10.zip`` in the folder (UTKFace in the release's names,
CIFAR-10 with one sub-folder per class); ``paper`` the original UTKFace as a folder ``UTKFace``, and
reads CIFAR-10 and SVHN through TensorFlow Datasets. Every repetition redraws the networks and tests
on its own fold; those that are done are read back, so an interrupted experiment goes on where it
stopped. Writes under ``results/disparate_impact/``: ``NAME/fold-*.json`` and ``.npz`` (the outcome
of every row), and of all settings together ``groups.csv``, ``correlations.csv``,
``mitigation.csv``, ``NAME.png`` (needs matplotlib) and ``disparate_impact.md``.

To try a paper setting in a few steps, on 1,000 images of 16 pixels and with an eighth of the width
(some minutes on two cores; the first time, ``tfds:`` settings download their data):

    python -m experiments.disparate_impact --preset paper --data path/to/folder \\
        --only utkface-race-resnet18 --smoke --out trial
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fairbilevel as fb
from experiments import _impact_tables
from fairbilevel import _trees, train
from fairbilevel.analysis import Lanczos, Sensitivity, disparate_impact, sensitivity
from fairbilevel.data import Options
from fairbilevel.records import read_arrays, write_arrays, write_json
from fairbilevel.run import Evaluation, choose_rows

RESULTS = Path(__file__).parent / "results" / "disparate_impact"
FOLDS = 5
VARIANTS = {
    _impact_tables.UNMITIGATED: "gradual-magnitude",
    "before": "equalized-loss-before",
    "after": "equalized-loss-after",
    "both": "equalized-loss-both",
}


@dataclass(frozen=True)
class Setting:
    """One data set and network, and how much work goes into it."""

    source: str
    options: Options
    model: str
    width: int | None
    rates: tuple[float, ...]
    mitigated: float
    dense_steps: int
    fine_tune_steps: int
    steps: int
    analyzed: int
    products: int
    rounds: int
    batch_size: int = 128
    variants: tuple[str, ...] = tuple(VARIANTS)

    def location(self, folder: str) -> str:
        """Where the rows are: in the folder, or in a data set of TensorFlow Datasets."""
        return self.source if self.source.startswith("tfds:") else str(Path(folder) / self.source)


RATES = (0.5, 0.8, 0.9, 0.95, 0.98)
RACE = Options(target="race", group=("race",), image_size=24)
AGE = Options(target="age", group=("age",), image_size=24)
CLASSES = Options(target="label", group=("label",), image_size=24, max_rows=10_000)

# Networks are small on purpose: what a large one has to spare hides what pruning does.
_small = functools.partial(
    Setting,
    model="cnn",
    width=8,
    rates=RATES,
    mitigated=0.95,
    dense_steps=500,
    fine_tune_steps=100,
    steps=300,
    analyzed=500,
    products=8,
    rounds=1,
)
SMALL = {
    "utkface-race": _small("utkface48.zip", RACE),
    "utkface-age": _small("utkface48.zip", AGE),
    "cifar10": _small("cifar10.zip", CLASSES),
}

_paper = functools.partial(
    Setting,
    width=None,
    rates=(0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98),
    mitigated=0.9,
    dense_steps=20_000,
    fine_tune_steps=2_000,
    steps=20_000,
    analyzed=4_096,
    products=20,
    rounds=2,
)
_SOURCES = {
    "utkface-race": ("UTKFace", dataclasses.replace(RACE, image_size=None)),
    "utkface-age": ("UTKFace", dataclasses.replace(AGE, image_size=None)),
    "cifar10": (
        "tfds:cifar10",
        dataclasses.replace(CLASSES, image_size=None, max_rows=None, download=True),
    ),
    "svhn": (
        "tfds:svhn_cropped",
        dataclasses.replace(CLASSES, image_size=None, max_rows=None, download=True),
    ),
}
PAPER = {
    f"{name}-{model}": _paper(source, options, model)
    for name, (source, options) in _SOURCES.items()
    for model in ("resnet18", "resnet50", "vgg19")
}
PRESETS = {"small": SMALL, "paper": PAPER}


def smoke(setting: Setting) -> Setting:
    """The same in a few steps, the network as narrow as the small ones, to see that it runs."""
    return dataclasses.replace(
        setting,
        width=8,
        options=dataclasses.replace(setting.options, image_size=16, max_rows=1_000),
        rates=setting.rates[-1:],
        dense_steps=4,
        fine_tune_steps=10,
        steps=60,
        analyzed=20,
        products=2,
        rounds=1,
        batch_size=8,
        # Both is before and after.
        variants=("both",),
    )


def prune(
    method: str, problem: Any, reference: Any, setting: Setting, seed: int, **options: Any
) -> tuple[Any, float]:
    """Network and gradient evaluations of a method by name.

    The problem has no constraint of its own, so training stops early by accuracy alone in every
    method; equal losses are enforced within the methods' own tolerance.
    """
    options = {"batch_size": setting.batch_size, "seed": seed, **options}
    solution = fb.methods.by_name(method, **options).run(problem, reference)
    return solution.network, solution.costs.gradient_evaluations


def _values(found: Sensitivity) -> dict[str, list[float]]:
    names = ("gradient_norm", "lambda_max", "lambda_error", "closeness")
    return {name: getattr(found, name).tolist() for name in names}


def repetition(name: str, setting: Setting, folder: str, out: str, round_: int, fold: int) -> str:
    """Dense network, all rates and all variants on one fold; done ones are left alone."""
    stem = Path(out) / name / f"fold-{round_}-{fold}"
    if stem.with_suffix(".json").exists():
        return f"{name} round {round_} fold {fold}: there already"
    began = time.perf_counter()
    data = fb.data.load(setting.location(folder), setting.options)
    roles = fb.data.fold_roles(data, fold, FOLDS, seed=round_)
    problem = fb.FairPruningProblem(
        setting.model,
        data,
        roles=roles,
        width=setting.width,
        seed=round_,
    )
    seed = FOLDS * round_ + fold
    reference = train.train_dense(
        problem, steps=setting.dense_steps, batch_size=setting.batch_size, seed=seed
    )
    test, dense = problem.roles["test"], reference.network
    rows: dict[str, np.ndarray] = {
        "id": data.ids[test],
        "group": problem.group[test],
        "label": problem.y[test],
        "dense/correct": reference.correct[test],
        "dense/loss": reference.loss[test],
    }
    # Gradients and curvature cost many passes: a subset of test, as even over groups as it can be.
    seen = test[choose_rows(problem.group[test], len(problem.groups), setting.analyzed)]
    place: dict[str, Any] = {
        "x": problem.inputs[seen],
        "y": problem.y[seen],
        "group": problem.group[seen],
        "groups": problem.groups,
        "batch_size": min(128, max(16, setting.analyzed // len(problem.groups))),
    }
    evaluation = Evaluation(problem.model, problem.encoder)
    apply = jax.tree_util.Partial(evaluation, dense.state)
    lanczos = Lanczos(setting.products)
    known = sensitivity(apply, dense.params, **place, lanczos=lanczos)
    record: dict[str, Any] = {
        "groups": list(problem.groups),
        "size": np.bincount(problem.group[roles["fit"]], minlength=len(problem.groups)).tolist(),
        "roles": {role: len(r) for role, r in problem.roles.items()},
        "analyzed": known.size.tolist(),
        "parameters": _trees.size(dense.params),
        "dense": _values(known),
        "rates": {},
        "variants": {},
    }
    for rate in setting.rates:
        network, _ = prune(
            "magnitude", problem, reference, setting, seed,
            sparsity=rate, steps=setting.fine_tune_steps,
        )  # fmt: skip
        key = f"rate {rate:g}"
        rows[f"{key}/correct"], rows[f"{key}/loss"] = problem.judge(network, test)
        own = jax.tree_util.Partial(evaluation, network.state)
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
    for variant in setting.variants:
        network, spent = prune(
            VARIANTS[variant], problem, reference, setting, seed,
            sparsity=setting.mitigated, steps=setting.steps,
        )  # fmt: skip
        rows[f"{variant}/correct"], rows[f"{variant}/loss"] = problem.judge(network, test)
        record["variants"][variant] = {"gradient_evaluations": spent}
    record["seconds"] = time.perf_counter() - began
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(stem.with_suffix(".npz"), rows, compressed=True)
    write_json(stem.with_suffix(".json"), record)
    return f"{name} round {round_} fold {fold}: done in {record['seconds']:.0f} s"


def _work(jobs: list[tuple[str, Setting, str, str, int, int]], processes: int) -> None:
    if processes == 1:
        for job in jobs:
            print(repetition(*job), flush=True)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would take JAX's threads' locks along
    with ProcessPoolExecutor(processes, spawn) as pool:
        for message in pool.map(repetition, *zip(*jobs, strict=True)):
            print(message, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--data", help="folder with the data files; tfds: settings need none")
    parser.add_argument("--only", action="append", help="a setting of the preset; repeatable")
    parser.add_argument("--repetitions", type=int, help="fewer than the preset's")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, help="default: the results of this repository")
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    unknown = set(arguments.only or ()) - set(preset)
    if unknown:
        parser.error(f"unknown setting {', '.join(unknown)}: choose from {', '.join(preset)}")
    if arguments.smoke and arguments.out is None:
        parser.error("--smoke wants an --out: its numbers are no results")
    settings = {name: preset[name] for name in arguments.only or preset}
    if arguments.smoke:
        settings = {name: smoke(setting) for name, setting in settings.items()}
    files = [s.source for s in settings.values() if not s.source.startswith("tfds:")]
    if files and arguments.data is None:
        parser.error(f"--data is needed: the folder that holds {files[0]}")
    folder = arguments.data or "."
    out = arguments.out or RESULTS / arguments.preset
    jobs = []
    for name, setting in settings.items():
        draws = [(r, f) for r in range(setting.rounds) for f in range(FOLDS)]
        limit = 1 if arguments.smoke else arguments.repetitions
        jobs += [(name, setting, folder, str(out), r, f) for r, f in draws[:limit]]
    try:
        _work(jobs, arguments.processes)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    done: dict[str, list[tuple[dict[str, Any], dict[str, np.ndarray]]]] = {}
    for name, _, _, _, round_, fold in jobs:
        stem = out / name / f"fold-{round_}-{fold}"
        record = json.loads(stem.with_suffix(".json").read_text())
        done.setdefault(name, []).append((record, read_arrays(stem.with_suffix(".npz"))))
    command = (
        f"python -m experiments.disparate_impact --preset {arguments.preset} --data DATA"
        + "".join(f" --only {name}" for name in arguments.only or ())
        + (f" --repetitions {arguments.repetitions}" if arguments.repetitions else "")
        + (" --smoke" if arguments.smoke else "")
    )
    print(_impact_tables.write(out, settings, done, command))


if __name__ == "__main__":
    main()
