"""What several commands share: options, and where results are printed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from lcn.schema import SPLITS, Split

if TYPE_CHECKING:
    from rich.console import Console

dataset_option = click.option("--dataset", help="Where the dataset is now, if it has moved.")


def split_option(default: Split = "test") -> Any:
    """Return the option `--split` of a command that reads samples."""
    return click.option(
        "--split", type=click.Choice(SPLITS), default=default, show_default=True,
        help="Which samples.",
    )  # fmt: skip


def resamples_option(default: int) -> Any:
    """Return the option `--resamples` of a command with intervals."""
    return click.option(
        "--resamples", type=click.IntRange(min=2), default=default, show_default=True,
        help="Bootstrap resamples of users.",
    )  # fmt: skip


def seed_option(help_text: str) -> Any:
    """Return the option `--seed` of a command that draws: 0 or more, which NumPy can take."""
    return click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help=help_text
    )


def result_console() -> Console:
    """Return a console on stdout; in a pipe tables keep their full width."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=150)
