"""The settings of all comparisons: data, network, methods and budget, by experiment and preset."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fairbilevel import BilevelSolver
from fairbilevel.comparison import REFERENCE, Comparison, split_methods
from fairbilevel.methods import METHODS
from fairbilevel.run import Config

SMOKE_ROWS = 480


@dataclass(frozen=True)
class Setting:
    """One data set, network and list of methods.

    Attributes:
        source: file in the data folder, or a ``tfds:`` name, a bundled name.
        methods: names of ``fb.methods``.
        sparsities: shares removed.
        options: fields of ``Config`` that differ from the defaults.
        reference: what differences are taken from.
        rounds: rounds of folds.
        folds: parts of the data, each tested once a round.
    """

    source: str
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str = REFERENCE
    rounds: int = 1
    folds: int = 5

    @property
    def in_folder(self) -> bool:
        """Whether the rows are in the folder that ``--data`` names."""
        return self.source != "digits" and not self.source.startswith("tfds:")

    def design(self, folder: Path | None) -> Comparison:
        """The comparison, on the data in a folder."""
        data = self.source
        if self.in_folder and folder is not None:
            # Named as it is called from here, not by where it lies on this machine.
            data = os.path.relpath(folder / self.source)
        return Comparison(
            Config(data=data, **{"min_group_rows": 150, **self.options}),
            self.methods,
            self.sparsities,
            reference=self.reference,
            folds=self.folds,
            rounds=self.rounds,
            dense_seeds=5,
        )

    def smoke(self, path: Path) -> Comparison:
        """In miniature, to see that it runs: every method and every layer of the network, narrow,
        for a few steps, half of it removed, on synthetic rows under the source's columns, which are
        written to ``path``, an ``.npz``."""
        config = self.design(None).config
        small: dict[str, Any] = {"width": 8, "batch_size": 16, **_steps(40, 40)}
        small |= {"max_rows": None, "image_size": None, "download": False}
        small |= {"min_group_rows": 1, "min_class_rows": 1, "data": str(path)}
        small |= {"target": config.target or "label", "group": config.group or ("label",)}
        # Above 64 pixels, up to which residual networks begin otherwise.
        size = None if config.model == "mlp" else min(config.image_size or 32, 66)
        config = dataclasses.replace(config, **small)
        _write_rows(path, config, size)
        return Comparison(
            config,
            self.methods,
            (0.5,),
            reference=self.reference,
            folds=2,
            dense_seeds=0,
        )


def _write_rows(path: Path, config: Config, size: int | None) -> None:
    """Images of this size, or six numbers a row, of two classes that can be told apart."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, SMOKE_ROWS)
    names = (f"not {config.positive}", config.positive) if config.positive else ("a", "b")
    columns = {name: rng.integers(0, 2, SMOKE_ROWS) for name in config.group}
    columns[str(config.target)] = np.array(names)[y]
    if size is None:
        x = rng.normal(size=(SMOKE_ROWS, 6)).astype(np.float32) + y[:, None]
    else:
        x = rng.integers(0, 180, (SMOKE_ROWS, size, size, 3), np.uint8)
        x += (60 * y[:, None, None, None]).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {"x": x, **columns}
    np.savez(path, **rows)


# Networks are small on purpose: what a large one has to spare hides what pruning does.
_CNN = {"image_size": 24, "model": "cnn", "width": 8}
_GENDER = {"target": "gender", "group": ("race", "gender")}
_RACE = {"target": "race", "group": ("race",)}
_LABEL = {"target": "label", "group": ("label",)}
_BLOND = {"target": "Blond_Hair", "group": ("Male",)}
_FACES, _CELEBS, _OBJECTS = "utkface48.zip", "celeba48.zip", "cifar10.zip"


def _steps(dense: int, pruning: int) -> dict[str, int]:
    return {"dense_steps": dense, "steps": pruning}


# ---------------------------------------------------------------------- the claim and its parts

SOLVER = "bilevel"
PUBLISHED = ("gradual-magnitude", "hydra", "ceag", "prune-then-fair", "synflow")
BUDGETS = (300, 1000)
_CLAIMED: dict[str, tuple[str, float, dict[str, Any]]] = {
    "gender": (_FACES, 0.95, {**_CNN, **_GENDER, "dense_steps": 600}),
    "race": (_FACES, 0.95, {**_CNN, **_RACE, "dense_steps": 600}),
    "blond": (_CELEBS, 0.98, {**_CNN, **_BLOND, "dense_steps": 600}),
    "objects": (
        _OBJECTS,
        0.98,
        {**_CNN, "group": ("label",), "width": 16, "dense_steps": 1500, "max_rows": 25_000},
    ),
}


