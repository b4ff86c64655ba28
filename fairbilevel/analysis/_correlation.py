"""How a property of groups goes along with their excess loss, in numbers and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Correlation:
    """Correlation of two properties across groups.

    Attributes:
        of: the first property, in words.
        with_: the second one.
        groups: how many groups have both.
        pearson: linear correlation, ``None`` with fewer than three groups or a constant property.
        pearson_p: its two-sided p-value, were groups independent draws from a normal.
        spearman: correlation of ranks.
        spearman_p: its two-sided p-value, were groups independent.
    """

    of: str
    with_: str
    groups: int
    pearson: float | None
    pearson_p: float | None
    spearman: float | None
    spearman_p: float | None

    def to_json(self) -> dict[str, Any]:
        """Flat JSON values."""
        return {name.rstrip("_"): value for name, value in asdict(self).items()}

    @property
    def sentence(self) -> str:
        """In words, with how few groups it rests on."""
        if self.pearson is None or self.spearman is None or self.pearson_p is None:
            why = "fewer than three groups" if self.groups < 3 else "one of them does not vary"
            return f"{self.of} and {self.with_}: no correlation can be told, {why}."
        strength = abs(self.pearson)
        size = "strong" if strength >= 0.7 else "moderate" if strength >= 0.4 else "weak"
        sense = "larger" if self.pearson > 0 else "smaller"
        where = self.of[:1].lower() + self.of[1:]
        few = "; groups are not independent draws"
        if self.groups < 10:
            few = "; so few groups show a tendency and prove nothing"
        return (
            f"{self.of} and {self.with_}: {size} correlation, {self.with_} is {sense} where "
            f"{where} is large (Pearson {self.pearson:+.2f}, p {self.pearson_p:.2g}; "
            f"Spearman {self.spearman:+.2f}), over {self.groups} groups{few}."
        )


def correlate(
    of: str, a: Float[np.ndarray, " groups"], with_: str, b: Float[np.ndarray, " groups"]
) -> Correlation:
    """Pearson's and Spearman's correlation over the groups where both are finite."""
    from scipy import stats  # its second is for those who correlate

    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    # Closer than rounding to a constant: a correlation of it would be one of rounding errors.
    if len(a) < 3 or min(_variation(a), _variation(b)) < 1e-9:
        return Correlation(of, with_, len(a), None, None, None, None)
    pearson, spearman = stats.pearsonr(a, b), stats.spearmanr(a, b)
    found = [float(v) for test in (pearson, spearman) for v in (test.statistic, test.pvalue)]
    return Correlation(of, with_, len(a), *found)


def _variation(values: np.ndarray) -> float:
    largest = float(np.abs(values).max())
    return float(np.ptp(values)) / largest if largest > 0 else 0.0
