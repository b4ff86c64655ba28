"""`load`: from the name of a data set, a file or a folder to rows."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from ._dataset import Dataset, Options
from ._errors import DataError, did_you_mean

if TYPE_CHECKING:
    from ._source import Location, Source
    from ._table import CsvTable


def read_table(path: Path) -> CsvTable:
    """Read a file of separated text as it is: no target is chosen, and no row left out.

    Returns:
        The table, and the line that each row begins in.

    Raises:
        DataError: it cannot be read, is no text or no table.
    """
    from ._archive import decode_text, read_file
    from ._table import read_csv

    return read_csv(decode_text(read_file(path), path.name), path.name)


def open_source(source: str, options: Options, labelled: bool) -> tuple[Location, Source]:
    """Where a source lies, and what reads it."""
    from ._registry import SOURCES
    from ._source import Location

    location = Location(source)
    reader = next((s for s in SOURCES if s.matches(location)), None)
    if reader is None:
        known = [name for s in SOURCES for name in s.known]
        forms = "; ".join(s.forms for s in SOURCES)
        there = location.text and location.path.exists()
        what = "cannot be read as data" if there else "is neither a known data set nor a path"
        raise DataError(
            f"{location.text!r} {what}{did_you_mean(location.text, known)}; give one of: {forms}."
        )
    if options.image_size is not None and labelled and not reader.has_image_files:
        raise DataError(
            f"image_size resizes image files as they are read, and {location.text} holds none: "
            "leave it out."
        )
    where = ("split", "data_dir", "download") if labelled else ("split",)
    for name in () if reader.has_splits else where:
        if getattr(options, name):
            told = f"{name} (--{name.replace('_', '-')})"
            raise DataError(
                f"{told} is for TensorFlow data sets, and {location.text} is none: leave it out."
            )
    return location, reader


def load(
    source: str | PathLike[str],
    options: Options | None = None,
    *,
    classes: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    merged: Sequence[str] = (),
    merged_classes: Sequence[str] = (),
    dropped_classes: Sequence[str] = (),
    labelled: bool = True,
) -> Dataset:
    """Read a data set.

    Args:
        source: "digits"; a folder or zip of images (UTKFace, CelebA, with labels.csv, or one folder
            per class); a `.csv`, `.tsv`, `.parquet`, `.npz` or `.npy` file; a folder of arrays
            or of what `convert` wrote; "tfds:NAME", also written
            "tfds:NAME?split=test&data_dir=...", or a well-known TensorFlow name such as "cifar10".
        options: target, groups and how to read; see `Options`.
        classes: class names of a former run, in its order; a label outside them is an error.
        groups: group names of a former run, likewise.
        merged: groups which that run had pooled into "other (merged)" (`Dataset.merged`).
        merged_classes, dropped_classes: classes which that run had pooled or left out, likewise.
        labelled: False for rows to predict: labels and groups may be missing, and are -1 then.

    Returns:
        The rows, not yet encoded.

    Raises:
        DataError: anything wrong with the source, its files or the options, in one sentence.
    """
    # pandas and Pillow come with the sources, and not before data is read.
    from ._assemble import assemble
    from ._source import Request

    options = options or Options()
    location, reader = open_source(fspath(source), options, labelled)
    known_classes = None if classes is None else tuple(classes)
    known_groups = None if groups is None else tuple(groups)
    gone = tuple(merged), tuple(merged_classes), tuple(dropped_classes)
    request = Request(options, known_classes, known_groups, *gone, labelled)
    rows = reader.read(location, request)
    if options.exclude_feature and not reader.has_features:
        raise DataError("exclude_feature is for tables; images and arrays have no named columns.")
    if options.skip_damaged and labelled and not reader.may_be_damaged:
        raise DataError(
            "skip_damaged is for folders and zips of images, and for records of convert or of your "
            "own; it has no meaning here."
        )
    return assemble(rows, request)
