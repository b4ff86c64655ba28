"""The ledger of looks: every certification of the same rows is numbered, and pays for its number.

Rows are known by fingerprints. A certification whose rows overlap with those of former ones is one
look more than these; asking the very same question again is the same look. Several candidates that
were declared beforehand share one look.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64

from fairbilevel.records import RecordError, read_json, write_json

LEDGER = "ledger.json"
_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Look:
    """One entry.

    Attributes:
        look: its number among those that share rows.
        candidates: models declared to share it.
        only_look: the rows were closed by it.
        terms: gap, tolerance and the rest of the claim, which candidates have in common.
        questions: digests of what was asked, one per candidate.
        fingerprints: of the rows.
    """

    look: int
    candidates: int
    only_look: bool
    terms: str
    questions: tuple[str, ...]
    fingerprints: UInt64[np.ndarray, " rows"]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        packed = zlib.compress(np.sort(self.fingerprints).astype("<u8").tobytes(), 9)
        return {
            "look": self.look,
            "candidates": self.candidates,
            "only_look": self.only_look,
            "terms": self.terms,
            "questions": list(self.questions),
            "rows": len(self.fingerprints),
            "fingerprints": base64.b64encode(packed).decode(),
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> Look:
        """The inverse of ``to_json``.

        Raises:
            ValueError: numbers, questions or rows that no look has.
        """
        look, candidates, rows = (values[k] for k in ("look", "candidates", "rows"))
        questions, only_look = values["questions"], values["only_look"]
        if not all(type(n) is int and 0 < n < 2**31 for n in (look, candidates, rows)):
            raise ValueError("a look's number, candidates and rows are not whole numbers from 1 up")
        if type(only_look) is not bool or not 0 < len(questions) <= candidates:
            raise ValueError(f"look {look} has {len(questions)} questions for {candidates}")
        unpacking, packed = (
            zlib.decompressobj(),
            base64.b64decode(values["fingerprints"], validate=True),
        )
        raw = unpacking.decompress(packed, 8 * rows + 1)  # no more than it says it holds
        if len(raw) != 8 * rows:
            raise ValueError(f"look {look} does not hold the {rows} rows that it says")
        prints = np.frombuffer(raw, "<u8").astype(np.uint64)
        told = str(values["terms"]), tuple(map(str, questions))
        return Look(look, candidates, only_look, *told, prints)


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
    candidates: int = 1,
    only_look: bool = False,
) -> int:
    """Number a certification, from 1, and write it down before its outcome is known.

    ``rows`` are fingerprints, ``terms`` what the candidates of one look have in common, and
    ``question`` (terms and outcomes) what makes this certification the same as a former one.

    Raises:
        ValueError: a damaged ledger, rows that were closed, or a first look that is not the first.
    """
    looks = read_ledger(path)
    shared, asked = digest(terms), digest(question)
    rows = np.unique(rows)
    before = [k for k, look in enumerate(looks) if np.isin(rows, look.fingerprints).any()]
    for k in before:
        look = looks[k]
        same = look.candidates == candidates and look.only_look == only_look
        if not (same and look.terms == shared and np.array_equal(look.fingerprints, rows)):
            continue
        if asked in look.questions:
            return look.look
        if len(look.questions) < candidates:
            questions = (*look.questions, asked)
            looks[k] = Look(look.look, candidates, only_look, shared, questions, rows)
            _write(path, looks)
            return look.look
    if any(looks[k].only_look for k in before):
        raise ValueError(
            f"these rows were certified once with --only-look, which closed them ({path}): take "
            "new rows"
        )
    if only_look and before:
        raise ValueError(
            f"--only-look is for rows that nobody has looked at; {len(before)} looks at these are "
            f"in {path}"
        )
    number = len(before) + 1
    looks.append(Look(number, candidates, only_look, shared, (asked,), rows))
    _write(path, looks)
    return number


def read_ledger(path: Path) -> list[Look]:
    """All looks of a ledger, none where it does not exist.

    Raises:
        RecordError: damaged or from a newer schema; a ledger is never silently started again.
    """
    if not path.exists():
        return []
    found = read_json(path)
    try:
        if found["schema_version"] > _SCHEMA_VERSION:
            raise RecordError(f"the ledger {path} is from a newer fairbilevel: upgrade it")
        return [Look.from_json(v) for v in found["looks"]]
    except RecordError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, zlib.error) as error:
        raise RecordError(f"the ledger {path} is damaged: {error!r}") from None


def _write(path: Path, looks: list[Look]) -> None:
    write_json(
        path, {"schema_version": _SCHEMA_VERSION, "looks": [look.to_json() for look in looks]}
    )
