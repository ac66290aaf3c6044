"""The command line: ``lawful <verb>``."""

from lawful.cli.app import main

__all__ = ["main"]
