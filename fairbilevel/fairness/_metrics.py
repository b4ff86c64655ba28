"""Reported group metrics, in float64 on the host."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fairbilevel.fairness._constraint import Constraint
from fairbilevel.fairness._statistics import GroupStatistics, Outcomes, cell_answers, from_means

_ROWS = 2**16  # that are judged at a time


def group_rates(
    values: Float[np.ndarray, " rows"] | Bool[np.ndarray, " rows"],
    group: Int[np.ndarray, " rows"],
    groups: int,
) -> tuple[Float[np.ndarray, " groups"], Int[np.ndarray, " groups"]]:
    """Mean of ``values`` in each group (NaN where a group has no rows) and the groups' sizes."""
    size = np.bincount(group, minlength=groups)
    total = np.bincount(group, weights=np.asarray(values, np.float64), minlength=groups)
    with np.errstate(invalid="ignore"):
        return np.where(size > 0, total / np.maximum(size, 1), np.nan), size


def judge(
    logits: Float[np.ndarray, "rows classes"], y: Int[np.ndarray, " rows"]
) -> tuple[Bool[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Which rows are right, and their cross-entropy in nats (float32)."""
    correct, loss = np.zeros(len(y), bool), np.zeros(len(y), np.float32)
    for start in range(0, len(y), _ROWS):  # of millions of rows no second copy is made
        part = slice(start, start + _ROWS)
        correct[part], loss[part] = _judge(logits[part], y[part])
    return correct, loss


def _judge(
    logits: Float[np.ndarray, "rows classes"], y: Int[np.ndarray, " rows"]
) -> tuple[Bool[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    top = logits.max(-1, keepdims=True)
    # Infinite logits have a loss of NaN: the caller's to refuse.
    with np.errstate(invalid="ignore"):
        log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
        loss = log_sum - logits[np.arange(len(y)), y]
    return logits.argmax(-1) == y, loss.astype(np.float32)


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    return {n: None if np.isnan(v) else float(v) for n, v in zip(names, values, strict=True)}


def performance(
    correct: Bool[np.ndarray, " rows"],
    loss: Float[np.ndarray, " rows"],
    group: Int[np.ndarray, " rows"],
    names: Sequence[str],
    *,
    label: Int[np.ndarray, " rows"] | None = None,
    answer: Int[np.ndarray, " rows"] | None = None,
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Accuracy, loss (nats) and every group's accuracy and size.

    Groups without rows have accuracy ``None``; without any row everything is ``None``.

    Args:
        correct: which rows are right.
        loss: in nats.
        group: index into ``names``.
        names: of the groups.
        label: the rows' classes; with ``answer`` also what the accuracy is worth (``of_answers``).
        answer: the classes that the model says.
        classes: names of the classes.
    """
    accuracy, size = group_rates(correct, group, len(names))
    some = len(correct) > 0
    return {
        "accuracy": float(np.mean(correct)) if some else None,
        "loss": float(np.mean(loss, dtype=np.float64)) if some else None,
        "group_accuracy": _named(names, accuracy),
        "group_size": {n: int(s) for n, s in zip(names, size, strict=True)},
        **({} if label is None or answer is None else of_answers(label, answer, classes)),
    }


def of_answers(
    label: Int[np.ndarray, " rows"], answer: Int[np.ndarray, " rows"], classes: Sequence[str]
) -> dict[str, Any]:
    """What an accuracy is worth, by the fields of ``Evaluation``: always answering the majority
    class gets its share. All ``None`` without rows; classes without rows are left out of means."""
    if not len(label):
        names = ("balanced_accuracy", "majority_class", "majority_share")
        return dict.fromkeys((*names, "commonest_answer", "commonest_answer_share"))
    rates, size = group_rates(label == answer, label, len(classes))
    said = np.bincount(answer, minlength=len(classes))
    most, commonest = int(size.argmax()), int(said.argmax())
    return {
        "balanced_accuracy": float(np.mean(rates[size > 0])),
        "majority_class": classes[most],
        "majority_share": float(size[most] / len(label)),
        "commonest_answer": classes[commonest],
        "commonest_answer_share": float(said[commonest] / len(label)),
    }


def gaps(
    dense_correct: Bool[np.ndarray, " rows"],
    correct: Bool[np.ndarray, " rows"],
    group: Int[np.ndarray, " rows"],
    names: Sequence[str],
    counted: Bool[np.ndarray, " groups"] | None = None,
) -> dict[str, Any]:
    """Disparities of a pruned model against the dense one on the same rows.

    Args:
        dense_correct: where the dense model is right.
        correct: where the pruned model is right.
        group: index into ``names``.
        names: group names.
        counted: groups that enter the largest and smallest values; all by default. The others are
            listed but stand outside every claim.

    Returns:
        ``accuracy_gap`` (largest minus smallest group accuracy), ``degradation_gap`` (largest minus
        smallest group loss of accuracy), ``max_excess_accuracy_gap``, ``worst_group_accuracy``,
        ``excess_accuracy_gap`` by group and ``discordant`` by group: rows ``[lost, won]``, dense
        right and pruned wrong, and the reverse. Values of groups without rows are ``None``.
    """
    count = len(names)
    dense, _ = group_rates(dense_correct, group, count)
    pruned, size = group_rates(correct, group, count)
    overall = float(np.mean(dense_correct) - np.mean(correct)) if len(group) else np.nan
    damage = dense - pruned
    excess = damage - overall
    use = (size > 0) & (np.ones(count, bool) if counted is None else counted)
    lost = np.bincount(group, weights=dense_correct & ~correct, minlength=count)
    won = np.bincount(group, weights=~dense_correct & correct, minlength=count)
    some = bool(use.any())
    return {
        "accuracy_gap": float(np.ptp(pruned[use])) if some else None,
        "degradation_gap": float(np.ptp(damage[use])) if some else None,
        "max_excess_accuracy_gap": float(excess[use].max()) if some else None,
        "worst_group_accuracy": float(pruned[use].min()) if some else None,
        "excess_accuracy_gap": _named(names, excess),
        "discordant": {n: [int(b), int(c)] for n, b, c in zip(names, lost, won, strict=True)},
    }


class Measurement(NamedTuple):
    """A constraint on a set of rows, in double precision.

    Attributes:
        value: the disparity as reported, ``None`` if no group is claimed.
        violation: how far the tolerance is exceeded at most (at most 0: it holds).
        distances: measured minus tolerance by the constraint's labels, groups claimed only.
    """

    value: float | None
    violation: float | None
    distances: dict[str, float]


def measure(
    constraints: Sequence[Constraint],
    outcomes: Outcomes,
    group: Int[np.ndarray, " rows"],
    groups: Sequence[str],
    counted: Bool[np.ndarray, " groups"] | None = None,
    classes: int | None = None,
) -> list[Measurement]:
    """Every constraint's value and violations on a set of rows.

    Args:
        constraints: what is measured.
        outcomes: of the rows, with labels and answers if a constraint needs them.
        group: index into ``groups``.
        groups: group names.
        counted: groups that claims speak of; all by default.
        classes: number of classes, if a constraint counts answers by group and label.
    """
    if len(group) == 0:
        return [Measurement(None, None, {}) for _ in constraints]
    number = len(groups)
    size = np.bincount(group, minlength=number)

    def mean(values: Any) -> Array:
        return jnp.asarray(np.nan_to_num(group_rates(np.asarray(values), group, number)[0]))

    # In double precision, so that a violation is the reported gap minus the tolerance exactly.
    with jax.enable_x64():
        answers = None
        if any(c.of_cells for c in constraints):
            if outcomes.label is None or outcomes.answer is None or classes is None:
                raise ValueError("rates of answers need labels, answers and the number of classes")
            cell = np.asarray(group) * classes + np.asarray(outcomes.label)
            tally = np.zeros((number * classes, classes))
            np.add.at(tally, (cell, np.asarray(outcomes.answer)), 1)
            share = tally.sum(1).reshape(number, classes) / len(group)
            answers = cell_answers(jnp.asarray(tally), 1, jnp.asarray(share))
        stats = from_means(
            [mean(values) for values in outcomes.paired],
            jnp.asarray(size / size.sum()),
            jnp.asarray(size > 0),
            jnp.asarray(np.ones(number, bool) if counted is None else counted),
            answers,
            {name: mean(values) for name, values in outcomes.own.items()},
        )
        return [_measured(c, stats, c.labels(groups)) for c in constraints]


@partial(jax.jit, static_argnums=0)
def _evaluated(
    constraint: Constraint, stats: GroupStatistics, limits: Float[Array, " multipliers"]
) -> tuple[Float[Array, ""], Float[Array, " multipliers"]]:
    return constraint.value(stats), constraint.distances(stats, limits)


def _measured(constraint: Constraint, stats: GroupStatistics, labels: Sequence[str]) -> Measurement:
    limits = jnp.asarray(constraint.limits(stats.share.shape[0]))
    found = _evaluated(constraint.structure, stats, limits)
    value, distances = (np.asarray(f) for f in found)
    claimed = np.isfinite(distances)
    if not claimed.any():
        return Measurement(None, None, {})
    return Measurement(
        float(value),
        float(distances.max()),
        {n: float(d) for n, d, c in zip(labels, distances, claimed, strict=True) if c},
    )
