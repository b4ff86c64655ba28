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


def _field(
    name: str, hint: Any, text: str, default: Any, usual: Any = dataclasses.MISSING
) -> tuple[str, Any, Any]:
    """An option with its help; ``usual`` is the solver's default, where methods differ."""
    of_default = None
    if usual is not dataclasses.MISSING:
        of_default = f"(default: the method's own; of the solver {usual})"
    told = tyro.conf.arg(help=text[0].upper() + text[1:], help_behavior_hint=of_default)
    return name, Annotated[hint, told], dataclasses.field(default=default)


def of_data() -> list[tuple[str, Any, Any]]:
    told, hints = _options.documented(Options), get_type_hints(Options)
    defaults = {f.name: f.default for f in dataclasses.fields(Options)}
    hints |= {n: _TEXTS for n, default in defaults.items() if isinstance(default, tuple)}
    return [_field(n, hints[n], told[n], default) for n, default in defaults.items()]


def of_problem() -> list[tuple[str, Any, Any]]:
    told = _options.documented(FairPruningProblem)
    hints = get_type_hints(FairPruningProblem.__init__) | {"normalize": str}
    given = inspect.signature(FairPruningProblem.__init__).parameters
    defaults = {n: given[n].default for n in PROBLEM_FIELDS}
    return [_field(n, _TEXTS if d == () else hints[n], told[n], d) for n, d in defaults.items()]


def _of_methods() -> list[tuple[str, Any, Any]]:
    """What the solver takes, which is all that methods share and more; ``None`` leaves an option to
    the method."""
    told = {**_options.documented(Method), **_options.documented(BilevelSolver)}
    hints, found = get_type_hints(BilevelSolver), []
    for f in dataclasses.fields(BilevelSolver):
        name, text = f.name, told.get(f.name, "")
        hint = str if name == "hypergradient" else _plain(hints[name])
        hint = _TEXTS if f.default == () else hint
        if name == "seed" or hint is None:
            continue
        if name in SHARED_FIELDS:
            hint = Union[hint, None] if f.default is None else hint  # noqa: UP007
            found.append(_field(name, hint, text, f.default))
        else:
            usual = "bilinear" if name == "hypergradient" else f.default
            found.append(_field(name, Union[hint, None], text, None, usual))  # noqa: UP007
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
