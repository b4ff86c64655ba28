"""The dense model of a sweep: trained by one job, read by all that start from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fairbilevel.deploy import network_arrays, network_of
from fairbilevel.problem import FairPruningProblem, Network, Reference

OUTCOMES = ("correct", "loss", "logits")
_NUMBERS = ("gradient_evaluations", "seed", "rollbacks", "warnings")


def write_reference(reference: Reference) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A dense model as plain JSON and as arrays, to the last bit; the inverse is
    ``read_reference``."""
    arrays = network_arrays(reference.network)
    arrays |= {f"row/{name}": getattr(reference, name) for name in OUTCOMES}
    return {name: getattr(reference, name) for name in _NUMBERS}, arrays


def read_reference(
    record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], problem: FairPruningProblem
) -> Reference:
    """The dense model that ``write_reference`` took apart, on the devices of its problem.

    Raises:
        RecordError: parameters of another model.
    """
    network = network_of(arrays, problem.model)
    return Reference(
        network=Network(*problem.placement.place((network.params, network.state))),
        **{name: arrays[f"row/{name}"] for name in OUTCOMES},
        gradient_evaluations=record["gradient_evaluations"],
        seed=record["seed"],
        rollbacks=tuple(record["rollbacks"]),
        warnings=tuple(record["warnings"]),
    )
