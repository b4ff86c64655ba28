"""The rows of one of a finished run's roles, drawn again as the run drew them."""

from __future__ import annotations

from collections.abc import Sequence

from fairbilevel import data as fb_data
from fairbilevel.data import Dataset
from fairbilevel.run._config import Config
from fairbilevel.run._folder import Run
from fairbilevel.run._prepare import read_data


def role_rows(run: Run, role: str, instead: str) -> Dataset:
    """Rows of a role.

    Args:
        run: the run.
        role: one of ``fb.data.ROLES``.
        instead: what a user can do without them, as the end of a sentence.

    Raises:
        ValueError: a run that does not say where its data is, or data that changed since.
    """
    return rows_by_role(run, (role,), instead)[role]


def rows_by_role(run: Run, roles: Sequence[str], instead: str) -> dict[str, Dataset]:
    """Rows of several roles, the data read once; otherwise as ``role_rows``."""
    named = " and ".join(roles)
    if "data" not in run.config:
        raise ValueError(
            f"the run in {run.path} was saved from Python and does not say where its data is: "
            f"{instead}"
        )
    config = Config.from_mapping(run.config)
    data, counted = read_data(config)
    if data.fingerprint != run.result.data.fingerprint:
        raise ValueError(
            f"the data at {config.data} has changed since the run, so its {named} rows cannot be "
            f"told: restore it, or {instead}"
        )
    fractions = config.fractions() or fb_data.FRACTIONS
    rows = fb_data.split_roles(data, fractions, config.seed, counted)
    return {role: data.take(rows[role]) for role in roles}
