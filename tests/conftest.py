"""Shapes and types of every public function are checked while the tests run."""

import jaxtyping
import pytest
from jaxtyping import install_import_hook

# PEP 484's numeric tower: an int is welcome where a float is asked for.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"

with install_import_hook("fairbilevel", CHECKER):
    import fairbilevel  # noqa: F401

# Tests that hand over values of a wrong type on purpose, to see them refused by the package itself.
WRONG_TYPES = ("test_bad_seeds",)


@pytest.fixture(autouse=True)
def _checked(request: pytest.FixtureRequest):
    off = request.node.name.startswith(WRONG_TYPES)
    if off:
        jaxtyping.config.update("jaxtyping_disable", True)
    yield
    if off:
        jaxtyping.config.update("jaxtyping_disable", False)
