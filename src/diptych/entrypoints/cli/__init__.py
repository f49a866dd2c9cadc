"""The command line: `diptych`."""

from diptych.entrypoints.cli.app import main

__all__ = ["main"]
