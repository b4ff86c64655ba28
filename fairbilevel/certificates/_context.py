"""Where rows and models of a certificate come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Context:
    """Where the rows and the models come from; nothing is computed from it.

    Attributes:
        data: name of the rows' source.
        fingerprint: of the rows.
        kind: what is independent and counted: ``rows``, or units such as ``persons``.
        rows_read: rows before one was drawn per unit.
        left_out: rows left out, by reason.
        duplicates: rows whose inputs equal another row's.
        alike: rows that are or may be rows that the models were made with.
        doubts: what makes it doubtful that rows and columns are what they are called.
        dense_model: hash of the dense model.
        pruned_model: hash of the pruned model.
        dense_trained_on: what the dense model was trained on, as far as anybody said.
        looks_counted: whether a ledger numbers the looks at these rows.
        notes: sentences for the reader.
    """

    data: str = "the rows given"
    fingerprint: str = ""
    kind: str = "rows"
    rows_read: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    duplicates: int | None = None
    alike: int = 0
    doubts: Sequence[str] = ()
    dense_model: str = ""
    pruned_model: str = ""
    dense_trained_on: str | None = None
    looks_counted: bool = False
    notes: Sequence[str] = ()
