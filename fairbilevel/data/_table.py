"""Source table: a CSV, TSV or Parquet file with numbers, categories and missing values.

Of separated text separator, decimal commas and lines are found out from the content.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pandas as pd

from ._attributes import is_numeric
from ._errors import DataError, listing, reason, refuse_unknown, repeated
from ._load import read_table
from ._parquet import PARQUET, StoredTable, open_table
from ._source import Location, Request, Rows, Source, row_numbers

_TEXT = (".csv", ".tsv", ".tab")
_MAX_LEVELS = 1000
_MAX_DATES = 50  # more than weekdays, months or years
_DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b"

# "None" is left out on purpose: it is a value in many real columns.
MISSING_TEXT = ("", "?", "NA", "N/A", "NaN", "nan", "null", "NULL")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_QUOTE = "where a quote may be opened that nothing closes."
_LOOKED_AT = 100  # records that a separator must fit

_NUMBER = re.compile(r"[+-]?[0-9][0-9.,]*([eE][+-]?[0-9]+)?")
_DECIMAL = re.compile(r"[+-]?[0-9]+(,[0-9]+)?([eE][+-]?[0-9]+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+")


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


@dataclass(frozen=True)
class CsvTable:
    """What a separated text file holds."""

    table: pd.DataFrame  # numbers and text; missing fields are NaN
    lines: np.ndarray  # int64 `[n]`, the line that each row begins in; the header's is 1
    notes: tuple[str, ...] = ()  # sentences for the reader


def read_csv(text: str, name: str) -> CsvTable:
    """Read a table with a header row, separated by commas, semicolons or tabs.

    `?`, empty and `NA` fields are missing. In files that commas do not separate, columns of numbers
    with decimal commas are numbers. What can be read in two ways is refused.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    separator = _separator(text, name)
    records = _records(text, separator, name)
    _, header = next(records, (1, []))
    names = [h.strip() for h in header]
    if not any(names):
        raise DataError(f"{name} is empty; give a table with a header row.")
    if "" in names:
        raise DataError(
            f"{name} has no name for its column {names.index('') + 1}; name it or leave it out."
        )
    refuse_twins(names, name)
    lines, line = [], 1
    try:
        for line, record in records:
            if len(record) != len(names):
                open_quote = any("\n" in field for field in record)
                raise DataError(
                    f"{name} has {len(record)} fields in line {line} where its header has "
                    f"{len(names)}; mend the line, "
                    + (_QUOTE if open_quote else f"or quote fields that hold {separator!r}.")
                )
            lines.append(line)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.StringIO(text, newline="\n"),
                sep=separator,
                na_values=list(MISSING_TEXT),
                keep_default_na=False,
                skipinitialspace=True,
                low_memory=False,
                index_col=False,
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        told = f"{name} is not a readable CSV ({reason(error)}); mend line {line}, {_QUOTE}"
        raise DataError(told) from None
    if len(table) != len(lines):
        raise DataError(
            f"{name} is not a readable CSV: its lines and quotes contradict each other."
        )
    table.columns = names
    return CsvTable(table, np.array(lines, dtype=np.int64), _decimal_commas(table, separator, name))


def refuse_twins(columns: list[str], name: str) -> None:
    """Raise `DataError` for a column that is there twice."""
    if twice := repeated(columns):
        raise DataError(f"{name} has the column {twice[0]!r} twice; rename one.")


def _records(text: str, separator: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, each with the line that it begins in."""
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    line = 1
    try:
        for record in reader:
            if record and record != [""]:
                yield line, record
            line = reader.line_num + 1
    except csv.Error as error:
        told = f"{name} is not a readable CSV ({error}); mend line {line}, {_QUOTE}"
        raise DataError(told) from None


def _separator(text: str, name: str) -> str:
    """The separator that the header has and that gives every record as many fields."""
    fits = []
    header = {}
    for separator in _SEPARATORS:
        try:
            some = islice(_records(text, separator, name), _LOOKED_AT)
            counts = [len(record) for _, record in some]
        except DataError:
            continue
        header[separator] = counts[0] if counts else 0
        if header[separator] > 1 and len(set(counts)) == 1:
            fits.append(separator)
    there = [s for s, count in header.items() if count > 1]
    if len(there) == 1:
        return there[0]
    if len(fits) > 1:
        told = " and ".join(_SEPARATORS[s] for s in fits)
        raise DataError(f"{name} can be read as separated by {told}; quote fields that hold them.")
    return (fits or [","])[0]


def _decimal_commas(table: pd.DataFrame, separator: str, name: str) -> tuple[str, ...]:
    """Make numbers of columns with decimal commas, in place; say which."""
    if separator == ",":
        return ()
    changed = []
    for column in table.columns:
        if is_numeric(table[column]):
            continue
        values = table[column].dropna().astype(str).str.strip()
        commas = values[values.str.contains(",", regex=False)]
        if commas.empty or not values.map(lambda v: _NUMBER.fullmatch(v) is not None).all():
            continue
        decimal = values.map(lambda v: _DECIMAL.fullmatch(v) is not None)
        thousands = commas.map(lambda v: _THOUSANDS.fullmatch(v) is not None)
        if not decimal.all() or thousands.all():
            odd = commas.iloc[0] if decimal.all() else values[~decimal].iloc[0]
            raise DataError(
                f"column {column!r} of {name} holds {odd!r}, which can be read as more than one "
                "number; write numbers as 1234.5."
            )
        table[column] = pd.to_numeric(values.str.replace(",", ".", regex=False)).reindex(
            table.index
        )
        changed.append(column)
    return (f"Decimal commas were read in {listing(changed)}.",) if changed else ()
