"""What every verb prints with."""

from __future__ import annotations

import sys


def print_error(line: str) -> None:
    """One line on stderr, neither wrapped nor coloured, so that scripts can read it."""
    print(line, file=sys.stderr)
