"""The least tolerance that a number of rows could ever certify, however well a model does."""

from __future__ import annotations

from collections.abc import Sequence


def least_tolerance(rows: Sequence[int], confidence: float = 0.95) -> list[float | None]:
    """Upper bound on each group's excess accuracy gap when no row at all changes its outcome.

    ``psi_g = (1 - pi_g) (D_g - D_{not g})`` with two independent samples; with zero discordant
    rows the exact one-sided bound of a loss of accuracy from ``n`` rows is ``1 - a^(1/n)``. Four
    fifths of the error go to the group and one fifth to the rest.

    Args:
        rows: certify rows of each group.
        confidence: of the claim.

    Returns:
        One bound a group, ``None`` for groups without rows (or without anybody else).
    """
    delta, total = 1 - confidence, sum(rows)
    bounds: list[float | None] = []
    for n in rows:
        rest = total - n
        if n == 0 or rest == 0:
            bounds.append(None)
            continue
        own = 1 - (0.8 * delta) ** (1 / n)
        other = 1 - (0.2 * delta) ** (1 / rest)
        bounds.append((rest / total) * (own + other))
    return bounds
