"""Source table: a CSV or Parquet file with numeric and categorical columns and missing values."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ._attributes import as_text, is_numeric
from ._errors import DataError, did_you_mean, listing
from ._source import Location, Request, Rows, Source

# "None" is left out on purpose: it is a value in many real columns.
MISSING_TEXT = ("", "?", "NA", "N/A", "NaN", "nan", "null", "NULL")
_PARQUET = (".parquet", ".pq")
_MAX_LEVELS = 1000


class Table(Source):
    """A `.csv` or `.parquet` file, one row per line."""

    forms = "a .csv or .parquet file"
    has_features = True

    def matches(self, location: Location) -> bool:
        """An existing file with one of the suffixes."""
        path = location.path
        return path is not None and path.is_file() and path.suffix.lower() in (".csv", *_PARQUET)

    def read(self, location: Location, request: Request) -> Rows:
        """Read all columns; those that are not target, weight, unit, role or id are features."""
        path = location.file
        table = _read_parquet(path) if path.suffix.lower() in _PARQUET else _read_csv_file(path)
        options = request.options
        columns = list(table.columns)
        for given, what in (
            (options.target, "column to predict (target)"),
            (options.group, "column or columns that make the groups (group)"),
        ):
            if not given and request.labelled:
                raise DataError(
                    f"{path.name} needs the {what}; its columns are {listing(columns)}."
                )
        for name in options.exclude_feature:
            if name not in columns and request.labelled:
                raise DataError(
                    f"exclude_feature names {name!r}, which is no column of {path.name}"
                    f"{did_you_mean(name, columns)}; its columns are {listing(columns)}."
                )
        aside = {options.target, options.weight, options.unit, options.role, options.id}
        aside.update(options.exclude_feature)
        features = table[[c for c in columns if c not in aside]]
        if features.columns.empty:
            raise DataError(f"{path.name} has no column left to learn from.")
        if request.labelled:
            _refuse_unusable(features, path.name)
        return Rows(
            name=f"table ({path.name})",
            attributes=table,
            read=lambda rows: features.iloc[rows].reset_index(drop=True),
            ids=np.arange(len(table)).astype(str),
            target=options.target,
            notes=[_input_note(options.group, options.target, list(features.columns))],
        )


def read_csv(source: Any, name: str) -> pd.DataFrame:
    """Read a CSV with a header row from a text buffer; `?`, empty and `NA` fields are missing.

    Raises:
        DataError: no header, a repeated column, rows of the wrong length, no rows.
    """
    header = next(csv.reader([source.readline()], skipinitialspace=True), [])
    source.seek(0)
    names = [h.strip() for h in header]
    if not any(names):
        raise DataError(f"{name} is empty; give a CSV with a header row.")
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise DataError(f"{name} has the column {twice!r} twice; rename one.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                source,
                na_values=list(MISSING_TEXT),
                keep_default_na=False,
                skipinitialspace=True,
                low_memory=False,
                index_col=False,
            )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name} is not a readable CSV ({reason}).") from None
    return _checked(table, name)


def _read_csv_file(path: Path) -> pd.DataFrame:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path.name} is not UTF-8 text; save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}.") from None
    return read_csv(io.StringIO(text), path.name)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path.name} is not a readable Parquet file ({' '.join(str(error).split())})."
        ) from None
    table = table.reset_index(drop=True)
    for column in table.columns:
        values = table[column]
        if not is_numeric(values):
            text = pd.Series(as_text(values), index=values.index, dtype=object)
            table[column] = text.where(~text.isin(MISSING_TEXT), None)
    return _checked(table, path.name)


def _checked(table: pd.DataFrame, name: str) -> pd.DataFrame:
    table.columns = [str(c).strip() for c in table.columns]
    if table.columns.has_duplicates:
        twice = table.columns[table.columns.duplicated()][0]
        raise DataError(f"{name} has the column {twice!r} twice; rename one.")
    if table.empty:
        raise DataError(f"{name} has no rows.")
    return table


def _refuse_unusable(features: pd.DataFrame, name: str) -> None:
    for column in features.columns:
        values = features[column]
        if is_numeric(values):
            if np.isinf(values.to_numpy(dtype=np.float64, na_value=np.nan)).any():
                raise DataError(f"column {column!r} of {name} holds infinity; make it missing.")
        elif values.nunique() > _MAX_LEVELS:
            raise DataError(
                f"column {column!r} of {name} has {values.nunique()} different texts, too many for "
                "a category; exclude it (--exclude-feature), or name it as id or unit."
            )


def _input_note(group: Sequence[str], target: str | None, features: list[str]) -> str:
    seen = [g for g in group if g in features]
    hidden = [g for g in group if g not in features and g != target]
    parts = []
    if seen:
        verb = "is a model input" if len(seen) == 1 else "are model inputs"
        parts.append(
            f"group attribute{'s' * (len(seen) > 1)} {' and '.join(seen)} {verb} "
            f"({' '.join(f'--exclude-feature {s}' for s in seen)} "
            f"takes {'it' if len(seen) == 1 else 'them'} out)"
        )
    if hidden:
        verb = "is no model input" if len(hidden) == 1 else "are no model inputs"
        parts.append(f"group attribute{'s' * (len(hidden) > 1)} {' and '.join(hidden)} {verb}")
    if not parts:
        parts.append("the groups are the classes, which are no model input")
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."
