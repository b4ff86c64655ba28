"""A run's or a solution's network where it is served: sizes, counts, times, beside the dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairbilevel import deploy, report
from fairbilevel.deploy import Profile
from fairbilevel.records import MODEL, PROFILE, SCHEMA_VERSION, RecordError, write_json
from fairbilevel.run._evaluate import file_hash
from fairbilevel.run._folder import Run
from fairbilevel.run._result import command, machine, versions
from fairbilevel.train import Solution


def profile(
    source: Solution | Run, *, batch_sizes: Sequence[int] = (1, 32), seconds: float = 10.0
) -> Profile:
    """What a pruned network takes where it is served, beside the dense one it was made of.

    Sizes of files, parameters, multiply-adds and the activations of one row are counted: they are
    the same everywhere. Times are of this machine: medians of rounds that take every call once, by
    JAX on the present device and, where ``fairbilevel[onnx]`` is installed, by ONNX Runtime on the
    CPU. The encoder is left out; rows are drawn, since no time depends on their values.

    Args:
        source: what ``fb.solve`` or ``fb.load_run`` returned.
        batch_sizes: rows a call; different whole numbers.
        seconds: of timing, beside compiling; at least five rounds are taken.

    Returns:
        ``.dense`` and ``.pruned`` (bytes and counts), ``.speeds`` (milliseconds, rows a second),
        ``.notes``, ``.to_json()``. ``fairbilevel.run.write_profile`` puts a run's into its folder
        and its report.

    Raises:
        ValueError: neither solution nor run, batch sizes that are not positive, or no time.
    """
    if not isinstance(source, Solution | Run):
        raise ValueError(
            f"a {type(source).__name__} is no pruned network: give what fb.solve or fb.load_run "
            "returned"
        )
    made: dict[str, Any] = {"versions": versions(), "machine": machine()}
    if isinstance(source, Run):
        made["pruned_model"] = _digest(source)
    return deploy.measure(source, batch_sizes, seconds, made)


def _digest(run: Run) -> str:
    """Of the pruned network, as the run's manifest has it."""
    return file_hash(run.path / MODEL / "sparse.npz")


def write_profile(run: Run, found: Profile) -> dict[str, Any]:
    """Write ``profile.json`` into a run's folder, whole or not at all, and its report again.

    Returns:
        What the file holds.

    Raises:
        ValueError: the profile is not of this run's network.
    """
    if found.made.get("pruned_model") != _digest(run):
        raise RecordError(f"this profile is not of the network in {run.path}: profile the run")
    content = {"schema_version": SCHEMA_VERSION, "command": command(), **found.to_json()}
    write_json(run.path / PROFILE, content)
    report.write_report(run.path)
    return content
