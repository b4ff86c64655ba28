"""``fb.certify`` with all that is asked in one row: tests vary any of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import fairbilevel as fb
from fairbilevel.certificates import Certificate, Looks, Origin

NAMES = {"look": "number", "only_look": "only"}


def certify(*columns: Any, **asked: Any) -> Certificate:
    for name, kind in (("looks", Looks), ("origin", Origin)):
        own = {f.name for f in dataclasses.fields(kind)} - {"number", "only"}
        own |= set(NAMES) if kind is Looks else set()
        given = {NAMES.get(k, k): asked.pop(k) for k in own & set(asked)}
        asked[name] = kind(**given)
    return fb.certify(*columns, **asked)
