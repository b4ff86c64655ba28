"""The time that a plan foretells, compilation included, in processes that have compiled nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

QUICK = [
    "--model", "mlp", "--width", "12", "--batch-size", "32", "--dense-steps", "20", "--steps", "40",
    "--no-baseline",
]  # fmt: skip


def said(command: str, cache: Path, *more: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    words = [command, *(w for w in QUICK if command == "solve" or w != "--no-baseline"), *more]
    done = subprocess.run(
        [sys.executable, "-m", "fairbilevel", *words, "--compile-cache", str(cache)],
        capture_output=True, text=True, timeout=300, check=True, env=environment,
    )  # fmt: skip
    return done.stdout


def expected(text: str) -> tuple[float, float]:
    found = re.search(r"expected time about (\d+) s, of which about (\d+) s compile", text)
    assert found is not None
    return float(found[1]), float(found[2])


def test_a_plan_foretells_what_compiling_takes(tmp_path):
    """Also where the plan itself finds its own program on disk: that once hid all of it."""
    cache = tmp_path / "programs"
    first, second = (expected(said("plan", cache)) for _ in range(2))
    solved = said("solve", cache, "--out", str(tmp_path / "run"))
    found = re.search(r"compiled in ([\d.]+) s", solved)
    assert found is not None
    took = float(found[1])
    for whole, compiling in (first, second):
        assert whole >= compiling
        assert took / 3 <= compiling + 2.5  # rounded to five seconds
        assert compiling - 2.5 <= 3 * took
