"""``result.json`` as one typed object, written and read by one schema."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from fairbilevel import _display, _numbers
from fairbilevel.fairness import CONSTRAINTS, ConstraintEvaluation, Evaluation, of_measures
from fairbilevel.records._files import RecordError

SCHEMA_VERSION = 2
# What is raised where a field is not what it should be, in schema 1 by our own reading of it.
_DAMAGED = (
    msgspec.ValidationError, TypeError, ValueError, LookupError, AttributeError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class DataResult:
    """The rows of a run.

    Attributes:
        name: of the data.
        classes: in the order of the logits.
        groups: in their order.
        counted_groups: those that limits and claims speak of; ``None``: all.
        roles: rows of each role.
        skipped: rows left out, by reason.
        notes: sentences.
        fingerprint: SHA-256 of the rows.
    """

    name: str = ""
    classes: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    counted_groups: list[str] | None = None
    roles: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""


@dataclass(frozen=True)
class MachineResult:
    """What the numbers were made on: operating system, architecture, processor cores, JAX's
    backend, kind and number of devices, precision of the passes of training, and the axes of the
    mesh of devices with their sizes (``None``: one device)."""

    platform: str = ""
    processor: str = ""
    cores: int | None = None
    backend: str = ""
    device: str = ""
    devices: int | None = None
    precision: str = ""
    mesh: dict[str, int] | None = None


@dataclass(frozen=True)
class ModelResult:
    """The model: its name, and the entries of all its arrays."""

    name: str = ""
    parameters: int | None = None


@dataclass(frozen=True)
class Kept:
    """What the pruned network has left of what the dense one has."""

    kept: int | None = None
    dense: int | None = None


@dataclass(frozen=True)
class SparsityResult:
    """What was removed.

    Attributes:
        requested: share to remove.
        achieved: share removed.
        prunable: units that could be removed.
        kept: units left.
        unit: ``"weight"``, ``"filter"`` or ``"block"``.
        granularity: the same.
        budget: ``"global"`` or ``"uniform"``.
        parameters: of the network.
        multiply_adds: multiplications of one row's forward pass.
        of: what the sparsity was asked for in, where it is not units.
        achieved_of: the share of that which was removed.
    """

    requested: float | None = None
    achieved: float | None = None
    prunable: int | None = None
    kept: int | None = None
    unit: str = "weight"
    granularity: str = ""
    budget: str = ""
    parameters: Kept = Kept()
    multiply_adds: Kept = Kept()
    of: str | None = None
    achieved_of: float | None = None


@dataclass(frozen=True)
class LayerResult:
    """Units of a prunable layer, or of a set of coupled channels, and how many are left."""

    name: str = ""
    prunable: int = 0
    kept: int = 0


@dataclass(frozen=True)
class ConstraintResult:
    """A constraint of a run; what was measured is in its evaluations.

    Attributes:
        name: of the constraint.
        title: the name in words.
        meaning: what is bounded, in words.
        unit: ``"points"`` where a share is bounded.
        tolerance: the bound; ``None`` where groups have their own.
        group_tolerance: by group, where they do.
        floor: whether the tolerance bounds from below.
        surrogate: the smooth harm that stood for the measured quantity in gradients.
        multipliers: final values by label.
    """

    name: str = "unnamed"
    title: str = ""
    meaning: str = ""
    unit: str = ""
    tolerance: float | None = None
    group_tolerance: dict[str, float] = field(default_factory=dict)
    floor: bool = False
    surrogate: str = ""
    multipliers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ReachedResult:
    """How far a constraint got on the rows that steer it (``fairbilevel.train.Reached``)."""

    name: str = ""
    status: str = ""
    over: dict[str, float] = field(default_factory=dict)
    tolerance_reached: float | None = None
    exceeded: float | None = None


@dataclass(frozen=True)
class FeasibilityResult:
    """Whether the constraints could be met (``fairbilevel.train.Feasibility``)."""

    status: str = ""
    rows: int | None = None
    constraints: list[ReachedResult] = field(default_factory=list)


@dataclass(frozen=True)
class CostResult:
    """What a run took: gradient evaluations (forward and backward on one nominal batch) of the
    method, the dense model and the baseline, seconds of compiled calls, compilation included, and
    of these compiling, and the largest resident size in MiB."""

    gradient_evaluations: float | None = None
    dense_gradient_evaluations: float | None = None
    baseline_gradient_evaluations: float | None = None
    seconds: float | None = None
    compile_seconds: float | None = None
    peak_memory_mb: float | None = None


@dataclass(frozen=True)
class Result:
    """The outcome of a run: what ``result.json`` holds and ``fb.load_run(path).result`` is.

    Attributes:
        schema_version: of the folder's files.
        status: ``"completed"``; ``"diverged"`` or ``"failed"`` leave no model.
        diagnosis: a sentence, where the run did not complete.
        phase: in which it diverged.
        step: at which it diverged.
        command: as typed.
        method: what pruned.
        seed: of roles, initial weights and batches.
        versions: of Python, this library and the packages that numbers depend on.
        machine: what the numbers were made on.
        data: the rows.
        model: what was pruned.
        sparsity: what was removed.
        layers: where.
        constraints: that were enforced or measured.
        dense: the dense reference on every role but certify.
        pruned: the network.
        baseline: the method beside, if one ran.
        feasibility: whether the constraints could be met.
        cost: what it took.
        constant_answer: the class that the network answers on every row, if it is always the same.
        rollbacks: each time the loss diverged and the run went back.
        warnings: sentences a reader should know.
    """

    schema_version: int = SCHEMA_VERSION
    status: str = "completed"
    diagnosis: str | None = None
    phase: str | None = None
    step: int | None = None
    command: str = ""
    method: str = ""
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    machine: MachineResult = MachineResult()
    data: DataResult = DataResult()
    model: ModelResult = ModelResult()
    sparsity: SparsityResult = SparsityResult()
    layers: list[LayerResult] = field(default_factory=list)
    constraints: list[ConstraintResult] = field(default_factory=list)
    dense: dict[str, Evaluation] = field(default_factory=dict)
    pruned: dict[str, Evaluation] = field(default_factory=dict)
    baseline: dict[str, Evaluation] = field(default_factory=dict)
    feasibility: FeasibilityResult | None = None
    cost: CostResult = CostResult()
    constant_answer: str | None = None
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def completed(self) -> bool:
        """Whether there is a pruned network."""
        return self.status == "completed"

    def facts(self) -> list[str]:
        """What a reader wants to know first."""
        dense, pruned = (
            _numbers.percent(roles["test"].accuracy if "test" in roles else None)
            for roles in (self.dense, self.pruned)
        )
        return [
            f"{self.model.name} on {self.data.name}",
            f"{self.method} removed {_numbers.percent(self.sparsity.achieved)} of the "
            f"{self.sparsity.unit}s",
            f"accuracy on test {pruned}, dense {dense}",
            "" if self.completed else self.status,
        ]

    def __repr__(self) -> str:
        return _display.line("Result", *self.facts())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: object, name: str = "result.json") -> Result:
        """What ``to_json`` gave, of this schema or of 1.

        Args:
            content: of the file.
            name: of the file, for errors.

        Raises:
            RecordError: no result, of a newer schema, or a field of another type.
        """
        version = content.get("schema_version") if isinstance(content, Mapping) else None
        if not isinstance(content, Mapping) or not isinstance(version, int):
            raise RecordError(f"{name} has no schema_version")
        if version > SCHEMA_VERSION:
            raise RecordError(
                f"{name} was written with schema {version}, this version of fairbilevel reads up "
                f"to {SCHEMA_VERSION}: upgrade it"
            )
        try:
            known = _known(content)
            return msgspec.convert(known if version > 1 else _upgraded(known), cls)
        except _DAMAGED as error:
            raise RecordError(f"{name} is damaged: {error}") from None


def _known(tree: Any) -> Any:
    """Without what is null, and numbers that are not finite or beyond what a float holds: whatever
    can be unknown is unknown by default."""
    if isinstance(tree, Mapping):
        return {k: known for k, v in tree.items() if (known := _known(v)) is not None}
    if isinstance(tree, list | tuple):
        return [_known(value) for value in tree]
    if isinstance(tree, int | float):
        try:
            return tree if math.isfinite(tree) else None
        except OverflowError:
            return None
    return tree


def _upgraded(old: Mapping[str, Any]) -> dict[str, Any]:
    """A result of schema 1: groups by measure, gaps and constraints beside the evaluations."""
    new = {**old, "schema_version": SCHEMA_VERSION}
    bounds = [_titled(bound) for bound in old.get("constraints", [])]
    measured = ("value", "largest_violation")
    new["constraints"] = [{k: v for k, v in b.items() if k not in measured} for b in bounds]
    for model, gaps in (("dense", ""), ("pruned", "gaps"), ("baseline", "baseline_gaps")):
        new[model] = {
            role: dataclasses.asdict(
                of_measures(
                    told,
                    old.get("dense", {}).get(role, {}),
                    old.get(gaps, {}).get(role, {}),
                    old.get("data", {}).get("counted_groups"),
                    constraints={
                        bound["name"]: ConstraintEvaluation(
                            bound["title"],
                            bound["unit"],
                            bound.get("tolerance"),
                            bound.get("value", {}).get(role),
                            bound.get("largest_violation", {}).get(role),
                        )
                        for bound in (bounds if model == "pruned" else [])
                    },
                    role=role,
                )
            )
            for role, told in old.get(model, {}).items()
        }
    return new


def _titled(bound: Mapping[str, Any]) -> dict[str, Any]:
    name = bound.get("name", "unnamed")
    kind = CONSTRAINTS.get(name)
    if kind is None:
        words = {"title": name.replace("-", " ").capitalize(), "meaning": "", "unit": ""}
    else:
        words = {"title": kind.title, "meaning": kind.meaning, "unit": kind.unit}
    return {**bound, "name": name, **words}
