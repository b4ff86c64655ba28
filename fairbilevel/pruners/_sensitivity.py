"""Scores of what removing a unit does: SNIP, GraSP, and SynFlow, which looks at no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fairbilevel.masks import Masks
from fairbilevel.problem import FairPruningProblem, Reference
from fairbilevel.pruners._pruner import Pruner
from fairbilevel.pruners._run import Moment, PrunerRun
from fairbilevel.train import Plan


@dataclass(frozen=True)
class SNIP(Pruner):
    """Keep the units whose masks the loss is most sensitive to, then fine-tune.

    ``|dL/dm| = |w dL/dw|`` of a weight, ``|sum w dL/dw|`` over a filter with its bias, scale and
    shift: what its mask multiplies. (Behind a batch normalization the kernel's part of that sum is
    0, since its scale does not matter; the normalization's own parameters carry the rest.) The
    paper scores an untrained network; here, as everywhere in this library, the dense one is given.
    """

    name: ClassVar[str] = "snip"
    passes: ClassVar[float] = 1.0

    def scores(self, at: Moment) -> Masks:
        """``|dL/dm|``, the loss over all batches."""
        gradient = at.mean(lambda batch, key: jax.grad(at.loss)(at.network, batch))
        entries = jax.tree.map(jnp.multiply, at.network, gradient)
        return {name: jnp.abs(s) for name, s in at.units(entries).items()}


@dataclass(frozen=True)
class GraSP(Pruner):
    """Keep the units whose removal would lower the gradient's norm, then fine-tune.

    Removing a unit changes ``|g|^2`` by ``-2 w^T H g`` to first order, ``g`` and ``H`` the loss's
    gradient and Hessian over all parameters; ``-w * H g`` is the paper's score, and what scores
    highest goes. The product is a derivative of the gradient along ``g`` (forward over reverse), so
    a batch costs one gradient for ``g`` and three for the product.

    Attributes:
        temperature: logits are divided by it, 200 in the authors' code: the gradient then speaks of
            all classes and not of the few rows that the network still gets wrong.

    Raises:
        ValueError: a temperature that is not positive.
    """

    temperature: float = 200.0

    name: ClassVar[str] = "grasp"
    passes: ClassVar[float] = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def scores(self, at: Moment) -> Masks:
        """``w * H g``, gradient and Hessian over all batches."""

        def gradient(batch: Any) -> Any:
            return lambda z: jax.grad(at.loss)(z, batch, self.temperature)

        g = at.mean(lambda batch, key: gradient(batch)(at.network))
        product = at.mean(lambda batch, key: jax.jvp(gradient(batch), (at.network,), (g,))[1])
        return at.units(jax.tree.map(jnp.multiply, at.network, product))


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
    same_share: ClassVar[bool] = True

    def plan(self, problem: FairPruningProblem, reference: Reference | None = None) -> Plan:
        """As of any pruner.

        Raises:
            ValueError: the model's inputs are whole numbers, through which nothing can be sent.
        """
        if problem.encoder.kind == "integer":
            raise ValueError(
                "synflow sends ones through the network, and this one looks up whole numbers: "
                "choose another method"
            )
        return super().plan(problem, reference)

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
