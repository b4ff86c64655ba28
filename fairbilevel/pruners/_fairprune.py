"""FairPrune: remove what only the privileged need (Wu et al., MICCAI 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from fairbilevel.masks import Masks
from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.pruners._moment import Moment
from fairbilevel.pruners._pruner import Pruner, exponential


@dataclass(frozen=True)
class FairPrune(Pruner):
    """Keep the units that the unprivileged group needs more than the privileged one.

    ``s_i = 1/2 theta_i^2 (h_ii^0 - beta h_ii^1)``, ``h^0`` and ``h^1`` the second derivatives of
    the loss on unprivileged and privileged rows: what removing ``theta_i`` costs either (the
    gradient taken for zero, the Hessian for diagonal), the smallest removed, round after round.
    Filters score the sum over what their mask multiplies.

    The paper has two groups, and so has this: the unprivileged group, and all others together. The
    second derivatives are those of the Gauss-Newton matrix, which are not negative and equal the
    Hessian's where the network is linear in a weight; one backward pass of random signs a batch
    estimates them without bias. The paper removes about a third and does not train; here the
    network is fine-tuned as every other.

    Attributes:
        beta: what the privileged rows count beside the unprivileged ones.
        unprivileged: name of the unprivileged group; by default the counted one in which the dense
            model is right least often on select, where it was not trained.

    Raises:
        ValueError: a negative beta; when run, a name that is no group, or fewer than two groups.
    """

    rounds: int = 5
    batches: int = 10
    beta: float = 0.33
    unprivileged: str | None = None

    name: ClassVar[str] = "fairprune"
    passes: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < np.inf:
            raise ValueError(f"beta must be a finite number of at least 0, got {self.beta}")

    def sparsity_at(self, progress: float) -> float:
        """Each round keeps the same share."""
        return exponential(self.sparsity, progress)

    def parts(
        self, problem: FairPruningProblem, reference: Reference | None, rows: Int[np.ndarray, " n"]
    ) -> list[Int[np.ndarray, "_"]]:
        """Unprivileged rows, then privileged ones."""
        inside = problem.group[rows] == self._unprivileged(problem, reference)
        if not 0 < inside.sum() < len(rows):
            raise ValueError("fairprune needs rows of two groups at least")
        return [rows[inside], rows[~inside]]

    def _unprivileged(self, problem: FairPruningProblem, reference: Reference | None) -> int:
        if self.unprivileged is not None:
            if self.unprivileged not in problem.groups:
                raise ValueError(
                    f"unprivileged must be a group, got {self.unprivileged!r}: the groups are "
                    f"{', '.join(problem.groups)}"
                )
            return problem.groups.index(self.unprivileged)
        rows = problem.roles["select"]
        group, size = problem.group[rows], len(problem.groups)
        count = np.bincount(group, minlength=size)
        correct = problem.y[rows] >= 0 if reference is None else reference.correct[rows]
        right = np.bincount(group, correct, size) / np.maximum(count, 1)
        return int(np.argmin(np.where(problem.counted & (count > 0), right, np.inf)))

    def scores(self, at: Moment) -> Masks:
        """``s``."""

        pieces = at.structure.accumulate

        def probed(z: Any, batch: Any, key: Any) -> Any:
            logits = at.logits(z, batch)
            # diag(p) - p p^T = S S^T with S = diag(sqrt p) - p sqrt(p)^T, and E[(J^T S e)^2] is the
            # diagonal of J^T S S^T J for independent signs e.
            p = jax.nn.softmax(logits)
            signs = jnp.sqrt(p) * jax.random.rademacher(key, p.shape, p.dtype)
            probe = signs - p * signs.sum(-1, keepdims=True)
            # The mean over micro-batches divides by their number, where squares are to.
            scale = jnp.sqrt(pieces * batch.weight / batch.weight.shape[0])
            return jnp.sum(jax.lax.stop_gradient(probe * scale[:, None]) * logits)

        def curvature(batch: Any, key: Any) -> Any:
            through = jax.grad(lambda z: at.over_rows(probed, z, batch, key))(at.network)
            return jax.tree.map(jnp.square, through)

        h = at.by_part(curvature)
        return at.units(
            jax.tree.map(lambda z, d: 0.5 * z**2 * (d[0] - self.beta * d[1]), at.network, h)
        )