def strong(name: str, steps: int) -> str:
    """A rival with the parts of training that the solver has at this budget."""
    return f"{name}:distill={BilevelSolver(steps=steps).distilled:.2g},match_dense=true"


BY_COST = "sparsity_of=multiply-adds"


def by_cost(method: str) -> str:
    """A method that removes so much of the multiply-adds, and as many filters as that takes."""
    return f"{method}{',' if ':' in method else ':'}{BY_COST}"


def _claim(name: str, steps: int, granularity: str) -> Setting:
    source, sparsity, options = _CLAIMED[name]
    methods = (*PUBLISHED, *(strong(rival, steps) for rival in PUBLISHED), SOLVER)
    options = {**options, "steps": steps, "granularity": granularity, "seed": 10}
    if granularity == "filter":
        options["round_channels"] = 1  # as when the first of these tables was made
        rivals = (strong(rival, steps) for rival in ("gradual-magnitude", "synflow"))
        methods += tuple(map(by_cost, (*rivals, SOLVER)))
        return Setting(source, methods, (0.7,), options, rounds=2)
    return Setting(source, methods, (sparsity,), options, rounds=2)


_CLAIM = {
    f"{name}{suffix}-{steps}": _claim(name, steps, granularity)
    for granularity, suffix in (("weight", ""), ("filter", "-filters"))
    for steps in BUDGETS
    for name in _CLAIMED
} | {"gender-3000": _claim("gender", 3000, "weight")}

_PARTS = {
    "solver": split_methods(
        "bilevel,bilevel:distill=0,bilevel:match_dense=false,bilevel:score_step=0,"
        "bilevel:score_step=0.1,bilevel:weights_on=fit,bilevel:fine_tune_on=fit+select,"
        "bilevel:split_batch=false,bilevel:plain_steps=3,bilevel:bilevel_share=0.5,"
        "bilevel:constrain_masks=false,bilevel:constrain_masks=false,constrain_weights=false,"
        "bilevel:buffer_size=512,shrink_violations=true,"
        "bilevel:buffer_size=512,shrink_violations=true,dual_unit=row-weight,dual_step=0.1,"
        "bilevel:learning_rate=0.1"
    ),
    "shrinkage": split_methods(
        "ceag,ceag:shrink_violations=true,ceag:buffer_size=512,"
        "ceag:buffer_size=512,shrink_violations=true,ceag:dual_unit=row-weight,dual_step=0.1"
    ),
    "bias": split_methods("gradual-magnitude,gradual-magnitude:match_dense=true"),
    "distillation": split_methods(
        "hydra,hydra:distill=0.5,distill_temperature=1,hydra:distill=0.5,distill_temperature=4"
    ),
}


def _part(methods: tuple[str, ...], steps: int) -> Setting:
    source, sparsity, options = _CLAIMED["gender"]
    own = {**options, "steps": steps}
    return Setting(source, methods, (sparsity,), own, methods[0], rounds=2)


MAIN_SPARSITY, MAIN_STEPS = 0.98, 3000
MAIN_RIVALS = ("gradual-magnitude", strong("gradual-magnitude", MAIN_STEPS))
_MAIN = {**_GENDER, "image_size": 32, "model": "resnet10", "width": 8, "seed": 10}

# ------------------------------------------------------------------------------- all methods

_EVERY: dict[str, tuple[str, dict[str, Any], float]] = {
    "digits": ("digits", {**_steps(300, 300), "min_group_rows": 50, "batch_size": 64}, 0.9),
    "utkface": (_FACES, {**_CNN, **_steps(300, 200), "max_rows": 8000, **_GENDER}, 0.95),
    "celeba": (_CELEBS, {**_CNN, **_steps(300, 200), "max_rows": 8000, **_BLOND}, 0.95),
}


def removing(granularity: str) -> tuple[str, ...]:
    """Every method that can remove weights, or filters."""
    return tuple(m.name for m in METHODS.values() if granularity in m.granularities)


