"""Shapes and types of every public function are checked while the tests run."""

from jaxtyping import install_import_hook

with install_import_hook("fairbilevel", "beartype.beartype"):
    import fairbilevel  # noqa: F401
