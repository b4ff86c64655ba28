"""Source table: a CSV or Parquet file with numeric and categorical columns and missing values."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ._archive import decode_text, read_file
from ._attributes import as_text, is_numeric
from ._errors import DataError, listing, reason, refuse_unknown, repeated
from ._source import Location, Request, Rows, Source

# "None" is left out on purpose: it is a value in many real columns.
MISSING_TEXT = ("", "?", "NA", "N/A", "NaN", "nan", "null", "NULL")
_PARQUET = (".parquet", ".pq")
_MAX_LEVELS = 1000
_MAX_DATES = 50  # more than weekdays, months or years
_DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b"


class Table(Source):
    """A `.csv` or `.parquet` file, one row per line."""

    forms = "a .csv or .parquet file"
    has_features = True

    def matches(self, location: Location) -> bool:
        """An existing file with one of the suffixes."""
        return location.is_file(".csv", *_PARQUET)

    def read(self, location: Location, request: Request) -> Rows:
        """Read all columns; those that are not target, weight, unit, role or id are features."""
        path = location.path
        if location.is_file(*_PARQUET):
            table = _read_parquet(path)
        else:
            table = read_csv(decode_text(read_file(path), path.name), path.name)
        options = request.options
        columns = list(table.columns)
        if request.labelled and not (options.target and options.group):
            groups = "column or columns that make the groups (group)"
            what = groups if options.target else "column to predict (target)"
            raise DataError(f"{path.name} needs the {what}; its columns are {listing(columns)}.")
        for name in options.exclude_feature if request.labelled else ():
            said = f"exclude_feature names {name!r}, which is no column of {path.name}"
            refuse_unknown(said, name, columns)
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


def read_csv(text: str, name: str) -> pd.DataFrame:
    """Read a CSV with a header row; `?`, empty and `NA` fields are missing."""
    source = io.StringIO(text, newline=None)
    header = next(csv.reader([source.readline()], skipinitialspace=True), [])
    source.seek(0)
    names = [h.strip() for h in header]
    if not any(names):
        raise DataError(f"{name} is empty; give a CSV with a header row.")
    _refuse_twins(names, name)
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
        raise DataError(f"{name} is not a readable CSV ({reason(error)}).") from None
    return _checked(table, name)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} is not a readable Parquet file ({reason(error)}).") from None
    table = table.reset_index(drop=True)
    for column in table.columns:
        values = table[column]
        if not is_numeric(values):
            text = pd.Series(as_text(values), index=values.index, dtype=object)
            table[column] = text.where(~text.isin(MISSING_TEXT), None)
    return _checked(table, path.name)


def _checked(table: pd.DataFrame, name: str) -> pd.DataFrame:
    table.columns = [str(c).strip() for c in table.columns]
    _refuse_twins(list(table.columns), name)
    if table.empty:
        raise DataError(f"{name} has no rows.")
    return table


def _refuse_twins(columns: Sequence[str], name: str) -> None:
    if twice := repeated(columns):
        raise DataError(f"{name} has the column {twice[0]!r} twice; rename one.")


def _refuse_unusable(features: pd.DataFrame, name: str) -> None:
    for column in features.columns:
        values = features[column]
        if is_numeric(values):
            if np.isinf(values.to_numpy(dtype=np.float64, na_value=np.nan)).any():
                raise DataError(f"column {column!r} of {name} holds infinity; make it missing.")
        elif values.nunique() > _MAX_DATES and _are_dates(values):
            raise DataError(
                f"column {column!r} of {name} holds {values.nunique()} different dates, each of "
                "which would be a category of its own; exclude it (--exclude-feature), or make it "
                "a number."
            )
        elif values.nunique() > _MAX_LEVELS:
            raise DataError(
                f"column {column!r} of {name} has {values.nunique()} different texts, too many for "
                "a category; exclude it (--exclude-feature), or name it as id or unit."
            )


def _are_dates(values: pd.Series) -> bool:
    return bool(pd.Series(values.dropna().unique()).astype(str).str.match(_DATE).all())


def _input_note(group: Sequence[str], target: str | None, features: list[str]) -> str:
    seen = [g for g in group if g in features]
    hidden = [g for g in group if g not in features and g != target]
    parts = []
    for names, one, many in (
        (seen, "is a model input", "are model inputs"),
        (hidden, "is no model input", "are no model inputs"),
    ):
        if names:
            several = len(names) > 1
            told = f"{'s' * several} {' and '.join(names)} {many if several else one}"
            parts.append(f"group attribute{told}")
    if seen:
        remedy = " ".join(f"--exclude-feature {s}" for s in seen)
        parts[0] += f" ({remedy} takes {'it' if len(seen) == 1 else 'them'} out)"
    text = "; ".join(parts) or "the groups are the classes, which are no model input"
    return text[0].upper() + text[1:] + "."
