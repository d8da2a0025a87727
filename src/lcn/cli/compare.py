"""`lcn compare`: paired comparison of saved predictions."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("reference", metavar="RUN_A", type=_PATH)
@click.argument("others", metavar="RUN_B...", type=_PATH, nargs=-1, required=True)
@click.option("--resamples", default=1000, show_default=True, type=click.IntRange(min=2))
@click.option("--seed", default=0, show_default=True, help="Seed of the resampling.")
@click.option(
    "--level",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Coverage of the intervals.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def compare(  # one parameter per option
    reference: Path,
    others: tuple[Path, ...],
    resamples: int,
    seed: int,
    level: float,
    as_json: bool,
) -> None:
    """Compare runs on the same impressions, each with the run of the first file.

    Give files of predictions (.npz) of one split. Files that differ only in the seed are seeds of
    one run: give the same seeds for every run, and the intervals speak for the mean over seeds.
    Differences are the other run minus RUN_A; intervals resample users (and seeds).
    """
    import numpy as np
    from rich.console import Console

    from lcn.errors import DataError
    from lcn.evaluate.compare import compare as compare_runs
    from lcn.evaluate.compare import group_runs
    from lcn.evaluate.predictions import load_predictions
    from lcn.evaluate.results import result_of
    from lcn.evaluate.tables import (
        combined_json,
        differences_table,
        results_table,
    )

    groups = group_runs([load_predictions(path) for path in (reference, *others)])
    if len(groups) == 1:
        raise DataError(
            f"all files are of one run, {groups[0][0].run!r}; give the predictions of another run "
            "to compare it with"
        )
    options = {"resamples": resamples, "level": level}
    with Console(stderr=True).status("resampling users"):
        results = [
            result_of(group, generator=np.random.default_rng(seed), **options) for group in groups
        ]
        differences = [
            compare_runs(groups[0], group, generator=np.random.default_rng(seed), **options)
            for group in groups[1:]
        ]
    if as_json:
        click.echo(combined_json(results, differences))
        return
    console = Console()
    console.print(results_table(results))
    console.print(differences_table(differences))
