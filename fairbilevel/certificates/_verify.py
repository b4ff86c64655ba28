"""A written certificate computed again, and the name of its file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairbilevel.certificates._certificate import Certificate
from fairbilevel.certificates._ledger import digest
from fairbilevel.records import read_json

# Other versions of the special functions may round differently; bounds are given to 1e-5 anyway.
_SAME = 1e-6
CHECKED = {
    "computed again": (
        "smallest_tolerance",
        "verdict",
        "conditional",
        "statement",
        "findings",
        "overall",
        "more_rows",
        "levels",
        "outside_the_claim",
    ),
    "against its digest": ("claim", "counts", "context"),
}
"""What ``verify`` does with each field of a certificate; nothing here tells who wrote it."""


def verify(path: str | Path) -> tuple[Certificate, list[str]]:
    """Compute a written certificate again from its counts, and check these against its digest.

    Returns:
        The certificate and the places where what was written differs from it; none if all is well.

    Raises:
        ValueError: the file is no certificate, or gives a field twice.
    """
    path = Path(path)
    written = read_json(path, unique=True)
    if not isinstance(written, dict):
        raise ValueError(f"{path} is no certificate: it holds no JSON object")
    try:
        certificate = Certificate.from_json(written)
        again = json.loads(json.dumps(certificate.to_json(), allow_nan=False))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (TypeError, AttributeError, KeyError, OverflowError) as error:
        raise ValueError(f"{path}: the certificate is malformed: {error}") from None
    return certificate, differences(again, written)


def differences(expected: Any, found: Any, place: str = "") -> list[str]:
    """Places where plain values differ, numbers by more than rounding."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        keys = list(dict.fromkeys([*expected, *found]))
        missing = object()
        return [
            d
            for k in keys
            for d in differences(
                expected.get(k, missing), found.get(k, missing), f"{place}.{k}" if place else str(k)
            )
        ]
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        if len(expected) != len(found):
            return [place]
        pairs = enumerate(zip(expected, found, strict=True))
        return [d for i, (e, f) in pairs for d in differences(e, f, f"{place}[{i}]")]
    numbers = all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in (expected, found)
    )
    if numbers:
        try:
            same = math.isclose(expected, found, rel_tol=_SAME, abs_tol=_SAME)
        except OverflowError:  # a whole number of hundreds of digits
            same = expected == found
        return [] if same else [place]
    return [] if type(expected) is type(found) and expected == found else [place]


def certificate_name(data: str, certificate: Certificate) -> str:
    """File name of a certificate from new data: one for each data set, its rows and the claim."""
    terms = {k: v for k, v in certificate.claim.to_json().items() if k != "look"}
    question = digest([certificate.context.fingerprint, terms])[:8]
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", data).strip("-.")[:60] or "data"
    return f"certificate-{kept}-{question}.json"
