"""A classifier for other classes than those that a network was trained for."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fairbilevel import models
from fairbilevel.problem import FairPruningProblem, Network, predict

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Weights of the squared norm beside the mean cross-entropy; tune chooses."""
_MOST_ITERATIONS = 500


def with_new_head(problem: FairPruningProblem, network: Network) -> Network:
    """The network of a built-in model with its classifier trained on fit, all else as it is.

    A multinomial logistic regression on what reaches the classifier in evaluation mode: a convex
    problem, whose solution depends on no step size and no seed. Rows have the problem's weights;
    the penalty is the one of ``PENALTIES`` with the least cross-entropy on tune.

    Args:
        problem: whose fit trains, and whose tune chooses.
        network: of the problem's model; its classifier is not looked at.
    """
    fit, tune = problem.roles["fit"], problem.roles["tune"]
    inputs = {name: problem.rows(problem.roles[name]) for name in ("fit", "tune")}
    kernel = network.params["classifier"]["kernel"]
    features = _features(problem, network, kernel.shape[0])
    seen = {name: features(rows) for name, rows in inputs.items()}
    mean, std = seen["fit"].mean(0), seen["fit"].std(0)
    std = np.where(std > 1e-6 * np.maximum(1, np.abs(mean)), std, 1.0)
    classes, best = len(problem.data.classes), None
    for penalty in PENALTIES:
        found = _regression(
            (seen["fit"] - mean) / std, problem.y[fit], problem.weight[fit], classes, penalty
        )
        loss = _cross_entropy((seen["tune"] - mean) / std, problem.y[tune], *found)
        if best is None or loss < best[0]:
            best = loss, *found
    assert best is not None
    weights = best[1] / std[:, None]
    head = {"kernel": weights, "bias": best[2] - mean @ weights}
    like = network.params["classifier"]
    new = {name: jnp.asarray(head[name], leaf.dtype) for name, leaf in like.items()}
    return dataclasses.replace(network, params={**network.params, "classifier": new})


def _features(problem: FairPruningProblem, network: Network, count: int) -> Any:
    """Rows to what reaches the classifier: the logits of the model whose classifier is the
    identity."""
    name, shape = problem.model.name, problem.inputs.shape[1:]
    model = models.build(name, shape, count, width=problem.width)
    identity = {"kernel": jnp.eye(count), "bias": jnp.zeros(count)}
    params = {**network.params, "classifier": identity}
    alone = Network(*jax.device_get((params, network.state)))
    return lambda rows: predict(model, problem.encoder, alone, rows).astype(np.float64)


def _cross_entropy(
    x: Float[np.ndarray, "rows features"],
    y: Int[np.ndarray, " rows"],
    kernel: Float[np.ndarray, "features classes"],
    bias: Float[np.ndarray, " classes"],
) -> float:
    logits = x @ kernel + bias
    top = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
    return float((total - logits[np.arange(len(y)), y]).mean())


def _regression(
    x: Float[np.ndarray, "rows features"],
    y: Int[np.ndarray, " rows"],
    weight: Float[np.ndarray, " rows"],
    classes: int,
    penalty: float,
) -> tuple[Float[np.ndarray, "features classes"], Float[np.ndarray, " classes"]]:
    """Kernel and bias."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    share = weight / weight.sum()
    machine = LogisticRegression(C=1 / penalty, max_iter=_MOST_ITERATIONS)
    with warnings.catch_warnings():
        # Cut short it is a little less fitted, which the choice on tune weighs.
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(x, y, sample_weight=share)
    kernel, bias = machine.coef_.T, machine.intercept_
    if classes == 2:  # one plane between them
        kernel, bias = np.hstack([-kernel, kernel]) / 2, np.hstack([-bias, bias]) / 2
    return kernel, bias
