"""`lcn half-width`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from lcn.schema import SPLITS


@click.command("half-width")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--split", type=click.Choice(SPLITS), default="validation", show_default=True,
    help="Which samples.",
)  # fmt: skip
@click.option("--dataset", help="Where the dataset is now, if it has moved.")
@click.option("--keep", default=0, help="Rows compared; 0 takes what the first stage keeps.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def half_width(run: Path, split: str, dataset: str | None, keep: int, as_json: bool) -> None:
    """The quality gate of half-width (bfloat16) histories for a trained RUN.

    Passes, with exit status 0, when search finds at least 99 % of the rows that it finds in full
    width and AUC changes by at most 0.0001; then model.history_vectors=bfloat16 is safe.
    """
    from lcn.evaluate.half_width import measure_half_width
    from lcn.evaluate.tables import plain
    from lcn.train import open_run

    opened = open_run(run, dataset)
    found = measure_half_width(
        opened.model, opened.dataset, split, opened.config.batch, keep=keep  # type: ignore[arg-type]
    )  # fmt: skip
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
            f"largest change of a logit: {found.largest_logit_change:.4f}\n"
            + ("passed" if found.passed else "failed: keep model.history_vectors: float32")
        )
    sys.exit(0 if found.passed else 1)
