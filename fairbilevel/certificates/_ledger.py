"""The ledger of looks: every certification of the same rows is numbered, and pays for its number.

A certification is one look more than all former ones that it may have anything to do with: those
that share a row with it, those of the same two models (eight parts of one file are eight looks),
and those of which either cannot be told. Only other models at other rows, both known, stand apart.
Asking the very same question again is the same look. Several candidates that were declared
beforehand share one.

A second record is kept elsewhere, so that a ledger that is lost, or copied along with its run, does
not begin anew.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64

from fairbilevel.records import RecordError, locked, read_json, write_json

LEDGER = "ledger.json"
RECORD = ".fairbilevel-looks.json"
"""Beside the run folders, or the predictions, of a folder: the second record of their looks."""
_SCHEMA_VERSION = 2
_PATIENCE = 60.0  # seconds


@dataclass(frozen=True, eq=False)
class Look:
    """One entry."""

    look: int  # its number
    candidates: int  # models declared to share it
    only_look: bool  # whether it closed the rows
    terms: str  # gap, tolerance and the rest of the claim, which candidates have in common
    questions: tuple[str, ...]  # digests of what was asked, one per candidate
    fingerprints: UInt64[np.ndarray, " rows"]  # or one of all rows, where single ones are not known
    known: bool = True  # whether the fingerprints are of single rows
    models: str = ""  # digest of the names of dense and pruned model; empty where nobody said
    ledger: str = ""  # file name of its ledger, in a record of several

    def concerns(self, other: Look) -> bool:
        """Whether the one may count as a look for the other."""
        told = self.known and other.known and self.models and other.models
        if not told or max(self.candidates, other.candidates) > 1:
            return True
        return self.models == other.models or self.shares_rows(other)

    def shares_rows(self, other: Look) -> bool:
        """Whether both looked at some row."""
        return bool(np.isin(other.fingerprints, self.fingerprints).any())

    def same_terms(self, other: Look) -> bool:
        """Whether both are the same claim at the same rows: they could be candidates of a look."""
        kind = (self.candidates, self.only_look, self.terms, self.known)
        return kind == (other.candidates, other.only_look, other.terms, other.known) and (
            np.array_equal(self.fingerprints, other.fingerprints)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        packed = zlib.compress(np.sort(self.fingerprints).astype("<u8").tobytes(), 9)
        return {
            **vars(self),
            "questions": list(self.questions),
            "rows": len(self.fingerprints),
            "fingerprints": base64.b64encode(packed).decode(),
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> Look:
        """The inverse of ``to_json``; entries of former versions knew less. What no look has is a
        ``ValueError``."""
        look, candidates, rows = counts = [values[k] for k in ("look", "candidates", "rows")]
        only_look, questions = values["only_look"], values["questions"]
        known = values.get("known", rows != 1)
        if not all(type(n) is int and 0 < n < 2**31 for n in counts):
            raise ValueError("number, candidates and rows of a look are whole numbers from 1 up")
        if type(only_look) is not bool or type(known) is not bool:
            raise ValueError(f"look {look} does not say what it knows and closes")
        if not isinstance(questions, list) or not 0 < len(questions) <= candidates:
            raise ValueError(f"look {look} has no questions, or more than {candidates}")
        texts = [values["terms"], values.get("models", ""), values.get("ledger", ""), *questions]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"look {look} has terms, names or questions that are no text")
        packed = base64.b64decode(values["fingerprints"], validate=True)
        # No more is unpacked than the entry says it holds.
        raw = zlib.decompressobj().decompress(packed, 8 * rows + 1)
        if len(raw) != 8 * rows:
            raise ValueError(f"look {look} does not hold the {rows} rows that it says")
        prints = np.frombuffer(raw, "<u8").astype(np.uint64)
        terms, models, ledger = texts[:3]
        told = terms, tuple(questions), prints, known, models, ledger
        return Look(look, candidates, only_look, *told)


@dataclass(frozen=True)
class Taken:
    """A look that was written down."""

    number: int  # from 1
    notes: tuple[str, ...] = ()  # what the reader of the certificate should know of the count


def digest(value: Any) -> str:
    """SHA-256 in hex of plain values."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprints(keys: list[str]) -> UInt64[np.ndarray, " rows"]:
    """One number per text, equal for equal texts."""
    raw = b"".join(hashlib.blake2b(k.encode(), digest_size=8).digest() for k in keys)
    return np.frombuffer(raw, "<u8").astype(np.uint64)


