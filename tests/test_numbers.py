"""One form of every kind of number, wherever a reader sees it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fairbilevel import _numbers as n

PACKAGE = Path(n.__file__).parent


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (n.percent(0.8721), "87.2 %"),
        (n.percent(0.123, 0), "12 %"),
        (n.percent(None), "–"),
        (n.share(0.95), "95 %"),
        (n.share(0.9999), "99.99 %"),
        (n.points(0.0213), "2.1"),
        (n.points(-0.0213, 2, signed=True), "−2.13"),
        (n.points(0.0213, signed=True), "+2.1"),
        (n.points(-0.0001, signed=True), "0.0"),
        (n.in_points(0.0213, signed=True), "+2.1 points"),
        (n.in_points(None), "–"),
        (n.exact_points(0.0025), "0.25"),
        (n.exact_points(0.02), "2"),
        (n.decimal(1234.5), "1,234.500"),
        (n.decimal(-0.00004), "−4.0e−05"),
        (n.decimal(3e9, signed=True), "+3.0e+09"),
        (n.count(1234567.0), "1,234,567"),
        (n.counted(1, "row"), "1 row"),
        (n.counted(2371, "row"), "2,371 rows"),
        (n.milliseconds(1.2345), "1.23"),
        (n.milliseconds(12345), "12,345"),
        (n.duration(42), "42.0 s"),
        (n.duration(200), "3 min 20 s"),
        (n.duration(7500), "2 h 05 min"),
        (n.storage(100), "0.1 KiB"),
        (n.storage(1536), "1.5 KiB"),
        (n.storage(3 * 2**20), "3.0 MiB"),
        (n.storage(5 * 2**29), "2.5 GiB"),
        (n.compact(12_000, 60_000), "12k"),
        (n.compact(-0.25, 1), "−0.25"),
    ],
)
def test_a_number_is_written(written, expected):
    assert written == expected


def test_no_file_writes_percentages_by_itself():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "_numbers.py":
            text = path.read_text(encoding="utf-8")
            assert not re.findall(r"\{100 \* [^}]*\} (?:%|points)|:\.\d%\}", text), path
