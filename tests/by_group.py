"""Statistics of groups straight from rows: what those of replay buffers are compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fairbilevel.fairness._statistics import cell_answers, from_means


def group_statistics(outcomes, group, share, counted, cell_share=None):
    """Groups without rows are absent, negative groups ignored; with shares of the cells in the role
    answers are counted."""
    groups = share.shape[0]
    count = jax.ops.segment_sum(jnp.ones(group.shape, share.dtype), group, groups)
    present = count > 0
    safe = jnp.where(present, count, 1)

    def mean(values):
        return jax.ops.segment_sum(jnp.asarray(values, share.dtype), group, groups) / safe

    answers = None
    if cell_share is not None:
        classes = cell_share.shape[1]
        cell = jnp.where(group < 0, -1, group * classes + outcomes.label)
        said = jax.nn.one_hot(outcomes.answer, classes, dtype=share.dtype)
        answers = cell_answers(jax.ops.segment_sum(said, cell, groups * classes), 1, cell_share)
    own = {name: mean(values) for name, values in outcomes.own.items()}
    return from_means([mean(v) for v in outcomes.paired], share, present, counted, answers, own)
