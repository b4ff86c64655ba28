"""Sources of faces: CelebA with forty yes/no attributes, UTKFace with age, gender and race.

Liu, Luo, Wang and Tang, "Deep Learning Face Attributes in the Wild", ICCV 2015: a folder
`img_align_celeba` of images, and `list_attr_celeba.txt` (count, names, one row of -1/1 per image)
or `list_attr_celeba.csv` (the same with a header and an `image_id` column).
Zhang, Song and Qi, "Age Progression/Regression by Conditional Adversarial Autoencoder", CVPR 2017:
file names are `[age]_[gender]_[race]_[date&time].jpg.chip.jpg`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from ._archive import FileTree
from ._errors import DataError, reason, repeated
from ._images import image_rows
from ._source import Location, Request, Rows, Source

TARGET = "Blond_Hair"
GROUP = ("Male",)

_LISTS = ("list_attr_celeba.txt", "list_attr_celeba.csv")


class CelebA(Source):
    """Folder or zip with the attribute list of the release."""

    forms = "a CelebA folder or zip"
    has_image_files = True
    may_be_damaged = True

    def matches(self, location: Location) -> bool:
        """The attribute list is there."""
        return location.holds_files and _find(location.files, *_LISTS) is not None

    def read(self, location: Location, request: Request) -> Rows:
        """Join images and attributes; what has only one of the two is skipped and counted."""
        tree = location.files
        table, notes = _attribute_table(tree)
        images = tree.images()
        aligned = [n for n in images if PurePosixPath(n).parent.name == "img_align_celeba"]
        if twice := repeated(PurePosixPath(path).name for path in aligned or images):
            raise DataError(f"{tree.path} holds two images named {twice[0]}; keep one.")
        by_name = {PurePosixPath(path).name: path for path in aligned or images}
        listed = table.index.isin(list(by_name))
        joined = table[listed]
        if joined.empty:
            raise DataError(f"no image in {tree.path} is named in its attribute list.")
        files = [by_name[n] for n in joined.index]
        orders = {c: (f"not {c}", c) for c in joined.columns}
        attributes: dict[str, Any] = {c: np.array(orders[c])[joined[c].to_numpy()] for c in orders}
        if identity := _find(tree, "identity_CelebA.txt"):
            attributes["identity"] = _identities(tree.text(identity), identity, joined.index)
        return image_rows(
            "CelebA",
            tree,
            files,
            attributes,
            request,
            target=TARGET,
            group=GROUP,
            orders=orders,
            skipped={
                "attributes without an image": int((~listed).sum()),
                "image without attributes": len(by_name) - len(files),
            },
            notes=notes,
        )


def _identities(text: str, name: str, images: Iterable[str]) -> list[str | None]:
    """The person in each image, None where the list does not say."""
    pairs: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if len(fields) not in (0, 2):
            raise DataError(
                f"{name} has {len(fields)} words in line {number}; give image and person."
            )
        pairs |= dict([fields]) if fields else {}
    return [pairs.get(image) for image in images]


def _find(tree: FileTree, *names: str) -> str | None:
    paths = {PurePosixPath(path).name: path for path in reversed(tree.names)}
    return next((paths[name] for name in names if name in paths), None)


def _attribute_table(tree: FileTree) -> tuple[pd.DataFrame, list[str]]:
    """Return int64 0/1 per image name (index) and attribute (columns), and notes."""
    path = _find(tree, *_LISTS)
    assert path is not None
    text = tree.text(path)
    notes: list[str] = []
    try:
        if path.endswith(".csv"):
            table = pd.read_csv(io.StringIO(text), index_col=False).set_index("image_id")
        else:
            count, _, body = text.partition("\n")
            # One name fewer in the header than fields in a row: the image names are the index.
            table = pd.read_csv(io.StringIO(body), sep=r"\s+")
            if count.strip() != str(len(table)):
                notes.append(f"{path} announces {count.strip()} rows and has {len(table)}.")
    except KeyError:
        raise DataError(f"{path} has no column image_id; give the list of the release.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path} is no CelebA attribute list ({reason(error)}).") from None
    table.index = table.index.astype(str)
    if twice := repeated(table.index):
        raise DataError(f"{path} names {twice[0]} twice.")
    bad = ~table.isin([-1, 0, 1, "-1", "0", "1"])
    if table.columns.empty or bad.to_numpy().any():
        where = "" if table.columns.empty else f" (column {bad.any().idxmax()})"
        raise DataError(f"{path} holds attributes that are neither -1 nor 1{where}.")
    return (table.astype(int) > 0).astype(np.int64), notes


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
