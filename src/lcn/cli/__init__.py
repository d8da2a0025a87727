"""The command line: each file parses, calls one library function and prints.

Commands are loaded when they are asked for, so `lcn --help` imports neither torch nor anything
else that takes time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from lcn import __version__
from lcn.errors import LcnError


def _data() -> click.Command:
    from lcn.cli.data import data

    return data


def _prepare() -> click.Command:
    from lcn.cli.prepare import prepare

    return prepare


def _train() -> click.Command:
    from lcn.cli.train import train

    return train


def _evaluate() -> click.Command:
    from lcn.cli.evaluate import evaluate

    return evaluate


def _predict() -> click.Command:
    from lcn.cli.evaluate import predict

    return predict


def _compare() -> click.Command:
    from lcn.cli.compare import compare

    return compare


def _consistency() -> click.Command:
    from lcn.cli.consistency import consistency

    return consistency


def _half_width() -> click.Command:
    from lcn.cli.half_width import half_width

    return half_width


def _models() -> click.Command:
    from lcn.cli.models import models

    return models


def _demo() -> click.Command:
    from lcn.cli.demo import demo

    return demo


def _export() -> click.Command:
    from lcn.cli.serve import export

    return export


def _serve() -> click.Command:
    from lcn.cli.serve import serve

    return serve


def _bench() -> click.Command:
    from lcn.cli.bench import bench

    return bench


def _experiment() -> click.Command:
    from lcn.cli.experiment import experiment

    return experiment


def _diagnose() -> click.Command:
    from lcn.cli.diagnose import diagnose

    return diagnose


COMMANDS: dict[str, tuple[str, Callable[[], click.Command]]] = {
    "data": ("Fetch, list and generate logs.", _data),
    "prepare": ("Turn logs into a dataset folder.", _prepare),
    "train": ("Train a model on a dataset.", _train),
    "evaluate": ("Measure a trained run, with intervals.", _evaluate),
    "predict": ("Write a run's click probabilities.", _predict),
    "compare": ("Compare runs, pair by pair.", _compare),
    "export": ("Make a bundle of a trained run, for serving.", _export),
    "serve": ("Rank over HTTP with lifelong histories.", _serve),
    "experiment": ("The paper's tables and figures on your data.", _experiment),
    "diagnose": ("Would lifelong cross-domain modelling pay on this log?", _diagnose),
    "consistency": ("Does search find what attention wants?", _consistency),
    "half-width": ("May histories be stored in half the width?", _half_width),
    "models": ("List backbones and objectives.", _models),
    "bench": ("Measure speed and memory on this machine.", _bench),
    "demo": ("The whole way on real logs, in minutes.", _demo),
}


class _LazyGroup(click.Group):
    """Knows every command's name and one-line help without importing it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return COMMANDS[cmd_name][1]()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (text, _) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lcn")
def cli() -> None:
    """Lifelong cross-domain click prediction: from logs to a model that ranks."""


def main() -> None:
    """Run the command line; errors meant for people are printed without a traceback."""
    try:
        cli(prog_name="lcn")
    except LcnError as error:
        click.echo(f"lcn: {error}", err=True)
        sys.exit(1)
