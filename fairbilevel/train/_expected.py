"""What must be the same for a run to go on from a checkpoint: data, roles, dense model, options."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np

from fairbilevel import _trees
from fairbilevel.problem import FairPruningProblem, Network


def settings(options: Any) -> dict[str, Any]:
    """The plain options of a dataclass, as checkpoints remember them."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value is None or isinstance(value, (bool, int, float, str)):
            found[field.name] = value
        elif isinstance(value, tuple) and all(isinstance(v, str) for v in value):
            found[field.name] = list(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            found[field.name] = {"kind": type(value).__name__, **settings(value)}
    return found


def digest(network: Network) -> str:
    """A short name of a network's values."""
    found = hashlib.sha256()
    for name, leaf in _trees.flatten_named((network.params, network.state)).items():
        found.update(name.encode())
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            found.update(np.ascontiguousarray(np.asarray(leaf)).tobytes())
    return found.hexdigest()[:16]


def data_expected(problem: FairPruningProblem) -> dict[str, Any]:
    """What of the problem must be the same to go on with a run."""
    rows = hashlib.sha256()
    for name in sorted(problem.roles):
        rows.update(np.ascontiguousarray(problem.roles[name], np.int64).tobytes())
    return {
        "data": problem.data.fingerprint,
        "roles": rows.hexdigest()[:16],
        "model": problem.model.name,
        "precision": problem.precision,
        "accumulate": problem.accumulate,
        "constraints": [f"{c.name}={c.tolerance}" for c in problem.constraints],
        # What former versions did, and did not write down.
        **({"keep_layer": list(problem.keep_layer)} if problem.keep_layer else {}),
        **({} if problem.normalization == "fit" else {"normalize": problem.normalization}),
    }
