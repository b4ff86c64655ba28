"""From a configuration to a problem; refuses bad input before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from fairbilevel import data as fb_data
from fairbilevel import deploy, models, pretrained
from fairbilevel.data import Dataset
from fairbilevel.devices import Placement
from fairbilevel.pretrained import Checkpoint, Pretrained
from fairbilevel.problem import FairPruningProblem
from fairbilevel.records import CONFIG, MODEL, is_run_folder, read_object
from fairbilevel.run._config import Config
from fairbilevel.run._rows import read_rows
from fairbilevel.train import Method

log = logging.getLogger("fairbilevel")


@dataclass(frozen=True)
class Prepared:
    """A problem and what led to it.

    Attributes:
        config: the configuration.
        method: as the configuration has it.
        problem: data, roles, model, constraints.
        dense: the dense network, if it was given.
    """

    config: Config
    method: Method
    problem: FairPruningProblem
    dense: Pretrained | None


def read_data(config: Config) -> tuple[Dataset, Bool[np.ndarray, " groups"]]:
    """The data with small classes and groups handled, and which groups count."""
    data = fb_data.load(config.data, config.options())
    data = fb_data.handle_small_classes(data, config.small_classes, config.min_class_rows)
    return fb_data.handle_small_groups(data, config.small_groups, config.min_group_rows)


def model_choice(name: str, width: int | None, data: Dataset) -> tuple[str, int | None]:
    """Name and width of the model, ``auto`` resolved by the shape of a row."""
    if name != "auto":
        return name, width
    shape = () if data.is_table else data.inputs.shape[1:]
    if len(shape) != 3:
        return "mlp", width
    if max(shape[:2]) <= 16:
        return "cnn", width
    return "resnet10", width or 16


def prepare(config: Config) -> Prepared:
    """Read data, draw roles, build the problem, load a given dense model.

    Raises:
        ValueError: anything wrong with options, data or the dense model, in one sentence.
    """
    config.check()
    config.refuse_unused(config.method)
    method = config.build()
    placement = config.placement()
    checkpoint = _checkpoint(config)
    data, counted = read_data(config)
    roles = fb_data.split_roles(data, config.fractions() or fb_data.FRACTIONS, config.seed, counted)
    problem = build_problem(config, data, counted, roles, config.seed, placement, checkpoint)
    method.allocation(problem)
    method.plan(problem)
    dense = None
    if checkpoint is not None:
        dense = checkpoint.network(problem)
    elif config.dense is not None:
        dense = _given_dense(Path(config.dense), problem)
    return Prepared(config, method, problem, dense)


def build_problem(
    config: Config,
    data: Dataset,
    counted: Bool[np.ndarray, " groups"],
    roles: Mapping[str, Int[np.ndarray, " n"]],
    seed: int,
    placement: Placement,
    checkpoint: Checkpoint | None = None,
) -> FairPruningProblem:
    """The problem that a configuration makes of rows in these roles, its model of the architecture
    of a checkpoint if there is one."""
    name, width = config.model, config.width
    if checkpoint is not None:
        name, width = checkpoint.model(name, width)
    name, width = model_choice(name, width, data)
    return FairPruningProblem(
        name,
        data,
        constraints=config.constraints(),
        roles=roles,
        counted=counted,
        **{**config.problem_options(), "width": width},
        seed=seed,
        placement=placement,
    )


def _checkpoint(config: Config) -> Checkpoint | None:
    """What ``--dense`` gives, unless it is a run or an .npz of parameters."""
    if config.dense is None:
        return None
    path = Path(config.dense)
    if path.suffix == ".npz" or is_run_folder(path):
        return None
    return pretrained.read(path)


def _given_dense(path: Path, problem: FairPruningProblem) -> Pretrained:
    source = path
    if path.is_dir():
        source = path / MODEL / "dense.npz"
        _refuse_other_options(path, problem)
        _refuse_other_inputs(path, problem)
        _refuse_leak(path, problem)
    return Pretrained(deploy.load_network(source, problem.model))


def _refuse_other_options(path: Path, problem: FairPruningProblem) -> None:
    """Refuse the dense model of a run that pads, splits or begins in another way: its arrays may
    fit all the same."""
    there, here = read_object(path / MODEL / "model.json").get("name"), problem.model.name
    if not isinstance(there, str) or models.family_of(there) != models.family_of(here):
        return  # refused by its arrays
    row = problem.inputs.shape[1:]
    if models.options_of(there, row) != models.options_of(here, row):
        raise ValueError(
            f"--dense {path} holds a {there!r}, and here it is {here!r}: give --model {there}"
        )


def _refuse_other_inputs(path: Path, problem: FairPruningProblem) -> None:
    """Refuse the dense model of a run that has normalized its inputs in another way."""
    there = fb_data.write_normalize(read_object(path / CONFIG).get("normalize", "fit"))
    if there != problem.normalization:
        raise ValueError(
            f"--dense {path} was made with --normalize {there}, and here it is "
            f"{problem.normalization}: give the same"
        )


def _refuse_leak(path: Path, problem: FairPruningProblem) -> None:
    """That no row is tested or certified here which the dense model's run has used."""
    used = read_rows(path)
    for role in ("test", "certify"):
        rows = problem.data.take(problem.roles[role])
        equal, met = used.equal(rows), int(used.met(rows).sum())
        count = max(met, equal.count if equal.unusual else 0)
        if count:
            raise ValueError(
                f"{count} of {len(rows)} {role} rows were used for fitting or choosing by the run "
                f"{path} that the dense model comes from: draw the roles as it did (the same data "
                "and --seed), or train a dense model anew"
            )
