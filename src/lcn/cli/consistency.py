"""`lcn consistency`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lcn.cli.output import dataset_option, result_console, seed_option, split_option
from lcn.schema import Split

if TYPE_CHECKING:
    from lcn.evaluate.readings import ConsistencyRow


def _count_option(name: str, default: int, about: str, least: int = 0) -> Any:
    number = click.IntRange(min=least)
    return click.option(name, type=number, default=default, show_default=True, help=about)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@split_option()
@dataset_option
@_count_option("--size", 50, "Rows in the exact set.", least=1)
@_count_option("--least", 100, "Impressions with fewer rows are left out.")
@_count_option("--limit", 2000, "Impressions at most; 0 takes all.")
@click.option(
    "--k1",
    type=click.IntRange(min=0),
    multiple=True,
    help="For LAP: also with this K1 (0: all rows).",
)
@seed_option("Which impressions are drawn.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects.")
def consistency(
    runs: tuple[Path, ...],
    split: Split,
    dataset: str | None,
    k1: tuple[int, ...],
    as_json: bool,
    **sizes: Any,
) -> None:
    """Does search deliver what attention would choose? The consistency of trained RUNS (Figure 5).

    Of the rows that the final stage would weigh most over the whole history, the share that the
    stages before it deliver. One definition for every backbone, beside what a random choice
    scores; TWIN is reported three ways.
    """
    from lcn.api import consistency as measure
    from lcn.evaluate.consistency import ConsistencyConfig
    from lcn.evaluate.tables import plain

    config = ConsistencyConfig(**sizes)
    rows = [
        row for run in runs for row in measure(run, split, config=config, k1=k1, dataset=dataset)
    ]
    if as_json:
        click.echo(json.dumps(plain([asdict(row) for row in rows]), indent=1))
        return
    _print(rows)


def _print(rows: list[ConsistencyRow]) -> None:
    from rich.table import Table

    table = Table(title="Consistency", title_justify="left")
    for title in ("run", "backbone", "seed", "exact set", "K1"):
        table.add_column(title)
    for title in ("consistency", "± error", "random", "impressions", "share of split"):
        table.add_column(title, justify="right")
    for row in rows:
        found = row.consistency
        table.add_row(
            row.run,
            row.backbone,
            str(row.seed),
            row.way,
            "-" if row.k1 is None else str(row.k1 or "all"),
            *(
                "-" if math.isnan(number) else f"{number:.3f}"
                for number in (found.value, found.error, found.chance)
            ),
            f"{found.impressions:,}",
            f"{found.kept_share:.0%}",
        )
    result_console().print(table)
