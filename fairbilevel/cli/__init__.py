"""The command line: ``fairbilevel solve | plan | evaluate | certify | verify | report``."""

from fairbilevel.cli._main import main

__all__ = ["main"]
