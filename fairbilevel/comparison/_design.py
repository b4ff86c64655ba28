"""What is compared: methods, sparsities, folds, and the reference they are judged against."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairbilevel.run import FREE_OPTIONS, Config
from fairbilevel.train import Method

REFERENCE = "gradual-magnitude"
ROLES = ("fit", "select", "tune", "test")
OUTCOME_ROLES = ("tune", "test")  # whose rows are kept one by one

# What says where a result goes, or concerns a single solve, is no part of a comparison.
_APART = ("baseline", "method", "sparsity", "role_fractions", "role", *FREE_OPTIONS)


def split_methods(text: str) -> tuple[str, ...]:
    """``"snip,bilevel:score_step=0.3,dual_step=0.1"`` as two methods with their options.

    Raises:
        ValueError: an option before any method.
    """
    found: list[str] = []
    for word in (w.strip() for w in text.split(",")):
        if not word:
            continue
        if "=" in word.partition(":")[0]:
            if not found or ":" not in found[-1]:
                raise ValueError(f"--methods: the option {word!r} belongs to no method")
            found[-1] += f",{word}"
        else:
            found.append(word)
    return tuple(found)


@dataclass(frozen=True)
class Comparison:
    """Methods on the same folds, from the same dense models, at the same sparsities and budget.

    Attributes:
        config: data, model, granularity, budget in gradient evaluations, constraints (measured for
            every method; a method enforces what is its own); its ``seed`` numbers the first round.
        methods: names of ``fb.methods``, with options after a colon.
        sparsities: shares to remove.
        reference: the method that differences are taken from; one of ``methods``.
        folds: parts of the data; each repetition tests on one.
        rounds: times that all folds are drawn.
        dense_seeds: dense models on the first fold that make the second noise floor; 0 for none.

    Raises:
        ValueError: nothing to compare, a name given twice or unknown, or a reference that is not
            among the methods.
    """

    config: Config
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    reference: str = REFERENCE
    folds: int = 5
    rounds: int = 1
    dense_seeds: int = 5

    def __post_init__(self) -> None:
        if not self.methods or not self.sparsities:
            raise ValueError("a comparison needs at least one method and one sparsity")
        for what, values in (("method", self.methods), ("sparsity", self.sparsities)):
            twice = [v for i, v in enumerate(values) if v in values[:i]]
            if twice:
                raise ValueError(f"the {what} {twice[0]!r} is given twice")
        if self.reference not in self.methods:
            raise ValueError(
                f"the reference {self.reference!r} is not among the methods "
                f"{', '.join(self.methods)}"
            )
        if self.folds < 2 or self.rounds < 1 or self.dense_seeds < 0:
            raise ValueError("a comparison needs at least 2 folds, 1 round and no negative seeds")
        if self.config.role is not None or self.config.role_fractions is not None:
            raise ValueError("folds draw their own roles: leave out --role and --role-fractions")
        if self.config.dense is not None:
            raise ValueError("every fold trains its own dense model: leave out --dense")
        self.config.check()
        self.config.refuse_unused(*self.methods)
        for method in self.methods:
            for sparsity in self.sparsities:
                self.method(method, sparsity, 0)

    def method(self, name: str, sparsity: float, seed: int) -> Method:
        """A method as it runs here: with the configuration's options as far as it takes them.

        Raises:
            ValueError: an unknown name or option, or one outside its range.
        """
        return self.config.build(name, sparsity=sparsity, seed=seed)

    @property
    def repetitions(self) -> list[tuple[int, int]]:
        """Pairs of round and fold."""
        return [(r, f) for r in range(self.rounds) for f in range(self.folds)]

    @property
    def runs(self) -> list[tuple[str, float]]:
        """Pairs of method and sparsity."""
        return [(m, s) for s in self.sparsities for m in self.methods]

    def settings(self) -> dict[str, Any]:
        """What a repetition's outcome depends on, methods and sparsities apart.

        A file goes by its name: where it lies is no part of the result.
        """
        options = {
            f.name: getattr(self.config, f.name)
            for f in dataclasses.fields(self.config)
            if f.name not in _APART
        }
        data = self.config.data
        if not data.startswith("tfds:"):
            options["data"] = Path(data).name
        return {**options, "folds": self.folds}


def run_key(method: str, sparsity: float) -> str:
    """Name of a run in the files."""
    return f"{method}@{sparsity:g}"
