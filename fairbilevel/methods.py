"""All methods by name, under one protocol, and the one way in: ``solve``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairbilevel import _options, hypergrad, masks, pretrained, pruners
from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.records import Checkpoints
from fairbilevel.solver import BiFP, BilevelSolver, BiP
from fairbilevel.train import Callback, Method, Solution, train_dense

_BEFORE, _AFTER = ("before",), ("fine-tune",)

__all__ = ["METHODS", "NAMES", "Entry", "by_name", "find", "solve"]


@dataclass(frozen=True)
class Entry:
    """A method, as comparisons and the command line name it.

    Attributes:
        name: on the command line.
        kind: the class of its options.
        description: in a line.
        fixed: options that make it what it is, and cannot be given.
    """

    name: str
    kind: type[Method]
    description: str
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def granularities(self) -> tuple[str, ...]:
        """What it can remove."""
        return getattr(self.kind, "granularities", masks.GRANULARITIES)

    @property
    def options(self) -> tuple[str, ...]:
        """Options that can be given."""
        fields = dataclasses.fields(self.kind)
        return tuple(f.name for f in fields if f.name not in self.fixed)


def _equalized(when: str, phases: tuple[str, ...]) -> list[Entry]:
    said = {"before": "before pruning", "after": "after pruning", "both": "before and after"}[when]
    name = f"equalized-loss-{when}"
    line = f"gradual magnitude, equal group losses enforced {said} (Tran et al. 2022)"
    return [
        Entry(name, pruners.EqualizedLoss, line, {"enforce_in": phases}),
        Entry(
            f"{name}-no-buffer",
            pruners.EqualizedLoss,
            f"{line}, without replay buffers",
            {"enforce_in": phases, "buffer_size": 0},
        ),
    ]


def _bifp() -> list[Entry]:
    line = "the solver as BiFP has it: a smooth accuracy gap of fixed weight (Dai et al. 2023)"
    masks_, weights = {"constrain_masks": False}, {"constrain_weights": False}
    return [
        Entry("bifp", BiFP, line, {"constrain_masks": True, "constrain_weights": True}),
        Entry(
            "bifp-no-mask-constraint",
            BiFP,
            "BiFP, the gap on the weights alone",
            {**masks_, "constrain_weights": True},
        ),
        Entry(
            "bifp-no-weight-constraint",
            BiFP,
            "BiFP, the gap on the masks alone",
            {"constrain_masks": True, **weights},
        ),
        Entry("bifp-no-constraint", BiFP, "BiFP without the gap", {**masks_, **weights}),
    ]


_ALL = (
    Entry("bilevel", BilevelSolver, "mask and weights together, multipliers on unseen rows"),
    Entry("bip", BiP, "the solver without constraints, as BiP has it (Zhang et al. 2022)"),
    *_bifp(),
    Entry("magnitude", pruners.Magnitude, "the smallest weights at once"),
    Entry(
        "gradual-magnitude",
        pruners.GradualMagnitude,
        "the smallest weights step by step while training (Zhu and Gupta 2018)",
    ),
    Entry("random", pruners.Random, "units drawn at random: the floor"),
    Entry("snip", pruners.SNIP, "connection sensitivity |w dL/dw| (Lee et al. 2019)"),
    Entry("grasp", pruners.GraSP, "gradient flow, -w Hg (Wang et al. 2020)"),
    Entry("synflow", pruners.SynFlow, "synaptic flow, without data (Tanaka et al. 2020)"),
    Entry("fpgm", pruners.FPGM, "filters nearest the geometric median (He et al. 2019)"),
    Entry(
        "lottery", pruners.Lottery, "iterative magnitude with rewinding (Frankle and Carbin 2019)"
    ),
    Entry("hydra", pruners.Hydra, "scores learned on frozen dense weights (Sehwag et al. 2020)"),
    Entry(
        "fairgrape",
        pruners.FairGRAPE,
        "every group keeps its share of the importance (Lin et al. 2022)",
    ),
    Entry(
        "fairprune", pruners.FairPrune, "what only the privileged group needs goes (Wu et al. 2022)"
    ),
    Entry("reweighting", pruners.Reweighting, "gradual magnitude, every group weighing the same"),
    Entry(
        "group-dro",
        pruners.GroupDRO,
        "gradual magnitude under the worst group's loss (Sagawa et al. 2020)",
    ),
    Entry("penalty", pruners.Penalty, "gradual magnitude with a fixed penalty on the constraints"),
    Entry(
        "ceag",
        pruners.CEAG,
        "gradual magnitude, excess accuracy gaps constrained (Hashemizadeh et al. 2024)",
    ),
    *_equalized("before", _BEFORE),
    *_equalized("after", _AFTER),
    *_equalized("both", _BEFORE + _AFTER),
    Entry(
        "prune-then-fair",
        pruners.PruneThenFair,
        "gradual magnitude, then fair training (P&F of Dai et al. 2023)",
        {"enforce_in": _AFTER},
    ),
    Entry(
        "fair-then-prune",
        pruners.FairThenPrune,
        "fair training, then gradual magnitude (F&P of Dai et al. 2023)",
        {"enforce_in": _BEFORE},
    ),
)

METHODS: dict[str, Entry] = {entry.name: entry for entry in _ALL}
NAMES = tuple(METHODS)


def find(text: str) -> Entry:
    """The method of a name, options after a colon left aside.

    Raises:
        ValueError: an unknown name (with the nearest one).
    """
    name = text.partition(":")[0]
    _options.one_of("method", name, NAMES)
    return METHODS[name]


def by_name(text: str, **options: Any) -> Method:
    """A method by name: ``by_name("snip", sparsity=0.9)``, ``by_name("snip:batches=4")``.

    Args:
        text: a name of ``NAMES``, options after a colon; those win over ``options``. A
            hypergradient goes by its own name: ``"bilevel:hypergradient=cg:iterations=5"``.
        **options: fields of the method's class; a hypergradient may be given by name too.

    Raises:
        ValueError: an unknown name or option (with the nearest one), an option that is fixed by the
            name, or a value outside its range.
    """
    entry = find(text)
    what = f"method {entry.name!r}"
    for key in options:
        if key not in entry.options:
            known = _options.choose(key, entry.options)
            raise ValueError(f"{what} has no option {key!r}: {known}")
    if isinstance(options.get("hypergradient"), str):
        options["hypergradient"] = hypergrad.by_name(options["hypergradient"])
    readers = {"hypergradient": hypergrad.by_name}
    given = _options.parse(what, entry.kind, text.partition(":")[2], entry.fixed, readers)
    return entry.kind(**{**options, **given, **entry.fixed})


def solve(
    problem: FairPruningProblem,
    method: Method | str = "bilevel",
    *,
    dense: Any = None,
    callback: Callback = lambda record: None,
    dense_steps: int | None = None,
    checkpoints: Checkpoints | str | Path | None = None,
    **options: Any,
) -> Solution:
    """Make a model sparse and fair: train it densely if need be, then run a method.

    ::

        fb.solve(problem, sparsity=0.9)
        fb.solve(problem, method=fb.BilevelSolver(sparsity=0.9, score_step=0.05))
        fb.solve(problem, "snip", sparsity=0.9)

    Args:
        problem: what to solve.
        method: a method, or the name of one (``fb.methods.NAMES``).
        dense: the dense model, if there is one: a ``Reference``, or whatever ``problem.network``
            takes: a ``Network``, parameters and state, a ``flax.nnx`` module; or the path of a
            network trained elsewhere (``fb.pretrained.read``).
        callback: receives one record a stage.
        dense_steps: gradient steps of the dense model, where it is trained here.
        checkpoints: where checkpoints go, a folder or ``fb.records.Checkpoints``; where there are
            some of the same problem and options the run goes on from them. They stay when it ends:
            ``Checkpoints.discard`` removes them.
        **options: of a method given by name: ``sparsity``, ``inner_optimizer``, ...

    Raises:
        DivergenceError: the loss is not finite or exploded, with smaller steps too.
        CheckpointError: the checkpoints are of another run, or cannot be written.
        ValueError: an option that the method does not have, or outside its range; a problem, method
            or dense model that is none.
    """
    if not isinstance(problem, FairPruningProblem):
        raise ValueError(f"solve takes a fb.FairPruningProblem, got a {type(problem).__name__}")
    if not isinstance(method, (str, Method)):
        raise ValueError(
            f"the method is a name of fb.methods.NAMES or one such as fb.BilevelSolver(), got "
            f"{method!r}"
        )
    if isinstance(method, str):
        method = by_name(method, **options)
    elif options:
        raise ValueError(
            f"the method brings its options along: give {', '.join(map(repr, options))} to "
            f"{type(method).__name__} itself, or the method by name"
        )
    method.allocation(problem)
    method.plan(problem)  # refused before any work
    if isinstance(dense, (str, Path)):
        dense = pretrained.refer(problem, pretrained.read(dense).network(problem))
    if dense is not None and not isinstance(dense, Reference):
        dense = problem.refer(problem.network(dense))
    if dense is not None and len(dense.correct) != len(problem.y):
        raise ValueError(
            f"the dense reference has {len(dense.correct)} rows and the problem {len(problem.y)}: "
            "give its network (dense.network)"
        )
    if isinstance(checkpoints, (str, Path)):
        checkpoints = Checkpoints(Path(checkpoints))
    try:
        if dense is None:
            dense = train_dense(
                problem,
                steps=dense_steps,
                batch_size=method.batch_size,
                seed=method.seed,
                callback=callback,
                checkpoints=checkpoints,
            )
        return method.run(problem, dense, callback=callback, checkpoints=checkpoints)
    finally:
        if checkpoints is not None:
            checkpoints.close()
