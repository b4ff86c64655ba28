"""What is asked and said beside the rows: the claim, with the error it may spend, who counts looks,
and where everything comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fairbilevel import _options
from fairbilevel.certificates._paired import BOUNDS

EXCESS, EXCESS_TWO_SIDED = "excess-accuracy-gap", "absolute-excess-accuracy-gap"
DEGRADATION, ACCURACY, FLOOR = "degradation-gap", "accuracy-gap", "worst-group-accuracy"
PARITY, OPPORTUNITY, ODDS = "demographic-parity", "equal-opportunity", "equalized-odds"
LOSS, LOSS_SIGNED = "equalized-loss", "equalized-loss-signed"

BESIDE_DENSE = (EXCESS, EXCESS_TWO_SIDED, DEGRADATION)
"""Gaps in what pruning cost: relative to a dense model."""
OF_ANSWERS = (PARITY, OPPORTUNITY, ODDS)
"""Gaps in rates of one answer: they need a positive class."""
OF_QUANTITIES = (LOSS, LOSS_SIGNED)
"""Gaps in a number per row: certifiable only with a declared range."""
GAPS = (*BESIDE_DENSE, ACCURACY, FLOOR, *OF_ANSWERS, *OF_QUANTITIES)


@dataclass(frozen=True)
class Claim:
    """A claim to be certified.

    Attributes:
        gap: one of ``GAPS``.
        tolerance: the bound to certify; of ``worst-group-accuracy`` the floor.
        confidence: of everything that is ever certified from these rows together.
        bound: of paired differences, ``sharp`` or ``simple``; chosen beforehand.
        look: how many times these rows have been looked at, this time included.
        only_look: these rows are certified once and never again: the whole error is spent.
        candidates: models declared beforehand that share this look.
        positive: class whose rate is compared, for gaps of answers.
        upper: largest possible value of a quantity; the smallest is zero.
        quantity: what the quantity is called.

    Raises:
        ValueError: one sentence that says which of these is wrong.
    """

    gap: str = EXCESS
    tolerance: float = 0.02
    confidence: float = 0.95
    bound: str = "sharp"
    look: int = 1
    only_look: bool = False
    candidates: int = 1
    positive: str | None = None
    upper: float | None = None
    quantity: str = "loss"

    def __post_init__(self) -> None:
        _options.one_of("gap", self.gap, GAPS)
        _options.one_of("bound", self.bound, BOUNDS)
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence must lie in [0.5, 1), got {self.confidence}")
        _options.at_least(self, 1, "look", "candidates")
        for name in ("look", "candidates"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value >= 2**31:
                raise ValueError(f"{name} must be a whole number below 2^31, got {value!r:.40}")
        if not isinstance(self.only_look, bool):
            raise ValueError(f"only_look is true or false, got {self.only_look!r:.40}")
        if self.only_look and self.look != 1:
            raise ValueError(f"the only look at rows cannot be look {self.look}")
        most = math.inf if self.gap in OF_QUANTITIES else 1.0
        if not (math.isfinite(self.tolerance) and 0 <= self.tolerance <= most):
            wanted = "a number of at least 0" if most > 1 else "a fraction between 0 and 1"
            raise ValueError(f"the tolerance of {self.gap} must be {wanted}, got {self.tolerance}")
        if self.upper is not None and not 0 < self.upper < math.inf:
            raise ValueError(f"the largest value of a quantity must be positive, got {self.upper}")

    @property
    def delta(self) -> float:
        """Error that this claim may spend: ``(1 - confidence) 6 / (pi^2 look^2) / candidates``.

        The sum over all looks is ``1 - confidence``.
        """
        spent = 1.0 if self.only_look else 6 / (math.pi**2 * self.look**2)
        return (1 - self.confidence) * spent / self.candidates

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


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
