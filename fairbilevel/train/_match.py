"""Output biases under which a pruned network answers each class as often as the dense one does."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fairbilevel import _trees
from fairbilevel.problem import FairPruningProblem, Network, Reference

RIDGE = 1e-3  # per nat squared: a class that nobody is told keeps a finite bias
_ITERATIONS = 50


def output_bias(problem: FairPruningProblem, network: Network) -> str | None:
    """Name of the parameter that is added to the logits, one number a class; ``None`` if the model
    has none.

    It is found by what it does: a one added to it is a one on every logit of every row.
    """
    x = problem.inputs[problem.roles["fit"][:8]]
    before, shape = problem.logits(network, x), (len(problem.data.classes),)
    step = np.arange(1.0, shape[0] + 1)
    for name, leaf in _trees.flatten_named(network.params).items():
        if leaf.shape != shape:
            continue
        moved = problem.logits(_shifted(problem, network, name, step), x) - before
        if np.allclose(moved, step, atol=1e-3 * max(np.abs(before).max(), 1)):
            return name
    return None


def matched(
    problem: FairPruningProblem,
    network: Network,
    reference: Reference,
    rows: Int[np.ndarray, " rows"],
) -> tuple[Network, tuple[str, ...]]:
    """The network with the output biases that bring its answers nearest to the dense ones.

    They are blind to groups: what they undo is the shift between classes that pruning brings, half
    of the disparate impact where groups differ in their classes. The network is left as it is where
    they cost accuracy on tune.

    Args:
        problem: what was pruned.
        network: pruned.
        reference: the dense model's outputs.
        rows: row numbers that biases are fitted to: best those that the dense model was not fitted
            to, whose outputs it does not remember.

    Returns:
        The network, and a sentence for who should know that its biases were left alone.
    """
    name = output_bias(problem, network)
    if name is None:
        return network, (
            "the output biases could not be matched to the dense model's: no parameter of model "
            f"{problem.model.name!r} is added to its outputs",
        )
    shift = dense_shift(problem.logits(network, problem.inputs[rows]), reference.logits[rows])
    moved, tune = _shifted(problem, network, name, shift), problem.roles["tune"]
    if len(tune):
        before, after = (problem.judge(n, tune)[0].mean() for n in (network, moved))
        if after < before:
            return network, ()
    return moved, ()


def dense_shift(
    logits: Float[np.ndarray, "rows classes"], dense: Float[np.ndarray, "rows classes"]
) -> Float[np.ndarray, " classes"]:
    """``argmin_b mean_i KL(dense_i || logits_i + b) + ridge / 2 |b|^2``, whose mean is 0.

    Convex: at its minimum each class is as likely on average as the dense model has it. Newton's
    method, halved until it descends.
    """
    z, target = (np.asarray(a, np.float64) for a in (logits, _softmax(dense)))
    target = target.mean(0)

    def value(b: Float[np.ndarray, " classes"]) -> float:
        return float(_log_sum(z + b).mean() - target @ b + RIDGE / 2 * b @ b)

    shift = np.zeros(z.shape[1])
    for _ in range(_ITERATIONS):
        p = _softmax(z + shift)
        gradient = p.mean(0) - target + RIDGE * shift
        if np.abs(gradient).max() < 1e-9:
            break
        hessian = np.diag(p.mean(0) + RIDGE) - p.T @ p / len(p)
        step, now = np.linalg.solve(hessian, gradient), value(shift)
        while value(shift - step) > now and np.abs(step).max() > 1e-12:
            step = step / 2
        shift = shift - step
    return shift - shift.mean()


def _shifted(problem: FairPruningProblem, network: Network, name: str, by: Any) -> Network:
    def moved(leaf_name: str, leaf: Any) -> Any:
        if leaf_name != name:
            return leaf
        return problem.placement.place(np.asarray(leaf) + np.asarray(by, leaf.dtype))

    return Network(_trees.map_named(moved, network.params), network.state)


def _log_sum(z: Float[np.ndarray, "rows classes"]) -> Float[np.ndarray, " rows"]:
    top = z.max(-1)
    return top + np.log(np.exp(z - top[:, None]).sum(-1))


def _softmax(z: Float[np.ndarray, "rows classes"]) -> Float[np.ndarray, "rows classes"]:
    z = np.asarray(z, np.float64)
    return np.exp(z - _log_sum(z)[:, None])
