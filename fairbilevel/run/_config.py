"""What a run is asked to do: one flat dataclass, the command line's options and the configuration
file's names."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from fairbilevel import fairness, hypergrad, masks, models, systems
from fairbilevel.data import ROLES, Options
from fairbilevel.devices import Placement, Processes
from fairbilevel.fairness import Constraint
from fairbilevel.train import SCORE_RULES

# What only the bilevel solver and its relatives know.
SOLVER_OPTIONS = (
    "relaxation",
    "score_start",
    "hypergradient",
    "score_rule",
    "score_step",
    "violation_every",
    "bilevel_share",
    "follow_weights",
    "fine_tune_on",
    "multipliers_from",
)

# Where a run happens, not what it does: the same numbers come out.
PLACE_OPTIONS = (
    "devices",
    "shard_params",
    "distributed",
    "coordinator",
    "process_count",
    "process_id",
)

# Options that a run's numbers do not depend on.
FREE_OPTIONS = (
    "out",
    "overwrite",
    "checkpoint_every",
    "checkpoint_keep",
    "tensorboard",
    *PLACE_OPTIONS,
)

_Repeat = tyro.conf.UseAppendAction


@dataclass(frozen=True)
class Config:
    """Options of ``fairbilevel solve`` and ``fairbilevel plan``."""

    data: str = "digits"
    """What to read: `digits` (bundled), a UTKFace or CelebA folder or zip, an image folder with a
    CSV of labels, a .csv or .parquet table, an .npz with x, y and group, or tfds:NAME."""
    target: str | None = None
    """Attribute or column to predict; a table needs it, other sources have a default."""
    group: Annotated[tuple[str, ...], _Repeat] = ()
    """Attribute whose values are the groups; repeat it to cross several. The target may be named:
    then groups are classes."""
    image_size: int | None = None
    """Resize images to this many pixels on both sides."""
    positive: str | None = None
    """This value of the target against all others."""
    exclude_feature: Annotated[tuple[str, ...], _Repeat] = ()
    """Table column that the model must not see; repeatable."""
    weight: str | None = None
    """Table column of row weights (training losses only; metrics count rows)."""
    unit: str | None = None
    """Column that names the person behind a row; a person never crosses roles."""
    role: str | None = None
    """Column that assigns each row to fit, select, tune, certify or test."""
    id: str | None = None
    """Column of unique row ids."""
    missing_groups: str = "error"
    """Rows without a group: `error`, `own` (a group named missing) or `drop`."""
    bins: Annotated[tuple[str, ...], _Repeat] = ()
    """Edges that cut a numeric attribute into groups, as age=25,45; repeatable."""
    max_rows: int | None = None
    """Read at most this many rows (a fixed random subset)."""
    split: str | None = None
    """Split of a TensorFlow data set."""
    data_dir: str | None = None
    """Folder of prepared TensorFlow data sets."""
    download: bool = False
    """Let TensorFlow Datasets download what is not prepared yet."""
    role_fractions: str | None = None
    """Shares of the roles, as fit=0.45,select=0.2,tune=0.1,certify=0.1,test=0.15."""
    small_groups: str = "report-only"
    """Groups below --min-group-rows: `merge` into one, `report-only` (trained on and shown, outside
    every claim) or `error`."""
    min_group_rows: int = 50
    """Rows below which a group is small."""

    model: str = "auto"
    """mlp, cnn, resnet10, resnet18, resnet34, resnet50, cifar-resnet56, mobilenetv2, vgg19 or vit;
    auto picks mlp for tables, cnn for images up to 16 pixels and a resnet10 of width 16 above."""
    width: int | None = None
    """Channels of the first stage, neurons of the first hidden layer, or entries of a token."""
    dense: str | None = None
    """Take the dense model from a former run folder or from an .npz of parameters instead of
    training one."""
    prune_classifier: bool = False
    """Prune the classifier's weights too; its outputs are never removed as filters."""

    precision: str = "float32"
    """float32, or bfloat16: the passes of training are computed in bfloat16 over float32
    parameters; what is reported is evaluated in float32."""
    accumulate: int = 1
    """Micro-batches that each gradient is summed over, to fit large batches into memory; batch
    normalization normalizes each by itself."""
    remat: bool = False
    """Keep one activation a block of the model for the backward pass and compute the rest again:
    less memory, up to a third more time."""

    method: str = "bilevel"
    """bilevel, or a rival under the same protocol: magnitude, gradual-magnitude, snip, ceag, ...;
    options after a colon, as in snip:batches=4. `fairbilevel methods` lists them all."""
    sparsity: float = 0.9
    """Share of the prunable weights (or coupled channels) to remove, in [0, 1)."""
    granularity: str = "weight"
    """weight, or filter (channels of convolutions, neurons of dense layers and attention heads,
    each with everything coupled to it)."""
    budget: str = "global"
    """global (the best of all layers together) or uniform (the same share of each layer)."""
    relaxation: str = "top-k"
    """top-k (straight-through), sigmoid (annealed temperature) or capped-simplex (projection)."""
    score_start: str = "magnitude"
    """Where mask scores start: magnitude, random or constant."""
    constraint: Annotated[tuple[str, ...], _Repeat] = ("excess-accuracy-gap=2%",)
    """NAME=TOLERANCE, repeatable; accuracy-gap, degradation-gap, excess-accuracy-gap,
    absolute-excess-accuracy-gap, worst-group-accuracy (a floor), equalized-loss,
    equalized-loss-signed, demographic-parity, equal-opportunity or equalized-odds; the tolerance a
    fraction (0.02) or a percentage (2%), groups with another one after it (2%,women=1%). `none`
    drops them all."""
    surrogate: str | None = None
    """Smooth harm that stands for the constraints in gradients: sigmoid, loss, logistic, hinge or
    squared-hinge; each constraint has its own default."""
    hypergradient: str = "bilinear"
    """bilinear (closed form), none (no implicit term), cg, neumann, gmres, bicgstab, single-loop,
    unrolled or first-order; options after a colon, as in bilinear:gamma=10 or
    cg:iterations=10,damping=0.1."""
    steps: int = 1000
    """Gradient evaluations to spend on pruning (one is forward and backward on one batch)."""
    dense_steps: int | None = None
    """Gradient steps of the dense model; by default 30 epochs, 500 to 3000 steps."""
    batch_size: int = 128
    """Rows a batch."""
    learning_rate: float = 0.05
    """Peak learning rate of the weights while pruning."""
    dense_learning_rate: float = 0.1
    """Peak learning rate of the dense model."""
    score_rule: str = "adam"
    """adam, or momentum (finds better masks where --steps pays for a thousand outer steps)."""
    score_step: float = 0.1
    """Step of the mask scores in units of their spread; for momentum try 0.03 to 0.3."""
    multiplier_rule: str = "gradient-ascent"
    """How multipliers move: gradient-ascent, augmented-lagrangian, nupi or multiplicative-weights;
    options after a colon, as in nupi:proportional=0.1,smoothing=0.9, augmented-lagrangian:penalty=1
    or multiplicative-weights:budget=2."""
    dual_step: float = 0.01
    """Step of the multipliers."""
    buffer_size: int = 32
    """Rows a group in the replay buffers."""
    violation_every: int = 1
    """Outer steps between measurements of the true violations."""
    bilevel_share: float = 0.5
    """Share of the steps that search the mask; the rest fine-tunes under it."""
    follow_weights: bool = True
    """Let scores that started as magnitudes move with their weights too."""
    fine_tune_on: str = "fit+select"
    """fit, or fit+select (the rows of select that moved the scores join in once the mask is final;
    those that move the multipliers stay unseen)."""
    multipliers_from: str = "start"
    """Multipliers move from the `start`, or only once the mask is final (`pruned`)."""
    baseline: bool = True
    """Also run gradual magnitude pruning on the same dense model and budget (unless it is the
    method)."""

    checkpoint_every: float = 30.0
    """Seconds between two checkpoints; 0 writes one after every compiled call."""
    checkpoint_keep: int = 2
    """Newest checkpoints kept of each part of a run, besides its best."""
    devices: str = "all"
    """`all`, or how many devices share each batch."""
    shard_params: bool = False
    """Split parameters, scores and optimizer states over the devices instead of keeping a copy on
    each (FSDP)."""
    distributed: bool = False
    """Be one of several processes; Slurm, Kubernetes, Open MPI or a TPU pod says which."""
    coordinator: str | None = None
    """Be one of several processes where no cluster says which: host:port of the first of them."""
    process_count: int | None = None
    """How many processes there are, with --coordinator."""
    process_id: int | None = None
    """Which of them this one is, from 0, with --coordinator."""

    seed: int = 0
    """Of the roles, initial weights and batches."""
    out: str | None = None
    """Run folder to write; by default a new one below runs/."""
    overwrite: bool = False
    """Replace the run that is in the folder."""
    tensorboard: bool = False
    """Also write the numbers of metrics.jsonl as TensorBoard events, to tensorboard/ in the run
    folder (needs the extra `tensorboard`)."""

    def options(self) -> Options:
        """How to read the data."""
        return Options(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Options)})

    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints asked for.

        Raises:
            ValueError: an unknown name or surrogate, a bad tolerance, or one constraint twice.
        """
        if self.constraint == ("none",):
            return ()
        parsed = [fairness.parse_constraint(text) for text in self.constraint]
        if len({c.name for c in parsed}) < len(parsed):
            raise ValueError("each constraint can be given once")
        if self.surrogate is not None:
            parsed = [dataclasses.replace(c, surrogate=self.surrogate) for c in parsed]
        return tuple(parsed)

    def processes(self) -> Processes | None:
        """The other processes of the run, ``None`` where it is one alone.

        Raises:
            ValueError: an address without count and id, or the other way round.
        """
        address = (self.coordinator, self.process_count, self.process_id)
        if not self.distributed and address == (None, None, None):
            return None
        return Processes(*address)

    def placement(self) -> Placement:
        """The devices that share each batch.

        Raises:
            ValueError: more devices than there are, or a batch that they cannot share evenly.
        """
        placement = Placement.over(self.devices, shard_params=self.shard_params)
        placement.check_batch(self.batch_size)
        return placement

    @property
    def compares(self) -> bool:
        """Whether gradual magnitude pruning runs beside the method."""
        return self.baseline and systems.find(self.method).name != "gradual-magnitude"

    def fractions(self) -> dict[str, float] | None:
        """Role fractions, ``None`` for the default.

        Raises:
            ValueError: not of the form ``fit=0.45,select=0.2,...``.
        """
        if self.role_fractions is None:
            return None
        shares = dict.fromkeys(ROLES, 0.0)
        for part in self.role_fractions.split(","):
            name, _, value = part.partition("=")
            try:
                if name.strip() not in ROLES:
                    raise ValueError
                shares[name.strip()] = float(value)
            except ValueError:
                raise ValueError(
                    f"role fractions are written fit=0.45,select=0.2,..., got {part!r}"
                ) from None
        return shares

    def check(self) -> None:
        """Refuse what can be refused without reading data.

        Raises:
            ValueError: one sentence that names the option.
        """
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"--sparsity must lie in [0, 1), got {self.sparsity}")
        self.constraints()
        self.fractions()
        self._check_method()
        self.processes()
        if self.devices != "all" and not (self.devices.isdecimal() and int(self.devices)):
            raise ValueError(f"--devices is 'all' or a number from 1 up, got {self.devices!r}")
        hypergrad.by_name(self.hypergradient)
        if 0 <= self.dual_step < float("inf"):  # refused by its own name below
            fairness.multiplier_rule(self.multiplier_rule, self.dual_step)
        for name, allowed in (
            ("granularity", masks.GRANULARITIES),
            ("budget", masks.BUDGETS),
            ("relaxation", tuple(masks.RELAXATIONS)),
            ("score_rule", SCORE_RULES),
            ("score_start", masks.STARTS),
            ("precision", models.PRECISIONS),
            ("small_groups", ("merge", "report-only", "error")),
            ("multipliers_from", ("start", "pruned")),
            ("fine_tune_on", ("fit", "fit+select")),
        ):
            _one_of(name, getattr(self, name), allowed)
        for name in (
            "accumulate",
            "steps",
            "batch_size",
            "buffer_size",
            "violation_every",
            "min_group_rows",
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"--accumulate must divide --batch-size into equal micro-batches, got "
                f"{self.accumulate} for {self.batch_size} rows"
            )
        if self.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise ValueError(
                "--tensorboard needs the package tensorboardX: pip install "
                "'fairbilevel[tensorboard]'"
            )
        if not 0 < self.bilevel_share <= 1:
            raise ValueError(f"--bilevel-share must lie in (0, 1], got {self.bilevel_share}")
        if self.dense_steps is not None and self.dense_steps < 1:
            raise ValueError(f"--dense-steps must be at least 1, got {self.dense_steps}")
        for name in ("learning_rate", "dense_learning_rate", "score_step", "dual_step"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"--{name.replace('_', '-')} must be a finite number of at least 0, "
                    f"got {getattr(self, name)}"
                )
        if not 0 <= self.checkpoint_every < float("inf"):
            raise ValueError(
                "--checkpoint-every must be a finite number of seconds of at least 0, got "
                f"{self.checkpoint_every}"
            )
        if self.checkpoint_keep < 1:
            raise ValueError(f"--checkpoint-keep must be at least 1, got {self.checkpoint_keep}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must lie in [0, 2^32), got {self.seed}")

    def _check_method(self) -> None:
        system = systems.find(self.method)
        _one_of("granularity", self.granularity, masks.GRANULARITIES)
        if self.granularity not in system.granularities:
            raise ValueError(
                f"--method {system.name} wants --granularity "
                f"{' or '.join(system.granularities)}, got {self.granularity}"
            )
        if system.is_solver:
            return
        default = Config()
        for name in SOLVER_OPTIONS:
            if getattr(self, name) != getattr(default, name):
                raise ValueError(
                    f"--{name.replace('_', '-')} belongs to the bilevel solver, which --method "
                    f"{system.name} is not"
                )

    def to_json(self) -> dict[str, Any]:
        """Flat JSON values."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> Config:
        """A configuration from plain values; names may use dashes.

        Raises:
            ValueError: unknown name (with the nearest one) or a value of the wrong kind.
        """
        fields = {f.name: f for f in dataclasses.fields(Config)}
        known: dict[str, Any] = {}
        defaults = Config()
        for raw, value in values.items():
            name = raw.replace("-", "_")
            if name not in fields:
                near = difflib.get_close_matches(name, fields, 1)
                hint = f", did you mean {near[0]!r}" if near else ""
                raise ValueError(f"there is no option {raw!r}{hint}")
            known[name] = _checked(raw, value, fields[name].type, getattr(defaults, name))
        return Config(**known)


def _checked(name: str, value: Any, annotation: Any, default: Any) -> Any:
    """A value of a configuration file as its field wants it."""
    if isinstance(default, tuple):
        items = (value,) if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(i, str) for i in items):
            raise ValueError(f"option {name!r} takes a text or a list of texts, got {value!r}")
        return tuple(items)
    # Annotations are strings here: "int | None", "str", "bool", ...
    kinds = [part.strip() for part in str(annotation).split("|")]
    if value is None and "None" in kinds:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and "float" in kinds:
        return float(value)
    if type(value).__name__ not in kinds:
        wanted = " or ".join(k for k in kinds if k != "None")
        raise ValueError(f"option {name!r} takes a {wanted}, got {value!r}")
    return value


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"--{name.replace('_', '-')} {value!r} is unknown: {hint}choose from "
            f"{', '.join(allowed)}"
        )


def read_config(path: Path) -> Config:
    """A configuration file, TOML or JSON, with the option names of the command line.

    Raises:
        ValueError: missing, not TOML or JSON, or with unknown options.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the configuration file {path} cannot be read: {error}") from None
    try:
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise ValueError(f"the configuration file {path} is malformed: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"the configuration file {path} holds no table of options")
    return Config.from_mapping(values)
