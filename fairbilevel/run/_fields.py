"""The options of a run, as fields made from what rooms ask for."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from fairbilevel import _options
from fairbilevel.data import Options
from fairbilevel.problem import FairPruningProblem
from fairbilevel.solver import BilevelSolver
from fairbilevel.train import Method

_Repeat = tyro.conf.UseAppendAction
_TEXTS: Any = Annotated[tuple[str, ...], _Repeat]
PROBLEM_FIELDS = (
    "normalize", "width", "prune_classifier", "keep_layer", "precision", "accumulate", "remat",
)  # fmt: skip
# Every method's, at the same values for all: the others are left to each method where not given.
SHARED_FIELDS = (
    "sparsity", "sparsity_of", "latency_table", "granularity", "layer_sparsity", "steps",
    "batch_size",
)  # fmt: skip


def _plain(hint: Any) -> Any:
    """The part of a type that a word can say; ``None`` if there is none."""
    if get_origin(hint) is Literal or hint in (int, float, bool, str):
        return hint
    parts = [p for p in (_plain(a) for a in get_args(hint)) if p is not None]
    return parts[0] if parts and get_origin(hint) is not tuple else None


def _described(hint: Any, text: str, default: Any = dataclasses.MISSING) -> Any:
    """A type with its help; ``default`` is that of the solver, where methods differ."""
    hint_of_default = None
    if default is not dataclasses.MISSING:
        hint_of_default = f"(default: the method's own; of the solver {default})"
    text = text[0].upper() + text[1:]
    return Annotated[hint, tyro.conf.arg(help=text, help_behavior_hint=hint_of_default)]


def of_data() -> list[tuple[str, Any, Any]]:
    told, hints = _options.documented(Options), get_type_hints(Options)
    found = []
    for f in dataclasses.fields(Options):
        hint = _TEXTS if isinstance(f.default, tuple) else hints[f.name]
        found.append((f.name, _described(hint, told[f.name]), dataclasses.field(default=f.default)))
    return found


def of_problem() -> list[tuple[str, Any, Any]]:
    told = _options.documented(FairPruningProblem)
    hints = get_type_hints(FairPruningProblem.__init__)
    given = inspect.signature(FairPruningProblem.__init__).parameters
    hints["normalize"] = str
    return [
        (
            n,
            _described(_TEXTS if given[n].default == () else hints[n], told[n]),
            dataclasses.field(default=given[n].default),
        )
        for n in PROBLEM_FIELDS
    ]


def _of_methods() -> list[tuple[str, Any, Any]]:
    """What the solver takes, which is all that methods share and more; ``None`` leaves an option to
    the method."""
    told = {**_options.documented(Method), **_options.documented(BilevelSolver)}
    hints, found = get_type_hints(BilevelSolver), []
    for f in dataclasses.fields(BilevelSolver):
        hint = str if f.name == "hypergradient" else _plain(hints[f.name])
        hint = _TEXTS if f.default == () else hint
        if f.name == "seed" or hint is None:
            continue
        if f.name in SHARED_FIELDS:
            hint = Union[hint, None] if f.default is None else hint  # noqa: UP007
            entry = _described(hint, told[f.name]), dataclasses.field(default=f.default)
        else:
            usual = "bilinear" if f.name == "hypergradient" else f.default
            entry = (
                _described(Union[hint, None], told[f.name], usual),  # noqa: UP007
                dataclasses.field(default=None),
            )
        found.append((f.name, *entry))
    return found


METHOD_FIELDS = _of_methods()
METHOD_OPTIONS = tuple(name for name, _, _ in METHOD_FIELDS)
SWITCHES = tuple(n for n in METHOD_OPTIONS if get_type_hints(BilevelSolver)[n] is bool)


@dataclass(frozen=True)
class Asked:
    data: str = "digits"
    """What to read: `digits` (bundled), a UTKFace or CelebA folder or zip, an image folder with a
    CSV of labels, a .csv, .tsv or .parquet table, an .npz with x, y and group, or tfds:NAME."""
    role_fractions: str | None = None
    """Shares of the roles, as fit=0.45,select=0.2,tune=0.1,certify=0.1,test=0.15."""
    small_groups: Literal["merge", "report-only", "error"] = "report-only"
    """Groups below --min-group-rows: `merge` into one, `report-only` (trained on and shown, outside
    every claim) or `error`."""
    min_group_rows: int = 50
    """Rows below which a group is small."""

    small_classes: Literal["merge", "drop", "error"] = "error"
    """Classes below --min-class-rows: `merge` into one, or `drop` their rows; `error` keeps them
    and refuses one that is not in every role."""
    min_class_rows: int = 50
    """Rows below which a class is small, for merge and drop."""

    model: str = "auto"
    """mlp, cnn, resnet10, resnet18, resnet34, resnet50, cifar-resnet56, mobilenetv2, vgg19 or vit,
    options after a colon, as in resnet18:padding=symmetric; auto picks mlp for tables, cnn for
    images up to 16 pixels and a resnet10 of width 16 above, or what --dense holds."""
    dense: str | None = None
    """Take the dense model from a former run folder, an .npz of parameters, a .safetensors of timm
    (resnet18/34/50, mobilenetv2, vit) or a folder of Orbax instead of training one."""
    dense_steps: int | None = None
    """Gradient steps of the dense model; by default 30 epochs, 500 to 3000 steps."""
    dense_learning_rate: float = 0.1
    """Peak learning rate of the dense model."""

    method: str = "bilevel"
    """bilevel, or a rival under the same protocol: magnitude, gradual-magnitude, snip, ceag, ...;
    options after a colon, as in snip:batches=4. `fairbilevel methods` lists them all."""
    constraint: Annotated[
        tuple[str, ...],
        _Repeat,
        tyro.conf.arg(help_behavior_hint="(repeatable; default: excess-accuracy-gap=2%)"),
    ] = ("excess-accuracy-gap=2%",)
    """NAME=TOLERANCE, repeatable; accuracy-gap, degradation-gap, excess-accuracy-gap,
    absolute-excess-accuracy-gap, worst-group-accuracy (a floor), equalized-loss,
    equalized-loss-signed, demographic-parity, equal-opportunity or equalized-odds; the tolerance a
    fraction (0.02) or a percentage (2%), groups with another one after it (2%,women=1%). What is
    given replaces the default and a file's; `none`, alone, bounds nothing."""
    surrogate: str | None = None
    """Smooth harm that stands for the constraints in gradients: sigmoid, loss, logistic, hinge or
    squared-hinge; each constraint has its own default."""
    baseline: bool = True
    """Also run gradual magnitude pruning on the same dense model and budget (unless it is the
    method)."""
