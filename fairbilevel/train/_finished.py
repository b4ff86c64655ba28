"""What a finished network gets: statistics of its own, output biases under which no class loses
more accuracy than another beside the dense model; and whether it still depends on its input."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import special

from fairbilevel import _trees, _xla, data, models
from fairbilevel.devices import Program
from fairbilevel.masks import CutNetworkError
from fairbilevel.problem import FairPruningProblem, Network, Reference
from fairbilevel.train._batches import Batch


def settled_statistics(
    structure: tuple[models.Model, str], model_state: Any, z: Any, batches: Batch, moments: Any
) -> Any:
    """Normalization statistics of the network ``z``: running statistics over stacked batches,
    averaged over their second half. Pure."""
    model, kind = structure

    def body(carry: Any, batch: Batch) -> tuple[Any, Any]:
        x = data.standardize(kind, batch.x, moments)
        _, carry = model.apply(z, carry, x, True, jax.random.key(0))
        return carry, carry

    last, seen = _xla.scan(body, model_state, batches)
    half = batches.y.shape[0] // 2

    def settle(final: Array, history: Array) -> Array:
        if not jnp.issubdtype(final.dtype, jnp.floating):
            return final
        return history[half:].mean(0)

    return jax.tree.map(settle, last, seen)


_SETTLED = Program(settled_statistics)


def recalibrated(problem: FairPruningProblem, network: Network, batches: Batch) -> Network:
    """The network with the statistics that its own weights make on these batches."""
    place, (model, kind) = problem.placement, (problem.model, problem.encoder.kind)
    arguments = place.place((network.state, network.params))
    moments = place.place(problem.encoder.moments)
    state = _SETTLED((model, kind), *arguments, batches, moments, placement=place)
    return Network(network.params, state)


def answers(
    problem: FairPruningProblem, network: Network, rows: Int[np.ndarray, " rows"], sparsity: float
) -> str | None:
    """The class that a network answers on all of 256 rows, ``None`` if there are several; refused
    (``CutNetworkError``) where its logits are the same for every row."""
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), 256)).astype(int)]
    logits = problem.logits(network, problem.rows(sample))
    if len(sample) > 1 and not np.any(logits != logits[:1]):
        raise CutNetworkError(
            f"sparsity {sparsity} cut the network: its logits no longer depend on the input; ask "
            "for less, or for the uniform budget"
        )
    said = np.unique(logits.argmax(-1))
    always = len(said) == 1 and len(np.unique(problem.y[sample])) > 1
    return problem.data.classes[said[0]] if always else None


_SWEEPS = 60
_LEVEL = 0.05  # of the test that classes lose differently at all


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
    """The network with the output biases under which all classes lose alike (``class_shift``) on
    these rows; and a sentence for who should know that its biases were left alone.

    They are blind to groups: what they undo is the shift between classes that pruning brings, half
    of the disparate impact where groups differ in their classes. The network is left as it is where
    they do not hold on tune, whose rows neither network was fitted to: where they lose more rows
    than they win, by more than a standard error of that difference, or where classes lose less
    alike than before (``fit`` and ``select`` are remembered, by each network in its own way).
    """
    name = output_bias(problem, network)
    if name is None:
        return network, (
            "the output biases could not be matched to the dense model's: no parameter of model "
            f"{problem.model.name!r} is added to its outputs",
        )
    logits = problem.logits(network, problem.rows(rows))
    shift = class_shift(logits, problem.y[rows], reference.correct[rows])
    moved, tune = _shifted(problem, network, name, shift), problem.roles["tune"]
    if len(tune):
        before, after = (problem.judge(n, tune)[0].astype(int) for n in (network, moved))
        costs = (before - after).sum() > np.sqrt(np.abs(before - after).sum())
        y, dense = problem.y[tune], reference.correct[tune].astype(int)
        if costs or _unevenness(dense - after, y) > _unevenness(dense - before, y):
            return network, ()
    return moved, ()


def _unevenness(lost: Int[np.ndarray, " rows"], y: Int[np.ndarray, " rows"]) -> float:
    """Variance between classes of the accuracy that they lose."""
    rows = np.maximum(np.bincount(y), 1)
    excess = np.bincount(y, lost) / rows - lost.mean()
    return float(np.bincount(y) @ excess**2 / len(y))


def class_shift(
    logits: Float[np.ndarray, "rows classes"],
    y: Int[np.ndarray, " rows"],
    dense_correct: Bool[np.ndarray, " rows"],
) -> Float[np.ndarray, " classes"]:
    """Biases whose mean is 0 under which the accuracy that each class loses to the dense model is
    the same, as far as its excess over the average is no noise.

    All are 0 where a chi-squared test finds no difference between classes. Else the excess is
    shrunken by empirical Bayes: by ``tau^2 / (tau^2 + nu_c)``, ``nu_c`` the variance of a class's
    mean and ``tau^2`` what the excesses vary by beyond it. A class has as many rows
    right as it shall where its bias lies between two of their margins; all biases go half of the
    way there at a time, since raising one lowers the others' margins.
    """
    z, classes = np.asarray(logits, np.float64), logits.shape[1]
    order = np.argsort(y, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(y, minlength=classes))[:-1])
    share = np.array([len(m) for m in members]) / len(y)

    def margins(shift: Float[np.ndarray, " classes"]) -> Float[np.ndarray, " rows"]:
        moved = z + shift
        own = moved[np.arange(len(y)), y]
        moved[np.arange(len(y)), y] = -np.inf
        return own - moved.max(1)

    def means(values: Any) -> Float[np.ndarray, " classes"]:
        return np.array([values[m].mean() if len(m) else 0.0 for m in members])

    right = margins(np.zeros(classes)) > 0
    lost = dense_correct.astype(float) - right
    excess = means(lost) - lost.mean()
    # One variance for all: that of a class with few rows, or none lost, would tell nothing.
    noise = lost.var() / np.maximum(share * len(y), 1)
    worth = float(np.sum(excess[share > 0] ** 2 / np.maximum(noise[share > 0], 1e-30)))
    if worth <= special.chdtri(max(np.sum(share > 0) - 1, 1), _LEVEL):
        return np.zeros(classes)
    beyond = max(float(share @ (excess**2 - noise)), 0.0)
    target = means(right) + excess * beyond / (beyond + noise)
    shift = best = np.zeros(classes)
    least = np.inf
    for sweep in range(_SWEEPS):
        margin = margins(shift)
        off = means(margin > 0) - target
        common = float(share @ off)
        if (distance := float(share @ (off - common) ** 2)) < least:
            best, least = shift, distance
        step = np.array(
            [_bias(margin[m], t + common) for m, t in zip(members, target, strict=True)]
        )
        shift = shift + step / (2 + sweep / 20)
    return best - best.mean()


def _bias(margin: Float[np.ndarray, " rows"], accuracy: float) -> float:
    """What makes a share of the margins positive, the least that does."""
    count = len(margin)
    wanted = round(float(np.clip(accuracy, 0, 1)) * count)
    if wanted == np.sum(margin > 0):
        return 0.0
    falling = np.sort(margin)[::-1]
    above, below = falling[max(wanted - 1, 0)], falling[min(wanted, count - 1)]
    # At an end of the margins just beyond the last of them.
    room = 1e-6 * (1 + np.abs(falling).max()) if above == below else 0.0
    return float(-(above + below) / 2 + (room if wanted else -room))


def _shifted(problem: FairPruningProblem, network: Network, name: str, by: Any) -> Network:
    def moved(leaf_name: str, leaf: Any) -> Any:
        if leaf_name != name:
            return leaf
        return problem.placement.place(np.asarray(leaf) + np.asarray(by, leaf.dtype))

    return Network(_trees.map_named(moved, network.params), network.state)
