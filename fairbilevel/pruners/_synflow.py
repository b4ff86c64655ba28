"""SynFlow: iterative conservation of synaptic flow, without data (Tanaka et al., NeurIPS 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fairbilevel.masks import Masks
from fairbilevel.pruners._moment import Moment
from fairbilevel.pruners._pruner import Pruner, exponential
from fairbilevel.pruners._run import PrunerRun

_FAR = 1e4  # so large an input that what biases and statistics add decides no rectifier


@dataclass(frozen=True)
class SynFlow(Pruner):
    """Keep the units that most flow passes through, removing a few a round, then fine-tune.

    The flow ``R`` is the sum of all logits of the network of absolute weights for an input of ones;
    a unit scores ``|w dR/dw|``, and the density falls by the same factor each round. No row of data
    is looked at.

    Normalization is linearized: in evaluation mode it is ``scale / deviation * x + shift``, and
    only what multiplies ``x`` passes flow on. So ``R`` is taken as the derivative of the logits
    along an input of ones, at an input so large that every rectifier is open. Biases and running
    means, which the authors' code makes absolute and leaves in, drop out; without them it is the
    same ``R``, and the flow into a neuron equals the flow out of it exactly.

    Raises:
        ValueError: the flow is not finite (a very deep network without normalization).
    """

    rounds: int = 100

    name: ClassVar[str] = "synflow"

    def sparsity_at(self, progress: float) -> float:
        """An exponential schedule."""
        return exponential(self.sparsity, progress)

    def scores(self, at: Moment) -> Masks:
        """``|w dR/dw|``."""
        network = jax.tree.map(jnp.abs, at.network)
        state = jax.tree.map(
            lambda leaf: jnp.abs(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            at.model_state,
        )
        ones = jnp.ones((1, *at.structure.shape), jnp.float32)

        def flow(params: Any) -> Any:
            def total(x: Any) -> Any:
                return at.structure.model.apply(params, state, x, False, at.key)[0].sum()

            return jax.jvp(total, (_FAR * ones,), (ones,))[1]

        gradient = jax.grad(flow)(network)
        return at.units(jax.tree.map(jnp.multiply, network, gradient))

    def select(self, run: PrunerRun, scores: Any, kept: Masks, sparsity: float) -> Masks:
        """The best of the units that are left."""
        if not all(bool(np.isfinite(np.asarray(s)).all()) for s in scores.values()):
            raise ValueError(
                "synflow's flow is not finite: the network is too deep for absolute weights "
                "without normalization; choose another method"
            )
        return super().select(run, scores, kept, sparsity)
