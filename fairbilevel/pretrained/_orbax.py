"""Orbax's folders: the state of a ``flax.nnx`` module, or dictionaries of parameters."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairbilevel._trees import flatten_named
from fairbilevel.models import NAMES, family_of
from fairbilevel.pretrained._checkpoint import (
    CLASSIFIER,
    Checkpoint,
    Pretrained,
    as_numbers,
    flat_shapes,
)
from fairbilevel.problem import FairPruningProblem

_PLAIN = ("", "params", "param", "weights", "model", "state", "batch_stats")
MARKS = ("_METADATA", "_CHECKPOINT_METADATA")


def is_orbax(path: Path) -> bool:
    """Whether a folder is a checkpoint, or a step of a ``CheckpointManager``."""
    return any((path / mark).exists() for mark in MARKS)


class OrbaxFolder(Checkpoint):
    """A tree of arrays that a ``StandardCheckpointer`` or ``PyTreeCheckpointer`` has written."""

    @staticmethod
    def open(path: Path) -> OrbaxFolder:
        """Read a folder; ``default`` within it, where a ``CheckpointManager`` has written it."""
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.ERROR)
        inner = path / "default" if (path / "default" / "_METADATA").exists() else path
        try:
            with ocp.PyTreeCheckpointer() as reader:
                found = reader.metadata(inner.absolute()).item_metadata.tree
                # Onto this process's host, whatever devices it was written from.
                how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), found)
                tree = reader.restore(inner.absolute(), restore_args=how)
        except Exception as error:  # of tensorstore, of files or of JSON: no common class
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{path} cannot be read as a checkpoint of Orbax: {line}") from None
        arrays = {}
        for name, leaf in flatten_named(tree).items():
            name = name.removesuffix("/value")  # of a variable of nnx
            # Keys and counters of a module's random streams are no weights.
            if isinstance(leaf, np.ndarray) and "rngs" not in name.split("/"):
                arrays[name] = leaf
        return OrbaxFolder(path, arrays)

    def model(self, name: str = "auto", width: int | None = None) -> tuple[str, int | None]:
        """See ``Checkpoint.model``: what was asked for, as no name tells more."""
        return name, width

    def network(self, problem: FairPruningProblem) -> Pretrained:
        """See ``Checkpoint.network``. Parameters and state may lie in parts of their own; other
        parts, such as an optimizer's, are left."""
        trees = {"params": problem.shapes.params, "state": problem.shapes.state}
        filled: dict[str, dict[str, np.ndarray]] = {}
        used: dict[str, set[str]] = {}
        answers = None
        for part, tree in trees.items():
            wanted = flat_shapes(tree)
            if not wanted:
                filled[part] = {}
                continue
            where = self._where(part, wanted)
            lacks = next((name for name in wanted if where + name not in self.arrays), None)
            if lacks is not None:
                raise ValueError(
                    f"{self.path} lacks {where + lacks!r}: it holds "
                    f"{', '.join(map(repr, list(self.arrays)[:3])) or 'nothing'}"
                    f"{', ...' * (len(self.arrays) > 3)}"
                )
            mine = {name: self.arrays[where + name] for name in wanted}
            used.setdefault(where, set()).update(mine)
            for name, values in mine.items():
                if values.shape != wanted[name]:
                    answers = self._answers(problem, name, values, wanted[name])
            filled[part] = {n: as_numbers(self.path, n, v) for n, v in mine.items()}
        self._check_rest(problem, used)
        return self._filled(problem, filled["params"], filled["state"], answers, ())

    def _where(self, part: str, wanted: dict[str, Any]) -> str:
        """The folder of names within the tree that holds most of what is wanted. Averages and
        moments of an optimizer hold as much: of several the nearest that is called what weights
        are, and none where that does not tell."""
        tops = {name.rpartition("/")[0] for name in self.arrays}
        above = {"/".join(top.split("/")[:depth]) for top in tops for depth in (0, 1, 2)}
        prefixes = sorted({f"{a}/" if a else "" for a in above}, key=lambda p: (p.count("/"), p))
        counts = {p: sum(f"{p}{name}" in self.arrays for name in wanted) for p in prefixes}
        best = [p for p in prefixes if counts[p] == max(counts.values())]
        if len(best) < 2 or not counts[best[0]]:
            return best[0] if best else ""
        plain = [p for p in best if p.rstrip("/").rpartition("/")[2] in _PLAIN]
        nearest = [p for p in plain if p.count("/") == plain[0].count("/")]
        if len(nearest) != 1:
            raise ValueError(
                f"{self.path} holds the {part} of model more than once, as "
                f"{', '.join(repr(p.rstrip('/')) for p in best)}: save the one that is meant alone"
            )
        return nearest[0]

    def _answers(
        self, problem: FairPruningProblem, name: str, values: np.ndarray, wanted: tuple[int, ...]
    ) -> int:
        """Classes of a classifier that is not this problem's; other shapes are refused."""
        known = problem.built_in and family_of(problem.model.name) in NAMES
        if known and name.startswith(CLASSIFIER) and values.shape[:-1] == wanted[:-1]:
            return values.shape[-1]
        raise ValueError(
            f"{self.path} holds {name!r} of shape {list(values.shape)}, and model "
            f"{problem.model.name!r} has {list(wanted)}"
        )

    def _check_rest(self, problem: FairPruningProblem, used: dict[str, set[str]]) -> None:
        """That nothing beside the model's arrays is left over: it would be of another model."""
        taken = {where + name for where, names in used.items() for name in names}
        for where in used:
            rest = sorted(n for n in self.arrays if n.startswith(where) and n not in taken)
            if rest:
                raise ValueError(
                    f"{self.path} holds {rest[0]!r}, which has no place in model "
                    f"{problem.model.name!r}: is it of another architecture?"
                )
