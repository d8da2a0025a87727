"""`lcn prepare`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lcn.api import prepare as run_prepare
from lcn.cli.data import source_options
from lcn.data.sources import SOURCES
from lcn.schema import SPLITS, Manifest


@click.command()
@click.argument("logs", metavar="SOURCE_OR_MAPPING")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--force", is_flag=True, help="Replace a dataset that is already at OUT.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the source (see `lcn data list`); repeat for several.",
)
@click.option(
    "--path",
    type=click.Path(path_type=Path, exists=True),
    help="Files of the source you already have, instead of the cache or a download.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Default: one per processor.")
@click.option(
    "--memory",
    default="2GB",
    show_default=True,
    help="Limit of the SQL engine; the process needs up to 1 GB more.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def prepare(
    logs: str,
    out: Path,
    force: bool,
    settings: tuple[str, ...],
    path: Path | None,
    threads: int | None,
    memory: str,
    as_json: bool,
) -> None:
    """Turn logs into the dataset folder OUT.

    SOURCE_OR_MAPPING is a name of `lcn data list`, fetched if need be, or a mapping file (YAML)
    that says which column of your own logs is what; docs/data.md has an example.
    """
    options = {}
    if logs in SOURCES:
        options = source_options(logs, settings)
        click.echo(SOURCES[logs].licence + "\n", err=True)
    elif settings or path:
        raise click.UsageError("--set and --path are for built-in sources, not for mapping files")
    manifest = run_prepare(
        logs,
        out,
        force=force,
        path=path,
        threads=threads,
        memory_limit=memory,
        progress=True,
        **options,
    )
    if as_json:
        click.echo(json.dumps({"folder": str(out), **manifest.model_dump(mode="json")}, indent=1))
    else:
        click.echo(_summary(out, manifest))


def _summary(out: Path, manifest: Manifest) -> str:
    count = manifest.count
    lines = [
        f"{out}: {manifest.name}, {count.users - 1:,} users, {count.items - 1:,} items",
        *(f"  {domain} events: {rows:,}" for domain, rows in count.events.items()),
        *(
            f"  {split}: {count.samples[split]:,} impressions, {count.positives[split]:,} clicked"
            for split in SPLITS
        ),
    ]
    for table, reasons in manifest.rejected.items():
        lines += [f"  left out of {table}: {n:,} {reason}" for reason, n in reasons.items()]
    return "\n".join(lines)
