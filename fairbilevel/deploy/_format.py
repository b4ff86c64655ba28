"""What a format is: how a network becomes a file, and a file a function of rows.

A format turns a network into content, content and a description into the bytes of one file, and
these back into a function on rows. Content is what the description's digest speaks of.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from fairbilevel.deploy._compact import Compact

About = dict[str, Any]
PRECISIONS = ("float32", "bfloat16", "int8")
Run = Callable[[np.ndarray], Float[np.ndarray, "rows classes"]]


class Damaged(Exception):
    """What a file holds is not what its format says; the text says what."""


class Format(ABC):
    """One format.

    Attributes:
        suffix: of its files.
        precisions: that it can be written in.
        writes_with: packages that write it, beside this one's dependencies.
        runs_with: packages that read and run it, likewise.
    """

    suffix: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = ("float32", "bfloat16")
    writes_with: ClassVar[tuple[str, ...]] = ()
    runs_with: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def convert(
        self, network: Compact, first: Callable[[Any], Any], shape: Any, dtype: Any, about: About
    ) -> Any:
        """The network as content, for rows of a shape and type to which ``first`` is done before
        the model takes them; the format may add to the description."""

    @abstractmethod
    def pack(self, content: Any, about: About) -> bytes:
        """The bytes of a file."""

    @abstractmethod
    def holds(self, data: bytes) -> bool:
        """Whether bytes look like this format, where a file's ending does not tell."""

    @abstractmethod
    def unpack(self, data: bytes) -> tuple[Any, About]:
        """Content and description; ``Damaged`` where they are not there."""

    @abstractmethod
    def digest(self, content: Any) -> str:
        """SHA-256 of the content, hexadecimal."""

    @abstractmethod
    def run(self, content: Any, about: About, first: Callable[[Any], Any], model: Any) -> Run:
        """Content, as ``unpack`` gives it, as a function of rows on this machine (``Damaged`` where
        it cannot be loaded). ``first`` is done to rows where the content does not do it; ``model``
        is given where the content does not hold it and it is no built-in one."""


def require(what: str, name: str, packages: Sequence[str]) -> None:
    """That packages of a format are installed; else how to (``ValueError``)."""
    if missing := [p for p in packages if find_spec(p) is None]:
        raise ValueError(f"{what} needs {' and '.join(missing)}: pip install 'fairbilevel[{name}]'")


def description(text: str | bytes) -> About:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise Damaged("its description is no JSON") from None
    if not isinstance(found, dict):
        raise Damaged("its description is no JSON object")
    return found


NOT_OURS = "it has no description: was it made by fairbilevel export?"


def line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
