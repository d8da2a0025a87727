"""`lcn evaluate` and `lcn predict`."""

from __future__ import annotations

from pathlib import Path

import click

from lcn.cli.output import result_console, seed_option
from lcn.schema import SPLITS

_SPLIT = click.option(
    "--split", type=click.Choice(SPLITS), default="test", show_default=True, help="Which samples."
)
_DATASET = click.option("--dataset", help="Where the dataset is now, if it has moved.")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@_SPLIT
@_DATASET
@click.option(
    "--resamples",
    type=click.IntRange(min=2),
    default=200,
    show_default=True,
    help="Bootstrap resamples of users.",
)
@seed_option("Seed of the resampling.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    runs: tuple[Path, ...],
    split: str,
    dataset: str | None,
    resamples: int,
    seed: int,
    as_json: bool,
) -> None:
    """Measure trained RUNS: AUC, GAUC, log loss and calibration with intervals over users.

    Runs that differ in the seed alone are one row; predictions are left in each run folder for
    `lcn compare`.
    """
    from lcn.api import evaluate as evaluate_runs
    from lcn.evaluate.tables import results_json, results_table

    rows = evaluate_runs(runs, split, dataset=dataset, resamples=resamples, seed=seed)  # type: ignore[arg-type]
    if as_json:
        click.echo(results_json(rows))
        return
    result_console().print(results_table(rows))
    if len(runs) > 1:
        click.echo(f"next: lcn compare {' '.join(str(run) for run in runs)}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@_SPLIT
@_DATASET
def predict(run: Path, out: Path, split: str, dataset: str | None) -> None:
    """Write RUN's click probabilities of a split to OUT (.parquet or .csv).

    Columns: user and item as named in the logs, time (UTC milliseconds), label, probability.
    """
    from lcn.train import open_run
    from lcn.train.predictions_table import write_predictions

    opened = open_run(run, dataset)
    rows = write_predictions(opened, split, out)  # type: ignore[arg-type]
    click.echo(f"{out}: {rows:,} rows")
