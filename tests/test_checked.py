"""What the suite's type checks let through and what they stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jaxtyping
import numpy as np
import pytest
from checked import jaxtyped
from jaxtyping import Float, TypeCheckError

import fairbilevel as fb

if TYPE_CHECKING:
    from nowhere import Unknown

Row = Float[np.ndarray, " n"]


@jaxtyped()
def summed(x: Row, y: Row | None = None, *, bad: bool = False) -> Row:
    return np.zeros(9) if bad else x if y is None else x + y


@jaxtyped()
def named(x: float, y: Unknown = None) -> str:
    return "a name" if x else 3


@jaxtyped()
def counted() -> Iterator[int]:
    yield 1


@jaxtyped()
@dataclass(frozen=True)
class Pair:
    x: float
    f: Callable[[Row], Row] | None = None

    @property
    @jaxtyped()
    def twice(self) -> float:
        return 2 * self.x if self.x else "none"

    @classmethod
    @jaxtyped()
    def of(cls, x: int) -> Pair:
        return cls(x)


def test_what_is_right_passes():
    assert summed(np.ones(2), np.ones(2)).tolist() == [2, 2]
    assert summed(np.ones(3)).shape == (3,)  # another call, another size
    assert named(1, object()) == "a name"  # an int for a float; a type that is not there
    assert list(counted()) == [1]
    assert Pair.of(1).twice == 2
    assert Pair(1.0, summed).f is summed


@pytest.mark.parametrize(
    "call",
    [
        lambda: summed(np.ones(2), np.ones(3)),
        lambda: summed(np.ones(2), bad=True),
        lambda: summed(np.ones((2, 2))),
        lambda: summed(np.ones(2, int)),
        lambda: named("x"),
        lambda: named(0),
        lambda: Pair("x"),
        lambda: Pair(1.0, 3),
        lambda: Pair.of(1.5),
        lambda: Pair(0.0).twice,
    ],
)
def test_what_is_wrong_is_stopped(call):
    with pytest.raises(TypeCheckError):
        call()


def test_a_size_that_does_not_fit_is_told():
    with pytest.raises(TypeCheckError) as error:
        summed(np.ones(2), np.ones(3))
    assert "n=2" in error.value.__notes__[0]


def test_checks_can_be_switched_off():
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        assert summed(np.ones((2, 2))).shape == (2, 2)
        assert named(0) == 3
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_the_package_is_checked():
    with pytest.raises(TypeCheckError):
        fb.masks.as_counts(3)
    with pytest.raises(TypeCheckError):
        fb.BilevelSolver(steps="many")
