"""The command line: ``fairbilevel solve | plan | evaluate | report``."""

from fairbilevel.cli._main import main

__all__ = ["main"]
