"""`lcn train`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import click

from lcn.api import recipe as recipe_config
from lcn.config import dump_config, load_config
from lcn.errors import ConfigError
from lcn.evaluate.tables import plain
from lcn.recipes import RECIPES
from lcn.train import RunConfig
from lcn.train import train as train_run


@click.command()
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--dataset", help="Folder of a prepared dataset (or set `dataset` in the config).")
@click.option(
    "--recipe",
    type=click.Choice(list(RECIPES)),
    help="Start from a named system instead of a config file.",
)
@click.option("--config", type=click.Path(path_type=Path), help="Start from a YAML file.")
@click.option("--resume", is_flag=True, help="Go on from the run folder's checkpoint.")
@click.option("--print-config", is_flag=True, help="Print the resolved config and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def train(
    run_folder: Path,
    overrides: tuple[str, ...],
    dataset: str | None,
    recipe: str | None,
    config: Path | None,
    resume: bool,
    print_config: bool,
    as_json: bool,
) -> None:
    """Train a model into RUN_FOLDER.

    OVERRIDES are dotted settings such as model.backbone.k1=100 or train.seed=3. `--resume` without
    a config takes the run folder's own. Example:

        lcn train runs/lcn-0 --recipe lcn --dataset data/movielens train.seed=0
    """
    if recipe and config:
        raise click.UsageError("give --recipe or --config, not both")
    settings = resolve(run_folder, recipe, config, dataset, list(overrides), resume)
    if print_config:
        click.echo(dump_config(settings), nl=False)
        return
    if recipe == "lcn" and not settings.train.source_steps:
        click.echo(
            "lcn: this dataset does not say how users responded to source events, or not when that "
            "was known, so CRP comes first instead of responses (docs/models/fism.md)",
            err=True,
        )
    summary = train_run(settings, run_folder, resume=resume)
    if as_json:
        click.echo(json.dumps(plain({**asdict(summary), "folder": str(summary.folder)})))
        return
    trained = not math.isnan(summary.samples_per_s)
    speed = f"{summary.samples_per_s:,.0f} samples/s" if trained else "nothing was left to train"
    click.echo(
        f"{summary.folder}: best {settings.train.monitor} {summary.best_value:.4f} at step "
        f"{summary.best_step} of {summary.steps}, {speed}"
    )
    click.echo(f"next: lcn evaluate {summary.folder}")


def resolve(
    run_folder: Path,
    recipe: str | None,
    config: Path | None,
    dataset: str | None,
    overrides: list[str],
    resume: bool,
) -> RunConfig:
    """Put the config together: file, recipe or the resumed run's own, then overrides."""
    own = run_folder / "config.yaml"
    if config is None and recipe is None and resume:
        if not own.exists():
            raise ConfigError(f"{run_folder} holds no run to resume; start one with --recipe")
        config = own
    given = [f"dataset={json.dumps(dataset)}"] if dataset else []
    if recipe is None:
        return load_config(RunConfig, config, [*given, *overrides])
    return recipe_config(recipe, dataset or "", *overrides)