_SYSTEMS = {
    f"{name}{suffix}": Setting(
        source,
        removing(granularity),
        (weights if granularity == "weight" else 0.5,),
        {**options, "granularity": granularity},
        folds=5 if source == "digits" else 3,
    )
    for granularity, suffix in (("weight", ""), ("filter", "-filters"))
    for name, (source, options, weights) in _EVERY.items()
}

# ------------------------------------------------------------------ Hashemizadeh et al. 2024

_BALANCING = split_methods(
    "gradual-magnitude,equalized-loss-after,equalized-loss-after-no-buffer,ceag,fairgrape,bilevel"
)
_SENSITIVITY = split_methods("gradual-magnitude,ceag,ceag:buffer_size=8,ceag:buffer_size=128")
_BALANCED = {**_CNN, **_steps(400, 400), "max_rows": 12_000}
# The authors remove the same share of every layer; at these rates a budget over all layers would
# empty the projections of MobileNetV2, and with them cut the network. (They keep the first layer.)
_MOBILE = {"budget": "uniform", "model": "mobilenetv2", "image_size": 128, **_steps(6000, 6000)}
_CIFAR100 = {"budget": "uniform", "model": "cifar-resnet56", "max_rows": 60_000, "download": True}

# ---------------------------------------------------------------------------- Dai et al. 2023

# Density 0.8^n, as rewinding removes a fifth of what is left.
LOTTERY = tuple(round(1 - 0.8**n, 4) for n in (2, 5, 10, 14))
ABLATIONS = ("bifp", "bifp-no-mask-constraint", "bifp-no-weight-constraint", "bifp-no-constraint")
_STAGES = ("prune-then-fair", "fair-then-prune", "bilevel")
_BIFP = {
    "weight": ("gradual-magnitude", *ABLATIONS, "snip", "lottery", *_STAGES),
    "filter": ("gradual-magnitude", "bifp", "fpgm", *_STAGES),
}
_ATTRIBUTES = {"blond": "Blond_Hair", "bags": "Bags_Under_Eyes"}


def _bifp(
    source: str, attribute: str, granularity: str, sparsities: tuple[float, ...], **options: Any
) -> Setting:
    own = {"target": _ATTRIBUTES[attribute], "group": ("Male",), **options}
    own |= {"constraint": ("accuracy-gap=2%",), "granularity": granularity}
    return Setting(source, _BIFP[granularity], sparsities, own)


_BIFP_SMALL = {**_CNN, **_steps(300, 300), "max_rows": 8000}

# ------------------------------------------------------------------- the implicit term's worth

NO_IMPLICIT = "bilevel:hypergradient=none"
KINDS = {
    "bilinear": "closed form",
    "cg": "conjugate gradients",
    "single-loop": "single loop",
    "unrolled": "unrolled",
    "first-order": "first-order",
}
# Seconds an evaluation beside those without an implicit term: runs of these settings by turns on
# one core, medians of three. Published runs share their cores, and their times say nothing.
_TIMES = {
    "adult": {"cg": 0.76, "single-loop": 0.83, "unrolled": 0.85, "first-order": 0.82},
    "compas": {"unrolled": 0.85},
}


def _implicit(
    name: str, source: str, sparsity: float, options: dict[str, Any], rounds: int
) -> Setting:
    booked = (f"bilevel:hypergradient={kind}" for kind in KINDS)
    longer = (
        f"bilevel:hypergradient={kind},steps={round(options['steps'] / share)}"
        for kind, share in _TIMES.get(name, {}).items()
    )
    methods = (NO_IMPLICIT, *booked, *longer, "gradual-magnitude")
    return Setting(source, methods, (sparsity,), options, NO_IMPLICIT, rounds=rounds)


_TABLE = {"model": "mlp", "width": 64, "group": ("race", "sex")}
_INCOME = {**_TABLE, **_steps(600, 800), "target": "income", "positive": ">50K"}

# --------------------------------------------------------------------------- Tran et al. 2022

# Equal losses are enforced within the methods' own tolerance; the problem has no constraint, so
# that training stops early by accuracy alone in every method. All groups count.
MITIGATIONS = {"no mitigation": "gradual-magnitude"} | {
    when: f"equalized-loss-{when}" for when in ("before", "after", "both")
}
_PLAIN = {"constraint": ("none",), "min_group_rows": 1, "min_class_rows": 1}
_AGE = {"target": "age", "group": ("age",)}
_HURT = {**_CNN, **_PLAIN, **_steps(500, 300)}
_HURT_PAPER: dict[str, tuple[str, dict[str, Any]]] = {
    "utkface-race": ("UTKFace", _RACE),
    "utkface-age": ("UTKFace", _AGE),
    "cifar10": ("tfds:cifar10", {**_LABEL, "download": True}),
    "svhn": ("tfds:svhn_cropped", {**_LABEL, "download": True}),
}


