"""What is said beside the rows and the claim: who counts looks, and where everything comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Looks:
    """How often rows are looked at, and who counts.

    Attributes:
        number: of this look, where no ledger counts.
        only: certify these rows this once and never again; spends the whole error.
        candidates: models declared beforehand that share this look.
        ledger: file that numbers the looks at these rows; without one the certificate says that
            looks are not counted. Without ids or the models' names every certificate of a ledger
            counts for the next.
        also: further ledgers whose looks count.
        record: file of the second record of looks; by default hidden beside the ledger.
    """

    number: int = 1
    only: bool = False
    candidates: int = 1
    ledger: str | Path | None = None
    also: Sequence[Path] = ()
    record: Path | None = None


@dataclass(frozen=True)
class Origin:
    """Where rows and models come from, as the certificate tells it.

    Attributes:
        data: what the rows are called.
        dense_model: hash of the dense model; by default of its predictions.
        pruned_model: hash of the pruned model; by default of its predictions.
        dense_trained_on: what the dense model was trained on; without it the verdict is
            conditional on its never having seen these rows.
        duplicates: rows whose inputs equal another row's.
        alike: rows that are or may be rows that the models were made with; makes the verdict
            conditional.
        left_out: rows left out so far, by reason.
        notes: sentences to go with the certificate.
    """

    data: str = "the rows given"
    dense_model: str | None = None
    pruned_model: str | None = None
    dense_trained_on: str | None = None
    duplicates: int | None = None
    alike: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
