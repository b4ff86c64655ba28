"""Source table: a CSV, TSV or Parquet file with numbers, categories and missing values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ._attributes import as_text, is_numeric
from ._csv import MISSING_TEXT, CsvTable, refuse_twins
from ._errors import DataError, listing, reason, refuse_unknown
from ._load import read_table
from ._source import Location, Request, Rows, Source

_TEXT = (".csv", ".tsv", ".tab")
_PARQUET = (".parquet", ".pq")
_MAX_LEVELS = 1000
_MAX_DATES = 50  # more than weekdays, months or years
_DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b"


class Table(Source):
    """A `.csv`, `.tsv`, `.tab` or `.parquet` file, one row per line."""

    forms = "a .csv, .tsv or .parquet file"
    has_features = True

    def matches(self, location: Location) -> bool:
        """An existing file with one of the suffixes."""
        return location.is_file(*_TEXT, *_PARQUET)

    def read(self, location: Location, request: Request) -> Rows:
        """Read all columns; those that are not target, weight, unit, role or id are features."""
        path = location.path
        parquet = location.is_file(*_PARQUET)
        read = _read_parquet(path) if parquet else read_table(path)
        table = read.table
        if table.empty:
            raise DataError(f"{path.name} has no rows.")
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
        rows = Rows(
            name=f"table ({path.name})",
            attributes=table,
            read=lambda rows: features.iloc[rows].reset_index(drop=True),
            ids=np.arange(len(table)).astype(str),
            numbered=True,
            target=options.target,
            lines=None if parquet else read.lines,
            notes=[
                *read.notes,
                _input_note(options.group, options.target, list(features.columns)),
            ],
        )
        if request.labelled:
            _refuse_unusable(features, path.name, rows)
        return rows


def _read_parquet(path: Path) -> CsvTable:
    try:
        table = pd.read_parquet(path)
    except Exception as error:  # whatever damage makes pyarrow raise
        raise DataError(f"{path.name} is not a readable Parquet file ({reason(error)}).") from None
    table = table.reset_index(drop=True)
    table.columns = [str(c).strip() for c in table.columns]
    refuse_twins(list(table.columns), path.name)
    for column in table.columns:
        values = table[column]
        if not is_numeric(values):
            table[column] = _text(values, column, path.name)
    return CsvTable(table, np.arange(len(table)))


def _text(values: pd.Series, column: str, name: str) -> pd.Series:
    """A column of a Parquet file as text, None where missing."""
    try:
        found = as_text(values)
    except Exception as error:  # bytes that are no UTF-8 are found only here
        raise DataError(f"{name}: column {column!r} cannot be read ({reason(error)}).") from None
    if any("\0" in t for t in found if t is not None):
        raise DataError(f"{name}: column {column!r} holds bytes that are no text.")
    text = pd.Series(found, index=values.index, dtype=object)
    return text.where(~text.isin(MISSING_TEXT), None)


def _refuse_unusable(features: pd.DataFrame, name: str, rows: Rows) -> None:
    for column in features.columns:
        values = features[column]
        if is_numeric(values):
            numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
            large = np.flatnonzero(np.abs(numbers) > np.finfo(np.float32).max)
            if large.size:
                found = numbers[large[0]]
                what = "infinity" if np.isinf(found) else f"{found:g}, more than a model can take,"
                raise DataError(
                    f"column {column!r} of {name} holds {what} in {large.size} rows (the first is "
                    f"{rows.where(int(large[0]))}); make it missing."
                )
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
