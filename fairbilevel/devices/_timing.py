"""How long calls take beside each other: in rounds that take each once, so that whatever else the
machine does meanwhile falls on all of them alike.

Their order is drawn anew for every round: what a call leaves behind (caches, threads that still
wait for work) would otherwise fall on the same next one every time. Calls that leave much behind
for the others, such as those of another runtime, are timed apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Times:
    """What the rounds showed of one call, in milliseconds of wall time.

    Attributes:
        median: half of the rounds took less.
        low: a quarter did.
        high: three quarters did.
        rounds: how many there were.
    """

    median: float
    low: float
    high: float
    rounds: int


def timed(
    calls: Mapping[K, Callable[[], Any]], *, rounds: int = 5, seconds: float = 0.0
) -> dict[K, Times]:
    """Wall times of calls.

    Args:
        calls: each returns when its work is done; they are called once before, so that what they
            compile is not counted.
        rounds: at least so many.
        seconds: at least so long, over all calls.
    """
    spent: dict[K, list[float]] = {key: [] for key in calls}
    for call in calls.values():
        call()
    keys, rng = list(calls), np.random.default_rng(0)
    end, done = time.perf_counter() + seconds, 0
    while done < rounds or time.perf_counter() < end:
        for i in rng.permutation(len(keys)):
            call = calls[keys[i]]
            begin = time.perf_counter()
            call()
            spent[keys[i]].append(time.perf_counter() - begin)
        done += 1
    return {key: _times(1e3 * np.array(values)) for key, values in spent.items()}


def _times(milliseconds: np.ndarray) -> Times:
    low, median, high = np.quantile(milliseconds, (0.25, 0.5, 0.75)).tolist()
    return Times(median, low, high, len(milliseconds))
