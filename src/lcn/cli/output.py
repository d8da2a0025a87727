"""Where results are printed."""

from __future__ import annotations

import sys

from rich.console import Console


def result_console() -> Console:
    """Return a console on stdout; in a pipe tables keep their full width."""
    return Console() if sys.stdout.isatty() else Console(width=150)
