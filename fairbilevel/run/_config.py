"""What a run is asked to do: one flat dataclass, the command line's options and the configuration
file's names.

Options of data, problem and methods are those of their owners, with their types, defaults and
descriptions; here stand only those that a run adds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fairbilevel import _options, fairness, methods
from fairbilevel.data import ROLES, Options, parse_normalize
from fairbilevel.devices import Placement, Processes
from fairbilevel.fairness import Constraint
from fairbilevel.run._fields import (
    METHOD_FIELDS,
    METHOD_OPTIONS,
    PROBLEM_FIELDS,
    SHARED_FIELDS,
    Asked,
    of_data,
    of_problem,
)
from fairbilevel.train import Method

# Options that a run's numbers do not depend on: what is left, and where a run happens.
FREE_OPTIONS = (
    "out", "overwrite", "checkpoint_every", "checkpoint_keep", "tensorboard", "compile_cache",
    "devices", "shard_params", "distributed", "coordinator", "process_count", "process_id",
)  # fmt: skip


# The owners' options behind those, typed by them.
_Owned: Any = dataclasses.make_dataclass(
    "_Owned", [*of_data(), *of_problem(), *METHOD_FIELDS], bases=(Asked,), frozen=True
)

# What configurations written by version 0.1 say of options that nobody had given.
_FORMER = {
    "budget": "global",
    "learning_rate": 0.05,
    "relaxation": "top-k",
    "score_start": "magnitude",
    "hypergradient": "bilinear",
    "score_rule": "adam",
    "score_step": 0.1,
    "multiplier_rule": "gradient-ascent",
    "dual_step": 0.01,
    "buffer_size": 32,
    "violation_every": 1,
    "bilevel_share": 0.5,
    "follow_weights": True,
    "fine_tune_on": "fit+select",
    "multipliers_from": "start",
}


@dataclass(frozen=True)
class Config(_Owned):
    """Options of ``fairbilevel solve``, ``plan``, ``compare`` and ``frontier``."""

    checkpoint_every: float = 30.0
    """Seconds between two checkpoints; 0 writes one after every stage."""
    checkpoint_keep: int = 2
    """Newest checkpoints kept of each part of a run, besides its best."""
    compile_cache: str | None = None
    """Folder where compiled programs are kept from one run to the next, or `off`; by default one in
    your cache folder (~/.cache/fairbilevel/programs on Linux), or JAX_COMPILATION_CACHE_DIR."""
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

    def problem_options(self) -> dict[str, Any]:
        """How the problem is built."""
        return {name: getattr(self, name) for name in PROBLEM_FIELDS}

    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints asked for.

        Raises:
            ValueError: an unknown name or surrogate, a bad tolerance, or one constraint twice.
        """
        if self.constraint == ("none",):
            return ()
        if "none" in self.constraint:
            others = ", ".join(text for text in self.constraint if text != "none")
            raise ValueError(f"--constraint none bounds nothing: leave it or {others or 'one'} out")
        parsed = [fairness.parse_constraint(text) for text in self.constraint]
        if len({c.name for c in parsed}) < len(parsed):
            raise ValueError("each constraint can be given once")
        if self.surrogate is not None:
            parsed = [dataclasses.replace(c, surrogate=self.surrogate) for c in parsed]
        return tuple(parsed)

    def given(self) -> dict[str, Any]:
        """Options of methods that were given, beside those that every method is given."""
        names = (n for n in METHOD_OPTIONS if n not in SHARED_FIELDS)
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}

    def build(self, method: str | None = None, **options: Any) -> Method:
        """A method as this configuration has it: what it does not take is left out.

        Args:
            method: a name, options after a colon; the configuration's own by default.
            **options: in place of the configuration's.

        Raises:
            ValueError: an unknown name or option, or a value outside its range.
        """
        text = self.method if method is None else method
        known = methods.find(text).options
        shared = {name: getattr(self, name) for name in SHARED_FIELDS}
        asked = {**shared, "seed": self.seed, **self.given(), **options}
        with _as_typed():
            return methods.by_name(text, **{n: v for n, v in asked.items() if n in known})

    def refuse_unused(self, *names: str) -> None:
        """Refuse options that none of these methods takes.

        Raises:
            ValueError: names the first.
        """
        which = "the method" if len(names) == 1 else "any of the methods"
        for option in self.given():
            if not any(option in methods.find(name).options for name in names):
                raise ValueError(f"{_typed(option)} is no option of {which} {', '.join(names)}")

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
        return self.baseline and methods.find(self.method).name != "gradual-magnitude"

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
        """Refuse what can be refused without reading data, methods apart (``build``).

        Raises:
            ValueError: one sentence that names the option.
        """
        self.constraints()
        self.fractions()
        self.processes()
        self.options()
        parse_normalize(self.normalize)
        if self.devices != "all" and not (self.devices.isdecimal() and int(self.devices)):
            raise ValueError(f"--devices is 'all' or a number from 1 up, got {self.devices!r}")
        with _as_typed():
            _options.at_least(self, 1, "accumulate", "min_group_rows", "min_class_rows")
            _options.at_least(self, 1, "checkpoint_keep")
            if self.dense_steps is not None:
                _options.at_least(self, 1, "dense_steps")
            _options.finite(self, "dense_learning_rate", "checkpoint_every")
        if self.batch_size > 0 and self.batch_size % self.accumulate:
            raise ValueError(
                f"--accumulate must divide --batch-size into equal micro-batches, got "
                f"{self.accumulate} for {self.batch_size} rows"
            )
        if self.round_channels is not None and self.granularity != "filter":
            raise ValueError(
                f"--round-channels rounds numbers of channels, and at --granularity "
                f"{self.granularity} there are none to round: leave it out, or give filter"
            )
        if self.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise ValueError(
                "--tensorboard needs the package tensorboardX: pip install "
                "'fairbilevel[tensorboard]'"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must lie in [0, 2^32), got {self.seed}")

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
        hints = get_type_hints(Config)
        known: dict[str, Any] = {}
        defaults = Config()
        given = {raw.replace("-", "_"): (raw, value) for raw, value in values.items()}
        former = set(_FORMER) <= set(given) and "split_batch" not in given
        for name, (raw, value) in given.items():
            if name not in hints:
                raise ValueError(f"there is no option {raw!r}: {_options.choose(name, hints)}")
            if former and name in _FORMER and value == _FORMER[name]:
                continue
            known[name] = _checked(raw, value, hints[name], getattr(defaults, name))
        return Config(**known)


def _typed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@contextlib.contextmanager
def _as_typed() -> Iterator[None]:
    """Complaints of an option's owner, with the name that is typed."""
    try:
        yield
    except ValueError as error:
        name, rest = (*str(error).split(" ", 1), "")[:2]
        if name not in get_type_hints(Config):
            raise
        raise ValueError(f"{_typed(name)} {rest}") from None


def _checked(name: str, value: Any, hint: Any, default: Any) -> Any:
    """A value of a configuration file as its field wants it."""
    if isinstance(default, tuple):
        items = (value,) if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(i, str) for i in items):
            raise ValueError(f"option {name!r} takes a text or a list of texts, got {value!r}")
        return tuple(items)
    kinds = [k for k in (get_args(hint) or (hint,)) if get_origin(hint) is not Literal] or [hint]
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if get_origin(kind) is Literal:
            _options.one_of(name, value, get_args(kind))
            return value
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is kind:
            return value
    wanted = " or ".join(k.__name__ for k in kinds if k is not type(None))
    raise ValueError(f"option {name!r} takes a {wanted}, got {value!r}")


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
