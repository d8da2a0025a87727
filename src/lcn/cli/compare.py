"""`lcn compare`: paired comparison of saved predictions."""

from __future__ import annotations

from pathlib import Path

import click

from lcn.cli.output import result_console, seed_option
from lcn.errors import DataError

_PATH = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("reference", metavar="RUN_A", type=_PATH)
@click.argument("others", metavar="RUN_B...", type=_PATH, nargs=-1, required=True)
@click.option("--resamples", default=1000, show_default=True, type=click.IntRange(min=2))
@seed_option("Seed of the resampling.")
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
    """Compare runs on the same impressions, each with the first one.

    Give run folders that `lcn evaluate` has measured, or files of predictions (.npz) of one split.
    Those that differ only in the seed are seeds of
    one run: give the same seeds for every run, and the intervals speak for the mean over seeds.
    Differences are the other run minus RUN_A; intervals resample users (and seeds).
    """
    import numpy as np
    from rich.console import Console

    from lcn.evaluate.compare import compare as compare_runs
    from lcn.evaluate.compare import group_runs
    from lcn.evaluate.results import result_of
    from lcn.evaluate.tables import (
        combined_json,
        differences_table,
        results_table,
    )
    from lcn.train import saved_predictions

    paths = [_predictions(path) for path in (reference, *others)]
    groups = group_runs([saved_predictions(path) for path in paths])
    if len(groups) == 1:
        raise DataError(
            f"all of them are of one run, {groups[0][0].run!r}; give predictions of another run "
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
    console = result_console()
    console.print(results_table(results))
    console.print(differences_table(differences))


def _predictions(path: Path) -> Path:
    """The file of predictions that a path means: itself, or the run folder's of the test split."""
    if not path.is_dir():
        return path
    saved = path / "predictions" / "test.npz"
    if not saved.exists():
        raise DataError(f"{path} has no saved predictions; run `lcn evaluate {path}` first")
    return saved