def _impact(source: str, options: dict[str, Any], *, paper: bool = False) -> Setting:
    rates = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98) if paper else (0.5, 0.8, 0.9, 0.95, 0.98)
    rounds = 2 if paper else 1
    return Setting(source, tuple(MITIGATIONS.values()), rates, options, rounds=rounds)


PRESETS: dict[str, dict[str, dict[str, Setting]]] = {
    "claim": {"small": _CLAIM},
    "parts": {
        "small": {
            f"{name}-{steps}": _part(methods, steps)
            for name, methods in _PARTS.items()
            for steps in BUDGETS
        }
    },
    "main_job": {
        "small": {
            "resnet10": Setting(
                _FACES,
                (*MAIN_RIVALS, SOLVER),
                (MAIN_SPARSITY,),
                {**_MAIN, **_steps(400, MAIN_STEPS)},
                rounds=2,
            )
        }
    },
    "systems": {"small": _SYSTEMS},
    "balancing_act": {
        "small": {
            "utkface-race": Setting(_FACES, _BALANCING, (0.95,), {**_BALANCED, **_RACE}),
            "utkface-gender": Setting(_FACES, _BALANCING, (0.95, 0.98), {**_BALANCED, **_GENDER}),
            "cifar10": Setting(_OBJECTS, _SENSITIVITY, (0.95,), {**_BALANCED, **_LABEL}),
        },
        "paper": {
            **{
                f"utkface-{name}": Setting(
                    "UTKFace", _BALANCING, (0.85, 0.9, 0.925), {**_MOBILE, **_RACE, "group": group}
                )
                for name, group in (("race", ("race",)), ("intersection", ("race", "gender")))
            },
            "cifar100": Setting(
                "tfds:cifar100",
                _BALANCING,
                (0.9, 0.925, 0.95),
                {**_CIFAR100, **_LABEL, **_steps(60_000, 60_000)},
            ),
        },
    },
    "bifp": {
        "small": {
            "blond": _bifp(_CELEBS, "blond", "weight", LOTTERY[2:3], **_BIFP_SMALL),
            "bags": _bifp(_CELEBS, "bags", "weight", LOTTERY[2:3], **_BIFP_SMALL),
            "blond-filters": _bifp(_CELEBS, "blond", "filter", (0.5, 0.7), **_BIFP_SMALL),
        },
        "paper": {
            f"{attribute}-{model}{suffix}": _bifp(
                "celeba",
                attribute,
                granularity,
                LOTTERY,
                model=model,
                image_size=128,
                **_steps(20_000, 20_000),
            )
            for attribute in _ATTRIBUTES
            for model in ("resnet10", "mobilenetv2")
            for granularity, suffix in (("weight", ""), ("filter", "-filters"))
        },
    },
    "hypergradient_ablation": {
        "small": {
            "adult": _implicit("adult", "adult.csv", 0.98, {**_INCOME, "max_rows": 12_000}, 4),
            "compas": _implicit(
                "compas",
                "compas.csv",
                0.98,
                {**_TABLE, **_steps(400, 800), "target": "two_year_recid"},
                4,
            ),
            "utkface": _implicit(
                "utkface", _FACES, 0.95, {**_CNN, **_steps(400, 600), **_GENDER}, 1
            ),
        }
    },
    "disparate_impact": {
        "small": {
            "utkface-race": _impact(_FACES, {**_HURT, **_RACE}),
            "utkface-age": _impact(_FACES, {**_HURT, **_AGE}),
            "cifar10": _impact(_OBJECTS, {**_HURT, **_LABEL, "max_rows": 10_000}),
        },
        "paper": {
            f"{name}-{model}": _impact(
                source,
                {**_PLAIN, **_steps(20_000, 20_000), **options, "model": model},
                paper=True,
            )
            for name, (source, options) in _HURT_PAPER.items()
            for model in ("resnet18", "resnet50", "vgg19")
        },
    },
}
