"""Source table: a CSV, TSV or Parquet file with numbers, categories and missing values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ._attributes import is_numeric
from ._errors import DataError, listing, refuse_unknown
from ._load import read_table
from ._parquet import PARQUET, StoredTable, open_table
from ._source import Location, Request, Rows, Source, row_numbers

_TEXT = (".csv", ".tsv", ".tab")
_MAX_LEVELS = 1000
_MAX_DATES = 50  # more than weekdays, months or years
_DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b"


class Table(Source):
    """A `.csv`, `.tsv`, `.tab` or `.parquet` file, one row per line."""

    forms = "a .csv, .tsv or .parquet file"
    has_features = True

    def matches(self, location: Location) -> bool:
        """An existing file with one of the suffixes."""
        return location.is_file(*_TEXT, *PARQUET)

    def read(self, location: Location, request: Request) -> Rows:
        """Read all columns; those that are not target, weight, unit, role or id are features."""
        path = location.path
        parquet = location.is_file(*PARQUET)
        options = request.options
        table: pd.DataFrame | StoredTable
        lines: np.ndarray | None = None
        notes: tuple[str, ...] = ()
        if parquet:
            table = open_table(path, options.in_memory)
        else:
            read = read_table(path)
            table, lines, notes = read.table, read.lines, read.notes
        if table.empty:
            raise DataError(f"{path.name} has no rows.")
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
            read=lambda rows: _read(features, rows),
            ids=row_numbers(len(table)),
            numbered=True,
            target=options.target,
            lines=lines,
            notes=[*notes, _input_note(options.group, options.target, list(features.columns))],
        )
        if request.labelled:
            _refuse_unusable(features, path.name, rows)
        return rows


def _read(features: pd.DataFrame | StoredTable, rows: np.ndarray) -> pd.DataFrame | StoredTable:
    if isinstance(features, StoredTable):
        return features.take(rows)
    return features.iloc[rows].reset_index(drop=True)


def _refuse_unusable(features: pd.DataFrame | StoredTable, name: str, rows: Rows) -> None:
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