def take_look(
    path: Path,
    rows: UInt64[np.ndarray, " rows"],
    terms: dict[str, Any],
    question: Any,
    *,
    known: bool = True,
    models: Sequence[str] | None = None,
    candidates: int = 1,
    only_look: bool = False,
    also: Sequence[Path] = (),
    record: Path | None = None,
) -> Taken:
    """Number a certification, from 1, and write it down before its outcome is known.

    Args:
        path: the ledger.
        rows: fingerprints of the rows, or one of all of them together.
        terms: what the candidates of one look have in common.
        question: terms and counts, which make this certification the same as a former one.
        known: whether ``rows`` are of single rows.
        models: names (hashes) of dense and pruned model, where they are known.
        candidates, only_look, also, record: as of ``Looks``.

    Raises:
        ValueError: a damaged ledger, rows that were closed, or a first look that is not the first.
        HeldError: another process has held the ledger for a minute.
    """
    record = record or path.parent / RECORD
    asked = digest(question)
    new = Look(
        0,
        candidates,
        only_look,
        digest(terms),
        (asked,),
        np.unique(rows),
        known,
        digest(list(models)) if models is not None else "",
        path.name,
    )
    with contextlib.ExitStack() as held:
        for folder in sorted({path.parent.resolve(), record.parent.resolve()}):
            with contextlib.suppress(PermissionError):
                held.enter_context(locked(folder, ".looks.lock", patience=_PATIENCE))
        looks = read_ledger(path)
        recorded = read_ledger(record)
        # Of another run with the same rows the looks are that run's own, unless it is a copy.
        mine = [o for o in recorded if o.ledger == new.ledger and o.models == new.models]
        lost = _missing([*mine, *(o for other in also for o in read_ledger(other))], looks)
        taken, looks = _numbered(new, [*looks, *lost], path)
        notes = []
        if lost:
            notes.append(
                f"{len(lost)} looks at these rows or models were not in {path.name}, but in "
                "another record of looks; they count."
            )
        strangers = [
            o
            for o in recorded
            if o.models != new.models and o.ledger == new.ledger and o.shares_rows(new)
        ]
        if strangers and known and models is not None:
            notes.append(
                f"{len(strangers)} looks of other models at rows of these, in other ledgers, are "
                "not counted here: choose between models only where they were declared as "
                "candidates of one ledger."
            )
        _write(path, looks)
        try:
            _write(record, [*recorded, *_missing(looks, recorded)] if looks else recorded)
        except OSError:
            notes.append("No second record of looks can be kept: a lost ledger will go unnoticed.")
    return Taken(taken, tuple(notes))


def _missing(looks: Sequence[Look], among: Sequence[Look]) -> list[Look]:
    """Looks of which ``among`` knows no question."""
    have = {(o.terms, q, o.fingerprints.tobytes()) for o in among for q in o.questions}
    found = []
    for look in looks:
        asked = [(look.terms, q, look.fingerprints.tobytes()) for q in look.questions]
        new = tuple(key[1] for key in asked if key not in have)
        have.update(asked)
        if new:
            found.append(replace(look, questions=new))
    return found


def _numbered(new: Look, looks: list[Look], path: Path) -> tuple[int, list[Look]]:
    """The number of a look, and all looks with it."""
    before = [k for k, look in enumerate(looks) if look.concerns(new)]
    asked = new.questions[0]
    for k in before:
        look = looks[k]
        if not look.same_terms(new):
            continue
        if asked in look.questions:
            return look.look, looks
        if len(look.questions) < new.candidates:
            looks[k] = replace(look, questions=(*look.questions, asked))
            return look.look, looks
    if any(looks[k].only_look for k in before):
        raise ValueError(
            f"these rows were certified once with --only-look, which closed them ({path}): take "
            "new rows"
        )
    if new.only_look and before:
        raise ValueError(
            f"--only-look is for rows that nobody has looked at; {len(before)} looks at these are "
            f"in {path}"
        )
    number = len(before) + 1
    return number, [*looks, replace(new, look=number)]


def read_ledger(path: Path) -> list[Look]:
    """All looks of a ledger, none where it does not exist; one that is damaged or of a newer schema
    is never silently started again."""
    if not path.exists():
        return []
    found = read_json(path)
    try:
        if found["schema_version"] > _SCHEMA_VERSION:
            raise RecordError(f"the ledger {path} is from a newer fairbilevel: upgrade it")
        return [Look.from_json(v) for v in found["looks"]]
    except (KeyError, TypeError, AttributeError, ValueError, zlib.error) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"the ledger {path} is damaged: {error!r}") from None


def _write(path: Path, looks: list[Look]) -> None:
    write_json(
        path, {"schema_version": _SCHEMA_VERSION, "looks": [look.to_json() for look in looks]}
    )
