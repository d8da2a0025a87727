"""The command line: each file parses, calls one library function and prints.

Commands are loaded when they are asked for, so `lcn --help` imports neither torch nor anything
else that takes time.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module

import click

from lcn import __version__
from lcn.errors import LcnError

COMMANDS = {
    "data": ("data", "Fetch, list and generate logs."),
    "prepare": ("prepare", "Turn logs into a dataset folder."),
    "train": ("train", "Train a model on a dataset."),
    "evaluate": ("evaluate", "Measure a trained run, with intervals."),
    "predict": ("evaluate", "Write a run's click probabilities."),
    "compare": ("compare", "Compare runs, pair by pair."),
    "export": ("serve", "Make a bundle of a trained run, for serving."),
    "serve": ("serve", "Rank over HTTP with lifelong histories."),
    "experiment": ("experiment", "The paper's tables and figures on your data."),
    "diagnose": ("diagnose", "Would lifelong cross-domain modelling pay on this log?"),
    "consistency": ("consistency", "Does search find what attention wants?"),
    "half-width": ("half_width", "May histories be stored in half the width?"),
    "models": ("models", "List backbones and objectives."),
    "bench": ("bench", "Measure speed and memory on this machine."),
    "demo": ("demo", "The whole way on real logs, in minutes."),
}
"""Command -> its file, where it is the function of its name, and one line of help."""


class _LazyGroup(click.Group):
    """Knows every command's name and one-line help without importing it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"lcn.cli.{COMMANDS[cmd_name][0]}")
        return getattr(module, cmd_name.replace("-", "_"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lcn")
def cli() -> None:
    """Lifelong cross-domain click prediction: from logs to a model that ranks."""


def main() -> None:
    """Run the command line; errors meant for people are printed without a traceback."""
    # Without the place in our source, which says nothing to who runs the command.
    warnings.formatwarning = lambda message, *_, **__: f"lcn: warning: {message}\n"
    try:
        cli(prog_name="lcn")
    except LcnError as error:
        click.echo(f"lcn: {error}", err=True)
        sys.exit(1)
