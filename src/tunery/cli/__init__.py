"""The command line. Nothing heavy is imported until a verb needs it."""

from tunery.cli.app import main

__all__ = ["main"]
