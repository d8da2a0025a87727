"""`lcn compare`: paired comparison of saved predictions."""

from __future__ import annotations

from pathlib import Path

import click

from lcn.cli.output import resamples_option, result_console, seed_option, split_option
from lcn.errors import DataError
from lcn.schema import Split

_PATH = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("reference", metavar="RUN_A", type=_PATH)
@click.argument("others", metavar="RUN_B...", type=_PATH, nargs=-1, required=True)
@split_option()
@resamples_option(1000)
@seed_option("Seed of the resampling.")
@click.option(
    "--level",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Coverage of the intervals.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def compare(
    reference: Path,
    others: tuple[Path, ...],
    split: Split,
    resamples: int,
    seed: int,
    level: float,
    as_json: bool,
) -> None:
    """Compare runs on the same impressions, each with the first one.

    Give run folders that `lcn evaluate` has measured, or files of predictions (.npz) of one split.
    Those that differ only in the seed are seeds of one run: give the same seeds for every run, and
    the intervals speak for the mean over seeds. Differences are the other run minus RUN_A;
    intervals resample users (and seeds).
    """
    from rich.console import Console

    from lcn.api import compare as compare_runs
    from lcn.evaluate.tables import combined_json, differences_table, results_table

    files = [_predictions(path, split) for path in (reference, *others)]
    with Console(stderr=True).status("resampling users"):
        found = compare_runs(*files, level=level, resamples=resamples, seed=seed)
    if as_json:
        click.echo(combined_json(found.results, found.differences))
        return
    console = result_console()
    console.print(results_table(found.results))
    console.print(differences_table(found.differences))


def _predictions(path: Path, split: Split) -> Path:
    """The file of predictions that a path means: itself, or the run folder's of a split."""
    if not path.is_dir():
        return path
    saved = path / "predictions" / f"{split}.npz"
    if not saved.exists():
        command = f"lcn evaluate {path}" + ("" if split == "test" else f" --split {split}")
        raise DataError(f"{path} has no saved predictions; run `{command}` first")
    return saved
