"""`lcn evaluate` and `lcn predict`."""

from __future__ import annotations

from pathlib import Path

import click

from lcn.cli.output import (
    dataset_option,
    resamples_option,
    result_console,
    seed_option,
    split_option,
)
from lcn.schema import Split


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@split_option()
@dataset_option
@resamples_option(200)
@seed_option("Seed of the resampling.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    runs: tuple[Path, ...],
    split: Split,
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

    rows = evaluate_runs(runs, split, dataset=dataset, resamples=resamples, seed=seed)
    if as_json:
        click.echo(results_json(rows))
        return
    result_console().print(results_table(rows))
    if len(rows) > 1 and len({row.seeds for row in rows}) == 1:
        click.echo(f"next: lcn compare {' '.join(str(run) for run in runs)}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@split_option()
@dataset_option
def predict(run: Path, out: Path, split: Split, dataset: str | None) -> None:
    """Write RUN's click probabilities of a split to OUT (.parquet or .csv).

    Columns: user and item as named in the logs, time (UTC milliseconds), label, probability.
    """
    if out.suffix not in (".parquet", ".csv"):
        raise click.UsageError(f"{out}: expected a name ending in .parquet or .csv")

    from lcn.api import predict as predict_run
    from lcn.train.predictions_table import write_table

    table = predict_run(run, split, dataset=dataset)
    write_table(table, out)
    click.echo(f"{out}: {table.num_rows:,} rows")
