"""Source UTKFace: faces whose file names carry age, gender and race.

Zhang, Song and Qi, "Age Progression/Regression by Conditional Adversarial Autoencoder", CVPR 2017:
`[age]_[gender]_[race]_[date&time].jpg.chip.jpg`.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from ._errors import DataError
from ._images import image_rows
from ._source import Location, Request, Rows, Source

GENDERS = ("Male", "Female")
RACES = ("White", "Black", "Asian", "Indian", "Others")
AGES = (*(f"{a}-{a + 9}" for a in range(0, 80, 10)), "80+")

# The release itself has a name with a space, and one without a dot, after the date.
_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+ ?\.?jpe?g(\.chip\.jpe?g)?", re.IGNORECASE)


class UTKFace(Source):
    """Folder or zip; the images may lie anywhere below."""

    forms = "a UTKFace folder or zip"
    has_image_files = True
    may_be_damaged = True

    def matches(self, location: Location) -> bool:
        """At least half of the images are named as in the release."""
        images = location.files.images() if location.holds_files else []
        named = sum(_NAME.fullmatch(PurePosixPath(n).name) is not None for n in images)
        return named > 0 and 2 * named >= len(images)

    def read(self, location: Location, request: Request) -> Rows:
        """Read attributes from the names; names that lack a field are skipped and counted."""
        tree = location.files
        images = tree.images()
        found = {n: m for n in images if (m := _NAME.fullmatch(PurePosixPath(n).name))}
        files = list(found)
        age, gender, race = np.array([[int(m[i]) for m in found.values()] for i in (1, 2, 3)])
        if (age > 130).any():
            raise DataError(f"{files[int(age.argmax())]} gives an age of {age.max()}; rename it.")
        skipped = {
            "file name is not age_gender_race_date.jpg": len(images) - len(files),
            "not an image file": len(tree.names) - len(images),
        }
        attributes = {
            "age": np.array(AGES)[np.minimum(age // 10, 8)],
            "gender": np.array(GENDERS)[gender],
            "race": np.array(RACES)[race],
        }
        return image_rows(
            "UTKFace",
            tree,
            files,
            attributes,
            request,
            target="gender",
            group=("race", "gender"),
            orders={"age": AGES, "gender": GENDERS, "race": RACES},
            numbers={"age": pd.Series(age)},
            skipped=skipped,
        )
