"""`lcn half-width`."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lcn.cli.output import dataset_option, split_option
from lcn.schema import Split

if TYPE_CHECKING:
    from lcn.evaluate.half_width import HalfWidth


@click.command("half-width")
@click.argument("run", type=click.Path(path_type=Path))
@split_option("validation")
@dataset_option
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=0,
    help="Rows compared; 0 takes what the first stage keeps.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def half_width(run: Path, split: Split, dataset: str | None, keep: int, as_json: bool) -> None:
    """The quality gate of half-width (bfloat16) histories for a trained RUN.

    Passes, with exit status 0, when search finds at least 99 % of the rows that it finds in full
    width and AUC changes by at most 0.0001; then model.history_vectors=bfloat16 is safe.
    """
    from lcn.api import half_width as measure
    from lcn.evaluate.tables import plain

    found = measure(run, split, keep=keep, dataset=dataset)
    if as_json:
        tree = plain({**asdict(found), "passed": found.passed})
        click.echo(json.dumps(tree, indent=1))
    else:
        change = found.auc_bfloat16 - found.auc_float32
        click.echo(
            f"{found.impressions:,} impressions of the {split} split\n"
            f"recall of the {found.keep} rows found first: {found.recall:.4f} (at least 0.99)\n"
            f"AUC {found.auc_float32:.5f} in float32, {found.auc_bfloat16:.5f} in bfloat16: "
            f"{change:+.6f} (at most 0.0001 either way)\n"
            f"largest change of a logit: {found.largest_logit_change:.4f}\n" + _verdict(found)
        )
    sys.exit(0 if found.passed else 1)


def _verdict(found: HalfWidth) -> str:
    if found.passed:
        return "passed"
    unknown = math.isnan(found.auc_float32)
    reason = "AUC is undefined, all impressions have one label" if unknown else "failed"
    return f"{reason}: keep model.history_vectors: float32"
