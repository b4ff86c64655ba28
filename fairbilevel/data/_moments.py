"""Mean and deviation of columns that are passed through part by part."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


class Moments:
    """Merges the moments of parts, which loses no digits where means are large beside deviations
    (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979).

    Attributes:
        count: rows so far.
        mean: float64 `[columns]`.
    """

    def __init__(self, columns: int):
        self.count, self.mean, self._squares = 0, np.zeros(columns), np.zeros(columns)

    def add(self, part: Float[np.ndarray, "rows columns"]) -> None:
        """Count the rows of a part, float64."""
        if not len(part):
            return
        mean, count = part.mean(0), self.count + len(part)
        apart = mean - self.mean
        self._squares += ((part - mean) ** 2).sum(0) + apart**2 * self.count * len(part) / count
        self.mean = self.mean + apart * len(part) / count
        self.count = count

    @property
    def std(self) -> Float[np.ndarray, " columns"]:
        """Of the rows as a population, as numpy's."""
        return np.sqrt(self._squares / max(self.count, 1))
