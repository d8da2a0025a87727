"""What several commands share: the seed option, and where results are printed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


def seed_option(help_text: str) -> Any:
    """Return the option `--seed` of a command that draws: 0 or more, which NumPy can take."""
    return click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help=help_text
    )


def result_console() -> Console:
    """Return a console on stdout; in a pipe tables keep their full width."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=150)
