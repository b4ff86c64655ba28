"""The numbers of ``metrics.jsonl`` as TensorBoard events."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TENSORBOARD = "tensorboard"
"""Folder of the events in a run folder."""

# Where a record is in the run: the axis of every curve, not a curve of its own.
_PLACE = ("phase", "step", "steps")


class TensorBoard:
    """Writes every number of a record as a TensorBoard scalar; a callback of every method.

    ::

        with fb.TensorBoard("runs/mine/tensorboard") as board:
            fb.solve(problem, sparsity=0.9, callback=board)

    A tag is the phase and the name in the record, ``bilevel/tune/accuracy``, and
    ``bilevel/multipliers/CONSTRAINT/GROUP`` where there is a number a group; the step is the
    record's. ``metrics.jsonl`` stays the record of a run: this is a view of it.

    Args:
        folder: made where it is missing; a former run's events in it are not touched.

    Raises:
        ValueError: the extra ``tensorboard`` is not installed.
    """

    def __init__(self, folder: str | Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ValueError(
                "TensorBoard events need the package tensorboardX: "
                "pip install 'fairbilevel[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder))

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Write one record, as callbacks receive it."""
        phase = record.get("phase", "run")
        for tag, value in scalars(record):
            self._writer.add_scalar(f"{phase}/{tag}", value, int(record.get("step", 0)))
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and values of all finite numbers in a record, nested names joined by slashes."""
    for name, value in record.items():
        if name in _PLACE:
            continue
        if isinstance(value, Mapping):
            for tag, inner in scalars(value):
                yield f"{name}/{tag}", inner
        elif isinstance(value, (int, float)) and math.isfinite(value):
            yield str(name), float(value)
