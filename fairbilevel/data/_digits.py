"""Source `digits`: real handwritten digits that come with scikit-learn; needs no network.

1,797 images of 8 x 8 pixels (E. Alpaydin and C. Kaynak, UCI "Optical Recognition of Handwritten
Digits", 1998). The group is the digit, and two digits are thinned so that there is something to
mitigate.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ._roles import shuffled
from ._source import Location, Request, Rows, Source

THINNED = ("3", "8")
THINNED_ROWS = 60
# Fixed, so that the data set is the same one whatever the seed of a run.
_THIN_SEED = 3861


class Digits(Source):
    """The offline default."""

    forms = "digits"
    known = ("digits",)

    def matches(self, location: Location) -> bool:
        """Only the word itself; a folder of that name is `./digits`."""
        return location.text == "digits"

    def read(self, location: Location, request: Request) -> Rows:
        """Read the digits, thinned."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        # 0..16 grey levels, times 15: exact in uint8 (0..240), so nothing is rounded.
        images = (bunch.images * 15).astype(np.uint8)[..., None]
        label = bunch.target.astype(str)
        keep = np.ones(len(label), dtype=bool)
        bits = np.random.PCG64(_THIN_SEED)
        for digit in THINNED:
            rows = np.flatnonzero(label == digit)
            keep[shuffled(rows, bits)[THINNED_ROWS:]] = False
        kept = np.flatnonzero(keep)
        return Rows(
            name="digits",
            attributes=pd.DataFrame({"label": label[kept]}),
            read=lambda rows: images[kept[rows]],
            ids=kept.astype(str),
            target="label",
            group=("label",),
            skipped={f"thinned: digits {' and '.join(THINNED)}": int((~keep).sum())},
            notes=[
                f"Digits {' and '.join(THINNED)} are thinned to {THINNED_ROWS} rows each, so that "
                "there is a disparity to mitigate; so few rows leave the certificate undecided."
            ],
        )
